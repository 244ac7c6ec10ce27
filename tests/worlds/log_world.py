"""Leaves in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from artel.ledger.entries import entry_id
from artel.protocol.dsse import Envelope
from artel.protocol.merkle import CompactRange, leaf_hash


class Log(list[bytes]):
    """Leaves in memory."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        super().__init__(envelope.encode() for envelope in envelopes)

    @property
    def size(self) -> int:
        return len(self)

    def leaf(self, index: int) -> bytes:
        return self[index]

    def index_of(self, entry: str) -> int | None:
        return next((at for at, leaf in enumerate(self) if entry_id(leaf) == entry), None)

    def root_at(self, size: int) -> bytes:
        tree = CompactRange()
        for leaf in self[:size]:
            tree.append(leaf_hash(leaf))
        return tree.root()

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return iter(self[start:stop])
