"""Canonical JSON (RFC 8785), encoded by the ``rfc8785`` package and decoded strictly.

A fact has exactly one encoding: :func:`loads` accepts a text only when encoding the result gives
the same bytes again, so two parties that agree on the meaning agree on the hash.
"""

from __future__ import annotations

import json
from typing import Any

import rfc8785

from protocol.errors import DecodeError

MAX_DEPTH = 16
"""Deepest nesting that a decoder accepts; our own documents use at most 6."""


def dumps(value: Any) -> bytes:
    """Canonical bytes of ``value`` (dict, list, str, int below 2^53, float, bool, None).

    :raises DecodeError: when the value cannot be represented (NaN, large int, other types)
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise DecodeError(f"value has no canonical JSON form: {error}") from None


def loads(data: bytes, *, floats: bool = False) -> Any:
    """Decode canonical JSON and nothing else.

    :param data: the bytes; the caller bounds their number
    :param floats: whether numbers with a fraction are allowed (manifests yes, the ledger never)
    :raises DecodeError: on any input that is not the canonical encoding of a value
    """

    def no_float(text: str) -> float:
        if not floats:
            raise DecodeError(f"number {text[:20]!r} is not an integer")
        return float(text)

    def no_constant(text: str) -> float:
        raise DecodeError(f"{text} is not a JSON number")

    try:
        value = json.loads(data.decode("utf-8"), parse_float=no_float, parse_constant=no_constant)
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {str(error)[:120]}") from None
    if _depth(value) > MAX_DEPTH:
        raise DecodeError(f"JSON is nested deeper than {MAX_DEPTH} levels")
    if dumps(value) != data:
        raise DecodeError("JSON is not in canonical form (RFC 8785)")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion up to one more than the limit."""
    level, nodes = 0, [value]
    while nodes and level <= MAX_DEPTH:
        children: list[Any] = []
        for node in nodes:
            if isinstance(node, dict):
                children.extend(node.values())
            elif isinstance(node, list):
                children.extend(node)
        nodes, level = children, level + 1
    return level
