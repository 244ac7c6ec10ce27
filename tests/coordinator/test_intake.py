"""What a node shows of its work, wrong in one way each: the reason goes into the ledger, and the
round of the others goes on."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from artel.coordinator import intake
from artel.coordinator.upkeep import Upkeep
from artel.ledger.entries.reasons import REJECTIONS
from artel.protocol import content, dsse, messages, round_state
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import IndexItem
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import Member, Office, run_of
from witness_world import play_round


@pytest_asyncio.fixture
async def trained(office: Office) -> list[Member]:
    """Three members of round 0, ready to commit."""
    three = [Member(office, name) for name in "abc"]
    for member in three:
        await member.hello()
        await member.beat()
    assert office.core.state.phase is Phase.TRAINING
    return three


# --- faults of a member that has committed to its right contribution ---


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def _reveal_blob(bad: Member, blob: bytes, **changes: Any) -> None:
    await bad.put(blob)
    fields = {"blob": content.content_id(blob), "size": len(blob)}
    await bad.reveal(bad.statement(**fields | changes).encode())


async def commitment_mismatch(bad: Member) -> None:
    """Another sound contribution than the one committed to."""
    bad.vector = bad.vector * 2
    await _reveal_blob(bad, bad.blob())


async def other_salt(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(salt=b"\1" * 32).encode())


async def oversize(bad: Member) -> None:
    limit = bad.office.core.payload_bytes
    put = messages.Put(id="ab" * 32, size=limit + 1)
    try:
        await bad.say(put, bytes(limit + 1), to=wire.CONTENT)
    finally:
        assert bad.last is not None
        assert bad.last.read == len(wire.encode(put)), "not one byte of it is read"


async def wrong_base(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(base="cd" * 32).encode())


async def wrong_tokens(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(tokens=bad.office.tokens + 1).encode())


async def too_many_steps(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(head=9).encode())


async def too_few_steps(bad: Member) -> None:
    """Eight were assigned; two may be all that there was time for, one is too few."""
    await bad.put()
    await bad.reveal(bad.statement(head=1).encode())


async def a_tail_of_no_round(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(tail=1).encode())


async def bad_signature(bad: Member) -> None:
    await bad.put()
    good = bad.statement()
    key, signature = good.signatures[0]
    spoiled = dsse.Envelope(good.payload_type, good.payload, ((key, _flip(signature, 9)),))
    await bad.reveal(spoiled.encode())


async def signed_by_another(bad: Member) -> None:
    await bad.put()
    good = bad.statement()
    signature = bad.owner.sign(dsse.pae(good.payload_type, good.payload))
    other = dsse.Envelope(good.payload_type, good.payload, ((bad.owner.key, signature),))
    await bad.reveal(other.encode())


async def an_extra_signature(bad: Member) -> None:
    await bad.put()
    good = bad.statement()
    signature = bad.owner.sign(dsse.pae(good.payload_type, good.payload))
    pairs = sorted([*good.signatures, (bad.owner.key, signature)])
    await bad.reveal(dsse.Envelope(good.payload_type, good.payload, tuple(pairs)).encode())


async def not_an_entry(bad: Member) -> None:
    await bad.put()
    await bad.reveal(b"{}")


async def anothers_statement(bad: Member) -> None:
    other = Member(bad.office, "somebody")
    await bad.reveal(other.statement().encode())


async def another_attempt(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(attempt=1).encode())


async def never_sent(bad: Member) -> None:
    await bad.reveal()


async def wrong_size(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(size=7).encode())


async def another_digest(bad: Member) -> None:
    await bad.put()
    await bad.reveal(bad.statement(payload="ab" * 32).encode())


LATER_FAULTS = {
    commitment_mismatch: round_state.COMMITMENT_MISMATCH,
    other_salt: round_state.COMMITMENT_MISMATCH,
    oversize: round_state.TOO_LARGE,
    wrong_base: round_state.WRONG_STATE,
    wrong_tokens: round_state.WRONG_TOKENS,
    too_many_steps: round_state.WRONG_TOKENS,
    too_few_steps: round_state.WRONG_TOKENS,
    a_tail_of_no_round: round_state.WRONG_TOKENS,
    bad_signature: round_state.BAD_SIGNATURE,
    signed_by_another: round_state.BAD_SIGNATURE,
    an_extra_signature: round_state.BAD_SIGNATURE,
    not_an_entry: round_state.MALFORMED,
    anothers_statement: round_state.MALFORMED,
    another_attempt: round_state.MALFORMED,
    never_sent: round_state.MISSING_REVEAL,
    wrong_size: round_state.MISSING_REVEAL,
    another_digest: round_state.MALFORMED,
}


async def _finish(office: Office, bad: Member, reason: str, good: list[Member]) -> None:
    """The others reveal; the ledger says who is out and why, and the round can be applied."""
    assert reason in REJECTIONS
    with pytest.raises(wire.Refused) as again:  # the node that is out stays out
        await bad.show()
    assert again.value.code == reason
    for member in good:
        await member.show()
    assert office.core.state.phase is Phase.APPLYING
    assert office.rejected() == {bad.peer: reason}
    assert office.accepted() == sorted(member.peer for member in good)
    assert not office.core.ledger.state.ignored
    for member in good:
        await member.sign_state("ee" * 32)
    await office.pass_time(11)
    credit = office.core.ledger.state.credit
    assert (credit(bad.owner.key), credit(good[0].owner.key)) == (0, 100 * office.tokens)


@pytest.mark.parametrize(
    ("fault", "reason"), LATER_FAULTS.items(), ids=[fault.__name__ for fault in LATER_FAULTS]
)
async def test_a_faulty_reveal(
    office: Office,
    trained: list[Member],
    fault: Callable[[Member], Awaitable[None]],
    reason: str,
) -> None:
    bad, *good = trained
    for member in trained:
        await member.commit()
    with pytest.raises(wire.Refused) as refused:
        await fault(bad)
    assert refused.value.code == reason
    await _finish(office, bad, reason, good)


# --- blobs that a node commits to although they cannot count ---


def _non_finite(good: bytes) -> bytes:
    return good[:-4] + struct.pack("<f", float("nan"))


def _another_round(good: bytes) -> bytes:
    return good[:16] + struct.pack(">Q", 1) + good[24:]


BLOBS = {
    "a number that is not finite": (_non_finite, round_state.NON_FINITE),
    "infinity": (lambda b: b[:-4] + struct.pack("<f", float("-inf")), round_state.NON_FINITE),
    "another round": (_another_round, round_state.WRONG_STATE),
    "another base": (lambda b: b[:24] + bytes(32) + b[56:], round_state.WRONG_STATE),
    "a flipped bit in the magic": (lambda b: _flip(b, 0), round_state.MALFORMED),
    "another codec": (lambda b: b[:8] + b"\2" + b[9:], round_state.MALFORMED),
    "one byte less": (lambda b: b[:-1], round_state.MALFORMED),
    "a header alone": (lambda b: b[: pseudogradient.HEADER_BYTES], round_state.MALFORMED),
    "one byte": (lambda b: b[:1], round_state.MALFORMED),
}


@pytest.mark.parametrize(("spoil", "reason"), BLOBS.values(), ids=BLOBS.keys())
async def test_a_blob_that_cannot_count(
    office: Office, trained: list[Member], spoil: Callable[[bytes], bytes], reason: str
) -> None:
    bad, *good = trained
    blob = spoil(bad.blob())
    await bad.commit(commitment=bad.commitment(content.content_id(blob)))
    for member in good:
        await member.commit()
    with pytest.raises(wire.Refused) as refused:
        await _reveal_blob(bad, blob)
    assert refused.value.code == reason
    await _finish(office, bad, reason, good)


async def test_a_bit_that_flips_on_the_way_can_be_sent_again(
    office: Office, trained: list[Member]
) -> None:
    for member in trained:
        await member.commit()
    one = trained[0]
    blob = one.blob()
    with pytest.raises(wire.Refused, match="do not match") as refused:
        await one.put(_flip(blob, 500), id=content.content_id(blob))
    assert refused.value.code == "malformed"
    assert [path.name for path in office.blobs.root.iterdir()] == []
    for member in trained:
        await member.show()
    assert len(office.accepted()) == 3


async def test_a_commitment_of_another_cannot_be_copied(
    office: Office, trained: list[Member]
) -> None:
    """Repeating what somebody else committed to is of no use: it names the peer."""
    thief, victim, third = trained
    await victim.commit()
    stolen = office.core.state.commitments[victim.peer]
    await thief.commit(commitment=stolen)
    await third.commit()
    await victim.show()
    thief.vector, thief.salt = victim.vector, victim.salt
    with pytest.raises(wire.Refused) as refused:
        await thief.reveal()
    assert refused.value.code == round_state.COMMITMENT_MISMATCH
    await third.show()
    assert office.rejected() == {thief.peer: round_state.COMMITMENT_MISMATCH}


async def test_numbers_of_the_round_before_do_not_count_under_a_new_header(
    office: Office, members: list[Member]
) -> None:
    copier, *_ = members
    before = members[1].vector
    await play_round(office, members)
    for member in members:
        await member.beat()
    copier.vector = before / 2  # which is what the other one has sent, times two
    for member in members:
        await member.commit()
    with pytest.raises(wire.Refused) as refused:
        await copier.show()
    assert refused.value.code == round_state.COPIED
    for member in members[1:]:
        await member.show()
    assert office.rejected() == {copier.peer: round_state.COPIED}
    assert copier.peer in office.core.state.rejected
    assert not office.core.ledger.state.ignored, "it did not enter the ledger"


async def test_of_two_who_show_the_same_numbers_at_once_one_counts_and_the_round_goes_on(
    office: Office, trained: list[Member]
) -> None:
    first, second, third = trained
    second.vector = first.vector
    for member in trained:
        await member.commit()
    for member in (first, third):
        await member.put()
    replies = await asyncio.gather(*map(Member.reveal, trained), return_exceptions=True)
    (refused,) = (reply for reply in replies if not isinstance(reply, messages.Ok))
    assert isinstance(refused, wire.Refused)
    assert refused.code == round_state.COPIED
    assert list(office.rejected().values()) == [round_state.COPIED]
    assert third.peer in office.accepted()
    assert (office.core.state.phase, office.core.state.attempt) == (Phase.APPLYING, 0)
    assert not office.core.ledger.state.ignored


async def test_only_members_that_committed_may_put(office: Office, trained: list[Member]) -> None:
    bad, *good = trained
    with pytest.raises(wire.Refused) as early:
        await bad.put()
    assert early.value.code == "too_early"
    for member in good:
        await member.commit()
    await office.pass_time(11)
    with pytest.raises(wire.Refused) as refused:
        await bad.put()
    assert refused.value.code == round_state.LATE
    stranger = Member(office, "stranger")
    with pytest.raises(wire.Refused) as refused:
        await stranger.put(b"anything")
    assert refused.value.code == "too_early"


async def test_a_contribution_is_decoded_and_its_signature_checked_once(
    office: Office, trained: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the reveal to the durable entry, its effect and the closing of the round."""
    for member in trained:
        await member.commit()
    one, *others = trained
    statement = one.statement()
    decoded: list[bytes] = []
    checked: list[bytes] = []
    decode, verify = dsse.decode, dsse.verify

    def counting_decode(data: bytes) -> dsse.Envelope:
        decoded.append(data)
        return decode(data)

    def counting_verify(key: bytes, signature: bytes, message: bytes) -> bool:
        checked.append(signature)
        return verify(key, signature, message)

    monkeypatch.setattr(dsse, "decode", counting_decode)
    monkeypatch.setattr(dsse, "verify", counting_verify)
    await one.put()
    await one.reveal(statement.encode())
    for member in others:
        await member.show()
    for member in trained:
        await member.sign_state("ee" * 32)
    upkeep = Upkeep(office.core, "")
    await upkeep._prune()
    assert office.core.ledger.state.credit(one.owner.key) == 100 * office.tokens
    assert decoded.count(statement.encode()) == 1
    assert checked.count(statement.signatures[0][1]) == 1


async def test_a_contribution_that_was_shown_is_not_judged_again(
    office: Office, trained: list[Member]
) -> None:
    for member in trained:
        await member.commit()
    one = trained[0]
    await one.put()
    statement = one.statement().encode()
    await asyncio.gather(*(one.reveal(statement) for _ in range(5)))
    assert [body.node for body in office.bodies("contribution")] == [one.peer]
    with pytest.raises(intake.NotCounted) as again:
        fold, shape = office.core.ledger.state, office.core.shape(3)
        await intake.contribution(
            fold, one.peer, statement, shape, office.blobs, office.core.fingerprints
        )
    assert again.value.reason == "duplicate"
    assert not office.core.state.rejected


async def test_who_had_time_for_fewer_steps_counts_with_those(
    office: Office, trained: list[Member]
) -> None:
    slow, *others = trained
    for member in trained:
        await member.commit()
    for member in others:
        await member.show()
    await slow.put()
    await slow.reveal(slow.statement(head=2).encode())
    weights = {item.node: item.weight for item in office.bodies("round_closed")[-1].accepted}
    assert weights == {slow.peer: office.tokens // 4} | {m.peer: office.tokens for m in others}
    for member in trained:
        await member.sign_state("ee" * 32)
    fold = office.core.ledger.state
    assert fold.credit(slow.owner.key) * 4 == fold.credit(others[0].owner.key)
    assert not fold.ignored


# --- contributions in slices ---


@pytest_asyncio.fixture
async def sharded(tmp_path: Path) -> AsyncIterator[list[Member]]:
    """Three members of a sharded round, with everybody's commitments in."""
    run = run_of(tmp_path / "run", exchange={"topology": "sharded"})
    office = await Office(tmp_path / "sharded", *run).open()
    three = [Member(office, name) for name in "abc"]
    for member in three:
        await member.hello()
        await member.beat()
    yield three
    office.close()


async def _commit_to(bad: Member, index: bytes, good: list[Member]) -> None:
    await bad.commit(commitment=bad.commitment(content.content_id(index)))
    for member in good:
        await member.commit()


async def _reveal_parts(bad: Member, index: bytes, pieces: list[bytes]) -> str:
    for data in dict.fromkeys((index, *pieces)):
        await bad.put(data)
    fields = {"blob": content.content_id(index), "size": sum(map(len, (index, *pieces)))}
    with pytest.raises(wire.Refused) as refused:
        await bad.reveal(bad.statement(**fields).encode())
    return refused.value.code


def _index(bad: Member, pieces: list[bytes]) -> bytes:
    state = bad.office.core.state
    listed = [IndexItem.of(piece) for piece in pieces]
    return pseudogradient.pack_index(state.round, state.base, listed)


SPOILED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a number that is not finite": (
        lambda p: [p[0], _non_finite(p[1]), p[2]],
        round_state.NON_FINITE,
    ),
    "two slices swapped": (lambda p: [p[1], p[0], p[2]], round_state.TOO_LARGE),
    "one slice twice": (lambda p: [p[0], p[0], p[2]], round_state.WRONG_STATE),
    "another round": (lambda p: [_another_round(p[0]), p[1], p[2]], round_state.WRONG_STATE),
    "one slice fewer": (lambda p: p[:2], round_state.MALFORMED),
    "one slice more": (lambda p: [*p, p[0]], round_state.TOO_LARGE),  # the index, that is
    "no slice at all": (lambda p: [b"\0" * 97, *p[1:]], round_state.MALFORMED),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED.keys())
async def test_a_contribution_in_slices_that_cannot_count(
    sharded: list[Member], spoil: Callable[[list[bytes]], list[bytes]], reason: str
) -> None:
    bad, *good = sharded
    pieces = spoil(bad.blobs()[1:])
    index = _index(bad, pieces)
    await _commit_to(bad, index, good)
    assert await _reveal_parts(bad, index, pieces) == reason
    await _finish(bad.office, bad, reason, good)


async def test_each_slice_has_to_be_put(sharded: list[Member]) -> None:
    bad, *good = sharded
    for member in sharded:
        await member.commit()
    index, *pieces = bad.blobs()
    for data in (index, *pieces[:-1]):
        await bad.put(data)
    with pytest.raises(wire.Refused) as refused:
        await bad.reveal()
    assert refused.value.code == round_state.MISSING_REVEAL
    kept = {content.content_id(data) for member in good for data in member.blobs()}
    await _finish(bad.office, bad, round_state.MISSING_REVEAL, good)
    assert kept <= {path.name for path in bad.office.blobs.root.iterdir()}


async def test_a_slice_cannot_be_larger_than_its_codec_needs(sharded: list[Member]) -> None:
    bad, *good = sharded
    for member in sharded:
        await member.commit()
    largest = bad.office.core.shape(3).largest
    assert largest < bad.office.core.payload_bytes / 2
    with pytest.raises(wire.Refused) as refused:
        await bad.put(b"\1" * (largest + 1))
    assert refused.value.code == round_state.TOO_LARGE
    await _finish(bad.office, bad, round_state.TOO_LARGE, good)


async def test_a_size_that_is_not_that_of_all_blobs(sharded: list[Member]) -> None:
    bad, *good = sharded
    for member in sharded:
        await member.commit()
    index, *pieces = bad.blobs()
    for data in (index, *pieces):
        await bad.put(data)
    with pytest.raises(wire.Refused) as refused:
        await bad.reveal(bad.statement(size=len(index)).encode())
    assert refused.value.code == round_state.MALFORMED
    await _finish(bad.office, bad, round_state.MALFORMED, good)


async def test_content_that_was_here_before_is_not_read_when_it_is_too_large(
    sharded: list[Member],
) -> None:
    """The coordinator holds states and shards as well; a node may name one of them."""
    bad, *good = sharded
    store = bad.office.blobs
    huge = store.put(b"\2" * (bad.office.core.payload_bytes + 1))
    await bad.commit(commitment=bad.commitment(huge))
    for member in good:
        await member.commit()
    with pytest.raises(wire.Refused) as refused:
        await bad.reveal(bad.statement(blob=huge, size=store.size_of(huge)).encode())
    assert refused.value.code == round_state.TOO_LARGE
    await _finish(bad.office, bad, round_state.TOO_LARGE, good)
    assert store.has(huge)
