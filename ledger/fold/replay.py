"""Reads leaves into entries with their signatures checked on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain, islice, zip_longest
from multiprocessing import get_context
from typing import TypeVar

from artel.ledger.entries import Entry, decode
from artel.protocol import dsse
from artel.protocol.cgroup import Groups
from artel.protocol.errors import DecodeError, ResourceError

_SLICE = 64
"""Entries that a thread takes at once. Fewer cost more in handing over than they are worth."""

MANY = 8192
"""Entries from which on processes are worth their start."""
_BATCH = 512
"""Entries that a process takes at once."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processors that this process may use."""
    return Groups().cores()


def decoded(leaves: Iterable[bytes], *, processes: bool = False) -> Iterator[tuple[bytes, Entry]]:
    """Each leaf with its entry, decoded and with its signatures checked on all cores.

    :param processes: check the signatures of a long ledger in processes of their own. Threads have
        to hand the interpreter's lock back and forth for every signature, which costs what a second
        core gains; a process takes about 0.3 s to start. Not for daemons.
    :raises DecodeError: when it is the turn of a leaf that is no ledger entry
    """
    rest = iter(leaves)
    if processes and cores() > 1:
        head = list(islice(rest, MANY))
        if len(head) == MANY:
            yield from _by_processes(chain(head, rest))
            return
        rest = iter(head)
    for leaf, entry in _ahead(rest, _decode_all):
        if isinstance(entry, DecodeError):
            raise entry
        yield leaf, entry


def check_all(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Compute :attr:`Entry.signers` of all of these; the same entries again."""
    for entry in entries:
        if "signers" not in entry.__dict__:
            # Not through the attribute: until Python 3.12 all entries would share one lock, and no
            # two threads would ever check at the same time.
            entry.__dict__["signers"] = vars(Entry)["signers"].func(entry)
    return entries


def _decode_all(leaves: Sequence[bytes]) -> list[tuple[bytes, Entry | DecodeError]]:
    """Decode all, then check all: few changes between holding the interpreter's lock and not."""
    found = _decode_some(leaves)
    check_all([entry for _, entry in found if isinstance(entry, Entry)])
    return found


def _decode_some(leaves: Sequence[bytes]) -> list[tuple[bytes, Entry | DecodeError]]:
    """Each leaf with its entry, up to the first that is none."""
    found: list[tuple[bytes, Entry | DecodeError]] = []
    for leaf in leaves:
        try:
            found.append((leaf, decode(leaf)))
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


def _by_processes(leaves: Iterator[bytes]) -> Iterator[tuple[bytes, Entry]]:
    """Decode here, in order, while other processes say whose signatures hold."""
    batches = iter(lambda: list(islice(leaves, _BATCH)), [])
    # Not forked: a fork copies the locks of threads that it does not copy.
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("spawn"))
    running: deque[tuple[list[tuple[bytes, Entry | DecodeError]], Future[bytes]]] = deque()
    try:
        while True:
            while len(running) < 4 * cores() and (batch := next(batches, None)) is not None:
                found = _decode_some(batch)
                seals = [entry.seals for _, entry in found if isinstance(entry, Entry)]
                running.append((found, pool.submit(dsse.which_hold, seals)))
            if not running:
                return
            found, answer = running.popleft()
            for (leaf, entry), holds in zip_longest(found, answer.result()):
                if isinstance(entry, DecodeError):
                    raise entry
                yield leaf, entry.checked(bool(holds))
    except BrokenExecutor:
        raise ResourceError(
            "a process that checks signatures was killed", "free some memory and try again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
