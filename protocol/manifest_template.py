"""The commented run file that ``artel run new`` writes, and the reference in ``docs/manifest.md``.

Both are made from the models of :mod:`protocol.run_config`, so that neither can fall behind them.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from artel.protocol.manifest import Manifest
from artel.protocol.run_config import (
    Data,
    Exchange,
    Model,
    Optimizer,
    Outer,
    Rounds,
    Run,
    RunConfig,
    Section,
    StdlibSource,
    TextSource,
    Tokenizer,
)
from artel.protocol.run_file import bounds, models_in

WIDTH = 100


def _llama(width: int, inner: int, layers: int, heads: int, positions: int) -> Model:
    return Model(
        type="llama",
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": positions,
            "tie_word_embeddings": True,
        },
    )


_PYTHON: tuple[StdlibSource | TextSource, ...] = (StdlibSource(kind="stdlib"),)

SIZES = {
    "tiny": RunConfig(
        run=Run(name="my-first-run"),
        model=_llama(128, 344, 4, 4, 256),
        tokenizer=Tokenizer(kind="bpe", vocab_size=1024),
        data=Data(sources=_PYTHON),
    ),
    "small": RunConfig(
        run=Run(name="my-first-run"),
        model=_llama(384, 1024, 8, 6, 512),
        tokenizer=Tokenizer(kind="bpe", vocab_size=8192),
        data=Data(sources=_PYTHON, seq_len=256),
        optimizer=Optimizer(lr=1e-3, warmup_steps=200),
        rounds=Rounds(total=200, inner_steps=40, max_nodes=16, deadline_s=1800.0),
    ),
    "100m": RunConfig(
        run=Run(name="my-first-run"),
        model=_llama(768, 2048, 12, 12, 1024),
        tokenizer=Tokenizer(kind="bpe", vocab_size=16384),
        data=Data(sources=_PYTHON, seq_len=512, shard_tokens=2**20),
        optimizer=Optimizer(lr=6e-4, warmup_steps=500),
        rounds=Rounds(
            total=400,
            inner_steps=50,
            max_nodes=16,
            deadline_s=3600.0,
            reveal_s=300.0,
            settle_s=300.0,
        ),
        exchange=Exchange(codec="sparse"),
    ),
}
"""What ``artel run new --size`` writes: about 1, 17 and 98 million parameters. The first is for a
machine that does other things too, the last for graphics cards."""


def example(size: str = "tiny", name: str = "my-first-run", data: str = "") -> RunConfig:
    """A run of a size, with a name, on a file or folder ``data`` ("": Python's own sources).

    The name and ``data`` are not checked; whoever reads the file does that.
    """
    config = SIZES[size]
    learns = f"learns from {PurePath(data).name}" if data else "learns to write Python"
    about = f"A Llama of the size {size} that {learns}."
    source = TextSource.model_construct(kind="text", path=data)
    sources = (source,) if data else _PYTHON
    return config.model_copy(
        update={
            "run": Run.model_construct(name=name, description=about),
            "data": config.data.model_copy(update={"sources": sources}),
        }
    )


EXAMPLE = example()
"""About a million parameters on the Python sources that every machine has."""

_HEAD = """\
# A run of Artel: what is trained, on what, and by which rules. Edit it, then:
#   artel run check {name}       what it means: parameters, bytes, memory, tokens
#   artel coordinator start {name} --home DIR --http 127.0.0.1:8080
# A value that is left out has the default that is written here. Once published a run never changes.
"""

_REFERENCE_HEAD = """\
# The run file and the manifest

<!-- Made by `python -m artel.protocol.manifest_template > docs/manifest.md`; tested. -->

A run is described by one TOML file. `artel run new DIR` writes a commented one, `artel run check
FILE` explains what it means, and `artel run prepare FILE --home DIR` turns it into a signed
**manifest**. Unknown keys, values of another type and values out of bounds are refused. A whole
number may stand where a number is asked for; nothing else is converted.
"""

_MANIFEST_HEAD = """
## The manifest

The manifest holds the whole run file, defaults included, as `config`, and the facts that preparing
it resolved. It is canonical JSON (RFC 8785) of at most 5,600 bytes, signed by the organiser in a
DSSE envelope with the payload type `application/vnd.artel.manifest+json`. The SHA-256 of those
bytes is the **run id**, and the envelope is the first entry of the run's ledger.
"""


def template(name: str = "RUN.toml", config: RunConfig = EXAMPLE) -> str:
    """A run as commented TOML; ``name`` is what the file is called in its comments."""
    return _HEAD.format(name=name) + "".join(
        _table((section,), getattr(config, section)) for section in RunConfig.model_fields
    )


def reference() -> str:
    """Every field of the run file and of the manifest, in Markdown."""
    parts = [_REFERENCE_HEAD]
    for title, model in _tables("", RunConfig):
        parts.append(f"\n## [{title}]\n\n{model.__doc__}\n\n" + _rows(model))
    parts.append(_MANIFEST_HEAD)
    tables: list[tuple[str, type[Section]]] = [("Manifest", Manifest), *_tables("", Manifest)]
    for title, model in tables:
        if title.startswith("config"):
            continue  # above
        parts.append(f"\n### {title}\n\n{model.__doc__}\n\n" + _rows(model))
    return "".join(parts)


def _tables(path: str, model: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """The tables inside a model, each followed by those in it; those of one kind come together."""
    titles: dict[type[Section], list[str]] = {}
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            tag = inner.model_fields.get("kind") if get_args(field.annotation) else None
            choice = f', kind = "{get_args(tag.annotation)[0]}"' if tag else ""
            titles.setdefault(inner, []).append(f"{path}{name}{choice}")
    for inner, names in titles.items():
        yield ", ".join(names), inner
        yield from _tables(f"{names[0]}.", inner)


def _table(path: tuple[str, ...], section: BaseModel) -> str:
    """One TOML table with a comment above every key; tables inside it follow."""
    lines = [f"\n# {(section.__doc__ or '').splitlines()[0]}", f"[{'.'.join(path)}]"]
    inner = ""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner += _table((*path, name), value)
            continue
        limits = bounds(field)
        comment = " ".join(filter(None, (field.description, f"({limits})" if limits else "")))
        if isinstance(value, dict):
            inner += "\n" + _comment(comment) + f"[{'.'.join((*path, name))}]\n"
            inner += "".join(f"{key} = {_toml(item)}\n" for key, item in value.items())
            continue
        # What depends on the codec is shown, and left to it until somebody takes the mark away.
        mark = "# " if isinstance(section, Outer) else ""
        lines.append(_comment(comment) + f"{mark}{name} = {_toml(value)}")
    return "\n".join(lines) + "\n" + inner


def _comment(text: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - 2)
    return "".join(f"# {line}\n" for line in lines)


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        pairs = (f"{key} = {_toml(item)}" for key, item in value.model_dump().items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _rows(model: type[BaseModel]) -> str:
    return "| key | value | default | meaning |\n|---|---|---|---|\n" + "".join(
        f"| `{name}` | {kind} | {default} | {meaning} |\n"
        for name, kind, default, meaning in _described(model)
    )


def _described(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        kind = ", ".join(filter(None, (_type_words(field), bounds(field))))
        default = "required" if field.is_required() else "table"
        if not field.is_required() and not isinstance(field.default, BaseModel):
            default = f"`{_toml(field.default)}`"
        meaning = " ".join((field.description or "").split())
        yield name, kind.replace("|", "\\|"), default, meaning.replace("|", "\\|")


def _type_words(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    if get_args(kind):  # a Literal: its bounds say everything
        return "" if bounds(field) else "the number " + str(get_args(kind)[0])
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return names.get(kind, "value") if isinstance(kind, type) else "value"


if __name__ == "__main__":
    print(reference(), end="")
