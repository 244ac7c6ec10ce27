"""A coordinator asks before it signs: real hosts, whose members hold what its home may lack."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

import terms_world
from artel.coordinator import recovery
from artel.coordinator.members_file import MEMBERS_FILE, Known, keep_members, read_members
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.peer import addresses_of
from artel.coordinator.recovery import Asking, Behind
from artel.coordinator.sequencer import Sequencer
from artel.ledger import entries
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.published import LostEntries
from artel.ledger.store.second import second_path
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.ledger.sync.holding import hold
from artel.ledger.sync.looks import AT_ONCE, LOOK_S
from artel.ledger.sync.offline import verify_evidence
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.serving import LedgerService
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import Identity
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.net.wire import Refused
from client_world import served, write_key, write_tiles
from desk_world import Member, Office
from host_world import LOOPBACK, anybody, start
from ledger_world import World, key
from party_world import two_coordinators
from split_world import Net

OLDER = 10


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "ASK_S", 1.0)
    monkeypatch.setattr(recovery, "PATIENCE_S", 2.0)


@pytest.fixture
def world() -> World:
    world = World()
    world.add(*world.start, *world.round(0))
    return world


@pytest_asyncio.fixture
async def net(tmp_path: Path, world: World) -> AsyncIterator[Net]:
    """Members hold the whole ledger, of which the coordinator's home has OLDER entries."""
    net = await Net(tmp_path / "net", world).open()
    net.default = net.history("honest")
    net.default.store.append(world.leaves[:OLDER], world.sign)
    net.default.store.append(world.leaves[OLDER:], world.sign)
    yield net
    await net.close()


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = await start(tmp_path / "host")
    yield host
    await host.close()


@contextlib.contextmanager
def home_of(
    folder: Path, world: World, leaves: list[bytes], begun: str = ""
) -> Iterator[OwnLedger]:
    """A coordinator's home whose ledger has these entries."""
    folder.mkdir(exist_ok=True)
    if leaves:
        with LedgerStore.open(folder / DATABASE_NAME, create=True) as store:
            store.append(leaves, world.sign)
    with contextlib.ExitStack() as stack:
        log = world.coordinator.key
        yield OwnLedger.open(folder, world.run, log, [log], begun, stack)


async def knows(home: Path, host: Host, *names: Host, here: bool = True) -> None:
    """Put members into the file of a home."""
    rows = [
        Known(peer=one.peer_id, addresses=await one.addresses(), here=here).model_dump_json()
        for one in names
    ]
    (home / MEMBERS_FILE).write_text(f'{{"members": [{", ".join(rows)}]}}')


async def start_as(home: Path, who: Identity) -> Host:
    write_key(home / "node.key", who)
    host = await Host.start(who, home / "node.key", listen=[LOOPBACK])
    host.admit(anybody)
    return host


def signed_here(own: OwnLedger, world: World) -> None:
    """As by a coordinator that has just gone on from this ledger."""
    Sequencer(own.store, world.coordinator, world.run, own.heads, second=own.second)


async def test_what_members_have_beyond_the_ledger_is_taken_over_before_anything_is_signed(
    net: Net, host: Host, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = await net.node("node")
    with home_of(tmp_path / "home", world, world.leaves[:OLDER]) as own:
        await knows(own.home, host, node.host)
        await Asking(own, host).settle()
        assert own.store.root == net.default.store.root
        assert own.store.latest_note == net.default.store.latest_note
    (said,) = [record for record in caplog.records if record.message == "ledger.recovered"]
    assert said.fields["before"] == OLDER  # type: ignore[attr-defined]
    assert said.fields["entries"] == len(world.leaves)  # type: ignore[attr-defined]


async def test_a_ledger_that_is_gone_comes_back_whole(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    node = await net.node("node")
    with home_of(tmp_path / "home", world, [], "invite") as own:
        await knows(own.home, host, node.host)
        await Asking(own, host).settle()
        assert own.store.root == net.default.store.root


async def test_who_dials_us_is_asked_though_no_file_names_it(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    node = await net.node("node")
    with home_of(tmp_path / "home", world, world.leaves[:OLDER]) as own:
        asking = asyncio.create_task(Asking(own, host).settle())
        assert await node.host.connect(host.peer_id, await host.addresses())
        await asking
        assert own.store.root == net.default.store.root


async def test_a_mirror_that_a_person_names_does_too(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    tiles = write_tiles(tmp_path / "net" / "honest", tmp_path / "mirror")
    with served(tiles) as url, home_of(tmp_path / "home", world, world.leaves[:OLDER]) as own:
        source, _ = hold(url)
        await Asking(own, host, [source]).settle()
        assert own.store.root == net.default.store.root


async def test_without_any_answer_only_a_home_that_signed_here_last_goes_on(
    host: Host, world: World, tmp_path: Path
) -> None:
    with home_of(tmp_path / "home", world, world.leaves) as own:
        with pytest.raises(Unreachable, match="nobody who took part") as caught:
            await Asking(own, host).settle()
        assert "--alone" in caught.value.hint
        await Asking(own, host, alone=True).settle()
        signed_here(own, world)
        await Asking(own, host).settle()  # everything was rebooted together, say
        second_path(world.run, world.coordinator.key).unlink()
    (tmp_path / "home" / CHECKPOINT_NAME).unlink()
    (tmp_path / "home" / HEADS_NAME).unlink()
    with home_of(tmp_path / "home", world, []) as own, pytest.raises(Unreachable):
        await Asking(own, host).settle()


async def test_a_coordinator_that_leads_by_now_is_asked_when_no_member_is_there(
    host: Host, tmp_path: Path
) -> None:
    """It is known from the invite alone."""
    led = terms_world.Ledger(tmp_path / "standby")
    world, (standby,) = terms_world.WORLD, terms_world.WORLD.standbys
    led.add(*world.start)
    led.rounds([0])
    former = led.copied(tmp_path / "home")
    former.store.close()
    led.hand_over(1)
    other = await start_as(tmp_path / "other", standby)
    heads = HeadStore(tmp_path / "standby" / HEADS_NAME)
    service = LedgerService(led.store, heads, world.run, lambda: led.fold.state)
    await other.serve(wire.LEDGER, service.answer)
    with contextlib.ExitStack() as stack:
        keys = [world.coordinator.key, standby.key]
        own = OwnLedger.open(tmp_path / "home", world.run, keys[0], keys, "", stack)
        signed_here(own, world)
        assert own.leads(keys[0])
        ways = {other.peer_id: (await other.addresses())[0]}
        await Asking(own, host, ways=ways).settle()
        assert own.replica.state.term.leader == standby.key
        assert not own.leads(keys[0])
    await other.close()
    led.store.close()
    heads.close()


async def test_a_stranger_that_shows_nothing_newer_is_no_answer(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    await net.node("no member")
    with home_of(tmp_path / "home", world, world.leaves) as own:
        await knows(own.home, host, *(node.host for node in net.nodes))
        with pytest.raises(Unreachable):
            await Asking(own, host).settle()


async def test_entries_that_nobody_has_are_not_replaced_by_others(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    node = await net.node("node")
    more = world.dispute(world.owners[0], world.earned(world.members[1], 0)).encode()
    with home_of(tmp_path / "home", world, [*world.leaves, more]) as own:
        newest = own.store.latest_note
    (tmp_path / "home" / DATABASE_NAME).unlink()
    (tmp_path / "home" / CHECKPOINT_NAME).unlink()
    with home_of(tmp_path / "home", world, world.leaves[:OLDER]) as own:
        own.heads.add_note(newest)
        await knows(own.home, host, node.host)
        with pytest.raises(LostEntries, match=f"head of {len(world.leaves) + 1}"):
            await Asking(own, host).settle()
        # The second memory holds what members do not have yet.
        assert own.second is not None
        assert own.second.keep(newest, "", [more])
        await Asking(own, host).settle()
        assert own.store.latest_note == newest


async def test_another_history_of_the_same_key_is_refused_with_the_proof(
    net: Net, host: Host, world: World, tmp_path: Path
) -> None:
    node = await net.node("node")
    other = world.dispute(world.owners[0], world.earned(world.members[1], 0)).encode()
    for leaves in ([*world.leaves[:-1], other], [*world.leaves, other]):
        home = tmp_path / f"home of {len(leaves)}"
        if len(leaves) > len(world.leaves):  # then it is the members' that is shorter
            leaves[-2] = world.dispute(world.owners[0], world.earned(world.members[0], 0)).encode()
        with home_of(home, world, leaves) as own:
            signed_here(own, world)
            await knows(own.home, host, node.host)
            with pytest.raises(CheckFailed, match="another history") as caught:
                await Asking(own, host).settle()
            assert str(home / SPLIT_VIEW_FILE) in caught.value.message
            _, culprit = verify_evidence((home / SPLIT_VIEW_FILE).read_bytes())
            assert culprit.name == world.origin
            assert own.heads.conflicts()
        second_path(world.run, world.coordinator.key).unlink()


async def test_a_copy_of_a_home_that_signs_beside_it_is_found_out(
    world: World, tmp_path: Path
) -> None:
    with (
        home_of(tmp_path / "one", world, world.leaves) as one,
        home_of(tmp_path / "other", world, world.leaves) as other,
    ):
        first, second = (
            Sequencer(own.store, world.coordinator, world.run, own.heads, second=own.second)
            for own in (one, other)
        )
        await first.append(entries.account(key("x"), world.run))
        with pytest.raises(CheckFailed, match="signed last"):
            await second.append(entries.account(key("y"), world.run))


# --- while the run goes on ------------------------------------------------------------------------


async def test_a_running_coordinator_that_is_shown_more_signs_nothing_any_more(
    office: Office, members: list[Member]
) -> None:
    assert office.store is not None
    core, size = office.core, office.store.size
    await recovery.require_newest(core, members[0].identity.peer_id, office.store.latest_note)
    forged = sign_checkpoint(key("another"), office.store.origin, size + 1, b"\1" * 32)
    await recovery.require_newest(core, members[0].identity.peer_id, forged)
    await members[0].beat()
    more = sign_checkpoint(core.identity, office.store.origin, office.store.size + 5, b"\1" * 32)
    size = office.store.size
    with pytest.raises(Refused, match=f"of {size + 5} entries"):
        await recovery.require_newest(core, members[0].identity.peer_id, more)
    with pytest.raises(Behind):
        await core.ledger.append(entries.account(key("x"), office.run))
    with pytest.raises(Behind):
        await core.drive()
    assert office.store.size == size
    assert core.heads.note(size + 5) == more  # so that a start knows of it


async def test_heads_by_a_coordinator_that_does_not_lead_their_term_count_for_nothing(
    host: Host, tmp_path: Path
) -> None:
    """Shown by a stranger, and as a home may have noted them before."""
    world = two_coordinators()
    leader, standby = world.coordinator, world.standbys[0]
    size = len(world.leaves)
    forged = sign_checkpoint(standby, world.origin, 10**6, b"\1" * 32)
    here = sign_checkpoint(standby, world.origin, size - 1, b"\2" * 32)
    true = sign_checkpoint(leader, world.origin, size + 3, b"\3" * 32)

    def opened(stack: contextlib.ExitStack) -> OwnLedger:
        keys = [leader.key, standby.key]
        return OwnLedger.open(tmp_path, world.run, leader.key, keys, "", stack)

    with contextlib.ExitStack() as stack:
        own = opened(stack)
        await asyncio.to_thread(own.store.append, world.leaves, world.sign, own.replica.fold.beside)
        own.replica._settle()
        failed = list[Exception]()
        sequencer = Sequencer(own.store, leader, world.run, own.heads, second=own.second)
        core: Any = SimpleNamespace(
            run=world.run, ledger=sequencer, heads=own.heads, fail=failed.append
        )
        stranger = key("a stranger").peer_id
        asking, name = Asking(own, host), "from 1"
        source = PeerSource(host, stranger, world.run)
        for text in (forged, here):
            await recovery.require_newest(core, stranger, text)
            with pytest.raises(CheckFailed, match="not signed by any key"):
                await asking._consider(name, source, text)
        assert (failed, own.heads.note(10**6), own.lost()) == ([], "", "")
        for text in (forged, here):
            own.heads.add_note(text)
        own.require_whole()
    assert verify_home(tmp_path).verified
    with contextlib.ExitStack() as stack:
        own = opened(stack)
        own.require_whole()
        assert [own.heads.note(each) for each in (10**6, size - 1)] == ["", ""]
        own.heads.add_note(true)
        with pytest.raises(LostEntries, match=f"tree head of {size + 3}:"):
            own.require_whole()


async def test_who_says_to_know_a_later_term_and_shows_nothing_freezes_no_coordinator(
    office: Office, members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, asked = office.core, list[str]()
    never = asyncio.Event()

    async def hang(source: PeerSource, *paths: str, skip: int = 0, timeout: float) -> Any:
        asked.append(source.peer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await never.wait()
        raise Unreachable("too slow")

    monkeypatch.setattr(PeerSource, "files", hang)
    note = sign_checkpoint(key("a stranger"), origin_of(office.run, 99), 10**6, b"\1" * 32)

    async def shown(peer: str) -> None:
        await recovery.require_newest(core, peer, note)

    peers = [key(f"stranger {number}").peer_id for number in range(30)]
    peers += [member.identity.peer_id for member in members] * 10
    showing = asyncio.gather(*map(shown, peers))
    async with asyncio.timeout(3.0):  # the pool that serves the ledger has free threads
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(64)))
    assert not showing.done()
    async with asyncio.timeout(3 * LOOK_S):
        await showing
    assert len(set(asked)) <= sum(AT_ONCE.values()), "few at once, and each once"
    assert len(asked) == len(set(asked))
    # Who is no node of the run shows nothing at all.
    asked.clear()
    cosigned = messages.Cosigned(run=office.run, note=note)
    with pytest.raises(Refused) as caught:
        await office.desk._cosigned(key("another stranger").peer_id, cosigned)
    assert (caught.value.code, asked) == ("unknown_node", [])


async def test_addresses_of_members_are_kept_and_bounded(
    office: Office, members: list[Member], tmp_path: Path
) -> None:
    await members[0].beat()
    name = members[0].identity.peer_id
    keeping = asyncio.create_task(keep_members(tmp_path, lambda: addresses_of(office.core.peers)))
    while not read_members(tmp_path):
        await asyncio.sleep(0.01)
    (one,) = read_members(tmp_path)
    assert (one.peer, one.here) == (name, True)
    keeping.cancel()
    # Whoever else may lead is kept, too, but not waited for.
    other = key("a standby").peer_id
    where = {name: ["/ip4/10.0.0.1/tcp/1"], other: ["/ip4/10.0.0.2/tcp/2"]}
    here = lambda: addresses_of(office.core.peers)  # noqa: E731
    keeping = asyncio.create_task(keep_members(tmp_path, here, lambda: where))
    while len(read_members(tmp_path)) < 2:
        await asyncio.sleep(0.01)
    assert [(row.peer, row.here) for row in read_members(tmp_path)] == [
        (other, False),
        (name, True),
    ]
    keeping.cancel()
    (tmp_path / MEMBERS_FILE).unlink()
    crowd = {key(f"{n}").peer_id: ["/ip4/10.0.0.1/tcp/1"] for n in range(80)}
    keeping = asyncio.create_task(keep_members(tmp_path, lambda: crowd, lambda: where))
    while not read_members(tmp_path):
        await asyncio.sleep(0.01)
    assert other in {row.peer for row in read_members(tmp_path)}
    keeping.cancel()
    for damaged in ("", "[]", '{"members": 3}', '{"members": [{"peer": "x"}]}', "\xff"):
        (tmp_path / MEMBERS_FILE).write_text(damaged)
        assert read_members(tmp_path) == []
    office.core.peers.clear()
    rows: list[Any] = [one.model_dump() | {"peer": key(f"{n}").peer_id} for n in range(80)]
    (tmp_path / MEMBERS_FILE).write_text(json.dumps({"members": rows}))
    assert len(read_members(tmp_path)) == 64
