"""When a coordinator's term ends: electors have sealed it, or its owner wants it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from artel.coordinator import handing_over, process, term_watch
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.process import CoordinatorProcess
from artel.coordinator.recovery import Behind
from artel.coordinator.takeover import TermOver
from artel.coordinator.term_watch import TermWatch
from artel.ledger import entries
from artel.ledger.sync.peers import PeerSource
from artel.ledger.tlog.checkpoint import parse_checkpoint, sign_checkpoint
from artel.protocol.errors import Unreachable
from artel.protocol.net import elsewhere
from artel.protocol.round_state import Phase
from artel.protocol.tasks import end
from desk_world import Member, Office
from host_world import until
from ledger_world import key
from party_world import two_coordinators


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_watch, "LOOK_S", 0.01)
    monkeypatch.setattr(term_watch, "SEALED_WITHIN_S", 0.3)


async def agreed(office: Office, members: list[Member]) -> None:
    """One round: its members are electors from then on."""
    for member in members:
        await member.beat()
    await office.pass_time(20.0)
    for work in ("commit", "show"):
        for member in members:
            await getattr(member, work)()
    for member in members:
        await member.sign_state("ab" * 32)
    assert office.core.ledger.state.electors.sets


@contextlib.asynccontextmanager
async def watched(office: Office) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(TermWatch(office.core, office.home, cast(Any, None)).run())
    await asyncio.sleep(0.05)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def follows(monkeypatch: pytest.MonkeyPatch, origin: str, size: int) -> None:
    """Whoever is asked for its newest head holds so many entries."""
    note = sign_checkpoint(key("a leader"), origin, size, bytes(32))

    async def files(source: PeerSource, *paths: str, timeout: float) -> list[bytes | None]:
        return [None, note.encode()]

    monkeypatch.setattr(PeerSource, "files", files)


async def test_a_term_that_a_quorum_has_sealed_is_over_and_nothing_is_signed_in_it(
    office: Office, members: list[Member]
) -> None:
    await agreed(office, members)
    async with watched(office) as watch:
        await members[0].beat(sealed=0)
        await asyncio.sleep(0.1)
        assert not watch.done()
        await members[1].beat(sealed=0)
        with pytest.raises(TermOver):
            await asyncio.wait_for(watch, 5)
    with pytest.raises(TermOver):
        await office.core.ledger.append(entries.account(members[0].owner, office.run))


async def test_who_led_a_term_that_is_over_leads_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger still says that it leads, until somebody shows it the next term."""
    world, home = two_coordinators(), tmp_path / "home"
    who = world.coordinator
    keys = [who.key, *(each.key for each in world.standbys)]
    with contextlib.ExitStack() as stack:
        own = OwnLedger.open(home, world.run, who.key, keys, "", stack)
        note = world.sign(len(world.leaves), world.head(world.leaves).root)
        await own.replica.add(world.leaves, note)
        assert own.leads(who.key)

    async def nothing(*_: object) -> None: ...

    async def over(*_: object) -> None:
        raise TermOver("a quorum of the electors has sealed term 0")

    monkeypatch.setattr(process, "Asking", lambda *_, **__: SimpleNamespace(settle=nothing))
    monkeypatch.setattr(elsewhere, "require_alone", nothing)
    monkeypatch.setattr(CoordinatorProcess, "_coordinator", lambda *_: None)
    monkeypatch.setattr(CoordinatorProcess, "_lead", over)
    parts: dict[str, Any] = {
        "options": SimpleNamespace(home=home, run_file=home, sources=(), alone=False),
        "prepared": SimpleNamespace(run=world.run, manifest=SimpleNamespace(coordinators=keys)),
        "identity": who,
        **dict.fromkeys(("host", "http")),
    }
    with pytest.raises(TermOver):
        await CoordinatorProcess(**parts, began=0.0)._term()
    with contextlib.ExitStack() as stack:
        assert not OwnLedger.open(home, world.run, who.key, keys, "", stack).leads(who.key)


async def test_where_those_who_sealed_are_needed_the_others_are_asked_for_their_seals(
    office: Office, members: list[Member]
) -> None:
    await agreed(office, members)
    office.core.peers.pop(members[2].peer)  # of three electors two are there
    async with watched(office):
        assert not (await members[0].beat()).seal
        await members[0].beat(sealed=0)
        await until(lambda: office.core.ending)
        if office.core.state.phase is not Phase.WAITING:
            await office.pass_time(1000.0)
        assert (await members[1].beat()).seal
        opened = len(office.bodies("round_opened"))
        await office.pass_time(20.0)
        assert len(office.bodies("round_opened")) == opened, "no round is opened meanwhile"
        # Nobody seals it: the run goes on.
        await until(lambda: not office.core.ending)
        assert "too few" in office.core.not_ending


@pytest.mark.parametrize("comes", [True, False])
async def test_where_those_who_sealed_are_needed_the_next_coordinator_is_waited_for_a_while(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    await agreed(office, members)
    core, asked = office.core, 0
    head = parse_checkpoint(core.ledger.store.latest_note)

    async def away(source: PeerSource, *paths: str, timeout: float) -> list[bytes | None]:
        nonlocal asked
        asked += 1
        raise Unreachable("it does not answer")

    monkeypatch.setattr(term_watch, "FOLLOWS_S", 0.01)
    monkeypatch.setattr(term_watch, "candidate", lambda state, term: key("a standby").key)
    monkeypatch.setattr(PeerSource, "files", away)
    core.peers.pop(members[2].peer)  # of three electors two are there
    async with watched(office):
        await members[0].beat(sealed=0)
        await until(lambda: asked > 3)
        assert not core.ending
        if comes:
            follows(monkeypatch, head.origin, head.size)
        else:
            monkeypatch.setattr(term_watch, "FOLLOWS", 0.0)
        await until(lambda: core.ending)


async def test_the_owner_is_told_why_a_term_cannot_end(
    office: Office, members: list[Member]
) -> None:
    async with watched(office):
        for round, reason in ((0, "first state"), (1, "names no other coordinator")):
            if round:
                await agreed(office, members)
            (office.home / handing_over.REQUEST_FILE).write_bytes(handing_over.REQUEST)
            await until(lambda: not handing_over.is_asked(office.home))
            assert reason in office.core.not_ending
            assert not office.core.ending


@pytest.mark.parametrize("behind", [0, 1])
async def test_no_term_is_ended_for_one_that_does_not_hold_the_ledger_yet(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    await agreed(office, members)
    monkeypatch.setattr(term_watch, "BEHIND", 5)
    monkeypatch.setattr(term_watch, "candidate", lambda state, term: key("a standby").key)
    head = parse_checkpoint(office.core.ledger.store.latest_note)
    follows(monkeypatch, head.origin, head.size - term_watch.BEHIND - behind)
    async with watched(office):
        (office.home / handing_over.REQUEST_FILE).write_bytes(handing_over.REQUEST)
        await until(lambda: bool(office.core.ending or office.core.not_ending))
    assert office.core.ending is not bool(behind)
    assert ("does not hold the ledger yet" in office.core.not_ending) is bool(behind)


async def test_a_request_that_is_taken_back_meanwhile_ends_nothing(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command says when it is interrupted holds: one of the two takes the request."""
    await agreed(office, members)
    looks, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(watch: TermWatch) -> str:
        looks.set()
        await goes_on.wait()
        return ""

    monkeypatch.setattr(TermWatch, "_nobody_follows", slowly)
    async with watched(office):
        for taken_back in (True, False):
            looks.clear(), goes_on.clear()
            (office.home / handing_over.REQUEST_FILE).write_bytes(handing_over.REQUEST)
            await asyncio.wait_for(looks.wait(), 10)
            if taken_back:
                assert handing_over.take(office.home)
            goes_on.set()
            await asyncio.sleep(0.3)
            assert office.core.ending is not taken_back
        assert not handing_over.take(office.home)


async def test_a_file_of_somebody_else_is_left_alone(office: Office) -> None:
    other = office.home / handing_over.REQUEST_FILE
    other.write_text("notes on the handover of the flat")
    async with watched(office):
        await asyncio.sleep(0.1)
    assert other.exists()
    assert not office.core.not_ending


async def test_who_is_alone_and_is_shown_its_own_term_led_by_its_key_elsewhere_stops(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two with copies of one key have begun it with the same seals; the electors follow one."""
    await agreed(office, members)
    core = office.core
    core.peers.clear()
    head = parse_checkpoint(core.ledger.store.latest_note)
    notes = [
        sign_checkpoint(key("another"), head.origin, head.size, b"\1" * 32),
        sign_checkpoint(core.identity, head.origin, head.size - 1, b"\1" * 32),
    ]
    shown = list[str]()

    async def files(source: PeerSource, *paths: str, timeout: float) -> list[bytes | None]:
        shown.append(notes[0])
        return [None, notes[0].encode()]

    async def peers() -> list[str]:
        return [members[0].peer]

    async def learn(ways: object) -> None: ...

    monkeypatch.setattr(PeerSource, "files", files)
    monkeypatch.setattr(term_watch, "ELSEWHERE_S", 0.01)
    circle = SimpleNamespace(peers=peers, learn=learn, coordinators=())
    watching = asyncio.create_task(TermWatch(core, office.home, cast(Any, circle)).run())
    try:
        await until(lambda: len(shown) > 3)
        await core.ledger.append(entries.account(key("x"), office.run))  # nobody's head ends it
        notes.pop(0)
        with pytest.raises(Behind):
            await asyncio.wait_for(core.drive(), 10)
        with pytest.raises(Behind):
            await core.ledger.append(entries.account(key("y"), office.run))
    finally:
        await end(watching)
