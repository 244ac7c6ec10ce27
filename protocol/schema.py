"""Records with a schema: what comes from outside is one of these, or it is refused."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from artel.protocol import canonical
from artel.protocol.errors import DecodeError
from artel.protocol.terminal import steers

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes: a digest, a content id, a public key."""
OptionalDigest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
"""The same, or empty."""
MAX_EXACT = 2**53 - 1
"""Largest integer that every JSON reader keeps exact."""


class Record(BaseModel):
    """Strict and frozen: no unknown fields, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Conflict(ValueError):
    """A rule between fields is broken; ``hint`` names the fix."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Section(Record):
    """A table, whose fields have descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def one_line(value: str, info: ValidationInfo) -> str:
    """Refuse what volunteers would never be shown as it is written."""
    return shown(value, str(info.field_name))


def shown(value: str, where: str) -> str:
    """The text, unless people would be shown another than is written; ``where`` it stands."""
    if steers(value):
        raise Conflict(
            f"{where} holds a line break, a control character or a mark that turns the direction "
            "of text",
            "write it in one line of plain text",
        )
    return value


Schema = TypeVar("Schema", bound=BaseModel)


def checked(schema: type[Schema], value: Any, what: str) -> Schema:
    """The record that plain values stand for.

    :param what: what errors call it
    :raises DecodeError: naming the first field that is wrong
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise refused(error, what) from None


def parsed(
    schema: type[Schema], data: bytes, what: str, most: int, *, floats: bool = False
) -> Schema:
    """The record of canonical JSON of at most ``most`` bytes.

    :param floats: as in :func:`protocol.canonical.loads`
    :raises DecodeError: on anything but the canonical encoding of a valid record
    """
    if len(data) > most:
        raise DecodeError(f"{what} of {len(data)} bytes, at most {most} allowed")
    canonical.loads(data, floats=floats)
    try:
        return schema.model_validate_json(data)
    except ValidationError as error:
        raise refused(error, what) from None


def refused(error: ValidationError, what: str) -> DecodeError:
    """What is wrong first, in one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "body"
    place = what if where == what else f"{what}: {where}"
    said = first["msg"].removeprefix("Value error, ")  # pydantic's word for a check of ours
    return DecodeError(f"{place}: {said[:200]}")
