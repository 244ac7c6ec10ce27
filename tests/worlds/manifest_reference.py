"""The reference of the run file and the manifest, ``docs/manifest.md``, made from their models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from artel.protocol.amending import AMENDABLE
from artel.protocol.manifest import Manifest
from artel.protocol.manifest_template import toml
from artel.protocol.run_config import RunConfig
from artel.protocol.run_file import bounds, models_in
from artel.protocol.schema import Section

_REFERENCE_HEAD = """\
# The run file and the manifest

<!-- Made by `python tests/worlds/manifest_reference.py > docs/manifest.md`; tested. -->

A run is described by one TOML file. `artel run new DIR` writes a commented one, `artel run check
FILE` explains what it means, and `artel run prepare FILE --home DIR` turns it into a signed
**manifest**. Unknown keys, values of another type and values out of bounds are refused. A whole
number may stand where a number is asked for; nothing else is converted.
"""

_MANIFEST_HEAD = """
## What can be changed later

The organiser changes some settings of a run that goes on by a signed entry of the ledger, from a
round on that it names, and all nodes follow without a restart: `artel run amend optimizer.lr=1e-4
--from-round 40 --home DIR`. These are $SETTINGS.

Muon's rate follows `optimizer.lr` in proportion. The curve of the schedule is drawn anew over
`rounds.total`, as if it had been so from the start. `rounds.max_nodes` can be lowered, and raised
again up to what is written here. `artel run extend 200 --home DIR` changes `rounds.total`, `artel
run stop --home DIR` makes the next round the end, `artel run pause --home DIR` and `artel run
resume --home DIR` set `paused`, and `artel run status --home DIR` lists the amendments. What a
round that was opened is made of does not change, nor do the model, the exchange, the inner steps
of a round, or what work is worth. Who may take part is said with `artel ledger admit KEY`.

## The manifest

The manifest holds the whole run file, defaults included, as `config`, and the facts that preparing
it resolved. It is canonical JSON (RFC 8785) of at most 5,600 bytes, signed by the organiser in a
DSSE envelope with the payload type `application/vnd.artel.manifest+json`. The SHA-256 of those
bytes is the **run id**, and the envelope is the first entry of the run's ledger.
"""


def reference() -> str:
    """Every field of the run file and of the manifest, in Markdown."""
    parts = [_REFERENCE_HEAD]
    for title, model in _tables("", RunConfig):
        parts.append(f"\n## [{title}]\n\n{model.__doc__}\n\n" + _rows(model))
    settings = ", ".join(f"`{name}`" for name in AMENDABLE)
    parts.append(_MANIFEST_HEAD.replace("$SETTINGS", settings))
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
            default = f"`{toml(field.default)}`"
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
