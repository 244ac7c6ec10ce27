"""Leaves in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from artel.protocol.dsse import Envelope


class Log(list[bytes]):
    """Leaves in memory."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        super().__init__(envelope.encode() for envelope in envelopes)

    @property
    def size(self) -> int:
        return len(self)

    def leaf(self, index: int) -> bytes:
        return self[index]

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return iter(self[start:stop])
