"""Codecs: how a pseudo-gradient becomes bytes; a manifest chooses by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from artel.protocol.errors import UsageError
from artel.protocol.exchange.codec.blockwise import Int4, Int8
from artel.protocol.exchange.codec.floats import Fp16, Fp32
from artel.protocol.exchange.codec.interface import Codec, Elements, NonFinite, Payload
from artel.protocol.exchange.codec.sparse import TOP_K, Sparse

if TYPE_CHECKING:
    from artel.protocol.run_config import ExchangeSection

__all__ = ["CODECS", "Codec", "Elements", "NonFinite", "Payload", "Sparse", "codec", "of"]

CODECS: dict[str, Codec] = {c.name: c for c in (Fp32(), Fp16(), Int8(), Int4(), Sparse())}
"""All codecs by name, ``sparse`` with its usual k."""


def codec(name: str, top_k: int = TOP_K) -> Codec:
    """The codec of that name.

    :param top_k: elements of every 4096 that ``sparse`` sends; the others have no use for it
    :raises UsageError: there is none
    """
    if name == Sparse.name and top_k != TOP_K:
        return Sparse(top_k)
    try:
        return CODECS[name]
    except KeyError:
        raise UsageError(
            f"unknown codec {name[:40]!r}", f"choose one of: {', '.join(CODECS)}"
        ) from None


def of(exchange: ExchangeSection, device: str = "cpu") -> Codec:
    """The codec of a run's ``[exchange]``.

    :param device: where ``sparse`` looks for what to send; the payload is the same
    """
    if exchange.codec == Sparse.name and device != "cpu":
        return Sparse(exchange.top_k, device)
    return codec(exchange.codec, exchange.top_k)
