"""What people submit: only what would count gets into the ledger, and not too much of it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from artel.coordinator import submission
from artel.ledger import entries
from artel.ledger.entries.evidence import SplitView
from artel.ledger.fold import alias
from artel.ledger.tlog.checkpoint import open_checkpoint, sign_checkpoint
from artel.protocol import dsse, messages
from artel.protocol.net import wire
from desk_world import ORGANISER, Member, Office, refused
from witness_world import play_round, resource


def pending(office: Office, member: Member) -> str:
    """The contribution of a member that has not vested."""
    items = office.core.ledger.state.pending_of(member.owner.key)
    return next(item.credit.source for item in items if item.credit.kind == "compute")


def dispute(office: Office, by: Member, of: Member, **changes: Any) -> dsse.Envelope:
    fields = {
        "account": by.owner.key,
        "contribution": pending(office, of),
        "reason": "copied",
        "evidence": "",
    }
    return entries.by_account(entries.Dispute, by.owner, office.run, **fields | changes)


async def test_evidence_of_two_histories_gets_into_the_ledger(
    office: Office, members: list[Member]
) -> None:
    one, store = members[0], office.core.ledger.store
    roots = (bytes([number]) * 32 for number in (1, 2))
    split = SplitView(*sorted(sign_checkpoint(ORGANISER, store.origin, 9, root) for root in roots))
    fields = {"account": one.owner.key, "evidence": split.to_dict()}
    entry = entries.by_account(entries.SplitSeen, one.owner, office.run, **fields)
    assert await one.submit(entry) == store.size - 1
    assert ORGANISER.key in office.core.ledger.state.convicted


async def test_a_dispute_and_its_ruling(office: Office, members: list[Member]) -> None:
    await play_round(office, members)
    one, two, _ = members
    source = pending(office, two)
    entry = dispute(office, one, two)
    index = await one.submit(entry)
    store = office.core.ledger.store
    assert store.leaf(index) == entry.encode()
    assert open_checkpoint(store.latest_note, store.origin, [ORGANISER.key]).size > index
    assert office.core.ledger.state.pending[source].disputed_by == one.owner.key
    # The reply got lost: the same again is the same entry.
    assert await one.submit(entry) == index
    # Only an arbiter rules; here that is the organiser, whoever passes it on.
    fake = entries.ruling(office.run, one.owner, contribution=source, decision="soft")
    assert await refused(one.submit(fake)) == "wrong_signers"
    ruled = entries.ruling(office.run, ORGANISER, contribution=source, decision="soft")
    await Member(office, "anybody").submit(ruled)
    assert source not in office.core.ledger.state.pending
    assert office.core.ledger.state.accounts[two.owner.key].invalidated > 0
    assert not office.core.ledger.state.ignored


async def test_what_would_change_nothing_never_enters_the_ledger(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    one, two, three = members
    run, size = office.run, office.core.ledger.store.size
    stranger = Member(office, "stranger")
    good = dispute(office, one, two)
    key, signature = good.signatures[0]
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    spoiled = dsse.Envelope(good.payload_type, good.payload, ((key, flipped),))
    transfer = {"account": one.owner.key, "to": two.owner.key, "amount": 1, "seq": 1}
    refusals = {
        "own_work": dispute(office, one, one),
        "unknown_account": dispute(office, stranger, two),
        "wrong_signers": dispute(office, three, two, account=one.owner.key),
        "not_pending": dispute(office, one, two, contribution="ab" * 32),
        "bad_signature": spoiled,
        "not_allowed": entries.by_account(entries.Transfer, one.owner, run, **transfer),
        "duplicate": entries.account(one.owner, run, "ab" * 32),
        "wrong_run": entries.account(stranger.owner, "cd" * 32),
        "not_drawn": entries.verdict(
            one.identity,
            run,
            contribution=pending(office, two),
            verdict="reject",
            salt=bytes(32),
            round=0,
            error=1.0,
        ),
        "wrong_sequence": entries.key_rotated(
            one.owner, stranger.owner, run, account=one.owner.key, seq=2
        ),
        # These belong to the rounds, whoever signs them.
        "unknown": one.statement(),
    }
    for code, envelope in refusals.items():
        if code == "not_drawn":
            continue
        assert await refused(one.submit(envelope)) == code
    assert await refused(one.submit(refusals["not_drawn"])) in ("not_drawn", "not_pending")
    closed = entries.run_closed(ORGANISER, run, round=1, closing=1, credits="00" * 32)
    assert await refused(one.submit(closed)) == "unknown"
    junk = messages.Submit(run=run, statement=b"{}")
    assert await refused(one.say(junk, to=wire.LEDGER)) == "malformed"
    with pytest.raises(wire.Refused) as large:
        await office.core.submissions.submit(b"x" * 8193, "somebody")
    assert large.value.code == "too_large"
    assert office.core.ledger.store.size == size


async def test_accounts_and_their_keys(office: Office, members: list[Member]) -> None:
    person, run = Member(office, "person"), office.run
    await person.submit(entries.account(person.owner, run))
    new = Member(office, "new key").owner
    name = person.owner.key
    await person.submit(entries.key_rotated(person.owner, new, run, account=name, seq=1))
    newer = Member(office, "newer key").owner
    old = entries.key_rotated(person.owner, newer, run, account=name, seq=2)
    assert await refused(person.submit(old)) == "wrong_signers"
    await person.submit(entries.key_rotated(new, newer, run, account=name, seq=2))
    assert office.core.ledger.state.accounts[name].key == newer.key


async def test_submissions_are_bounded_for_each_peer_and_each_key(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "PER_PEER_AT_ONCE", 3)
    monkeypatch.setattr(submission, "PER_KEY_AT_ONCE", 2)
    await office.reopen()
    one, two, _ = members

    def moved(seq: int) -> dsse.Envelope:
        keys = [one.owner, *(Member(office, f"key {number}").owner for number in range(1, 4))]
        before, new = keys[seq - 1 : seq + 1]
        return entries.key_rotated(before, new, office.run, account=one.owner.key, seq=seq)

    junk = messages.Submit(run=office.run, statement=b"{}")
    for _ in range(3):
        assert await refused(two.say(junk, to=wire.LEDGER)) == "malformed"
    assert await refused(two.say(junk, to=wire.LEDGER)) == "busy"
    for seq in (1, 2):
        await one.submit(moved(seq))
    assert await refused(one.submit(moved(3))) == "busy"  # the key's bucket is empty
    with pytest.raises(wire.Refused) as elsewhere:
        await office.core.submissions.submit(moved(3).encode(), "another address")
    assert elsewhere.value.code == "busy"
    office.now += 61
    await one.submit(moved(3))


async def test_what_leaves_nothing_that_counts_takes_no_place_of_an_entry(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Electors would take a refusal for an entry that is left out."""
    monkeypatch.setattr(submission, "PER_KEY_AT_ONCE", 1)
    monkeypatch.setattr(submission, "BESIDE_AT_ONCE", 2)
    await office.reopen()
    await play_round(office, members)
    one, two, three = members
    take, now = office.core.submissions, int(time.time())
    for number in range(2):
        await say(office, one, wish(office, one, f"name {number}", now + number))
    assert await refused(say(office, one, wish(office, one, "name 2", now + 2))) == "busy"

    # Several hand in the same, and somebody else something that excludes it.
    first, second = dispute(office, one, two), dispute(office, three, two)
    said = [(first, f"address {number}") for number in range(3)] + [(second, "address 3")]
    read = [(entries.decode(envelope.encode()), who) for envelope, who in said]
    answers = await asyncio.gather(*(take.add(*each) for each in read), return_exceptions=True)
    assert answers[:3] == [None] * 3
    assert isinstance(answers[3], wire.Refused)
    assert answers[3].code == "duplicate"
    assert office.core.ledger.state.ignored == {"duplicate": 1}
    await three.submit(dispute(office, three, one))
    last = dispute(office, one, three)
    assert await refused(one.submit(last)) == "busy", "what counts takes its place"
    office.now += 60 / submission.PER_KEY_MINUTE
    await one.submit(last)


async def test_accounts_without_work_together_add_few_entries(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    one, two, _ = members
    store, found = office.core.ledger.store, []
    strangers = [Member(office, f"stranger {number}") for number in range(12)]
    for number, stranger in enumerate(strangers):
        stranger.network = f"203.0.113.{number}"
        await stranger.submit(entries.account(stranger.owner, office.run))
    size, refusals = store.size, set()
    for stranger in strangers:
        new = Member(office, f"{stranger.peer} again").owner
        rotated = entries.key_rotated(
            stranger.owner, new, office.run, account=stranger.owner.key, seq=1
        )
        try:
            found.append(await stranger.submit(rotated))
        except wire.Refused as error:
            refusals.add(error.code)
    assert refusals == {"busy"}
    assert len(found) == store.size - size == submission.STRANGERS_AT_ONCE
    await one.submit(dispute(office, one, two))


async def test_a_flood_of_submissions_leaves_the_rounds_room(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "WAITING_AT_MOST", -1)
    person = Member(office, "person")
    assert await refused(person.submit(entries.account(person.owner, office.run))) == "busy"
    await play_round(office, members)


# --- names beside the ledger ---


def wish(office: Office, member: Member, text: str, at: int, **changes: Any) -> dsse.Envelope:
    fields = {"account": member.owner.key, "alias": text, "team": "", "time": at}
    return alias.alias(member.owner, office.run, **fields | changes)


async def say(office: Office, member: Member, envelope: dsse.Envelope) -> messages.Message:
    message = messages.SetAlias(run=office.run, statement=envelope.encode())
    return await member.say(message, to=wire.LEDGER)


async def test_an_alias_is_shown_replaced_and_erased(office: Office, members: list[Member]) -> None:
    one, now, size = members[0], int(time.time()), office.core.ledger.store.size

    async def shown() -> Any:
        return json.loads(await resource(office, members[1], "aliases"))

    first = wish(office, one, "Ada", now - 20, team="Engine")
    await say(office, one, first)
    assert await shown() == {one.owner.key: {"alias": "Ada", "team": "Engine"}}
    await say(office, one, wish(office, one, "Lovelace", now - 10))
    assert await shown() == {one.owner.key: {"alias": "Lovelace", "team": ""}}
    assert await refused(say(office, members[1], first)) == "stale"
    await say(office, one, wish(office, one, "", now))
    assert await shown() == {}
    assert await refused(say(office, members[1], first)) == "stale"
    assert await shown() == {}
    assert office.core.ledger.store.size == size, "nothing of it is in the ledger"
    assert b"Lovelace" not in (office.home / "heads.sqlite3").read_bytes()


async def test_an_alias_by_somebody_else_is_refused(office: Office, members: list[Member]) -> None:
    one, two, _ = members
    now = int(time.time())
    stolen = wish(office, two, "One", now, account=one.owner.key)
    assert await refused(say(office, two, stolen)) == "failed"
    unknown = wish(office, Member(office, "stranger"), "Somebody", now)
    assert await refused(say(office, two, unknown)) == "failed"
    assert await refused(say(office, two, wish(office, two, "Later", now + 10**6))) == "stale"
    entry = entries.account(two.owner, office.run)
    assert await refused(say(office, two, entry)) == "malformed"
    assert json.loads(await resource(office, one, "aliases")) == {}
