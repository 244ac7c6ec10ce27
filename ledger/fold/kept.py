"""States that are kept beside the entries with their digests, so that a start costs what is new."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from artel import protocol
from artel.ledger import entries
from artel.ledger.entries import decode
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.shares import apply
from artel.protocol.round_state import BAD_SIGNATURE

KEEP_EVERY = 1024
"""Entries after which the state is kept again; with very many accounts, after more."""
KEPT = 16
"""About as many older states stay, spread over the ledger."""
SELECT_KEPT = (  # damaged rows can hold any type
    "SELECT size, CAST(rules AS BLOB), CAST(state AS BLOB), CAST(digest AS BLOB) FROM kept"
)

Query = Callable[[str, Sequence[object]], list[tuple[Any, ...]]]
"""The rows of a reading statement."""


class Leaves(Protocol):
    """Where a ledger is read from."""

    @property
    def size(self) -> int: ...

    def leaf(self, index: int) -> bytes: ...

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]: ...


def keep(connection: sqlite3.Connection, state: FoldState) -> None:
    """Keep the state when enough has come since it was kept last; it is kept from the start."""
    (last,) = connection.execute("SELECT max(size) FROM kept").fetchone()
    if last is not None and state.size - last < max(KEEP_EVERY, len(state.accounts) // 8):
        return
    data = zlib.compress(state.encode(), 1)
    row = (state.size, rules(), data)
    connection.execute("INSERT INTO kept VALUES (?, ?, ?, ?)", (*row, _digest(*row)))
    step = max(1, state.size // KEPT)
    sizes = [size for (size,) in connection.execute("SELECT size FROM kept ORDER BY size")]
    # The first one in each stretch, and the newest.
    firsts = {size // step: size for size in reversed(sizes)}.values()
    gone = [(size,) for size in sizes if size not in firsts and size != state.size]
    connection.executemany("DELETE FROM kept WHERE size = ?", gone)


def _digest(size: int, by: bytes, data: bytes) -> bytes:
    return hashlib.sha256(size.to_bytes(8, "big") + by + data).digest()


@cache
def rules() -> bytes:
    """Names the code that counts: a state of another version must not be continued."""
    here = Path(__file__)
    paths = [here, here.with_name("effects.py"), here.with_name("shares.py")]
    paths += Path(entries.__path__[0]).rglob("*.py")
    paths += Path(protocol.__path__[0]).glob("*.py")
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.digest()


def is_as_kept(state: FoldState, by: bytes, data: bytes, digest: bytes) -> bool:
    """Whether this was kept of a state: undamaged, and the same if it is by these rules."""
    if _digest(state.size, by, data) != digest:
        return False
    return by != rules() or zlib.decompress(data) == state.encode()


def kept_by(query: Query, log: Leaves, size: int) -> FoldState | None:
    """The state after ``size`` entries, by the newest kept one before and the entries since.

    The signatures of entries that have effects are not checked again.

    :returns: None when the effects do not reach so far, are not by these very rules, or say
        something else of the entries since
    :raises CheckFailed: when an entry does not decode
    """
    rows = query(f"{SELECT_KEPT} WHERE size <= ? ORDER BY size DESC LIMIT 1", (size,))
    if not rows or rows[0][1] != rules() or _digest(*rows[0][:3]) != rows[0][3]:
        return None
    at, _, data, _ = rows[0]
    state = FoldState.decode(zlib.decompress(data))
    reasons = query(
        "SELECT reason FROM effects WHERE idx >= ? AND idx < ? ORDER BY idx", (at, size)
    )
    if len(reasons) != size - at:
        return None
    for leaf, (reason,) in zip(log.leaves(at, size), reasons, strict=True):
        entry = decode(leaf)
        if reason != BAD_SIGNATURE:
            entry = entry.checked(True)
        if apply(state, entry).reason != reason:
            return None
    return state
