"""Reads leaves into entries with their signatures checked on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context

from artel.ledger.entries import Entry, decode
from artel.ledger.entries.body import portions, size_of
from artel.protocol import dsse
from artel.protocol.cgroup import Groups
from artel.protocol.errors import DecodeError, ResourceError

_SLICE = 32 << 10
"""Bytes that a thread takes at once. Fewer cost more in handing over than they are worth."""

MANY = 4 << 20
"""Bytes from which on processes are worth their start."""
_BATCH = 256 << 10
"""Bytes that a process takes at once."""
_IN_FLIGHT = 6 << 20
"""Bytes that are at work at a time; decoded, and with what is to be checked, 10 times as many.

Entries are not counted: one with its document can take as much as a thousand others."""

Found = tuple[bytes, Entry | DecodeError]


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
        head = next(portions(rest, MANY), [])
        if sum(map(size_of, head)) >= MANY:
            yield from _in_order(_by_processes(chain(head, rest)))
            return
        rest = iter(head)
    yield from _in_order(_by_threads(rest))


def _in_order(found: Iterable[Found]) -> Iterator[tuple[bytes, Entry]]:
    for leaf, entry in found:
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


def _decode_all(leaves: Sequence[bytes]) -> list[Found]:
    """Decode all, then check all: few changes between holding the interpreter's lock and not."""
    found = _decode_some(leaves)
    check_all([entry for _, entry in found if isinstance(entry, Entry)])
    return found


def _decode_some(leaves: Sequence[bytes]) -> list[Found]:
    """Each leaf with its entry, up to the first that is none."""
    found: list[Found] = []
    for leaf in leaves:
        try:
            found.append((leaf, decode(leaf)))
        except DecodeError as error:
            found.append((leaf, error))
            break
    return found


def _ahead(
    leaves: Iterable[list[bytes]], start: Callable[[list[bytes]], Callable[[], Sequence[Found]]]
) -> Iterator[Found]:
    """What is found in portions of leaves, in order, a few portions ahead of the consumer.

    :param start: begins the work on a portion; what it returns waits for the end
    """
    running: deque[tuple[int, Callable[[], Sequence[Found]]]] = deque()
    rest, flying = iter(leaves), 0
    while True:
        while len(running) < 4 * cores() and flying < _IN_FLIGHT and (some := next(rest, [])):
            size = sum(map(size_of, some))
            running.append((size, start(some)))
            flying += size
        if not running:
            return
        size, finish = running.popleft()
        yield from finish()
        flying -= size


def _by_threads(leaves: Iterator[bytes]) -> Iterator[Found]:
    """Signature checks release the interpreter's lock, so a thread for each core is worth it."""
    slices = portions(leaves, _SLICE)
    first = next(slices, [])
    if sum(map(size_of, first)) < _SLICE:  # no threads for a handful
        yield from _decode_all(first)
        return
    pool = ThreadPoolExecutor(max_workers=cores())
    try:
        yield from _ahead(
            chain([first], slices), lambda some: pool.submit(_decode_all, some).result
        )
    finally:
        # Not waited for: who gives up leaves this to be collected, maybe in one of these threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _by_processes(leaves: Iterator[bytes]) -> Iterator[Found]:
    """Decode here, in order, while other processes say whose signatures hold."""
    # Not forked: a fork copies the locks of threads that it does not copy.
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("spawn"))

    def start(some: list[bytes]) -> Callable[[], list[Found]]:
        found = _decode_some(some)
        signings = [entry.signings for _, entry in found if isinstance(entry, Entry)]
        return partial(_told, found, pool.submit(dsse.which_hold, signings))

    try:
        yield from _ahead(portions(leaves, _BATCH), start)
    except BrokenExecutor:
        raise ResourceError(
            "a process that checks signatures was killed", "free some memory and try again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _told(found: list[Found], answer: Future[bytes]) -> list[Found]:
    """The same, with the signatures of the entries said to hold or not."""
    for (_, entry), holds in zip(found, answer.result(), strict=False):
        if isinstance(entry, Entry):
            entry.checked(bool(holds))
    return found
