"""``artel run``: write, explain and prepare the file that describes a run, and change its rules."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from artel.protocol import commandline, options
from artel.protocol.commandline import AsJson, File, Folder, fields, show
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.protocol.run_config import RunConfig

RUN_FILE = "RUN.toml"
QUIET_S = 3.0
"""A check that takes longer than this says what it does."""

app = commandline.group(
    "run",
    "Write, explain and prepare the file that describes a run; change the rules of one that goes "
    "on.",
    {
        0: "done",
        1: "a prepared run is damaged, or its ledger refuses the change",
        2: "the file, its data or its model cannot be used",
        3: "nobody takes the change",
        4: "this machine lacks something (disk space, the lock of a home)",
    },
)

for _command in ("amend", "pause", "resume", "stop", "extend", "status"):
    app.command(f"artel.coordinator.organising:{_command}", name=_command)

app.command("artel.coordinator.tracking:track")

RunFile = Annotated[Path, commandline.value(options.path, RUN_FILE)]


@app.command
def new(
    folder: Folder,
    /,
    *,
    name: str | None = None,
    data: File | None = None,
    size: Literal["tiny", "small", "100m"] = "tiny",
) -> int:
    """Write a commented RUN.toml into a folder.

    example: artel run new my-run --size small

    :param folder: made when it is not there
    :param name: of the run; otherwise that of FOLDER
    :param data: text to train on; otherwise Python's own sources
    :param size: of the model: about 1, 17 or 98 million parameters
    """
    from artel.protocol.manifest_template import example

    source = text_source(folder, data)
    write(folder, example(size, run_name(folder) if name is None else name, source))
    return EXIT_OK


def text_source(folder: Path, data: Path | None) -> str:
    """Text to train on as a run file in ``folder`` names it; "" for none.

    :raises UsageError: there is no such text, or its name cannot be written
    """
    from artel.coordinator.text_files import shown

    if data is None:
        return ""
    if not data.exists():
        raise UsageError(f"the text {data} does not exist", "give a file or a folder with --data")
    source = os.path.relpath(data, folder)
    if not source.isprintable():
        raise UsageError(
            f"a run file cannot hold the path {shown(Path(source))}", "rename the file or folder"
        )
    return source


def write(folder: Path, config: RunConfig) -> None:
    """Write a commented run file into a folder that has none, and say what comes next.

    :raises UsageError: it is not valid, is there already, or cannot be written
    """
    from artel.protocol.manifest_template import template
    from artel.protocol.run_file import parse_config

    text = template(config=config)
    parse_config(text.encode(), "the new run file")
    path = folder / RUN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # "x": never write over a file that somebody edited.
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(
            f"the file {error.filename} already exists", "choose another folder"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename}: {error.strerror}", "choose another folder"
        ) from None
    print(f"wrote {path}")
    print(f"  next: artel run check {shlex.quote(str(path))}")


def run_name(folder: Path) -> str:
    """A folder's name as the name of a run."""
    plain = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join(words)[:40].rstrip("-") or "my-run"


@app.command
def check(file: RunFile, /, *, as_json: AsJson = False) -> int:
    """Explain what a run file means: parameters, bytes per round, memory, tokens.

    example: artel run check my-run/RUN.toml

    :param file: the run file
    """
    from artel.coordinator.estimate import estimate, render
    from artel.coordinator.preparation import Stages
    from artel.protocol.run_file import load_config

    config = load_config(file)
    found = estimate(config, file, Stages(QUIET_S))
    return show(found, [render(found)], as_json=as_json)


@app.command
def prepare(file: RunFile, /, *, home: Folder, as_json: AsJson = False) -> int:
    """Cut the data into shards, draw the first parameters and sign the manifest.

    example: artel run prepare my-run/RUN.toml --home coordinator

    :param file: the run file
    :param home: of the coordinator
    """
    from artel.coordinator import prepare as preparing
    from artel.coordinator.preparation import Stages, manifest_path
    from artel.ledger.entries.words import plural

    prepared = preparing.prepare(file, home, Stages())
    manifest = prepared.manifest
    data, config, vocabulary = manifest.data, manifest.config, manifest.tokenizer.vocab_size
    facts = {
        "run": prepared.run,
        "name": config.run.name,
        "fresh": prepared.fresh,
        "manifest": str(manifest_path(home)),
        "parameters": manifest.model.parameters,
        "vocab_size": vocabulary,
        "train_tokens": data.train.tokens,
        "validation_tokens": data.validation.tokens,
        "initial_state": manifest.initial_state,
    }
    shown = fields(
        [
            ("prepared" if prepared.fresh else "already prepared", config.run.name),
            ("run id", prepared.run),
            ("model", f"{manifest.model.parameters:,} parameters"),
            ("tokenizer", f"{config.tokenizer.kind}, {vocabulary:,} tokens"),
            ("train", f"{data.train.tokens:,} tokens ({plural(data.train.shards, 'shard')})"),
            (
                "validation",
                f"{data.validation.tokens:,} tokens ({plural(data.validation.shards, 'shard')})",
            ),
            ("manifest", str(manifest_path(home))),
        ]
    )
    return show(facts, [shown], as_json=as_json)
