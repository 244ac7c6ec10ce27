"""The coordinator's desk: who may say what, when; and what follows for the round and the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hivemind.p2p import PeerID
from pydantic import ValidationError

from artel.coordinator import desk, submission
from artel.coordinator.desk import ADDRESSES_TOLD, evaluator
from artel.coordinator.peer import Peer
from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.ledger.entries.kinds.diverged import in_micro, loss_message
from artel.ledger.fold import shares
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.looks import Looks
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.protocol import content, dsse, messages, round_state
from artel.protocol.errors import CheckFailed, ResourceError, Unreachable
from artel.protocol.identity import Identity
from artel.protocol.net import wire
from artel.protocol.net.delivery import TRIES
from artel.protocol.net.slots import Rank
from artel.protocol.net.streams import KINDS
from artel.protocol.round_state import Phase
from desk_world import ORGANISER, Line, Member, Office, refused, run_of
from host_world import start, swarm, until
from witness_world import play_round

NEXT = hashlib.sha256(b"the state of round 1").hexdigest()
OTHER = hashlib.sha256(b"another state").hexdigest()


@pytest_asyncio.fixture
async def training(office: Office, members: list[Member]) -> list[Member]:
    for member in members:
        await member.beat()
    assert office.core.state.phase is Phase.TRAINING
    return members


@pytest_asyncio.fixture
async def revealing(office: Office, training: list[Member]) -> list[Member]:
    for member in training:
        await member.commit()
    assert office.core.state.phase is Phase.REVEALING
    return training


@pytest_asyncio.fixture
async def applying(office: Office, revealing: list[Member]) -> list[Member]:
    for member in revealing:
        await member.show()
    assert office.core.state.phase is Phase.APPLYING
    return revealing


# --- a round in which all goes well ---


async def test_a_round_from_opening_to_credit(office: Office, applying: list[Member]) -> None:
    for member in applying:
        assert (await member.beat()).task == "apply"
        await member.sign_state(NEXT)
    state, fold = office.core.state, office.core.ledger.state
    assert (state.round, state.base, state.attempt) == (1, NEXT, 0)
    assert fold.states[-1] == NEXT
    assert {fold.credit(member.owner.key) for member in applying} == {100 * office.tokens}
    assert not fold.ignored
    directive = await applying[0].beat()
    assert directive.task == "wait" or directive.round == 1
    assert directive.ledger_size == office.core.ledger.store.size
    assert set(directive.peers) == {member.peer for member in applying}


# --- hello ---


async def test_hello_admits_once(office: Office, members: list[Member]) -> None:
    size = office.core.ledger.store.size
    welcome = await members[0].hello()
    assert isinstance(welcome, messages.Welcome)
    assert welcome.payload_bytes == office.core.payload_bytes
    assert office.core.ledger.store.size == size == 1 + 2 * 3


async def test_whoever_the_ledger_binds_has_a_members_slots(
    office: Office, members: list[Member], tmp_path: Path
) -> None:
    host = await start(tmp_path / "host")
    try:
        office.core.host = host
        await office.desk.open()
        node = Member(office, "new")
        assert host._callers.of(node.peer).rank is Rank.STRANGER
        await node.hello()
        assert host._callers.of(node.peer) == (Rank.REGISTERED, node.owner.key)
        for member in members:
            await member.beat()
        assert host._callers.of(members[0].peer).rank is Rank.KNOWN, "it sits in the round"
        assert host._callers.of(node.peer).rank is Rank.REGISTERED
        assert host._callers.of(host.peer_id).rank is Rank.KNOWN
    finally:
        await host.close()


async def test_of_two_processes_with_one_key_the_later_one_speaks(
    office: Office, members: list[Member]
) -> None:
    one = members[0]
    first, second, third = ("1" * 32, "2" * 32, "3" * 32)
    await one.beat(instance=first)
    await one.beat(instance=second)  # it was started again, or its home was copied
    await one.beat(instance=second)
    assert await refused(one.beat(instance=first)) == "replaced"
    await one.beat(instance=third)
    for old in (first, second):
        assert await refused(one.beat(instance=old)) == "replaced"
    await one.beat(instance=third)
    await members[1].beat(instance=first)  # of another node
    await one.say(messages.Leave(run=office.run))
    await one.beat(instance=first)  # the others have left


async def test_registered_keys_with_silent_streams_keep_no_node_out(
    office: Office, members: list[Member], tmp_path: Path
) -> None:
    """Sixteen keys, which cost nothing, hold sixteen streams each and open them again."""
    host = await start(tmp_path / "host")
    held: list[socket.socket] = []
    tasks: set[asyncio.Task[None]] = set()

    def opened(member: Member) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        peer = PeerID.from_base58(member.peer).to_bytes()
        host._reception.take(wire.CONTROL, peer, "127.0.0.1", ours)
        held.append(theirs)
        return theirs

    async def hold(member: Member) -> None:
        while True:
            silent = opened(member)
            silent.send(b"\0\0\1\0\x93")  # of a frame that never comes
            await asyncio.get_running_loop().sock_recv(silent, 1)
            await asyncio.sleep(0.01)

    try:
        office.core.host = host
        await office.desk.open()
        for number in range(16):
            key = Member(office, f"free {number}")
            await key.hello()
            tasks.update(asyncio.create_task(hold(key)) for _ in range(16))
        await until(lambda: len(host._reception.slots._held) == 256, 30)
        report = messages.Report(state_round=0, state_root="", phase="x")
        beat = messages.Heartbeat(
            run=office.run,
            instance="0" * 32,
            seen=0,
            patience=0.0,
            report=report,
            addresses=[],
        )
        for member in members * 4:
            stream = opened(member)
            await asyncio.sleep(0.05)  # as far away as its frame takes
            await asyncio.get_running_loop().sock_sendall(stream, wire.encode(beat))
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(stream, 4), 10)
            stream.close()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in held:
            one.close()
        await host.close()


async def test_hello_where_only_some_may_come(tmp_path: Path) -> None:
    office = Office(tmp_path, *run_of(tmp_path, trust={"admission": "list"}))
    await office.open()
    comes = Member(office, "comes")
    for _ in range(2):
        with pytest.raises(wire.Refused) as refused_:
            await comes.hello()
        assert refused_.value.code == reasons.NOT_ADMITTED
        assert f"artel ledger admit {comes.owner.key}" in refused_.value.hint
    assert not office.core.ledger.state.accounts
    with pytest.raises(wire.Refused):
        await comes.submit(entries.account(comes.owner, office.run))
    await comes.submit(entries.admitted(ORGANISER, office.run, comes.owner.key))
    await comes.hello()
    assert office.core.ledger.state.nodes == {comes.peer: comes.owner.key}
    office.close()


async def test_hello_with_a_wrong_signature(office: Office) -> None:
    node = Member(office, "new")
    good = entries.node(node.identity, node.owner, office.run)
    key, signature = good.signatures[0]
    bad = dsse.Envelope(
        good.payload_type,
        good.payload,
        ((key, bytes([signature[0] ^ 1]) + signature[1:]), *good.signatures[1:]),
    )
    statements = [node.statements()[0], bad.encode()]
    assert await refused(node.hello(statements=statements)) == "failed"
    assert office.core.ledger.store.size == 1


async def test_hello_for_somebody_else(office: Office, members: list[Member]) -> None:
    thief, victim = Member(office, "thief"), members[0]
    run, size = office.run, office.core.ledger.store.size
    account, mine = thief.statements()
    body = {"kind": "node", "run": run, "node": thief.peer, "account": thief.owner.key, "seq": 1}
    body |= {"coordinator": thief.identity.elected.key}
    one_key = dsse.sign(entries.ENTRY_TYPE, body, thief.identity).encode()
    claimed = body | {"account": victim.owner.key}
    without_owner = dsse.sign(entries.ENTRY_TYPE, claimed, thief.identity, thief.owner).encode()
    stolen = entries.node(victim.identity, victim.owner, run).encode()
    foreign = entries.node(thief.identity, victim.owner, run).encode()
    # A node of others, also after one's own account; another account than the one registered.
    for statements in ([stolen], [account, stolen], [account, foreign]):
        assert await refused(thief.hello(statements=statements)) == "failed"
    # Somebody else's account without its key; nothing at all.
    assert await refused(thief.hello(statements=[without_owner])) == "wrong_signers"
    assert await refused(thief.hello(statements=[])) == "unknown_node"
    # Swapped, doubled, and other kinds.
    for statements in ([mine, account], [account, account], [thief.statement().encode()]):
        assert await refused(thief.hello(statements=statements)) == "malformed"
    assert office.core.ledger.store.size == size, "nonsense never enters the ledger"
    # One's own account, but the node's or the account's signature is missing.
    assert await refused(thief.hello(statements=[account, one_key])) == "wrong_signers"
    assert thief.peer not in office.core.ledger.state.nodes
    assert not office.core.ledger.state.ignored


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all signatures that are verified from here on."""
    keys, right = list[str](), dsse.verify

    def noted(key: bytes, signature: bytes, text: bytes) -> bool:
        keys.append(key.hex())
        return right(key, signature, text)

    monkeypatch.setattr(dsse, "verify", noted)
    return keys


def crowded(statement: bytes) -> bytes:
    """The same, signed by as many keys as fit."""
    signed = dsse.decode(statement)
    message = dsse.pae(signed.payload_type, signed.payload)
    more = [Identity.from_seed(bytes([n]) * 32) for n in range(36 - len(signed.signatures))]
    both = dict(signed.signatures) | {key.key: key.sign(message) for key in more}
    return replace(signed, signatures=tuple(sorted(both.items()))).encode()


async def test_no_signature_is_verified_of_a_registration_that_cannot_be_one(
    office: Office, members: list[Member], verified: list[str]
) -> None:
    stranger = Member(office, "stranger")
    account, node = stranger.statements()
    many = crowded(account), crowded(node)
    for statements in ([many[0], node], [account, many[1]], [many[1]]):
        assert await refused(stranger.hello(statements=statements)) == "wrong_signers"
    for statements in ([*many[::-1]], [many[0]] * 2):
        assert await refused(stranger.hello(statements=statements)) == "malformed"
    assert await refused(stranger.hello(statements=[crowded(members[0].statements()[1])])) == (
        "failed"
    )
    assert verified == []
    await stranger.hello()
    assert len(set(verified)) == 4 - 1  # the account signs both


async def test_what_registrations_of_one_address_cost_is_bounded(
    office: Office, members: list[Member], verified: list[str]
) -> None:
    for number in range(2 * submission.PER_PEER_AT_ONCE):
        key = Member(office, f"key {number}")
        key.network = "203.0.113.7"
        lost = entries.account(key.owner, "cd" * 32).encode()  # counts for nothing
        expected = "wrong_run" if number < submission.PER_PEER_AT_ONCE else "busy"
        assert await refused(key.hello(statements=[lost])) == expected
    assert len(verified) == submission.PER_PEER_AT_ONCE
    members[0].network = "203.0.113.7"
    await members[0].hello()  # what the ledger has is no new work
    office.now += 1
    key = Member(office, "comes")
    key.network = "203.0.113.7"
    await key.hello()


async def test_of_a_statement_that_others_signed_too_no_signature_is_verified(
    office: Office, members: list[Member], verified: list[str]
) -> None:
    one, two = Member(office, "one"), Member(office, "two")
    for member in (one, two):
        await member.hello()
    verified.clear()
    statement = crowded(two.statements(seq=2)[1])
    assert await refused(one.say(messages.Aggregated(run=office.run, statement=statement))) == (
        "failed"
    )
    assert await refused(one.say(messages.Accuse(run=office.run, statement=statement))) == "failed"
    said = entries.state_vote(
        one.identity, office.run, round=1, attempt=0, root="ab" * 32, credits="cd" * 32
    )
    message = messages.SignedState(run=office.run, statement=crowded(said.encode()), accused=[])
    assert await refused(one.say(message)) == "failed"
    assert verified == []


async def test_a_key_that_comes_and_goes_fills_no_log(
    office: Office, members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "artel.coordinator")
    one = Member(office, "comes and goes")
    await one.hello()

    async def comes_and_goes() -> tuple[int, int]:
        for _ in range(20):
            await one.beat()
            await one.say(messages.Leave(run=office.run))
        return caplog.text.count("node.joined"), caplog.text.count("node.left")

    most = desk.COMINGS_AT_ONCE
    assert await comes_and_goes() == (most, most)
    office.now += 60
    assert await comes_and_goes() == (most + 1, most + 1)


async def test_hello_for_another_run_or_with_garbage(office: Office) -> None:
    node = Member(office, "new")
    other = "cd" * 32
    assert await refused(node.hello(run=other)) == "other_run"
    entry = entries.account(node.owner, other).encode()
    assert await refused(node.hello(statements=[entry])) == "wrong_run"
    assert await refused(node.hello(statements=[b"{}"])) == "malformed"
    assert office.core.ledger.store.size == 1


async def test_a_node_moves_to_another_account_and_back(
    office: Office, members: list[Member]
) -> None:
    node, run = members[0], office.run
    first, other = node.owner, members[1].owner
    moved = entries.node(node.identity, other, run, seq=2).encode()
    await node.hello(statements=[moved])
    assert office.core.ledger.state.account_of(node.peer) == other.key
    # The first binding cannot be played back; a new one is needed.
    assert await refused(node.hello(statements=[node.statements()[1]])) == "wrong_sequence"
    assert office.core.ledger.state.account_of(node.peer) == other.key
    await node.hello(statements=[entries.node(node.identity, first, run, seq=3).encode()])
    assert office.core.ledger.state.account_of(node.peer) == first.key
    await node.hello(statements=[])  # nothing is missing
    assert not office.core.ledger.state.ignored


async def test_a_node_of_an_account_whose_key_was_replaced(
    office: Office, members: list[Member]
) -> None:
    old, new, run = members[0].owner, Member(office, "successor").owner, office.run
    rotated = entries.key_rotated(old, new, run, account=old.key, seq=1)
    await members[0].submit(rotated)
    second = Member(office, "second node")
    late = entries.node(second.identity, old, run).encode()
    assert await refused(second.hello(statements=[late])) == "wrong_signers"
    bound = entries.node(second.identity, new, run, account=old.key).encode()
    await second.hello(statements=[bound])
    assert office.core.ledger.state.account_of(second.peer) == old.key


async def test_admissions_are_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "FREE_ADMISSIONS", 3)
    for name in "abcd":  # from the second node on they count
        await Member(office, name).hello()
    late = Member(office, "late")
    assert await refused(late.hello()) == "busy"
    # The same bound holds for accounts that are submitted without a node.
    with pytest.raises(wire.Refused) as busy:
        await late.submit(entries.account(late.owner, office.run))
    assert busy.value.code == "busy"
    office.now += 61
    await late.hello()
    assert late.peer in office.core.ledger.state.nodes


async def test_one_address_adds_few_entries_whatever_keys_it_makes(office: Office) -> None:
    async def comes(name: str, network: str) -> str:
        one = Member(office, name)
        one.network = network
        try:
            await one.hello()
        except wire.Refused as error:
            return error.code
        return ""

    most = submission.EACH_AT_ONCE
    crowd = [await comes(f"{number}", "203.0.113.7") for number in range(most)]
    assert crowd.count("") == most // 2
    assert set(crowd) == {"", "busy"}
    assert office.core.ledger.store.size == 1 + most
    assert not await comes("elsewhere", "203.0.113.8")
    home = [await comes(f"home {number}", "127.0.0.1") for number in range(most)]
    assert not any(home), "on this machine a whole run has one address"


async def test_members_and_rounds_do_not_notice_a_flood_of_newcomers(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "FREE_ADMISSIONS", 0)
    size, refusals = office.core.ledger.store.size, 0
    for number in range(120):
        stranger = Member(office, f"stranger {number}")
        stranger.network = f"2001:db8:{number:x}::/64"
        try:
            await stranger.hello()
        except wire.Refused as error:
            refusals += error.code == "busy"
        office.now += 0.5
    assert refusals >= 110
    assert office.core.ledger.store.size <= size + 10, "entries of strangers in one minute"
    await members[0].hello()
    await play_round(office, members)


# --- heartbeats and directives ---


async def test_a_stranger_is_told_to_say_hello(office: Office) -> None:
    stranger = Member(office, "stranger")
    assert await refused(stranger.beat()) == "unknown_node"
    assert await refused(stranger.say(messages.Leave(run=office.run))) == "unknown_node"
    assert await refused(stranger.commit()) == "unknown_node"


async def test_other_runs_and_kinds_are_refused(office: Office, members: list[Member]) -> None:
    node = members[0]
    assert await refused(node.beat(run="cd" * 32)) == "other_run"
    assert await refused(node.say(messages.GetIndex(id=NEXT))) == "unknown"
    assert await refused(node.say(messages.Ok(), to=wire.CONTENT)) == "unknown"


async def test_a_heartbeat_waits_for_news(office: Office, members: list[Member]) -> None:
    first = await members[0].beat()
    assert first.task == "wait"
    waiting = asyncio.create_task(members[0].beat(seen=first.version, patience=20.0))
    await members[1].beat()
    assert not waiting.done()
    await members[2].beat()  # the third opens the round
    directive = await asyncio.wait_for(waiting, 2)
    assert (directive.task, directive.round, directive.attempt) == ("train", 0, 0)
    assert directive.version > first.version
    again = await asyncio.wait_for(members[0].beat(seen=directive.version, patience=0.05), 2)
    assert again.version == directive.version


async def test_a_probe_is_read_to_its_end(office: Office, members: list[Member]) -> None:
    size = 300_000
    assert await members[0].say(messages.Probe(size=size), bytes(size)) == messages.Ok()
    line = members[0].last
    assert line is not None
    assert line.read > size


async def test_the_largest_report_fits_a_heartbeat(office: Office, members: list[Member]) -> None:
    most = (1 << 53) - 1
    kinds = dict.fromkeys(KINDS, most)
    report = messages.Report(
        state_round=most,
        state_root="ab" * 32,
        phase="x" * 20,
        round=most,
        step=most,
        steps=most,
        loss=1 / 3,
        tokens_per_second=1 / 3,
        bytes_up=most,
        bytes_down=most,
        up_by_kind=kinds,
        down_by_kind=kinds,
        validation=messages.Validation(round=most, loss=1 / 3),
        seconds={f"{n:020}": 1 / 3 for n in range(24)},
    )
    await members[0].beat(report=report, addresses=["/" + "a" * 199] * 8, seen=most)
    assert office.core.peers[members[0].peer].report == report


async def test_many_nodes_with_many_addresses_still_get_directives(
    office: Office, members: list[Member]
) -> None:
    report = messages.Report(state_round=-1, state_root="", phase="x")
    for number in range(64):
        name = Member(office, f"peer {number}").peer
        office.core.peers[name] = Peer(report, ["/" + "a" * 199] * 8, office.now)
    directive = await members[0].beat()
    assert directive.peers
    assert len(wire.encode(directive)) <= messages.Directive.LIMIT


async def test_a_heartbeat_wakes_nobody_else_without_news(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a thousand nodes would make a coordinator look at a million duties for nothing."""
    one, two = members[:2]
    waiting = [
        asyncio.create_task(each.beat(seen=(await each.beat()).version, patience=20.0))
        for each in (one, two)
    ]
    await asyncio.sleep(0)
    looked_at: list[str] = []
    duty = office.desk._duty
    monkeypatch.setattr(office.desk, "_duty", lambda peer: looked_at.append(peer) or duty(peer))
    stranger = Member(office, "stranger")
    await stranger.hello()
    for _ in range(10):
        await stranger.beat(report=messages.Report(state_round=-1, state_root="", phase="x"))
    assert set(looked_at) == {stranger.peer}
    await two.beat()  # its own older heartbeat gives way
    assert (await asyncio.wait_for(waiting[1], 2)).task == "wait"
    assert not waiting[0].done()
    await members[2].beat()  # the third opens the round
    assert (await asyncio.wait_for(waiting[0], 2)).task == "train"


async def test_others_are_told_only_addresses_that_can_be_this_peers(
    office: Office, members: list[Member]
) -> None:
    one, two, _ = members
    good = [f"/ip4/192.0.2.{number}/tcp/4001/p2p/{one.peer}" for number in (1, 2)]
    bad = [
        "/x",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/300.0.2.1/tcp/1",
        "/ip4/224.0.0.1/udp/1/quic",
        "/ip4/255.255.255.255/udp/1/quic",
        f"/ip4/192.0.2.3/tcp/4001/p2p/{two.peer}",
    ]
    await one.beat(addresses=[*bad, *good])
    await two.beat(addresses=[f"/dns4/node.example/tcp/{port}" for port in range(1, 9)])
    told = (await one.beat(addresses=[*bad, *good])).peers
    assert told == {one.peer: good, two.peer: [f"/dns4/node.example/tcp/{n}" for n in (1, 2, 3, 4)]}


async def test_a_round_is_handed_back_once_in_the_log(
    office: Office, applying: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "artel.coordinator")
    for _ in range(5):
        await _hand_back(office, applying[0])
    assert caplog.text.count("round.handed_back") == 1


async def test_votes_of_others_than_the_accepted_are_neither_checked_nor_kept(
    office: Office, applying: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Member(office, "late")
    await late.hello()
    assert (await late.beat()).task == "apply", "so that it holds the state when all others do"
    checked: list[bytes] = []
    verify = dsse.verify
    monkeypatch.setattr(dsse, "verify", lambda *seal: checked.append(seal[1]) or verify(*seal))
    await late.sign_state(OTHER)
    assert not checked
    assert not office.core.state.votes
    assert not office.core._votes
    assert (await late.beat()).task == "wait", "it has done its part"
    for member in applying:
        await member.sign_state(NEXT)
    assert office.core.state.base == NEXT


async def test_leaving_and_handing_back(office: Office, training: list[Member]) -> None:
    one, two, three = training
    state = office.core.state
    await one.say(
        messages.HandBack(run=office.run, round=state.round, attempt=0, reason="out of memory")
    )
    assert (await one.beat()).task == "wait"
    await two.say(messages.Leave(run=office.run))
    assert two.peer not in office.core.peers
    await three.commit()  # one of three is below the quorum: the attempt fails
    assert office.rejected() == {
        one.peer: round_state.HANDED_BACK,
        two.peer: round_state.DISCONNECTED,
    }
    assert office.accepted() == []


def _evaluated(member: Member, round: int, loss: float, root: str = "") -> dict[str, Any]:
    """What a heartbeat with the validation loss of an agreed state holds, or of another one."""
    office = member.office
    root = root or office.core.ledger.state.states[round]
    said = loss_message(office.run, round, root, in_micro(loss))
    return {
        "report": messages.Report(
            state_round=round,
            state_root=member.root,
            phase="x",
            validation=messages.Validation(
                round=round, loss=loss, signature=member.identity.sign(said).hex()
            ),
        )
    }


async def test_a_validation_loss_is_taken_from_those_who_were_asked_for_it(
    office: Office, members: list[Member]
) -> None:
    stranger, rounds = Member(office, "stranger"), office.core.metrics.rounds
    await stranger.hello()
    stranger.root = ""
    for _ in range(2):  # before the first round, when nobody is a member
        await stranger.beat(**_evaluated(stranger, 0, 1.0))
    await _whole_round(office, members)
    for _ in range(2):
        await stranger.beat(**_evaluated(stranger, 0, 1.0))
    await members[0].beat(**_evaluated(members[0], 0, 6.0))
    await members[1].beat(**_evaluated(members[1], 0, 7.0))
    assert rounds[0].validation == 6.0, "of the first state by any member, and the first counts"
    while office.core.state.phase is not Phase.TRAINING:
        for member in members:
            member.root = (await member.beat()).root
        await office.pass_time(1)
    chosen = evaluator(office.run, 1, office.core.state.members)
    for member in members:
        assert (await member.beat()).evaluate == (member.peer == chosen)
        if member.peer != chosen:
            await member.beat(**_evaluated(member, 1, 1.0))
    (one,) = (member for member in members if member.peer == chosen)
    root, one.root = one.root, OTHER
    await one.beat(**_evaluated(one, 1, 2.0))
    assert rounds[1].validation is None, "it says itself that it has not got that state"
    one.root = root
    await _whole_round(office, members)
    one.root = (await one.beat()).root
    await one.beat(**_evaluated(one, 1, 3.0, root=OTHER))
    assert rounds[1].validation is None, "it has measured what the run went back behind"
    await one.beat(**_evaluated(one, 1, 5.0))
    assert rounds[1].validation == 5.0, "also when it took longer than the round"


@pytest.mark.parametrize(
    "changes",
    [
        {"validation": {"round": 0, "loss": 1.7e308}},
        {"validation": {"round": 0, "loss": -1.0}},
        {"loss": 1.7e308},
        {"loss": -1.0},
        {"loss": math.nan},
        {"seconds": {"train": 1.7e308}},
        {"seconds": {"train": -1.0}},
        {"tokens_per_second": 1.7e308},
        {"tokens_per_second": -1.0},
        {"up_by_kind": {"<img>": 1}},
    ],
)
def test_numbers_that_no_node_has_are_no_report(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        messages.Report.model_validate(
            {"state_round": 0, "state_root": "", "phase": "x", **changes}
        )


def test_one_member_evaluates_and_all_agree_who() -> None:
    members = ("a", "b", "c")
    chosen = {evaluator("ab" * 32, number, members) for number in range(40)}
    assert chosen == set(members)
    assert evaluator("ab" * 32, 5, members) == evaluator("ab" * 32, 5, members[::-1])
    assert evaluator("ab" * 32, 5, ()) == ""


async def test_heartbeats_of_a_round_draw_its_lot_once(
    office: Office, training: list[Member]
) -> None:
    """For each of 1,000 members it takes 1 ms."""
    await training[0].beat()
    before = evaluator.cache_info().misses
    for member in training:
        await member.beat()
    assert evaluator.cache_info().misses == before


# --- commitments ---


async def test_a_commitment_by_a_node_that_is_no_member(
    office: Office, training: list[Member]
) -> None:
    late = Member(office, "late")
    await late.hello()
    await late.beat()
    assert await refused(late.commit()) == "not_member"


async def test_committing_twice(office: Office, training: list[Member]) -> None:
    await training[0].commit()
    await training[0].commit()  # the reply was lost: the same again is fine
    assert await refused(training[0].commit(commitment=NEXT)) == round_state.COMMITMENT_MISMATCH
    mine = training[0].commitment(content.content_id(training[0].blob()))
    assert office.core.state.commitments == {training[0].peer: mine}


async def test_a_commitment_that_comes_late(office: Office, training: list[Member]) -> None:
    await training[0].commit()
    await training[1].commit()  # the quorum of three
    await office.pass_time(11)  # and the grace time
    assert office.core.state.phase is Phase.REVEALING
    assert await refused(training[2].commit()) == round_state.LATE
    for member in training[:2]:
        await member.show()
    assert office.rejected() == {training[2].peer: round_state.LATE}
    assert office.accepted() == sorted(member.peer for member in training[:2])


async def test_messages_of_another_round_or_attempt_change_nothing(
    office: Office, applying: list[Member]
) -> None:
    one = applying[0]
    old = one.statement().encode()
    old_blob = one.blob()
    for member in applying:
        await member.sign_state(NEXT)
    for member in applying:
        await member.beat()
    assert (office.core.state.round, office.core.state.phase) == (1, Phase.TRAINING)
    size = office.core.ledger.store.size
    assert await refused(one.commit(round=0)) == "stale"
    assert await refused(one.commit(attempt=1)) == "stale"
    assert await refused(one.sign_state(NEXT, round=1)) == "stale"
    hand_back = messages.HandBack(run=office.run, round=0, attempt=0, reason="")
    assert await refused(one.say(hand_back)) == "stale"
    assert await refused(one.put(old_blob)) == "too_early"
    assert await refused(one.reveal(old)) == "too_early"
    assert office.core.ledger.store.size == size
    assert not office.core.state.rejected
    # A replay when it is time to reveal, by the one who said it first, hurts nobody else.
    for member in applying:
        await member.commit()
    assert await refused(one.reveal(old)) == round_state.MALFORMED
    for member in applying[1:]:
        await member.show()
    assert office.rejected() == {one.peer: round_state.MALFORMED}
    assert len(office.accepted()) == 2


# --- two reveals at once ---


async def test_two_reveals_with_different_signatures_count_as_one(
    office: Office, revealing: list[Member]
) -> None:
    """Ed25519 lets a signer make many signatures of one text; they are different ledger entries."""
    twice = revealing[0]
    await twice.put()
    good = twice.statement()
    other = dsse.Envelope(
        good.payload_type,
        good.payload,
        ((twice.identity.key, _second_signature(twice.identity.seed, good)),),
    )
    assert other.verify() == good.verify()
    assert other.encode() != good.encode()
    await asyncio.gather(twice.reveal(good.encode()), twice.reveal(other.encode()))
    for member in revealing[1:]:
        await member.show()
    assert office.core.state.phase is Phase.APPLYING
    fold = office.core.ledger.state
    assert fold.attempt is not None
    assert fold.attempt.phase == "applying", "the ledger must agree that the round is closed"
    assert len(fold.attempt.accepted) == 3


async def test_a_reveal_said_twice_is_fine(office: Office, revealing: list[Member]) -> None:
    await revealing[0].show()
    await revealing[0].reveal()
    assert await refused(revealing[0].put()) == "present"


async def test_what_counts_stays_though_a_second_copy_of_it_comes_late(
    office: Office, revealing: list[Member]
) -> None:
    twice, *others = revealing
    data, gate = twice.blob(), asyncio.Event()
    blob = content.content_id(data)

    class Slow(Line):
        async def read_exactly(self, count: int) -> bytes:
            await gate.wait()
            return await super().read_exactly(count)

    request = messages.Put(id=blob, size=len(data))
    second = asyncio.create_task(office.desk._puts.answer(twice.peer, request, Slow(data)))
    await asyncio.sleep(0)
    await twice.show()
    gate.set()
    await second
    for member in others:
        await member.show()
    for member in revealing:
        await member.sign_state(NEXT)
    for member in revealing:
        await member.beat()
    for member in revealing:
        await member.commit()
    await others[0].put()  # in another phase: what nothing named is dropped
    assert office.core.state.round == 1
    assert office.blobs.has(blob)


async def test_what_was_put_and_never_counted_does_not_stay(
    office: Office, revealing: list[Member]
) -> None:
    bad, *good = revealing
    junk = b"\1" * 1000
    await bad.put(junk)
    for member in good:
        await member.show()
    await office.pass_time(21)
    assert office.rejected() == {bad.peer: round_state.MISSING_REVEAL}
    for member in good:
        await member.sign_state(NEXT)
    for member in good:
        await member.beat()
    bad.root = NEXT
    await bad.beat()
    await office.pass_time(11)
    for member in revealing:
        await member.commit()
    await good[0].put()
    assert not office.blobs.has(content.content_id(junk))
    assert {entry.blob for entry in office.bodies("contribution")} <= {
        path.name for path in office.blobs.root.iterdir()
    }


async def test_puts_are_bounded(office: Office, revealing: list[Member]) -> None:
    for number in range(TRIES + 1):
        await revealing[0].put(bytes([number]) * 10)
    assert await refused(revealing[0].put(b"more")) == "too_many"
    await revealing[1].show()


# --- states ---


async def test_a_state_signed_by_somebody_else(office: Office, applying: list[Member]) -> None:
    one, two, _ = applying
    assert await refused(one.sign_state(NEXT, signer=two.identity)) == "failed"
    assert await refused(one.sign_state(NEXT, signer=ORGANISER)) == "failed"
    fields = {"round": 1, "attempt": 0, "root": NEXT, "credits": office.credits}
    both = entries.state_vote(one.identity, office.run, **fields).merged(
        entries.state_vote(two.identity, office.run, **fields)
    )
    statement = messages.SignedState(run=office.run, statement=both.encode(), accused=[])
    assert await refused(one.say(statement)) == "failed"
    other_kind = messages.SignedState(
        run=office.run, statement=one.statement().encode(), accused=[]
    )
    assert await refused(one.say(other_kind)) == "malformed"
    assert not office.core.state.votes


async def test_a_member_with_another_state_is_outvoted_and_has_to_sync(
    office: Office, applying: list[Member]
) -> None:
    odd, *others = applying
    await odd.sign_state(OTHER)
    for member in others:
        await member.sign_state(NEXT)
    assert office.core.state.base == NEXT
    agreed = entries.decode(list(office.core.ledger.store.leaves())[-1])
    keys = {ORGANISER.key, *(member.identity.key for member in others)}
    assert agreed.signers == keys or agreed.kind != "state_agreed"
    directive = await odd.beat()
    assert (directive.task, directive.root) == ("sync", NEXT)


async def test_a_state_of_a_round_that_is_not_closed(
    office: Office, revealing: list[Member]
) -> None:
    assert await refused(revealing[0].sign_state(NEXT)) == "stale"
    assert await refused(revealing[0].sign_state(NEXT, round=7)) == "stale"


async def test_no_majority_means_another_attempt(office: Office, applying: list[Member]) -> None:
    for number, member in enumerate(applying):
        root = hashlib.sha256(bytes([number])).hexdigest()
        await member.sign_state(root)
    assert (office.core.state.round, office.core.state.attempt) == (0, 1)
    assert office.accepted() == []
    assert not office.core.ledger.state.ignored


# --- a member gives up while the state is computed ---


async def _whole_round(office: Office, members: list[Member]) -> None:
    """From whatever is under way to the next agreed state; everybody does what they are told."""
    core = office.core
    before = core.state.round
    for _ in range(40):
        for member in members:
            directive = await member.beat()
            if directive.task == "sync":
                member.root = directive.root
            elif directive.task == "train":
                await member.commit()
            elif directive.task == "reveal":
                with contextlib.suppress(wire.Refused):  # it is here from an attempt before
                    await member.put()
                await member.reveal()
            elif directive.task == "apply":
                name = f"{core.state.round} {core.state.attempt}"
                await member.sign_state(hashlib.sha256(name.encode()).hexdigest())
            if core.state.round > before:
                return
        await office.pass_time(1)
    raise AssertionError(core.state)


async def _hand_back(office: Office, member: Member) -> None:
    place = {"round": office.core.state.round, "attempt": office.core.state.attempt}
    await member.say(messages.HandBack(run=office.run, **place, reason="the disk is full"))


async def test_a_member_that_hands_back_while_applying_stops_nobody(
    office: Office, applying: list[Member]
) -> None:
    await _hand_back(office, applying[0])
    for member in applying[1:]:
        await member.sign_state(NEXT)
    fold = office.core.ledger.state
    assert (office.core.state.round, fold.round) == (1, 1)
    credit = {fold.credit(member.owner.key) for member in applying}
    assert credit == {100 * office.tokens}, "what was accepted stays accepted"
    await _whole_round(office, applying)
    assert office.core.ledger.state.round == office.core.state.round == 2
    assert not fold.ignored


async def test_a_state_that_too_few_can_sign_fails_and_the_run_goes_on(
    office: Office, applying: list[Member]
) -> None:
    """All but one hand the round back: the signature of one is no majority of three."""
    await applying[0].sign_state(NEXT)
    for member in applying[1:]:
        await _hand_back(office, member)
    fold = office.core.ledger.state
    assert (office.core.state.round, office.core.state.attempt) == (0, 1)
    assert fold.attempt is not None
    assert fold.attempt.phase == "failed"
    assert office.accepted() == []
    await _whole_round(office, applying)
    fold = office.core.ledger.state
    assert fold.round == office.core.state.round == 1
    assert fold.states[-1] == office.core.state.base
    assert not fold.ignored


# --- an entry of the coordinator's own that changes nothing ---


@pytest.mark.parametrize(
    "kind",
    [
        entries.RoundOpened,
        entries.RoundCommitted,
        entries.Contribution,
        entries.RoundClosed,
        entries.StateAgreed,
    ],
)
@pytest.mark.parametrize("times", [1, 3])
async def test_after_an_own_entry_without_effect_the_ledger_is_right(
    office: Office,
    members: list[Member],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[entries.Body],
    times: int,
) -> None:
    """The attempt fails, the rounds go on from the ledger's state, and nobody has to restart."""
    rule, left = kind.rule, times

    def deaf(body: entries.Body, fold: shares.FoldState, entry: Entry) -> Any:
        decision = rule(body, fold, entry)

        def nothing() -> shares.Outcome:
            nonlocal left
            left -= 1
            fold.ignored[reasons.OUT_OF_ORDER] = fold.ignored.get(reasons.OUT_OF_ORDER, 0) + 1
            return shares.Outcome("ignored", reasons.OUT_OF_ORDER)

        return nothing if left and not isinstance(decision, str) else decision

    monkeypatch.setattr(kind, "rule", deaf)
    with caplog.at_level(logging.ERROR, logger="artel.coordinator"):
        for number in (1, 2):
            for _ in range(4):  # a failed attempt is waited after
                with contextlib.suppress(AssertionError):
                    await _whole_round(office, members)
                    break
            assert office.core.state.round == number
    core, fold = office.core, office.core.ledger.state
    assert left == 0
    assert (core.state.round, core.state.base) == (fold.round, fold.states[-1])
    assert sum(fold.ignored.values()) == times
    said = [record for record in caplog.records if "entry.no_effect" in record.getMessage()]
    assert len(said) == times
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(core.drive(), 0.3)  # it has not given up


async def test_a_ledger_that_ignores_all_that_the_coordinator_says_is_not_filled_up(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries.RoundOpened, "rule", lambda *_: reasons.OUT_OF_ORDER)
    size = office.core.ledger.store.size
    for _ in range(3600):
        for member in members if office.now % 200 < 1 else []:
            await member.beat()
        await office.pass_time(1)
    assert 0 < office.core.ledger.store.size - size <= 20
    monkeypatch.undo()
    for member in members:
        await member.beat()
    await office.pass_time(301)
    await _whole_round(office, members)
    assert office.core.state.round == office.core.ledger.state.round == 1


# --- what cannot be written does not happen ---


class _Full:
    """A ledger store whose disk is full."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, *_: Any) -> str:
        raise ResourceError("the disk is full; nothing was added", "free some space")


async def test_a_ledger_that_cannot_be_written_stops_the_coordinator(
    office: Office, members: list[Member]
) -> None:
    core = office.core
    core.ledger.store = _Full(core.ledger.store)  # type: ignore[assignment]
    for member in members[:2]:
        await member.beat()
    before, size = core.state, core.ledger.store.size
    with pytest.raises(wire.Refused, match="lacks something on its machine"):
        await members[2].beat()  # would open the round
    assert replace(core.state, seats=before.seats) == before
    assert core.ledger.store.size == size
    assert (await members[0].beat(report=_elsewhere())).task != "train"
    with pytest.raises(ResourceError, match="disk is full"):
        await asyncio.wait_for(core.drive(), 5)


async def test_numbers_that_cannot_be_written_stop_it_as_cleanly(
    office: Office, applying: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(round: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(office.core.metrics, "save", full)
    with pytest.raises((wire.Refused, OSError)):
        for member in applying:
            await member.sign_state(NEXT)
    with pytest.raises(ResourceError, match="disk is full"):
        await asyncio.wait_for(office.core.drive(), 5)
    monkeypatch.undo()
    await office.reopen()
    assert (office.core.state.round, office.core.state.base) == (1, NEXT)


# --- restarts ---


async def test_a_restart_while_nodes_train(office: Office, training: list[Member]) -> None:
    """The attempt goes on: whoever had committed does so again, the others train on."""
    await training[0].commit()
    await office.reopen()
    assert (office.core.state.round, office.core.state.attempt) == (0, 0)
    assert office.core.state.phase is Phase.TRAINING
    for member in training:
        told = await member.beat()
        assert (told.task, told.attempt) == ("train", 0)
        await member.commit()
    assert office.core.state.phase is Phase.REVEALING
    assert len(office.bodies("round_opened")) == 1
    assert office.bodies("round_closed") == []
    assert not office.core.ledger.state.ignored


async def test_a_restart_while_nodes_reveal(office: Office, revealing: list[Member]) -> None:
    """Whose contribution is recorded has done its part; the others show theirs."""
    await revealing[0].show()
    await office.reopen()
    assert (office.core.state.phase, office.core.state.attempt) == (Phase.REVEALING, 0)
    tasks = [(await member.beat()).task for member in revealing]
    assert tasks == ["wait", "reveal", "reveal"]
    for member in revealing[1:]:
        await member.show()
    assert len(office.accepted()) == 3
    assert office.core.metrics.of(0).accepted == 3
    assert office.core.metrics.of(0).by_member.steps.keys() == {m.peer for m in revealing}
    assert not office.core.ledger.state.ignored


async def test_a_restart_while_nodes_apply(office: Office, applying: list[Member]) -> None:
    await applying[0].sign_state(NEXT)
    await office.reopen()
    assert (office.core.state.phase, office.core.state.attempt) == (Phase.APPLYING, 0)
    await office.pass_time(1)
    assert office.core.state.phase is Phase.APPLYING, "nodes need a moment to find it again"
    assert office.core.state.accepted == tuple(sorted(member.peer for member in applying))
    for member in applying:
        # Those that have applied already are asked to sign again: their signature is lost.
        assert (await member.beat()).task == "apply"
        await member.sign_state(NEXT)
    assert (office.core.state.round, office.core.state.base) == (1, NEXT)
    assert len(office.bodies("state_agreed")) == 1
    assert not office.core.ledger.state.ignored


async def test_a_restart_between_rounds_and_twice(office: Office, applying: list[Member]) -> None:
    for member in applying:
        await member.sign_state(NEXT)
    size = office.core.ledger.store.size
    await office.reopen()
    await office.reopen()
    state = office.core.state
    assert office.core.ledger.store.size == size
    # The next round waits for those who have not applied, or is open already.
    assert (state.round, state.base) == (1, NEXT)
    assert state.phase in (Phase.WAITING, Phase.TRAINING)


async def test_versions_of_a_restarted_coordinator_are_new(
    office: Office, training: list[Member]
) -> None:
    before = await training[0].beat()
    await office.reopen()
    after = await training[0].beat()
    assert after.version != before.version


# --- replicas, over a real network ---


async def test_a_replica_follows_the_coordinators_ledger(
    office: Office, applying: list[Member], tmp_path: Path
) -> None:
    async with swarm(tmp_path / "net", 1) as (server,):
        client = await start(tmp_path / "client", server)
        try:
            office.core.host = server
            await office.desk.open()
            replica = Replica.open(tmp_path / "replica.sqlite3", office.run)
            store, peer = office.core.ledger.store, server.peer_id
            await replica.catch_up(client, peer, office.run, target=3)
            assert replica.store.size >= 3
            await replica.catch_up(client, peer, office.run)
            assert (replica.store.size, replica.store.root) == (store.size, store.root)
            assert replica.state == office.core.ledger.state
            with pytest.raises(CheckFailed, match="announced"):
                await replica.catch_up(client, peer, office.run, target=store.size + 1)
            replica.looks = Looks()  # long after
            with pytest.raises(wire.Refused) as other:
                await replica.catch_up(client, peer, "cd" * 32)
            assert other.value.code == "other_run"
            replica.store.close()
            # A peer that does not answer in time is unreachable, whatever it is that takes long.
            with pytest.raises(Unreachable):
                await PeerSource(client, peer, office.run).files("checkpoint", timeout=0.0)
        finally:
            await client.close()


def _elsewhere() -> messages.Report:
    """The report of a node without a state, which opens nothing."""
    return messages.Report(state_round=-1, state_root="", phase="x")


def _second_signature(seed: bytes, envelope: dsse.Envelope) -> bytes:
    """Another valid signature: RFC 8032 with a nonce of our own choice."""
    order = 2**252 + 27742317777372353535851937790883648493
    digest = bytearray(hashlib.sha512(seed).digest())
    digest[0] &= 248
    digest[31] = (digest[31] & 63) | 64
    scalar = int.from_bytes(digest[:32], "little")
    message = dsse.pae(envelope.payload_type, envelope.payload)
    # R = r B is the public key of a seed whose clamped scalar is r.
    nonce_seed = b"\x55" * 32
    hashed = bytearray(hashlib.sha512(nonce_seed).digest())
    hashed[0] &= 248
    hashed[31] = (hashed[31] & 63) | 64
    nonce = int.from_bytes(hashed[:32], "little")
    point = Ed25519PrivateKey.from_private_bytes(nonce_seed).public_key().public_bytes_raw()
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little")
    return point + ((nonce + challenge * scalar) % order).to_bytes(32, "little")


async def test_heartbeats_without_news_are_bounded_for_all_nodes_together(
    office: Office, training: list[Member]
) -> None:
    first = await training[0].beat()
    assert first.patience == messages.PATIENCE_S
    assert len(first.peers) == len(training)
    again = await training[0].beat(seen=first.version)
    assert (again.version, again.peers) == (first.version, {})
    one, crowd = office.core.peers[training[0].peer], [Member(office, f"{n}") for n in range(1000)]
    office.core.peers |= {member.peer: replace(one) for member in crowd}
    # A third of the time-out is 200 s; a message allows 30.
    assert (await training[0].beat()).patience == messages.MOST_PATIENCE_S
    for member in crowd[200:]:
        del office.core.peers[member.peer]
    assert (await training[0].beat()).patience == pytest.approx(10, abs=1)


async def test_each_node_hears_of_other_members(office: Office, training: list[Member]) -> None:
    firsts = {next(iter((await member.beat()).peers)) for member in training}
    assert len(firsts) == len(training)


async def test_a_node_is_told_where_those_are_whom_it_asks_for(
    office: Office, members: list[Member]
) -> None:
    """Directives tell of 64 nodes; who combines a slice needs something from each member."""
    for number, member in enumerate(members):
        await member.beat(addresses=[f"/ip4/192.0.2.{number}/tcp/4001"])
    nobody = Member(office, "nobody").peer
    wanted = [*(member.peer for member in members[1:]), nobody]
    reply = await members[0].say(messages.Where(run=office.run, peers=wanted))
    assert isinstance(reply, messages.There)
    assert reply.peers == {
        member.peer: [f"/ip4/192.0.2.{number}/tcp/4001"]
        for number, member in enumerate(members)
        if number
    }
    crowd = [Member(office, f"peer {number}").peer for number in range(messages.TOLD)]
    report = messages.Report(state_round=-1, state_root="", phase="x")
    office.core.peers |= {
        name: Peer(report, ["/" + "a" * 199] * ADDRESSES_TOLD, office.now) for name in crowd
    }
    assert len(wire.encode(messages.Where(run=office.run, peers=crowd))) <= messages.Where.LIMIT
    reply = await members[0].say(messages.Where(run=office.run, peers=crowd))
    assert isinstance(reply, messages.There)
    assert reply.peers
    assert reply.peers.keys() < set(crowd), "as many as fit"
    stranger = Member(office, "stranger").say(messages.Where(run=office.run, peers=crowd[:1]))
    assert await refused(stranger) == "unknown_node"
