"""What is said of values that do not fit a schema."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import AfterValidator

from artel.protocol import schema
from artel.protocol.errors import DecodeError


def refuse(value: str) -> str:
    raise ValueError(f"{value} is odd")


class Named(schema.Record):
    alias: Annotated[str, AfterValidator(refuse)]


@pytest.mark.parametrize(("what", "place"), [("alias", "alias"), ("entry", "entry: alias")])
def test_what_is_wrong_is_said_once_and_in_our_words(what: str, place: str) -> None:
    with pytest.raises(DecodeError) as error:
        schema.checked(Named, {"alias": "this"}, what)
    assert error.value.message == f"{place}: this is odd"
