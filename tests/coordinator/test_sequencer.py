"""Group commit: shared commits, whole calls, errors for those they belong to, bounded queues."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator.sequencer import AGAIN, MAX_WAITING, Late, Sequencer, Statement
from artel.ledger import entries
from artel.ledger.entries import Entry, entry_id, reasons
from artel.ledger.fold.shares import FoldState
from artel.ledger.store.store import DATABASE_NAME, MAX_BATCH, Beside, LedgerStore, Sign
from artel.ledger.store.verify import verify_home
from artel.ledger.tlog.checkpoint import open_checkpoint, origin_of
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError, UsageError
from artel.protocol.net.limits import RateLimits
from artel.protocol.net.wire import Refused
from ledger_world import World, key
from log_world import replay

_KEYS = count()
ROOM = 1024
"""Entries waiting, above which nothing more is taken from outside."""


class Watched:
    """A store whose commits can be watched, held up and made to fail."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self.commits: list[int] = []  # entries in each
        self.before: Callable[[Sequence[Any]], None] = lambda _entries: None
        self.after: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, leaves: Sequence[Entry], sign: Sign, beside: Beside | None = None) -> str:
        self.commits.append(len(leaves))
        self.before(leaves)
        note = self._store.append(leaves, sign, beside)
        self.after()
        return note


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def store(world: World, tmp_path: Path) -> Iterator[LedgerStore]:
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        store.append(world.add(world.genesis), world.sign)
        yield store


@pytest.fixture
def watched(store: LedgerStore) -> Watched:
    return Watched(store)


@pytest.fixture
def sequencer(world: World, watched: Watched) -> Sequencer:
    return Sequencer(watched, world.coordinator, world.run)  # type: ignore[arg-type]


def new(world: World) -> Envelope:
    return entries.account(key(f"sequenced {next(_KEYS)}"), world.run)


def unsigned(world: World) -> Envelope:
    good = new(world)
    return Envelope(good.payload_type, good.payload, ((good.signers[0], bytes(64)),))


def assert_sound(sequencer: Sequencer, held: Sequence[Envelope] = ()) -> None:
    """Store, fold and file agree, and ``held`` are in it, each once."""
    store = sequencer.store
    ids = [entry_id(leaf) for leaf in store.leaves()]
    assert len(set(ids)) == len(ids) == store.size
    assert {entry_id(envelope.encode()) for envelope in held} <= set(ids)
    assert sequencer.state == replay(store.leaves())
    assert sequencer.waiting == 0
    assert verify_home(store.path.parent).verified


async def started(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


class Gate:
    """Holds up the next commit until it is opened."""

    def __init__(self, watched: Watched) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        watched.before = self._hold

    def _hold(self, _entries: Sequence[Any]) -> None:
        self.reached.set()
        assert self.open.wait(60)


async def test_an_entry_is_durable_signed_and_folded(world: World, sequencer: Sequencer) -> None:
    state, envelope = sequencer.state, new(world)
    await sequencer.append(envelope)
    assert (state.size, sequencer.state.size) == (1, 2), "what was handed out stays as it is"
    assert envelope.signers[0] in sequencer.state.accounts
    head = open_checkpoint(sequencer.store.latest_note, world.origin, [world.coordinator.key])
    assert head.size == 2
    await sequencer.append()
    await sequencer.append(entries.decode(new(world).encode()))
    assert sequencer.store.size == 3
    assert_sound(sequencer, [envelope])


async def test_calls_share_commits(world: World, sequencer: Sequencer, watched: Watched) -> None:
    many = [new(world) for _ in range(1000)]
    await asyncio.gather(*(sequencer.append(envelope) for envelope in many))
    assert sum(watched.commits) == 1000
    assert len(watched.commits) <= 10
    assert max(watched.commits) <= MAX_BATCH
    # In the order in which the calls were made.
    ids = [entry_id(leaf) for leaf in sequencer.store.leaves(1)]
    assert ids == [entry_id(envelope.encode()) for envelope in many]
    assert_sound(sequencer)


async def test_a_lone_entry_does_not_wait_for_company(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    for _ in range(5):
        await sequencer.append(new(world))
    assert watched.commits == [1] * 5


async def test_the_entries_of_a_call_stay_together(world: World, sequencer: Sequencer) -> None:
    rng = random.Random(1)
    calls = [[new(world) for _ in range(rng.randrange(1, 100))] for _ in range(40)]
    calls.append([new(world) for _ in range(MAX_BATCH)])
    await asyncio.gather(*(sequencer.append(*call) for call in calls))
    ids = [entry_id(leaf) for leaf in sequencer.store.leaves()]
    for call in calls:
        names = [entry_id(envelope.encode()) for envelope in call]
        start = ids.index(names[0])
        assert ids[start : start + len(names)] == names
    with pytest.raises(UsageError, match="at most 256"):
        await sequencer.append(*(new(world) for _ in range(MAX_BATCH + 1)))
    assert_sound(sequencer)


async def test_duplicates_are_left_out(world: World, sequencer: Sequencer) -> None:
    first, second = new(world), new(world)
    await sequencer.append(first)
    calls = [(first,), (second, first), (second,), (second, second), (world.genesis, new(world))]
    await asyncio.gather(*(sequencer.append(*call) for call in calls))
    assert sequencer.store.size == 4
    assert_sound(sequencer, [first, second])


async def test_it_says_what_the_fold_made_of_each_statement(
    world: World, sequencer: Sequencer
) -> None:
    account, early = new(world), world.closed(0)
    first, second = await sequencer.append(account, early)
    assert first.status == "recorded"
    assert (second.status, second.reason) == ("ignored", reasons.OUT_OF_ORDER)
    known = entries.decode(account.encode())
    assert await sequencer.append(new(world), known, early) == [first, AGAIN, AGAIN]
    assert await sequencer.append() == []


async def test_a_late_entry_is_made_of_all_that_comes_before_it(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    gate, seen = Gate(watched), list[int]()
    before = asyncio.create_task(sequencer.append(new(world)))
    await started(gate.reached)
    made = new(world)

    def make(state: FoldState) -> Envelope:
        seen.append(state.size)
        return made

    def fail(_state: FoldState) -> Envelope:
        raise CheckFailed("nothing can be made of it")

    calls: list[Statement] = [new(world), Late("account", make), new(world), Late("x", fail)]
    waiting = [asyncio.create_task(sequencer.append(call)) for call in calls]
    while len(sequencer._ready) < len(calls):
        await asyncio.sleep(0.001)
    gate.open.set()
    await before
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(done.pop(), CheckFailed)
    assert [outcome.status for (outcome,) in done] == ["recorded"] * 3  # type: ignore[misc]
    assert (watched.commits, seen) == ([1, 1, 1, 1], [3])
    assert entry_id(sequencer.store.leaf(3)) == entry_id(made.encode())
    assert_sound(sequencer, [made])


async def test_a_bad_call_fails_alone(world: World, sequencer: Sequencer) -> None:
    good = [new(world) for _ in range(50)]
    forged, foreign = unsigned(world), Envelope("text/plain", b"x", new(world).signatures)
    calls = [(envelope,) for envelope in good]
    calls[10:10] = [(new(world), forged)]  # type: ignore[list-item]
    calls[30:30] = [(foreign,)]
    results = await asyncio.gather(
        *(sequencer.append(*call) for call in calls), return_exceptions=True
    )
    failed = {n: result for n, result in enumerate(results) if isinstance(result, Exception)}
    assert failed.keys() == {10, 30}
    assert isinstance(failed[10], CheckFailed)
    assert "does not verify" in str(failed[10])
    assert isinstance(failed[30], DecodeError)
    assert sequencer.store.size == 51, "of the call with the forged entry nothing was taken"
    assert_sound(sequencer, good)


async def test_a_failed_commit_fails_its_own_callers_only(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    gate = Gate(watched)
    before = asyncio.create_task(sequencer.append(new(world), new(world), new(world)))
    await started(gate.reached)
    poison = new(world)
    name = entry_id(poison.encode())

    def fail(batch: Sequence[Entry]) -> None:
        if any(entry.id == name for entry in batch):
            raise ResourceError("the disk is full", "free some space")

    watched.before = fail
    with_it = [sequencer.append(envelope) for envelope in (new(world), poison, new(world))]
    waiting = asyncio.gather(*with_it, return_exceptions=True)
    while len(sequencer._ready) < 3:
        await asyncio.sleep(0.001)
    gate.open.set()
    await before
    assert [type(result) for result in await waiting] == [ResourceError] * 3
    size = sequencer.store.size
    await sequencer.append(new(world))
    assert sequencer.store.size == size + 1
    watched.before = lambda _entries: None
    await sequencer.append(poison)
    assert_sound(sequencer, [poison])


async def test_entries_that_are_in_although_an_error_came_after_are_folded(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    def fail() -> None:
        raise ResourceError("the checkpoint file cannot be renamed")

    watched.after = fail
    envelope = new(world)
    with pytest.raises(ResourceError, match="renamed"):
        await sequencer.append(envelope)
    watched.after = lambda: None
    assert envelope.signers[0] in sequencer.state.accounts
    await sequencer.append(envelope, new(world))
    assert sequencer.store.size == 3
    assert_sound(sequencer, [envelope])


async def test_a_caller_that_is_cancelled_before_its_commit_leaves_nothing(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    gate = Gate(watched)
    first = asyncio.create_task(sequencer.append(new(world)))
    await started(gate.reached)
    dropped, kept = new(world), new(world)
    caller = asyncio.create_task(sequencer.append(dropped))
    other = asyncio.create_task(sequencer.append(kept))
    await asyncio.sleep(0)
    assert sequencer.waiting == 3
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert sequencer.waiting == 2
    gate.open.set()
    await first
    await other
    assert sequencer.store.index_of(entry_id(dropped.encode())) is None
    assert_sound(sequencer, [kept])


async def test_a_caller_that_is_cancelled_during_its_commit_learns_of_it_after(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    gate = Gate(watched)
    envelope = new(world)
    caller = asyncio.create_task(sequencer.append(envelope))
    await started(gate.reached)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert sequencer.store.size == 2
    await sequencer.append(envelope)  # it does not know, and tries again
    assert sequencer.store.size == 2
    assert_sound(sequencer, [envelope])


def test_a_loop_that_ends_with_calls_under_way_neither_hangs_nor_tears(
    world: World, store: LedgerStore
) -> None:
    watched = Watched(store)
    gate = Gate(watched)
    sequencer = Sequencer(watched, world.coordinator, world.run)  # type: ignore[arg-type]
    calls = [(new(world), new(world)) for _ in range(5)]

    async def main() -> None:
        tasks = [asyncio.create_task(sequencer.append(*call)) for call in calls]
        await started(gate.reached)
        threading.Timer(0.1, gate.open.set).start()
        del tasks[:]  # the loop cancels them

    asyncio.run(main())
    assert sequencer.store.size in {3, 5, 7, 9, 11}
    assert_sound(sequencer)


async def test_nothing_is_signed_when_bytes_read_back_differently(
    world: World, store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequencer = Sequencer(store, world.coordinator, world.run)
    signed: list[object] = []
    monkeypatch.setattr("artel.coordinator.sequencer.sign_checkpoint", lambda *a: signed.append(a))

    class Flipping:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        def execute(self, sql: str, parameters: Any = ()) -> Any:
            if sql.startswith("SELECT group_concat"):
                sql = sql.replace(
                    "hex(packed)", "hex(substr(packed, 1, 30) || x'00' || substr(packed, 32))"
                )
            return self._connection.execute(sql, parameters)

    sound = store._connection
    store._connection = Flipping(sound)  # type: ignore[assignment]
    with pytest.raises(CheckFailed, match="reads back differently"):
        await sequencer.append(new(world))
    store._connection = sound
    assert not signed
    assert store.size == 1


async def test_a_rule_with_a_fault_lets_nothing_in(
    world: World, sequencer: Sequencer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_state: object, _entry: object) -> None:
        raise AssertionError("no rule")

    monkeypatch.setattr("artel.ledger.fold.effects.apply", broken)
    with pytest.raises(AssertionError, match="no rule"):
        await sequencer.append(new(world))
    assert sequencer.store.size == 1
    monkeypatch.undo()
    await sequencer.append(envelope := new(world))
    assert sequencer.store.size == 2
    assert_sound(sequencer, [envelope])


def test_a_ledger_of_another_run_or_term(world: World, store: LedgerStore) -> None:
    with pytest.raises(CheckFailed, match="another run"):
        Sequencer(store, world.coordinator, "ab" * 32)
    later = Sequencer(store, world.coordinator, world.run)
    store.begin_term(3)
    asyncio.run(later.append(new(world)))
    assert store.latest_note.startswith(origin_of(world.run, 3) + "\n")


# --- floods ---------------------------------------------------------------------------------------


class Flood:
    """Guests who offer ten times what fits, all the time, and never wait for an answer."""

    def __init__(
        self, sequencer: Sequencer, limits: RateLimits | None, junk: list[Envelope]
    ) -> None:
        self._sequencer, self._limits, self._junk = sequencer, limits, cycle(junk)
        self.refused = self.accepted = self.peak = 0
        self.codes: set[str] = set()
        self._over = False

    async def offer(self, key: str, envelope: Envelope) -> None:
        try:
            if self._limits is not None and self._limits.take(key):
                raise Refused("too many", "wait", code="too_many")
            if self._sequencer.waiting > ROOM:  # as coordinator.submission does
                raise Refused("too much is waiting", "wait", code="busy")
            await self._sequencer.append(envelope)
            self.accepted += 1
        except Refused as error:
            self.codes.add(error.code)
            self.refused += 1

    async def _run(self) -> None:
        calls: set[asyncio.Task[None]] = set()
        while not self._over:
            for number in range(128):
                work = self.offer(f"flooder {number % 10}", next(self._junk))
                task = asyncio.create_task(work)
                calls.add(task)
                task.add_done_callback(calls.discard)
            await asyncio.sleep(0)
            self.peak = max(self.peak, self._sequencer.waiting)
        await asyncio.gather(*calls)

    async def __aenter__(self) -> Flood:
        self._task = asyncio.create_task(self._run())
        while self.refused < 10 * MAX_WAITING:
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._task


async def test_a_flood_is_refused_and_rounds_go_on(world: World, sequencer: Sequencer) -> None:
    junk, own = [new(world) for _ in range(6000)], [new(world) for _ in range(4)]
    async with asyncio.timeout(120), Flood(sequencer, None, junk) as flood:
        for envelope in own:
            await sequencer.append(envelope)  # never refused, and answered in time
    assert flood.codes == {"busy"}
    assert flood.accepted > 0
    assert ROOM / 2 < flood.peak < MAX_WAITING
    assert_sound(sequencer, own)


async def test_a_flood_under_a_few_keys_does_not_shut_others_out(
    world: World, sequencer: Sequencer
) -> None:
    junk, honest = [new(world) for _ in range(300)], [new(world) for _ in range(10)]
    limits = RateLimits(per_minute=600, burst=20)
    async with asyncio.timeout(120), Flood(sequencer, limits, junk) as flood:
        for number, envelope in enumerate(honest):
            assert limits.take(f"honest {number}") == 0
            await sequencer.append(envelope)
    assert flood.codes == {"too_many"}
    assert flood.peak < ROOM
    assert_sound(sequencer, honest)


async def test_memory_is_bounded_when_nothing_can_be_written(
    world: World, sequencer: Sequencer, watched: Watched
) -> None:
    gate = Gate(watched)
    envelope = new(world)
    waiting = [asyncio.create_task(sequencer.append(envelope)) for _ in range(MAX_WAITING)]
    await started(gate.reached)
    tracemalloc.start()
    try:
        for _ in range(10 * MAX_WAITING):
            with pytest.raises(Refused, match="4096 entries are waiting"):
                await sequencer.append(envelope)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20
    gate.open.set()
    await asyncio.gather(*waiting)
    assert sequencer.store.size == 2
    assert_sound(sequencer, [envelope])


# --- limits ---------------------------------------------------------------------------------------


def test_a_bucket_allows_a_burst_and_then_a_rate() -> None:
    now = 100.0
    limits = RateLimits(per_minute=30, burst=3, clock=lambda: now)
    assert [limits.take("a") for _ in range(4)] == [0, 0, 0, 2.0]
    assert limits.take("b") == 0, "keys do not disturb each other"
    now += 1.5
    assert limits.take("a") == pytest.approx(0.5)
    now += 0.5
    assert [limits.take("a"), limits.take("a")] == [0, 2.0]
    now += 1e6
    assert [limits.take("a") for _ in range(4)] == [0, 0, 0, 2.0], "no more than a burst is saved"
    now -= 1e6
    assert limits.take("a") == 2.0, "a clock that goes back gives nothing"


def test_buckets_are_bounded_and_the_busiest_are_remembered() -> None:
    limits = RateLimits(per_minute=1, burst=1, keys=100, clock=lambda: 0.0)
    for number in range(10_000):
        limits.take(f"stranger {number}")
        assert (limits.take("flooder") == 0) == (number == 0)
        assert len(limits._buckets) <= 100
