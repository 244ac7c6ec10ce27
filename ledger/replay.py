"""Reads leaves into entries with their signatures checked on all cores, and folds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ledger.entries import Entry, decode
from ledger.shares import FoldState, Outcome, fold

_BATCH = 1024
_FEW = 16
"""Below this many entries, threads cost more than they save."""


def check_signatures(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries, with :attr:`Entry.signers` computed ahead.

    Signature checks release the interpreter's lock, so a thread per core is worth it.
    """
    rest = iter(entries)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        while batch := list(islice(rest, _BATCH)):
            if len(batch) > _FEW:
                list(pool.map(lambda entry: entry.signers, batch, chunksize=32))
            yield from batch


def replay(
    leaves: Iterable[bytes],
    state: FoldState | None = None,
    observe: Callable[[int, Entry, Outcome], None] | None = None,
) -> FoldState:
    """Fold leaves, as :func:`ledger.shares.fold` does entries.

    :raises DecodeError: when a leaf is no ledger entry (a store accepts none)
    """
    return fold(check_signatures(map(decode, leaves)), state, observe)
