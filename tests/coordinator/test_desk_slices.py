"""A sharded round at the coordinator's desk: slices that are recorded, called wrong and judged."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from artel.coordinator.stock import Stock
from artel.coordinator.upkeep import KEEP_ROUNDS, Upkeep
from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.credit_map import CreditMap
from artel.protocol import assignment, content, messages, round_state
from artel.protocol.net import wire
from artel.protocol.net.delivery import TRIES
from artel.protocol.round_state import Phase
from artel.protocol.shards import ShardIndex
from desk_world import RULES, Member, Office, refused, run_of

NEXT = hashlib.sha256(b"the state of round 1").hexdigest()
OTHER = hashlib.sha256(b"another state").hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_of(tmp_path_factory.mktemp("run"), exchange={"topology": "sharded"})


async def open_round(office: Office, members: list[Member]) -> None:
    for member in members:
        await member.beat()
    for member in members:
        await member.commit()
    for member in members:
        await member.show()
    assert office.core.state.phase is Phase.APPLYING


@pytest_asyncio.fixture
async def applying(office: Office) -> list[Member]:
    """Three members of a closed round, in the order of their peer ids: number j combines slice j
    of round 0, and the one behind it checks that."""
    three = sorted((Member(office, name) for name in "abc"), key=lambda member: member.peer)
    for member in three:
        await member.hello()
    await open_round(office, three)
    for number, member in enumerate(three):
        accepted = office.core.state.accepted
        assert assignment.aggregator(accepted, 0, number) == member.peer
        assert assignment.checker(accepted, 0, number) == three[(number + 1) % 3].peer
    return three


async def combine_all(members: list[Member]) -> None:
    """Member j records slice j, each rightly."""
    for number, member in enumerate(members):
        await member.combine(number)


async def test_everybody_is_woken_when_all_slices_are_there(
    office: Office, applying: list[Member]
) -> None:
    first = await applying[0].beat()
    assert first.task == "apply"
    for number in (0, 1):
        await applying[number].combine(number)
        assert (await applying[0].beat()).version == first.version, "the last one is missing"
    await applying[2].combine(2)
    complete = await applying[0].beat(seen=first.version, patience=5.0)
    assert (complete.task, complete.version) == ("apply", first.version + 1)
    assert complete.ledger_size == office.core.ledger.store.size
    for member in applying:
        await member.sign_state(NEXT)
    fold = office.core.ledger.state
    assert (fold.states[-1], fold.ignored) == (NEXT, {})
    assert {fold.credit(member.owner.key) for member in applying} == {100 * office.tokens}
    assert office.bodies("state_agreed")[-1].wrong == ()
    assert [body.slice for body in office.bodies("aggregate")] == [0, 1, 2]


async def test_a_wrong_aggregator_is_convicted_even_when_others_had_signed_already(
    office: Office, applying: list[Member]
) -> None:
    await combine_all(applying)
    liar, checker, third = applying
    await liar.sign_state(OTHER)
    await third.sign_state(OTHER)
    waiting = await third.beat()
    assert waiting.task == "wait"
    right = content.content_id(liar.slice_blob(0, 2.0))
    await checker.accuse(0, right)
    await checker.accuse(0, right)  # the reply got lost
    assert len(office.bodies("slice_wrong")) == 1
    again = await third.beat(seen=waiting.version, patience=5.0)
    assert (again.task, again.round, again.attempt) == ("apply", 0, 0)
    assert office.core.state.votes == {}
    # A vote that was on its way; the liar insists; the others have recomputed the slice.
    assert await refused(third.sign_state(OTHER, accused=())) == "stale"
    await liar.sign_state(OTHER)
    await checker.sign_state(NEXT, wrong=(0,))
    await third.sign_state(NEXT, wrong=(0,))
    fold = office.core.ledger.state
    assert fold.states[-1] == NEXT
    assert office.bodies("state_agreed")[-1].wrong == (0,)
    assert fold.rejected[liar.peer] == {reasons.WRONG_SLICE: 1}
    assert fold.credit(liar.owner.key) == 0
    assert fold.credit(checker.owner.key) == fold.credit(third.owner.key) == 100 * office.tokens
    assert not fold.ignored
    assert (await liar.beat()).task == "sync"


async def test_a_false_accusation_changes_nothing_in_the_end(
    office: Office, applying: list[Member]
) -> None:
    await combine_all(applying)
    honest, accuser, third = applying
    await accuser.accuse(0, OTHER)
    await accuser.sign_state(OTHER, wrong=(0,))
    for member in (honest, third):
        await member.sign_state(NEXT)
    fold = office.core.ledger.state
    assert fold.states[-1] == NEXT
    assert fold.credit(honest.owner.key) == 100 * office.tokens
    assert fold.rejected == {accuser.peer: {reasons.FALSE_ACCUSATION: 1}}


async def test_who_keeps_its_slice_back_is_in_the_way(
    office: Office, applying: list[Member]
) -> None:
    """The others wait for it, and then combine it themselves; that cost it nothing in any round."""
    for number in (0, 1):
        await applying[number].combine(number)
    for member in applying:
        await member.sign_state(NEXT)
    fold = office.core.ledger.state
    assert fold.states[-1] == NEXT
    found = {peer: pause.reason for peer, pause in office.core.state.pauses.items()}
    assert found == {applying[2].peer: round_state.UNCOMBINED}


async def test_an_accusation_that_comes_when_most_have_signed_and_waited_is_not_recorded(
    office: Office, applying: list[Member]
) -> None:
    await combine_all(applying)
    one, two, three = applying
    office.core.rules = replace(office.core.rules, settle=300.0)
    for member in (one, two):
        await member.sign_state(NEXT)
    office.now += RULES["grace_s"] - 1
    await three.accuse(1, OTHER)
    office.now += 2
    size = office.core.ledger.store.size
    assert await refused(one.accuse(2, OTHER)) == "stale"
    assert office.core.ledger.store.size == size
    for member in (one, two):
        await member.sign_state(NEXT)
    assert office.core.ledger.state.states[-1] == NEXT
    found = {peer: pause.reason for peer, pause in office.core.state.pauses.items()}
    assert found == {three.peer: round_state.FALSELY_ACCUSED}


async def test_a_vote_that_waits_while_an_accusation_is_recorded_is_refused(
    office: Office, applying: list[Member]
) -> None:
    """The vote comes first, and is looked at after the accusation: it must not count."""
    await combine_all(applying)
    liar, checker, third = applying
    await liar.sign_state(OTHER)
    async with office.core._lock:
        accusation = asyncio.create_task(checker.accuse(0, NEXT))
        await asyncio.sleep(0.05)
        vote = asyncio.create_task(third.sign_state(OTHER))
        await asyncio.sleep(0.05)
    await accusation
    assert await refused(vote) == "stale"
    assert office.core.state.phase is Phase.APPLYING
    assert not office.core.state.votes


async def test_only_the_checker_may_call_a_slice_wrong_and_only_once(
    office: Office, applying: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    """Or anybody could hold the round up with one accusation after another, for ever on record."""
    caplog.set_level(logging.WARNING, "artel.coordinator")
    await combine_all(applying)
    first, second, third = applying
    await first.sign_state(NEXT)
    before, size = await third.beat(), office.core.ledger.store.size
    assert await refused(third.accuse(0, OTHER)) == reasons.NOT_CHECKER
    assert list(office.core.state.votes) == [first.peer]
    assert (await third.beat()).version == before.version
    for _ in range(5):  # combined by the first, checked by the second
        await second.accuse(0, OTHER)
    assert (office.core.ledger.store.size, office.core.state.votes) == (size + 1, {})
    assert caplog.text.count("slice.called_wrong") == 1


async def test_the_same_state_made_of_other_slices_is_another_vote(
    office: Office, applying: list[Member]
) -> None:
    await combine_all(applying)
    first, second, third = applying
    await second.accuse(0, OTHER)
    await first.sign_state(NEXT)
    await second.sign_state(NEXT, wrong=(0,))
    assert office.core.state.phase is Phase.APPLYING
    await third.sign_state(NEXT, wrong=(0,))
    agreed = [e for e in map(entries.decode, office.store.leaves()) if e.kind == "state_agreed"]  # type: ignore[union-attr]
    assert agreed[-1].body.wrong == (0,)  # type: ignore[union-attr]
    nodes = {second.identity.key, third.identity.key}
    assert agreed[-1].signers - set(office.core.ledger.state.coordinators) == nodes


async def test_a_vote_against_a_slice_that_nobody_has_accused(
    office: Office, applying: list[Member]
) -> None:
    await combine_all(applying)
    one = applying[0]
    assert await refused(one.sign_state(NEXT, wrong=(1,))) == reasons.UNKNOWN_SLICE
    assert not office.core.state.votes
    await one.sign_state(NEXT)


async def test_a_vote_for_another_credit_root(office: Office, applying: list[Member]) -> None:
    await combine_all(applying)
    assert await refused(applying[0].sign_state(NEXT, credits=OTHER)) == reasons.WRONG_CREDITS
    assert not office.core.state.votes
    for member in applying:
        await member.sign_state(NEXT)
    assert (
        office.bodies("state_agreed")[-1].credits
        == CreditMap().changed(dict.fromkeys(office.core.ledger.state.accounts, (0, 0))).root
    )


async def test_what_may_be_put_while_a_round_is_applied(
    office: Office, applying: list[Member]
) -> None:
    one, two, _ = applying
    late = Member(office, "late")
    await late.hello()
    await late.beat()
    assert await refused(late.put(one.slice_blob(0))) == "too_early"
    most = office.core.shape(3).sizes[0]
    huge = messages.Put(id=NEXT, size=most + 1)
    assert await refused(one.say(huge, to=wire.CONTENT)) == round_state.TOO_LARGE
    assert not office.core.state.rejected, "its contribution counts all the same"
    for number in range(TRIES):
        await one.put(bytes([number]) * 100)
    await one.combine(0)
    assert await refused(one.put(b"more")) == "too_many"
    await two.combine(1)
    assert await refused(two.put(two.slice_blob(1))) == "present"


async def test_statements_about_slices_that_do_not_count(
    office: Office, applying: list[Member]
) -> None:
    one, two, three = applying
    size = office.core.ledger.store.size
    assert await refused(one.aggregated(0)) == round_state.MISSING_REVEAL, "its blob was not put"
    await one.put(one.slice_blob(0))
    assert await refused(one.aggregated(0, slices=2)) == reasons.UNKNOWN_SLICE
    assert await refused(one.aggregated(2)) == reasons.NOT_AGGREGATOR
    assert await refused(one.aggregated(0, size=7)) == round_state.MISSING_REVEAL
    # A blob of another slice, of a contribution, and noise.
    other, piece = two.slice_blob(1), one.blobs()[1]
    for data, code in (
        (other, round_state.TOO_LARGE),
        (piece, round_state.MALFORMED),
        (b"\1" * 200, round_state.MALFORMED),
    ):
        office.blobs.put(data)
        assert await refused(one.aggregated(0, data)) == code
    assert await refused(one.accuse(0, NEXT)) == reasons.UNKNOWN_SLICE, "nothing is recorded"
    stolen = entries.aggregate(
        two.identity, office.run, round=0, attempt=0, slice=1, slices=3, blob=NEXT, size=5
    )
    said = messages.Aggregated(run=office.run, statement=stolen.encode())
    assert await refused(one.say(said)) == "failed"
    accusation = messages.Accuse(run=office.run, statement=stolen.encode())
    assert await refused(two.say(accusation)) == "malformed"
    assert office.core.ledger.store.size == size
    await one.aggregated(0)
    await one.aggregated(0)  # the reply got lost
    assert office.core.ledger.store.size == size + 1
    second = one.slice_blob(0, 3.0)
    office.blobs.put(second)
    assert await refused(one.aggregated(0, second)) == reasons.DUPLICATE
    assert await refused(one.accuse(0, NEXT)) == reasons.OWN_WORK
    same = content.content_id(one.slice_blob(0))
    assert await refused(two.accuse(0, same)) == reasons.SAME_BLOB
    late = Member(office, "late")
    await late.hello()
    assert await refused(late.accuse(0, NEXT)) == reasons.NOT_MEMBER
    assert not office.core.ledger.state.ignored
    assert three.peer in office.core.state.accepted


async def test_slices_of_a_round_that_is_not_applied(office: Office) -> None:
    three = [Member(office, name) for name in "abc"]
    for member in three:
        await member.hello()
        await member.beat()
    assert office.core.state.phase is Phase.TRAINING
    assert await refused(three[0].aggregated(0, b"x" * 200, slices=3)) == reasons.OUT_OF_ORDER
    assert await refused(three[0].accuse(0, NEXT)) == reasons.OUT_OF_ORDER


async def test_rounds_that_are_not_sharded_have_no_slices(
    tmp_path: Path,
) -> None:
    office = await Office(tmp_path / "gather", *run_of(tmp_path / "run")).open()
    try:
        three = [Member(office, name) for name in "abc"]
        for member in three:
            await member.hello()
        await open_round(office, three)
        assert await refused(three[0].put(b"x" * 200)) == "too_early"
        shown = three[0].aggregated(0, b"x" * 200, slices=3)
        assert await refused(shown) == reasons.NOT_SHARDED
    finally:
        office.close()


async def test_a_restart_while_slices_are_combined(office: Office, applying: list[Member]) -> None:
    for number in (0, 1):
        await applying[number].combine(number)
    await applying[1].accuse(0, OTHER)
    await office.reopen()
    assert office.core.state.phase is Phase.APPLYING
    attempt = office.core.ledger.state.attempt
    assert attempt is not None
    assert sorted(attempt.slices) == [0, 1]
    assert office.core.state.accused == {0}
    assert await refused(applying[2].sign_state(NEXT, accused=())) == "stale"
    before = await applying[0].beat()
    await applying[2].combine(2)
    assert (await applying[0].beat()).version == before.version + 1
    for member in applying:
        await member.sign_state(NEXT, wrong=(0,))
    assert office.bodies("state_agreed")[-1].wrong == (0,)
    assert not office.core.ledger.state.ignored


async def test_old_blobs_go_with_all_that_they_list(
    office: Office, applying: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artel.coordinator.upkeep.KEEP_ROUNDS", KEEP_ROUNDS)
    other = office.blobs.put(b"something else")
    await combine_all(applying)
    upkeep = Upkeep(office.core, "")
    await upkeep._prune()
    assert len(list(office.blobs.root.iterdir())) == 3 * 4 + 3 + 1
    for member in applying:
        await member.sign_state(NEXT)
    monkeypatch.setattr("artel.coordinator.upkeep.KEEP_ROUNDS", 0)
    for again in (upkeep, Upkeep(office.core, "")):  # the second one after a restart
        await again._prune()
        assert [path.name for path in office.blobs.root.iterdir()] == [other]


async def test_what_is_served_is_counted_as_what_it_is(
    office: Office, applying: list[Member]
) -> None:
    shards = (hashlib.sha256(b"1").hexdigest(), OTHER)
    index = ShardIndex(dtype="uint16", shard_tokens=4096, tokens=6000, shards=shards)
    office.blobs.put(index.encode())
    manifest = office.core.manifest
    data = manifest.data.model_copy(update={"train": index.facts()})
    office.core.manifest = manifest.model_copy(update={"data": data})
    core = office.core
    Stock(core.host, core.blobs, core.manifest, core.run, "").label(core.ledger.state.states)
    kinds = {blob: office.blobs.kind_of(blob) for blob in (*index.shards, index.facts().index)}
    assert set(kinds.values()) == {"data"}
    assert office.blobs.kind_of(manifest.initial_state) == "state"
    for blob in applying[0].blobs():
        assert office.blobs.kind_of(content.content_id(blob)) == "contribution"
    await applying[0].combine(0)
    assert office.blobs.kind_of(content.content_id(applying[0].slice_blob(0))) == "slice"
