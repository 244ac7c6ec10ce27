"""Leaves in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from artel.ledger.entries import Entry, decode, entry_id
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Outcome
from artel.ledger.fold.shares import fold
from artel.protocol.dsse import Envelope
from artel.protocol.merkle import leaf_hash, root
from ledger_world import encoded


def replay(
    leaves: Iterable[bytes], observe: Callable[[int, Entry, Outcome], None] | None = None
) -> FoldState:
    """The fold over leaves, from the first on."""
    return fold(map(decode, leaves), observe=observe)


class Log(list[bytes]):
    """Leaves in memory."""

    def __init__(self, envelopes: Sequence[Envelope]) -> None:
        super().__init__(encoded(envelopes))

    @property
    def size(self) -> int:
        return len(self)

    def leaf(self, index: int) -> bytes:
        return self[index]

    def index_of(self, entry: str) -> int | None:
        return next((at for at, leaf in enumerate(self) if entry_id(leaf) == entry), None)

    def root_at(self, size: int) -> bytes:
        return root(map(leaf_hash, self[:size]))

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return iter(self[start:stop])
