"""Cosignatures at the coordinator's desk, what records them, and the closing of a run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator import process, witnessing
from artel.coordinator.closing import Closing
from artel.ledger import entries
from artel.ledger.store import finality
from artel.ledger.sync.signed_tree import SignedTree
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import open_checkpoint, parse_checkpoint, sign_checkpoint
from artel.ledger.tlog.cosignature import add_lines, cosign, witness_key, witness_name
from artel.protocol import messages
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import ORGANISER, Member, Office, refused, run_of
from witness_world import play_round, resource


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    manifest, layout = run_of(tmp_path_factory.mktemp("run"))
    config = manifest.config
    changes = {
        "ledger": config.ledger.model_copy(update={"witnesses": 2}),
        "ownership": config.ownership.model_copy(update={"closing_s": 0.0}),
    }
    return manifest.model_copy(update={"config": config.model_copy(update=changes)}), layout


def newest(office: Office) -> str:
    assert office.store is not None
    return office.store.latest_note


# --- cosignatures ---


async def test_a_head_is_certified_once_enough_accounts_have_cosigned_it(
    office: Office, members: list[Member]
) -> None:
    signed = newest(office)
    reply = await members[0].cosign()
    assert (parse_checkpoint(reply.newest).size, reply.certified) == (7, "")
    reply = await members[1].cosign(signed)
    assert reply.newest == reply.certified
    head, told = finality.verified(
        reply.certified,
        office.core.ledger.store.origin,
        [ORGANISER.key],
        office.core.ledger.state.nodes,
    )
    assert head.size == 7
    assert set(finality.cosigners(told, office.core.ledger.state.nodes)) == {
        members[0].peer,
        members[1].peer,
    }
    # The next entry is not covered; the certified head stays the older one.
    await Member(office, "late").hello()
    reply = await members[2].cosign()
    assert (parse_checkpoint(reply.newest).size, parse_checkpoint(reply.certified).size) == (9, 7)


async def test_two_nodes_of_one_account_count_once(office: Office, members: list[Member]) -> None:
    twin = Member(office, "twin")
    twin.owner = members[0].owner
    await twin.hello(statements=[twin.statements()[1]])
    signed = newest(office)
    await members[0].cosign(signed)
    assert (await twin.cosign(signed)).certified == ""
    assert (await members[1].cosign(signed)).certified != ""


async def test_what_is_no_cosignature_of_our_heads_is_refused(
    office: Office, members: list[Member]
) -> None:
    one, store = members[0], office.core.ledger.store
    stranger = Member(office, "stranger")
    assert await refused(stranger.cosign()) == "unknown_node"
    origin, size = store.origin, store.size

    def cosigned(signed: str, member: Member = one, name: str = "") -> messages.Cosigned:
        parsed = note.parse(signed)
        line = cosign(member.identity, name or witness_name(one.peer), parsed.text, 1_700_000_000)
        return messages.Cosigned(run=office.run, note=add_lines(parsed, [line]).encode())

    async def say(message: messages.Cosigned) -> str:
        return await refused(one.say(message, to=wire.LEDGER))

    # Another log's name, a head that nobody signed.
    forged = sign_checkpoint(one.identity, origin, 10**6, store.root)
    assert await say(cosigned(forged)) == "failed"
    assert await say(cosigned(sign_checkpoint(one.identity, origin, size, store.root))) == "failed"
    # A line in another's name, and one of nobody that is known.
    assert await say(cosigned(newest(office), members[1])) == "unknown_node"
    spoiled = cosigned(newest(office)).note.replace(newest(office)[-30:-20], "A" * 10)
    assert await say(messages.Cosigned(run=office.run, note=spoiled)) in ("failed", "malformed")
    assert await say(messages.Cosigned(run=office.run, note="x")) == "malformed"
    future = await refused(one.cosign(time=1 << 40))
    assert future == "failed"
    assert office.core.witnessing.nodes_at(size) == set()
    assert next(office.core.heads.newest_first(1), "") == ""


async def test_cosignatures_of_one_peer_are_bounded(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnessing, "COSIGNED_AT_ONCE", 3)
    await office.reopen()
    for number in range(3):
        await members[0].cosign(time=1_700_000_000 + number)
    assert await refused(members[0].cosign()) == "busy"
    await members[1].cosign()


async def test_keys_without_standing_keep_nobodys_cosignature_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = await Office(tmp_path, *run_of(tmp_path, ownership={"vesting_rounds": 1})).open()
    members = [Member(office, name) for name in "abc"]
    for member in members:
        await member.hello()
    for _ in range(2):
        await play_round(office, members)
    fold = office.core.ledger.state
    assert all(fold.standing_of(member.peer) for member in members)
    keys = [Member(office, f"key {number}") for number in range(4)]
    for each in keys:
        await each.hello()
    monkeypatch.setattr(note, "MAX_SIGNATURE_LINES", 4)  # ours, and three
    signed = newest(office)
    size = parse_checkpoint(signed).size
    for each in keys:
        await each.cosign(signed)
    there = office.core.witnessing.nodes_at(size)
    assert there == {each.peer for each in keys[:3]}, "of equals those who came first"
    await office.reopen()
    for number, member in enumerate(members):
        await member.cosign(signed)
        await keys[3].cosign(signed)
        left = [each.peer for each in keys[: 2 - number]]
        came = [each.peer for each in members[: number + 1]]
        assert office.core.witnessing.nodes_at(size) == {*came, *left}
    await office.reopen()
    assert office.core.witnessing.nodes_at(size) == {member.peer for member in members}
    office.close()


async def test_accounts_that_are_no_electors_keep_no_head_from_being_certified(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    await play_round(office, members)
    fold = office.core.ledger.state
    assert not any(fold.standing_of(member.peer) for member in members)
    certified = newest(office)
    keys = [Member(office, f"key {number}") for number in range(4)]
    for each in keys:
        await each.hello()
    monkeypatch.setattr(note, "MAX_SIGNATURE_LINES", 4)  # ours, and three
    # Neither do they fill its note,
    for each in (*keys, *members):
        await each.cosign(certified)
    size = parse_checkpoint(certified).size
    assert office.core.witnessing.nodes_at(size) == {member.peer for member in members}
    # nor is another head recorded in its place, which they are alone to have cosigned.
    monkeypatch.setattr(note, "MAX_SIGNATURE_LINES", 9)
    for each in keys:
        await each.cosign()
    statement = office.core.witnessing.statement()
    assert statement is not None
    assert isinstance(statement.body, entries.Witnessed)
    assert statement.body.size == size


async def test_each_round_records_one_head_and_who_cosigned_it(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    signed = newest(office)
    for member in members:
        await member.cosign(signed)
    await play_round(office, members)  # the one after it opens
    (recorded,) = office.bodies("witnessed")
    assert recorded.size == parse_checkpoint(signed).size
    assert {item.node for item in recorded.cosignatures} == {m.peer for m in members}
    kinds = [entries.decode(leaf).kind for leaf in office.core.ledger.store.leaves()]
    assert kinds[kinds.index("witnessed") + 1] == "round_opened"
    fold = office.core.ledger.state
    assert (fold.final, fold.witnessed) == (0, recorded.size)
    assert [size for _, size in fold.electors.certified] == [recorded.size]
    for member in members:
        account = fold.accounts[member.owner.key]
        # What was in the ledger before it came had been replayed by nobody for it.
        assert 0 < account.units["witness"] < recorded.size
    assert not fold.ignored
    # Nothing new: nothing is recorded again.
    assert office.core.witnessing.statement() is None
    await members[0].cosign(signed)
    assert office.core.witnessing.statement() is None
    # What the first one covers is final when a head over its record is certified as well.
    signed = newest(office)
    for member in members:
        await member.cosign(signed)
    found = finality.of_heads(office.core.heads, office.core.ledger.state)
    assert (found.size, found.head) == (recorded.size, parse_checkpoint(signed).size)
    statement = office.core.witnessing.statement()
    assert statement is not None
    await office.core.ledger.append(statement)
    assert office.core.ledger.state.final == recorded.size


async def test_cosignatures_survive_a_restart(office: Office, members: list[Member]) -> None:
    signed = newest(office)
    await members[0].cosign(signed)
    await office.reopen()
    reply = await members[1].cosign(signed)
    assert reply.certified
    statement = office.core.witnessing.statement()
    assert statement is not None
    body = statement.body
    assert isinstance(body, entries.Witnessed)
    assert len(body.cosignatures) == 2


async def test_a_head_that_was_given_up_with_its_term_is_not_recorded(
    office: Office, members: list[Member]
) -> None:
    store, heads = office.core.ledger.store, office.core.heads
    signed, size = newest(office), store.size
    await members[0].cosign(signed)
    await Member(office, "late").hello()
    for lost, root in ((store.size - 1, bytes(32)), (store.size + 1, store.root)):
        given_up = note.parse(sign_checkpoint(ORGANISER, store.origin, lost, root))
        lines = [
            cosign(member.identity, witness_name(member.peer), given_up.text, 1_700_000_000)
            for member in members
        ]
        heads.add_note(add_lines(given_up, lines).encode())
    begun = witnessing.Witnessing(store, heads, lambda: office.core.ledger.state, ORGANISER)
    statement = begun.statement()
    assert statement is not None
    assert isinstance(statement.body, entries.Witnessed)
    assert (statement.body.size, statement.body.root) == (size, store.root_at(size).hex())


async def test_a_head_that_few_have_cosigned_is_recorded_but_not_certified(
    office: Office, members: list[Member]
) -> None:
    await members[2].cosign()
    for member in members:
        await member.beat()
    (recorded,) = office.bodies("witnessed")
    fold = office.core.ledger.state
    assert (recorded.size, fold.witnessed, fold.electors.certified) == (7, 7, [])


async def test_an_entry_holds_so_many_cosignatures_of_different_accounts_first(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "MAX_MEMBERS", 24)
    many = [Member(office, f"witness {number}") for number in range(30)]
    twins = [Member(office, f"twin {number}") for number in range(4)]
    for member in many:
        await member.hello()
        office.now += 5
    for twin in twins:
        twin.owner = many[0].owner
        await twin.hello(statements=[twin.statements()[1]])
        office.now += 5
    signed = newest(office)
    for member in (*twins, *many):
        reply = await member.cosign(signed)
    assert len(note.parse(reply.certified).signatures) > 24
    statement = office.core.witnessing.statement()
    assert statement is not None
    body = statement.body
    assert isinstance(body, entries.Witnessed)
    accounts = {office.core.ledger.state.account_of(item.node) for item in body.cosignatures}
    assert len(body.cosignatures) == len(accounts) == 24


# --- resources ---


async def test_the_ledger_service_has_checkpoint_tiles_and_tables(
    office: Office, members: list[Member]
) -> None:
    await members[0].cosign()
    one, store = members[0], office.core.ledger.store
    signed = (await resource(office, one, "checkpoint")).decode()
    head = open_checkpoint(signed, store.origin, [ORGANISER.key])
    assert (head.size, head.root) == (store.size, store.root)
    assert witness_key(one.peer).name in signed
    tile = await resource(office, one, f"tile/0/000.p/{store.size}", office.run)
    assert tile[:32] == store.subtree(0, 0)

    class Here:
        def get(self, path: str, skip: int = 0) -> bytes:
            assert path == f"tile/0/000.p/{store.size}"
            return tile

    assert SignedTree(Here(), head.size, head.root).subtree(0, 3) == store.subtree(0, 3)
    bundle = await resource(office, one, f"tile/entries/000.p/{store.size}")
    assert store.leaf(2) in bundle
    assert json.loads(await resource(office, one, "aliases")) == {}
    assert json.loads(await resource(office, one, "conflicts")) == []
    for path in ("tile/0/001", f"tile/0/000.p/{store.size + 1}", "tile/x", "nothing", "tile/9/000"):
        assert await refused(resource(office, one, path)) == "not_here"
    assert await refused(resource(office, one, "checkpoint", "cd" * 32)) == "other_run"
    several = messages.Get(run="", paths=["certified", "checkpoint", "conflicts"], skip=1)
    assert await one.files(several, *several.paths) == [None, signed.encode(), b"]"]


# --- the end ---


async def finished(office: Office, members: list[Member]) -> None:
    for _ in range(office.core.rules.total):
        await play_round(office, members)
    await office.pass_time(0)
    assert office.core.state.phase is Phase.FINISHED
    for member in members:
        await member.beat()


class Follower:
    """Cosigns every head, as a node that is there does."""

    def __init__(self, office: Office, members: list[Member]) -> None:
        self.office, self.members = office, members

    async def run(self) -> None:
        seen = ""
        while True:
            signed = newest(self.office)
            if signed != seen:
                seen = signed
                for member in self.members:
                    await member.cosign(signed)
            await asyncio.sleep(0.01)


async def closed(office: Office, closing: Closing, *members: Member) -> None:
    """Run the closing to its end, with these witnesses."""
    follower = asyncio.create_task(Follower(office, list(members)).run())
    try:
        async with asyncio.timeout(20):
            await closing.run()
    finally:
        follower.cancel()


async def test_a_finished_run_is_witnessed_closed_and_final_up_to_its_last_record(
    office: Office, members: list[Member]
) -> None:
    await finished(office, members)
    released: list[int] = []
    closing = Closing(office.core, release=lambda: _note(released, office))
    before = await members[0].beat()
    await closed(office, closing, *members)
    fold, store = office.core.ledger.state, office.core.ledger.store
    kinds = [entries.decode(leaf).kind for leaf in store.leaves()]
    assert kinds[-4:] == ["state_agreed", "witnessed", "run_closed", "witnessed"]
    assert (fold.closed, fold.total_pending) == (1, 0)
    assert fold.total_vested == fold.total > 0
    assert released == [store.size], "nodes are kept until everything is written and cosigned"
    found = finality.of_heads(office.core.heads, fold)
    assert (found.head, found.size) == (store.size, store.size - 1)
    assert not fold.ignored
    # The directive changed although the duty did not, so that nodes look at the ledger.
    assert (await members[0].beat()).version != before.version


async def _note(released: list[int], office: Office) -> None:
    released.append(office.core.ledger.store.size)


async def test_a_run_without_witnesses_at_its_end_is_closed_all_the_same(
    office: Office, members: list[Member]
) -> None:
    await finished(office, members)
    closing = Closing(office.core, release=lambda: _note([], office), patience=0.05)
    await closed(office, closing)
    assert office.core.ledger.state.closed == 1
    assert closing.nodes_may_go
    shown = process.leading_words(office.core, "http://127.0.0.1:1", "artel1.invite")
    assert "http://127.0.0.1:1" in shown
    assert "artel1.invite" not in shown, "nobody is asked to take part in what is over"


async def test_a_dispute_that_nobody_rules_on_ends_with_the_second_closing(
    office: Office, members: list[Member]
) -> None:
    await finished(office, members)
    fold = office.core.ledger.state
    mine, theirs = members[0].owner.key, members[1].owner
    (first, *_) = [i for i in fold.pending_of(mine) if i.credit.kind == "compute"]
    dispute = entries.by_account(
        entries.Dispute,
        theirs,
        office.run,
        account=theirs.key,
        contribution=first.credit.source,
        reason="copied",
        evidence="",
    )
    await members[1].submit(dispute)
    steps: list[int] = []
    closing = Closing(
        office.core, release=lambda: _note(steps, office), at_least=0.2, patience=0.05
    )
    await closed(office, closing)
    assert [body.closing for body in office.bodies("run_closed")] == [1, 2]
    assert office.core.ledger.state.total_pending == 0
    assert len(steps) == 1
    assert steps[0] < office.core.ledger.store.size, "nodes did not wait for the second one"


async def test_closing_goes_on_after_a_restart(office: Office, members: list[Member]) -> None:
    await finished(office, members)
    closing = Closing(office.core, release=lambda: _note([], office), patience=0.05)
    await closed(office, closing)
    size = office.core.ledger.store.size
    await office.reopen()
    again = Closing(office.core, release=lambda: _note([], office), patience=0.05)
    await closed(office, again)
    assert again.nodes_may_go
    assert office.core.ledger.store.size == size, "nothing is closed twice"
