"""Codecs: how a pseudo-gradient becomes bytes. One file each; a manifest chooses by name."""

from __future__ import annotations

from protocol.codec.fp16 import Fp16
from protocol.codec.fp32 import Fp32
from protocol.codec.int4 import Int4
from protocol.codec.int8 import Int8
from protocol.codec.interface import Codec, NonFinite, Payload
from protocol.errors import UsageError

__all__ = ["CODECS", "Codec", "NonFinite", "Payload", "codec"]

CODECS: dict[str, Codec] = {c.name: c for c in (Fp32(), Fp16(), Int8(), Int4())}
"""All codecs by name."""


def codec(name: str) -> Codec:
    """The codec of that name.

    :raises UsageError: there is none
    """
    try:
        return CODECS[name]
    except KeyError:
        raise UsageError(
            f"unknown codec {name[:40]!r}", f"choose one of: {', '.join(CODECS)}"
        ) from None
