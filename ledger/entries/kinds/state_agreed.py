"""``state_agreed``: the next state, by which the round's credit is granted.

Each accepted contribution of the closed round gives its tokens to the account that its node
belonged to *when the round was opened*, unless that node combined a slice wrongly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import audits, lot, reasons
from artel.ledger.entries.anchors import remember
from artel.ledger.entries.body import (
    LISTED,
    MAX_MEMBERS,
    Body,
    Count,
    Digest,
    Entry,
    OptionalPeer,
    PeerId,
    Positive,
    Record,
    Signature,
    SliceNumber,
    signed,
)
from artel.ledger.entries.credit import grant, vest_due
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import Attempt, Credit, Effect, Outcome, RestsOn
from artel.ledger.entries.rules import DataUse
from artel.ledger.entries.standing import stretch_of
from artel.ledger.entries.story import Fact, Story, assigned, audits_drawn, judged, totals, vesting
from artel.ledger.entries.words import short_key
from artel.protocol import assignment, canonical, dsse, schema
from artel.protocol.dsse import Envelope, Signing
from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity, short_peer
from artel.protocol.seats import carries

STATE_TYPE = "application/vnd.artel.state+json"


class StateVote(Record):
    """What a node signs of a new state: the fields of :class:`StateAgreed`, as a statement of type
    :data:`STATE_TYPE`."""

    run: Digest
    round: Positive
    attempt: Count
    root: Digest
    credits: Digest
    wrong: Annotated[tuple[SliceNumber, ...], *LISTED]


class StateAgreed(Body):
    """State number ``round``, made by this attempt of the round before it, has this root; signed
    by a coordinator.

    ``wrong`` lists the slices whose recorded aggregate was wrong; the state is made without them.
    ``credits`` is the root of the credit map (:mod:`ledger.entries.credit_map`) as it was when the
    round was closed: by it an account's credit can be proven without the entries before.
    ``signatures`` holds those of the nodes that agree, by peer id, over :class:`StateVote`.
    ``rests_on``: with "coordinator" its signer says that it has recomputed the state itself.
    ``outside`` is one of those nodes which is not of the round (:func:`is_outside`); "" for nobody.
    """

    KIND: ClassVar = "state_agreed"
    TITLE: ClassVar = "State agreed"
    DOCUMENT: ClassVar = ("signatures",)
    kind: Literal["state_agreed"] = "state_agreed"
    round: Positive
    attempt: Count
    root: Digest
    credits: Digest
    wrong: Annotated[tuple[SliceNumber, ...], *LISTED]
    rests_on: RestsOn
    outside: OptionalPeer
    signatures: Annotated[dict[PeerId, Signature], Field(max_length=MAX_MEMBERS)]

    def signings(self) -> Iterator[Signing]:
        said = {name: getattr(self, name) for name in StateVote.model_fields}
        message = dsse.pae(STATE_TYPE, canonical.dumps(said))
        for peer, signature in self.signatures.items():
            yield key_of(peer), bytes.fromhex(signature), message

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        known = all(peer in state.nodes for peer in self.signatures)
        if not known or not state.led_by(entry.envelope.signers):
            return reasons.WRONG_SIGNERS
        attempt = state.current(self.round - 1, self.attempt, "applying")
        if attempt is None:
            return reasons.OUT_OF_ORDER
        if attempt.rests_on == "coordinator" != self.rests_on:
            return reasons.WRONG_GROUNDS
        seen = self.outside in self.signatures and is_outside(state, attempt, self.outside)
        if self.outside and not seen:
            return reasons.WRONG_GROUNDS
        agreeing = [peer for peer in attempt.accepted if peer in self.signatures]
        if not carries(attempt.weights, attempt.accepted, agreeing):
            return reasons.NO_MAJORITY
        # Whoever called one wrong spoke of a recorded one.
        if not attempt.wrong.keys() >= set(self.wrong):
            return reasons.UNKNOWN_SLICE
        if self.credits != attempt.credits.root:
            return reasons.WRONG_CREDITS

        def effect() -> Outcome:
            if state.founded.audits:
                audits.renew(state, attempt)
            held = [*held_against(attempt, self.wrong), *audits.going_on_unchecked(state, attempt)]
            left_out = state.leave_out(attempt.left_out(held))
            unpaid = (reasons.WRONG_SLICE, reasons.EMPTY, reasons.UNCHECKED)
            denied = {node for node, reason in held if reason in unpaid}
            granted = _credit_round(state, attempt, denied)
            paid = {credit.node for credit in granted if credit.kind == "compute"}
            state.lot = lot.seed(_salts(state, attempt, paid) or [state.lot])
            state.states.append(self.root)
            for peer in attempt.moved_by:
                state.hardware[peer] = attempt.shown[peer].hardware
            work = state.rules_at(attempt.round).work
            tails = {peer: work.tail(attempt.round, h) for peer, h in attempt.steps.items()}
            state.tails = {peer: steps for peer, steps in tails.items() if steps}
            before, state.spans = state.spans, _going_on(state, attempt)
            state.attempt, state.rooted, state.rooted_by = None, attempt.credits, state.size
            state.standing.fade(state.round, state.founded.trust.standing_rounds)
            told, lost = audits.begin(state, attempt, before)
            vested = vest_due(state, state.round)
            length = stretch_of(state.founded.trust.standing_rounds)
            chosen, by = _candidates(state, attempt.accepted)
            state.electors.choose(state.size, state.round, length, chosen, by)
            remember(state, attempt, self.signatures, self.rests_on)
            notes = {"agreeing": len(agreeing)} | told | lost.notes
            gone = lost.credits
            return Outcome("credited", "", granted, vested, gone, left_out=left_out, notes=notes)

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        """It ends the round that made the state."""
        return self.round - 1, self.attempt

    def says(self) -> str:
        wrong = ", ".join(str(number) for number in self.wrong)
        many = "s" if len(self.wrong) > 1 else ""
        found = f", made without the wrong slice{many} {wrong}" if wrong else ""
        return f"state {self.round} is {short_key(self.root)}{found}"

    def explain(self, story: Story) -> Iterator[Fact]:
        trail = story.trail
        closed, chosen = trail.closed[0]
        yield Fact(
            f"signed by a coordinator and {trail.agreeing} of the {len(chosen.accepted)} "
            f"contributors that entry {closed} accepted in round {trail.round}; more than half of "
            "their standing is needed, of their number while none has any",
            (closed,),
        )
        if self.rests_on == "coordinator":
            yield Fact("the coordinator says that it has recomputed the state itself")
        if self.outside:
            yield Fact(
                f"node {short_peer(self.outside)} came to it too: with standing, and of an account "
                "with no contribution to it"
            )
        for number in sorted({*trail.wrong, *trail.accused}):
            yield from judged(trail, number)
        yield from audits_drawn(story)
        yield Fact(assigned(story.genesis))
        yield Fact(vesting(story.genesis.rules))
        yield from totals(story)


def _candidates(state: FoldState, accepted: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Node to weight, of those who can be electors from this state on, and whether by standing.

    :param accepted: nodes whose contributions the state holds
    """
    if state.rests_on == "members":
        known = state.standings()
        nodes = [node for node, account in state.nodes.items() if account in known]
        return {node: weight for node, weight in state.weights(nodes).items() if weight}, True
    lowest: dict[str, str] = {}
    for node in sorted(accepted):
        account = state.account_of(node)
        if not state.accounts[account].barred:
            lowest.setdefault(account, node)
    return dict.fromkeys(lowest.values(), 1), False


def state_agreed(
    coordinator: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    root: str,
    credits: str,
    rests_on: RestsOn,
    signatures: Mapping[str, str],
    wrong: Iterable[int] = (),
    outside: str = "",
) -> Envelope:
    """Record an agreed state.

    :param signatures: peer id to what :func:`state_vote` signed (hex)
    :param wrong: slices whose recorded aggregate was wrong, in any order
    """
    body = {"run": run, "round": round, "attempt": attempt, "root": root, "credits": credits}
    body |= {"wrong": tuple(sorted(wrong)), "signatures": dict(signatures), "rests_on": rests_on}
    body |= {"outside": outside}
    return signed(StateAgreed, body, coordinator)


def state_vote(
    node: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    root: str,
    credits: str,
    wrong: Iterable[int] = (),
) -> Envelope:
    """A node's statement that it computed this state; no entry by itself."""
    fields = {"run": run, "round": round, "attempt": attempt, "root": root, "credits": credits}
    said = StateVote.model_validate(fields | {"wrong": tuple(sorted(wrong))})
    return dsse.sign(STATE_TYPE, said.model_dump(mode="json"), node)


def open_vote(data: bytes) -> tuple[StateVote, Envelope]:
    """Read what :func:`state_vote` made; the signature is not checked.

    :raises DecodeError: it is something else
    """
    envelope = dsse.decode(data)
    if envelope.payload_type != STATE_TYPE:
        raise DecodeError("not a vote")
    return schema.checked(StateVote, canonical.loads(envelope.payload), "vote"), envelope


def is_outside(state: FoldState, attempt: Attempt, node: str) -> bool:
    """Whether a node can look at the state of an attempt from outside: its account has standing,
    and no contribution that was accepted."""
    if node in attempt.accepted or not state.standing_of(node):
        return False
    return state.account_of(node) not in {attempt.accounts[peer] for peer in attempt.accepted}


def drawn_outside(state: FoldState, attempt: Attempt, nodes: Iterable[str]) -> str:
    """Whose word stands in the ledger, of those outside who came to an attempt's state: one by lot,
    so that the others are left for a jury. "" without any."""
    still = [peer for peer in nodes if is_outside(state, attempt, peer)]
    purpose = f"outside/{attempt.round}/{attempt.attempt}"
    return next(lot.order(state.lot, purpose, state.weights(still)), "")


def held_against(attempt: Attempt, wrong: Iterable[int]) -> list[tuple[str, str]]:
    """(node, reason) of whoever combined a slice wrongly, of whoever accused falsely, once, and of
    whoever sent zeros.

    :param wrong: the slices that an agreed state was made without
    """
    wrong = set(wrong)
    found = [(node, reasons.WRONG_SLICE) for node in {attempt.slices[n].node for n in wrong}]
    accusers = {node for number, node in attempt.wrong.items() if number not in wrong}
    found += [(node, reasons.FALSE_ACCUSATION) for node in accusers]
    found += [(node, reasons.EMPTY) for node in attempt.accepted if attempt.shown[node].empty]
    return sorted(found)


# --- credit ---------------------------------------------------------------------------------------


def _salts(state: FoldState, attempt: Attempt, paid: Collection[str]) -> list[str]:
    """What the next lots are drawn by.

    Whoever waits for the salts of all others can choose between two lots by showing its own or not.
    So that this costs accounts with standing what a round pays, only theirs count, once there are
    enough of them: one of each account, its lowest member's, whatever its others show.

    :param paid: nodes that earn compute in this round
    """
    if attempt.rests_on == "coordinator":
        return [shown.salt for shown in attempt.shown.values() if not shown.empty]
    lowest: dict[str, str] = {}
    for peer, account in sorted(attempt.accounts.items()):
        lowest.setdefault(account, peer)
    known = (peer for account, peer in lowest.items() if account in state.standings())
    return [attempt.shown[peer].salt for peer in known if peer in paid]


def _credit_round(state: FoldState, attempt: Attempt, denied: set[str]) -> tuple[Credit, ...]:
    """Grant compute to the accepted members, and data to those whose text was new to the run.

    :param denied: members who earn no compute in this round
    """
    rules = state.founded
    place, due = attempt.round, attempt.round + 1 + rules.ownership.vesting_rounds
    granted: list[Credit] = []
    for peer, tokens in attempt.accepted.items():
        account, shown = attempt.accounts[peer], attempt.shown[peer]
        if peer in denied or state.accounts[account].barred:
            continue
        granted.append(
            grant(
                state,
                "compute",
                shown.entry,
                account,
                node=peer,
                round=place,
                units=tokens,
                due=max(due, audits.vests_from(state, peer, place)),
                work=shown.index,
            )
        )
        state.node_tokens[peer] = state.node_tokens.get(peer, 0) + tokens
    state.recent = sorted({credit.account for credit in granted})
    used = _text_used(state, rules.data, attempt) if rules.data is not None else {}
    for account, tokens in sorted(used.items()):
        if not state.accounts[account].barred:
            source = f"data/{place}/{account}"
            given = grant(state, "data", source, account, round=place, units=tokens, due=due)
            granted.append(given)
    return tuple(granted)


def _going_on(state: FoldState, attempt: Attempt) -> dict[str, int]:
    """Who can go on from its contribution to this attempt, and where its span began. Each round of
    a new node is a span of its own: it is repeated by itself, and vests so."""
    if not state.work.span or state.work.begins(state.round):
        return {}
    audited = state.founded.audits > 0
    return {
        peer: attempt.shown[peer].span
        for peer in attempt.accepted
        if not (audited and audits.new(state, peer))
        and state.account_of(peer) == attempt.accounts[peer]
    }


def _text_used(state: FoldState, data: DataUse, attempt: Attempt) -> Counter[str]:
    """Account to tokens of its text that the accepted members read for the first time.

    Of the head the windows of the steps that were made count, of the tail all: how much of it a
    member got to is known only when its next contribution is shown, if ever.
    """
    work = state.work
    split = assignment.Split(data.tokens, data.shard_tokens, data.seq_len, data.span_windows)
    ends = list(accumulate(tokens for _, tokens in data.contributed))
    count = work.windows(sum(attempt.steps.values()))
    used: Counter[str] = Counter()
    if count > split.windows:
        return used  # no such round can be assigned
    start = first = assignment.round_start(split, state.cursor, count)
    if first < state.text_used or first + count > split.windows:
        return used  # this text has earned already, in an earlier round or the first pass
    state.text_used = first + count
    for member, steps in sorted(attempt.steps.items()):
        stretch = assignment.windows_at(data.seed, split, start, work.windows(steps))
        start += len(stretch)
        if member not in attempt.accepted:
            continue
        made, head = attempt.shown[member].head, work.head(attempt.round, steps)
        for index, window in enumerate(stretch):
            if made <= index % steps < head:  # of a step that there was no time for
                continue
            # Its first token decides whose a window is.
            token = window.shard * data.shard_tokens + window.offset
            account = data.contributed[bisect_right(ends, token)][0]
            if account:
                used[account] += data.seq_len
    return used
