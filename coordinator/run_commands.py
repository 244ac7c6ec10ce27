"""``artel run``: write, explain and prepare the file that describes a run."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
import unicodedata
from pathlib import Path

from artel.protocol.arguments import Parser
from artel.protocol.errors import EXIT_OK, UsageError

EXIT_CODES = """\
exit codes: 0 done · 1 a prepared run is damaged
            2 the file, its data or its model cannot be used
            4 this machine lacks something (disk space, the lock of a home)"""
RUN_FILE = "RUN.toml"
SIZES = ("tiny", "small", "100m")
QUIET_S = 3.0
"""A check that takes longer than this says what it does."""


def main(argv: list[str]) -> int:
    """Run ``artel run ...``; returns the exit code.

    :raises ArtelError: with the exit code of its class
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "new":
        return _new(arguments.folder, arguments.name, arguments.data, arguments.size)
    if arguments.command == "check":
        return _check(arguments.file, as_json=arguments.json)
    return _prepare(arguments.file, arguments.home, as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="artel run",
        description="Write, explain and prepare the file that describes a run.",
        epilog="example: artel run new my-run && artel run check my-run/RUN.toml\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: {example}\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    new = add(
        "new", f"write a commented {RUN_FILE} into a folder", "artel run new my-run --size small"
    )
    new.add_argument("folder", type=Path, metavar="DIR", help="made when it is not there")
    new.add_argument("--name", help="of the run (default: that of DIR)")
    new.add_argument(
        "--data", type=Path, metavar="PATH", help="text to train on (default: Python's own sources)"
    )
    new.add_argument(
        "--size",
        choices=SIZES,
        default=SIZES[0],
        help="of the model: about 1, 17 or 98 million parameters (default: %(default)s)",
    )

    check = add(
        "check",
        "explain what a run file means: parameters, bytes per round, memory, tokens",
        "artel run check my-run/RUN.toml",
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the run file")
    check.add_argument("--json", action="store_true", help="print one JSON object")

    prepare = add(
        "prepare",
        "cut the data into shards, draw the first parameters and sign the manifest",
        "artel run prepare my-run/RUN.toml --home coordinator",
    )
    prepare.add_argument("file", type=Path, metavar="FILE", help="the run file")
    prepare.add_argument(
        "--home", type=Path, required=True, metavar="DIR", help="home of the coordinator"
    )
    prepare.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _new(folder: Path, name: str | None, data: Path | None, size: str) -> int:
    from artel.coordinator.text_files import shown
    from artel.protocol.manifest_template import example, template
    from artel.protocol.run_file import parse_config

    if data is not None and not data.exists():
        raise UsageError(f"the text {data} does not exist", "give a file or a folder with --data")
    if name is None:
        name = _run_name(folder)
    source = "" if data is None else os.path.relpath(data, folder)
    if not source.isprintable():
        raise UsageError(
            f"a run file cannot hold the path {shown(Path(source))}", "rename the file or folder"
        )
    text = template(config=example(size, name, source))
    parse_config(text.encode(), "the new run file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} is, or lies in, a file", "name a folder") from None
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {folder}: {error.strerror}", "choose another folder"
        ) from None
    path = folder / RUN_FILE
    try:
        # "x": never write over a file that somebody edited.
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} already exists", "choose another folder, or edit it") from None
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", "choose another folder"
        ) from None
    print(f"wrote {path}")
    print(f"  next: artel run check {shlex.quote(str(path))}")
    return EXIT_OK


def _run_name(folder: Path) -> str:
    """A folder's name as the name of a run."""
    plain = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join(words)[:40].rstrip("-") or "my-run"


class _Stages:
    """One line a stage and quarter, on stderr: stdout belongs to the result."""

    def __init__(self, quiet_s: float = 0.0) -> None:
        self._begin = time.monotonic() + quiet_s
        self._shown: tuple[str, int] = ("", -1)

    def __call__(self, stage: str, fraction: float) -> None:
        step = (stage, int(fraction * 4))
        if step != self._shown and time.monotonic() >= self._begin:
            self._shown = step
            percent = f" {step[1] * 25:>3} %" if fraction else ""
            print(f"{stage}{percent}", file=sys.stderr, flush=True)


def _check(path: Path, *, as_json: bool) -> int:
    from artel.coordinator.estimate import estimate, render
    from artel.protocol.run_file import load_config

    config = load_config(path)
    progress = _Stages(QUIET_S)
    found = estimate(config, path, lambda done: progress("reading the text", done))
    print(json.dumps(found.as_json(), indent=2) if as_json else render(found))
    return EXIT_OK


def _prepare(path: Path, home: Path, *, as_json: bool) -> int:
    from artel.coordinator.prepare import manifest_path, prepare

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    prepared = prepare(path, home, _Stages(), say)
    manifest = prepared.manifest
    if as_json:
        facts = {
            "run": prepared.run_id,
            "name": manifest.config.run.name,
            "fresh": prepared.fresh,
            "manifest": str(manifest_path(home)),
            "parameters": manifest.model.parameters,
            "vocab_size": manifest.tokenizer.vocab_size,
            "train_tokens": manifest.data.train.tokens,
            "validation_tokens": manifest.data.validation.tokens,
            "initial_state": manifest.initial_state,
        }
        print(json.dumps(facts, indent=2))
        return EXIT_OK
    data = manifest.data
    print(f"{'prepared' if prepared.fresh else 'already prepared'}: {manifest.config.run.name}")
    print(f"  run id      {prepared.run_id}")
    print(f"  model       {manifest.model.parameters:,} parameters")
    print(
        f"  tokenizer   {manifest.config.tokenizer.kind}, {manifest.tokenizer.vocab_size:,} tokens"
    )
    print(f"  train       {data.train.tokens:,} tokens ({_shards(data.train.shards)})")
    print(f"  validation  {data.validation.tokens:,} tokens ({_shards(data.validation.shards)})")
    print(f"  manifest    {manifest_path(home)}")
    return EXIT_OK


def _shards(count: int) -> str:
    return f"{count} shard" if count == 1 else f"{count} shards"
