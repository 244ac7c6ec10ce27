"""Reads leaves into entries with their signatures checked on all cores, and folds them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from ledger.entries import Entry, decode
from ledger.shares import FoldState, Outcome, fold
from protocol.errors import DecodeError

_SLICE = 64
"""Entries that a thread takes at once. Fewer cost more in handing over than they are worth."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def check_signatures(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries, with :attr:`Entry.signers` computed ahead on all cores."""
    return _ahead(entries, check_all)


def decoded(leaves: Iterable[bytes]) -> Iterator[tuple[bytes, Entry]]:
    """Each leaf with its entry, decoded and with its signatures checked on all cores.

    :raises DecodeError: when it is the turn of a leaf that is no ledger entry
    """
    for leaf, entry in _ahead(leaves, _decode_all):
        if isinstance(entry, DecodeError):
            raise entry
        yield leaf, entry


def replay(
    leaves: Iterable[bytes],
    state: FoldState | None = None,
    observe: Callable[[int, Entry, Outcome], None] | None = None,
) -> FoldState:
    """Fold leaves, as :func:`ledger.shares.fold` does entries.

    :raises DecodeError: when a leaf is no ledger entry (a store accepts none)
    """
    return fold((entry for _, entry in decoded(leaves)), state, observe)


def check_all(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Compute :attr:`Entry.signers` of all of these; the same entries again."""
    for entry in entries:
        if "signers" not in entry.__dict__:
            # Not through the attribute: until Python 3.12 all entries would share one lock, and no
            # two threads would ever check at the same time.
            entry.__dict__["signers"] = vars(Entry)["signers"].func(entry)
    return entries


def _decode_all(leaves: Sequence[bytes]) -> list[tuple[bytes, Entry | DecodeError]]:
    """Decode and check one after the other: a thread that checks lets another one decode."""
    found: list[tuple[bytes, Entry | DecodeError]] = []
    for leaf in leaves:
        try:
            found.append((leaf, check_all([decode(leaf)])[0]))
        except DecodeError as error:
            found.append((leaf, error))
            break
    return found


def _ahead(
    items: Iterable[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> Iterator[Result]:
    """Results of ``work`` on slices of ``items``, in order, a few slices ahead of the consumer.

    Signature checks release the interpreter's lock, so a thread for each core is worth it.
    """
    rest = iter(items)
    slices = iter(lambda: list(islice(rest, _SLICE)), [])
    first = next(slices, [])
    if len(first) < _SLICE:  # no threads for a handful
        yield from work(first)
        return
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        running: deque[Future[Sequence[Result]]] = deque([pool.submit(work, first)])
        while running:
            while len(running) < 4 * cores() and (batch := next(slices, None)) is not None:
                running.append(pool.submit(work, batch))
            yield from running.popleft().result()
