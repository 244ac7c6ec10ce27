"""Canonical JSON (RFC 8785), encoded by the ``rfc8785`` package and decoded strictly.

A fact has exactly one encoding: :func:`loads` accepts a text only when encoding the result gives
the same bytes again, so two parties that agree on the meaning agree on the hash.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import rfc8785

from artel.protocol.errors import DecodeError

MAX_DEPTH = 16
"""Deepest nesting that a decoder accepts; our own documents use at most 6."""
MAX_INTEGER = (1 << 53) - 1
"""Largest whole number that every JSON implementation keeps exactly."""


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

    try:
        text = data.decode("utf-8")
        value = (_WITH_FLOATS if floats else _INTEGERS_ONLY).decode(text)
    except DecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {str(error)[:120]}") from None
    # No deeper than it has brackets; most texts have few, and need not be walked.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DecodeError(f"JSON is nested deeper than {MAX_DEPTH} levels")
    if not floats and data.isascii() and _PLAIN.encode(value) == text:
        return value
    if dumps(value) != data:
        raise DecodeError("JSON is not in canonical form (RFC 8785)")
    return value


def _no_float(text: str) -> NoReturn:
    raise DecodeError(f"number {text[:20]!r} is not an integer")


def _no_constant(text: str) -> NoReturn:
    raise DecodeError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    # Sixteen digits and a sign at most: no long text is ever converted, which takes quadratic time.
    value = int(text) if len(text) <= 17 else MAX_INTEGER + 1
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise DecodeError(f"value has no canonical JSON form: {text[:20]} is 2^53 or more")
    return value


_WITH_FLOATS = json.JSONDecoder(parse_int=_integer, parse_constant=_no_constant)
_INTEGERS_ONLY = json.JSONDecoder(
    parse_int=_integer, parse_float=_no_float, parse_constant=_no_constant
)
# For ASCII texts of integers, strings and containers, the standard library's compact form with
# sorted keys is RFC 8785's (which differs in numbers with a fraction, and in the order of keys
# beyond U+FFFF), and it is five times as fast. What it does not confirm, rfc8785 decides.
_PLAIN = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")
)


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
