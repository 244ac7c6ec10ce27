"""The fold under random histories, valid and not: what has to hold after every single entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from artel.coordinator.resuming import seat
from artel.ledger import entries
from artel.ledger.entries import Entry, decode, reasons, recovery_digest
from artel.ledger.entries.anchors import anchor_of
from artel.ledger.entries.kinds.dispute import MAX_OPEN_DISPUTES
from artel.ledger.entries.kinds.handover import candidate, handover, open_seal, seal
from artel.ledger.entries.records import Attempt
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import SHARE_SCALE, FoldState, Outcome, apply, check, fold, shares
from artel.protocol import canonical
from artel.protocol.assignment import checker
from artel.protocol.dsse import Envelope
from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity
from artel.protocol.seats import seated
from ledger_world import Rooted, World, complete, digest, forged, key, require_same
from log_world import Log

PEOPLE = 5
"""Keys that may become accounts; the first three are registered from the start."""
SPARE = [key(f"spare {number}") for number in range(6)]
RECOVERY = [key(f"recovery {number}") for number in range(PEOPLE)]
TOTAL = 4
AMENDED = (
    {"optimizer__lr": "0.01"},
    {"optimizer__lr": "0.02", "optimizer__schedule": "constant"},
    {"rounds__quorum": "0.5", "rounds__deadline_s": "60"},
    {"rounds__min_nodes": "1"},
    {"paused": "false"},
)


@cache
def world_of(
    wait: int,
    transfers: bool,
    contributed: bool,
    topology: str,
    uneven: bool,
    span: int,
    waiting: int,
) -> World:
    """A run with these rules; worlds are only read, so each is made once."""
    world = World(
        nodes=PEOPLE,
        total=TOTAL,
        ownership={"vesting_rounds": wait, "transfers": transfers},
        ledger={"witnesses": 2},
        contributed=[(key("giver").key, 2500), ("", 1500)] if contributed else (),
        exchange={"topology": topology, "overlap_steps": 2 if uneven else 0},
        rounds={"box_s": 60.0 if uneven else 0, "span": span},
        trust={"standing_rounds": 1 if transfers else 20, "founders": 2}
        | {"audit_rate": 0.5, "audit_rounds": 1, "newcomer_rounds": 1},
        waiting=waiting,
    )
    leaders = (world.coordinator, *world.standbys)
    for identity in (*world.owners, *world.members, *SPARE, *RECOVERY, key("giver"), *leaders):
        KEYS[identity.key] = identity
        KEYS[identity.elected.key] = identity.elected
    for member in world.members:
        NODES[member.peer_id] = member
    return world


KEYS: dict[str, Identity] = {}
NODES: dict[str, Identity] = {}
FOREIGN = World(name="foreign")
FOREIGN_ENTRIES = [FOREIGN.genesis, *FOREIGN.introductions(), *FOREIGN.round(0)]

some = st.integers(0, 1 << 30) | st.integers(1 << 29, 1 << 30)
"""Chooses from what there is, by remainder: cheap to draw and to shrink."""


def pick(items: Any, number: int) -> Any:
    ordered = list(items)
    return ordered[number % len(ordered)]


def subset(items: Any, number: int) -> list[Any]:
    return [item for bit, item in enumerate(items) if number >> bit & 1]


class FoldMachine(RuleBasedStateMachine):
    """Feeds one log; ``log`` holds its entries, ``state`` is changed in place, as a node's is."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Entry] = []
        self.counted: list[Entry] = []
        self.reasons: list[str] = []
        self.state = FoldState()
        self.floor: dict[str, int] = {}
        self.certified: list[tuple[int, int]] = []
        """Index of each record of a certified head, and the size of that."""
        self.signed: dict[str, int] = {}
        """Node to the size of the largest head that it has cosigned, which it then has."""
        self.dropped: set[int] = set()
        """Since when those were electors whom others followed before they had agreed."""

    @initialize(
        wait=st.sampled_from([0, 1, 2, 3]),
        transfers=st.sampled_from([True, True, False]),
        contributed=st.booleans(),
        topology=st.sampled_from(["auto", "sharded", "sharded"]),
        uneven=st.booleans(),
        span=st.sampled_from([0, 1, 3]),
        waiting=st.sampled_from([1, 2]),
    )
    def begin(
        self,
        wait: int,
        transfers: bool,
        contributed: bool,
        topology: str,
        uneven: bool,
        span: int,
        waiting: int,
    ) -> None:
        self.world = world_of(wait, transfers, contributed, topology, uneven, span, waiting)
        self.paid = dict[str, int]()
        """Node to the tokens that agreed rounds have credited it with."""
        self.add(self.world.genesis)
        for number in range(3):
            owner, member = self.world.owners[number], self.world.members[number]
            recovery = recovery_digest(RECOVERY[number].public) if number else ""
            self.add(entries.account(owner, self.world.run, recovery))
            self.add(entries.node(member, owner, self.world.run))

    def add(self, statement: Envelope | Entry) -> Outcome:
        """One more entry; checks what one entry may do."""
        if isinstance(statement, Entry):
            entry = statement
        else:
            (statement,) = complete([self.by_leader(statement)], self.state.copy())
            entry = decode(statement.encode())
        shown, encoded = self.state.copy(), self.state.encode()
        reason = check(self.state, entry)
        outcome = apply(self.state, entry)
        assert self.state.final >= shown.final
        self.note_heads(entry, outcome, shown)
        # Whoever still reads the state before it sees no change.
        assert shown.encode() == encoded
        assert (outcome.reason, outcome.status == "ignored") == (reason, bool(reason))
        self.log.append(entry)
        self.reasons.append(reason)
        if reason:
            before, after = json.loads(encoded), json.loads(self.state.encode())
            kinds = before.pop("kinds")
            assert after.pop("kinds") == kinds | {entry.kind: kinds.get(entry.kind, 0) + 1}
            assert after.pop("size") == before.pop("size") + 1
            counts = before.pop("ignored")
            assert after.pop("ignored") == counts | {reason: counts.get(reason, 0) + 1}
            assert after == before
        else:
            self.counted.append(entry)
        for credit in outcome.granted:
            if credit.kind == "compute":
                self.paid[credit.node] = self.paid.get(credit.node, 0) + credit.units
        for account, amount in outcome.stakes:
            assert self.state.accounts[account].barred
            self.floor[account] -= amount
        return outcome

    def by_leader(self, statement: Envelope) -> Envelope:
        """What the first coordinator says is said by whoever leads."""
        signers = statement.by if isinstance(statement, Rooted) else statement.signers
        if not self.state.terms or list(signers) not in (
            [self.world.coordinator],
            [self.world.coordinator.key],
        ):
            return statement
        return forged(statement, KEYS[self.state.term.leader])

    # --- rounds -----------------------------------------------------------------------------------

    @rule(number=some)
    def on_with_the_round(self, number: int) -> None:
        """One valid step of the round under way."""
        state, world, attempt = self.state, self.world, self.state.attempt
        if attempt is None or attempt.phase == "failed":
            again = 0 if attempt is None or attempt.round != state.round else attempt.attempt + 1
            again = max(again, state.begun.get(state.round, 0))
            members = (not number % 4 and subset(state.nodes, number)) or list(state.nodes)
            members = self.able(members)
            place = {"cursor": max(state.cursor, 24 * state.round)}  # it stays after a divergence
            self.add(world.opened(state.round, again, steps=self.steps(members, number), **place))
        elif attempt.phase == "training":
            chosen = [NODES[peer] for peer in subset(sorted(attempt.accounts), ~number // 8)]
            self.add(world.committed(attempt.round, attempt.attempt, chosen))
        elif attempt.phase == "revealing":
            waiting = sorted(attempt.commitments.keys() - attempt.shown.keys())
            if waiting and number % 4:
                self.show(attempt, pick(waiting, number), number)
            else:
                self.close(attempt, subset(sorted(attempt.shown), ~number // 8))
        elif number % 3:
            self.slices(attempt, number)
        else:
            self.agree(attempt, number)

    def able(self, members: list[str]) -> list[str]:
        """Those of them who may sit in a round together."""
        places = {peer: seat(self.state, peer, place) for place, peer in enumerate(members)}
        on_members = self.state.rests_on == "members"
        found = (
            seated(members, places, len(members), {}, len(members) // 4, len(members))
            if on_members
            else members
        )
        return found or members[:1]

    @rule(number=some)
    def anybody_is_to_sit(self, number: int) -> None:
        state, attempt = self.state, self.state.attempt
        again = 0 if attempt is None or attempt.round != state.round else attempt.attempt + 1
        members = subset(state.nodes, number) or list(state.nodes)
        self.add(self.world.opened(state.round, again, steps=self.steps(members, number)))

    def steps(self, members: list[str], number: int) -> dict[str, int]:
        """What these are assigned, by the rules of the run."""
        work = self.world.work
        span = work.most - work.least + 1
        return {peer: work.least + (number // 5 + 7 * i) % span for i, peer in enumerate(members)}

    def show(self, attempt: Attempt, peer: str, number: int) -> None:
        """Mostly as many steps as the node may claim, sometimes fewer, or one too many."""
        work, assigned = self.world.work, attempt.steps[peer]
        head, most = work.head(attempt.round, assigned), self.state.tails.get(peer, 0)
        least = work.least_head(attempt.round, assigned)
        tail = number // 3 % (most + 1)
        head = head - number // 11 % (head - least + 1)
        span = self.span(attempt, peer, number)
        if work.span:
            tail = 0 if span == attempt.round else most
        if number % 8 == 5:
            tail, head = tail + (most + 1) * (number // 16 % 2), head + 1
        fields = {"head": head, "tail": tail, "span": span, "up": number, "down": number // 2}
        self.add(self.world.contribution(NODES[peer], attempt.round, attempt.attempt, **fields))

    def span(self, attempt: Attempt, peer: str, number: int) -> int:
        """Mostly one that it may be of, sometimes the last one, over or not, or none at all."""
        work, last = self.world.work, self.state.spans.get(peer)
        begins = attempt.round if work.span else 0
        if number % 32 == 9:
            return begins + 1 if last is None else last
        goes_on = work.goes_on(attempt.round, last) if number % 5 else None
        return begins if goes_on is None else goes_on

    def slices(self, attempt: Attempt, number: int) -> None:
        """One slice is recorded, or called wrong; by whoever may, or by somebody else."""
        world, slices = self.world, len(attempt.accounts)
        slice = number // 3 % slices
        accepted = [NODES[peer] for peer in sorted(attempt.accepted)]
        place = (attempt.round, slice)
        if number % 2:
            signer = world.aggregator(*place, accepted) if number % 8 != 7 else accepted[0]
            fields = {"by": signer, "slices": slices}
            self.add(world.aggregate(*place, attempt.attempt, **fields))
        else:
            recorded = pick(attempt.slices or [slice], number // 5)
            accuser = world.aggregator(attempt.round, recorded + 1, accepted)
            if number % 16 == 6:
                accuser = pick(accepted, number // 16)
            self.add(world.slice_wrong(accuser, attempt.round, recorded, attempt.attempt))

    @precondition(lambda self: not self.state.halted)
    @rule(number=some, count=st.sampled_from([1, 1, 2, TOTAL]))
    def whole_rounds(self, number: int, count: int) -> None:
        """As many valid steps as it takes to agree on other states."""
        for _ in range(min(count, TOTAL - self.state.round)):
            self.whole_round(number)

    def whole_round(self, number: int) -> None:
        before = self.state.round
        if self.state.attempt is not None:
            self.close(self.state.attempt, [])
        self.on_with_the_round(number)
        self.on_with_the_round(0)  # all of them commit
        attempt = self.state.attempt
        assert attempt is not None
        for peer in list(attempt.commitments):
            self.show(attempt, peer, 16 * number)
        self.close(attempt, sorted(attempt.shown))
        for step in range(number % 5):
            self.slices(attempt, number // 5 + 3 * step)
        self.agree(attempt, number // 32 * 32)
        assert self.state.round == before + 1

    @rule(number=some)
    def attempt_fails(self, number: int) -> None:
        if self.state.attempt is not None:
            rejected = dict.fromkeys(subset(sorted(self.state.attempt.accounts), number), "late")
            self.close(self.state.attempt, [], rejected)

    @rule(number=some, round=st.integers(0, TOTAL + 1), attempt=st.integers(0, 2))
    def any_round_entry(self, number: int, round: int, attempt: int) -> None:
        """Whatever round and attempt the ledger may be in."""
        world, member = self.world, pick(NODES.values(), number)
        makers = [
            lambda: world.opened(round, attempt, cursor=number % 99),
            lambda: world.committed(round, attempt),
            lambda: world.contribution(member, round, attempt),
            lambda: world.closed(round, attempt, accepted=[member]),
            lambda: world.aggregate(round, number % 4, attempt, by=member),
            lambda: world.slice_wrong(member, round, number % 4, attempt),
            lambda: world.agreed(round + 1, [member], wrong=[number % 4]),
        ]
        self.add(pick(makers, number)())

    def close(
        self, attempt: Attempt, accepted: list[str], rejected: dict[str, str] | None = None
    ) -> None:
        items = [
            entries.Accepted(node=peer, entry=shown.entry, weight=shown.tokens)
            for peer, shown in ((peer, attempt.shown[peer]) for peer in accepted)
        ]
        self.add(
            entries.round_closed(
                self.world.coordinator,
                self.world.run,
                round=attempt.round,
                attempt=attempt.attempt,
                accepted=items,
                rejected=rejected,
            )
        )

    def agree(self, attempt: Attempt, number: int) -> None:
        signers = [NODES[peer] for peer in subset(sorted(attempt.accepted), ~number)]
        wrong = subset(sorted(attempt.wrong), number // 32)
        outcome = self.add(self.world.agreed(attempt.round + 1, signers, wrong=wrong))
        if outcome.status != "ignored":
            nodes = {attempt.slices[slice].node for slice in wrong}
            held = {(item.node, item.reason) for item in outcome.left_out}
            assert {peer for peer, reason in held if reason == reasons.WRONG_SLICE} == nodes
            assert not nodes & {c.node for c in outcome.granted if c.kind == "compute"}

    @precondition(lambda self: self.state.round == TOTAL or len(self.log) % 5 == 0)
    @rule(closing=st.sampled_from([1, 1, 2]))
    def run_closes(self, closing: int) -> None:
        outcome = self.add(self.world.run_closed(max(1, self.state.round), closing))
        if outcome.status != "ignored":
            assert (self.state.rooted, self.state.rooted_by + 1) == (
                self.state.credit_map(),
                self.state.size,
            )

    @precondition(lambda self: self.state.round > 0 or len(self.log) % 5 == 0)
    @rule(number=some, back=st.integers(0, 2), right=st.sampled_from(["right", "other", ""]))
    def state_is_called_wrong(self, number: int, back: int, right: str) -> None:
        wrong = max(1, self.state.round - back + (number % 16 == 5))
        recorded = self.state.states[wrong] if wrong <= self.state.round else digest("none")
        members = self.earners() if number % 8 else self.world.members
        root = digest(right) if right else recorded
        anchor = anchor_of(self.state, wrong)
        made = anchor.attempt if anchor is not None else 0
        self.add(self.world.state_wrong(pick(members, number), wrong, root, recorded, made))

    def earners(self) -> list[Identity]:
        """Nodes whose account has credit, if there are any."""
        state = self.state
        found = [NODES[peer] for peer, name in state.nodes.items() if state.credit(name)]
        return found or self.world.members

    @precondition(lambda self: self.state.round > 0)
    @rule(number=some, back=st.integers(0, 2), further=st.sampled_from([0, 0, 0, 1, 2]))
    def wrong_state_is_undone(self, number: int, back: int, further: int) -> None:
        """From the accusation to going back, where the ledger allows it."""
        self.state_is_called_wrong(number, back, "right")
        if self.state.charges:
            self.jury_answers(7, "right")
        if self.state.charges:
            self.run_goes_back(number, further)

    @precondition(lambda self: self.state.charges)
    @rule(number=some, truth=st.sampled_from(["right", "right", "recorded"]))
    def jury_answers(self, number: int, truth: str) -> None:
        """Mostly all that are asked, and the same; or one, or one who was not drawn."""
        state, (wrong, charge) = self.state, pick(self.state.charges.items(), number)
        names = charge.jury if number % 4 else list(state.accounts)
        roots = {"right": digest("right"), "recorded": state.states[wrong]}
        for name in names if number % 8 > 2 else names[:1]:
            nodes = state.nodes_of(name)
            root = roots[truth] if number % 16 != 11 else digest(f"{truth} {name}")
            for peer in nodes[:1]:
                fields = {"charge": charge.entry, "root": root}
                self.add(entries.jury_answer(NODES[peer], self.world.run, **fields))

    @precondition(lambda self: self.state.charges)
    @rule(number=some)
    def state_is_upheld(self, number: int) -> None:
        state = self.state
        wrong, charge = pick(state.charges.items(), number)
        root = state.states[wrong] if number % 8 else digest("right")
        before = (state.total_vested, state.total_pending, list(state.states))
        fields = {"charge": charge.entry, "root": root}
        outcome = self.add(entries.state_upheld(self.world.coordinator, self.world.run, **fields))
        if outcome.status == "ignored":
            assert not charge.proven or charge.better >= 0 or root != state.states[wrong]
            return
        assert (state.total_vested, state.total_pending, state.states) == before
        assert wrong not in state.charges
        assert charge.account not in state.standings()

    @precondition(lambda self: self.state.round > 0)
    @rule(number=some, back=st.sampled_from([0, 0, 1, 2]), further=st.sampled_from([0, 0, 1, -1]))
    def training_diverges(self, number: int, back: int, further: int) -> None:
        """As those say who made a state, or some of them; and back, where the ledger allows it."""
        state = self.state
        if not state.round:
            return
        wrong = max(1, state.round - back)
        better = max(0, wrong - 1 - number % 3)
        anchor = anchor_of(state, wrong)
        made = [NODES[peer] for peer in anchor.moved_by] if anchor else self.world.members
        told = dict.fromkeys(made, (5000000, 3000000 + number % 4 * 400000))
        told |= {pick(self.world.members, number): (9_000_000, 1_000_000)}
        roots = {"root": state.states[wrong], "better_root": state.states[better]}
        outcome = self.add(self.world.diverged(wrong, better, told, **roots))
        if outcome.status != "ignored":
            assert state.charges[wrong].better == better
            self.run_goes_back(list(state.charges).index(wrong), further)

    @rule(number=some, ahead=st.sampled_from([0, 0, 1, 2, -1]))
    def organiser_amends(self, number: int, ahead: int) -> None:
        """Rules of a round that comes, in what order soever; both folds have the same after it."""
        state = self.state
        changes = pick(AMENDED, number)
        round = max(0, entries.earliest(state) + ahead)
        made = self.world.amended(len(state.amendments) + 1, round, **changes)
        outcome = self.add(made)
        if outcome.status == "ignored":
            assert ahead < 0 or state.closed or round > state.rules_at(round).total
            return
        assert not state.stuck
        assert (
            changes.items()
            <= {
                name.replace(".", "__"): text for name, text in state.changes_at(round).items()
            }.items()
        )

    @precondition(lambda self: self.state.charges)
    @rule(number=some, further=st.sampled_from([0, 0, 0, 1, 2, -1]))
    def run_goes_back(self, number: int, further: int) -> None:
        state = self.state
        wrong, charge = pick(state.charges.items(), number)
        to = max(0, (wrong - 1 if charge.better < 0 else charge.better) - further)
        before, standings = state.total_vested, dict(state.standings())
        body = {"run": self.world.run, "charge": charge.entry, "state": to}
        body["root"] = state.states[min(to, state.round)]
        made = Rooted(entries.ENTRY_TYPE, canonical.dumps(body), (), by=(self.world.coordinator,))
        outcome = self.add(made)
        if outcome.status == "ignored":
            idle = not charge.proven or state.closed or len(state.charges) > 1
            assert further < 0 or idle
            return
        if charge.better >= 0:
            assert (outcome.taken, state.standings()) == ((), standings)
        for credit in outcome.taken:
            self.floor[credit.account] -= credit.amount
        assert before - state.total_vested == sum(credit.amount for credit in outcome.taken)
        assert (state.round, state.attempt, state.rooted_by) == (to, None, state.size - 1)
        assert state.rooted == state.credit_map()
        rounds = [item.credit.round for item in state.pending.values()]
        kinds = [item.credit.kind for item in state.pending.values()]
        assert all(r < to for r, kind in zip(rounds, kinds, strict=True) if kind != "witness")

    # --- people -----------------------------------------------------------------------------------

    @rule(number=some)
    def account_appears(self, number: int) -> None:
        index = number % PEOPLE
        recovery = recovery_digest(RECOVERY[index].public) if number & 8 else ""
        identities = [*self.world.owners, key("giver"), *SPARE]
        self.add(entries.account(pick(identities, number), self.world.run, recovery))

    @rule(number=some, seq=st.integers(0, 3))
    def node_moves(self, number: int, seq: int) -> None:
        member = pick(self.world.members, number)
        name = pick(self.state.accounts, number // 7)
        seq = max(1, self.state.node_seq.get(member.peer_id, 0) + seq - 1)
        owner = self.speaker(name, number)
        self.add(entries.node(member, owner, self.world.run, account=name, seq=seq))

    @rule(number=some, old=st.booleans(), ahead=st.sampled_from([1, 1, 1, 0, 2]))
    def key_is_rotated(self, number: int, old: bool, ahead: int) -> None:
        name = pick(self.state.accounts, number)
        account = self.state.accounts[name]
        known = [k for k in RECOVERY if recovery_digest(k.public) == account.recovery]
        signer = known[0] if known and number & 16 else self.speaker(name, number * old)
        recovery = recovery_digest(pick(RECOVERY, number // 3).public) if number & 32 else ""
        new, seq = pick([*SPARE, *self.world.owners], number // 5), max(1, account.seq + ahead)
        self.add(
            entries.key_rotated(
                signer, new, self.world.run, account=name, seq=seq, recovery=recovery
            )
        )

    @precondition(lambda self: self.state.total_vested or len(self.log) % 5 == 0)
    @rule(number=some, ahead=st.sampled_from([1, 1, 1, 0, 2]), part=st.integers(1, 12))
    def credit_is_given(self, number: int, ahead: int, part: int) -> None:
        rich = [name for name, account in self.state.accounts.items() if account.vested]
        name = pick((number % 4 and rich) or self.state.accounts, number)
        account = self.state.accounts[name]
        others = [n for n, other in self.state.accounts.items() if n != name and other.registered]
        to = pick((number % 8 and others) or self.state.accounts, number // 7)
        amount = max(1, account.vested * part // 10)
        self.say(
            entries.Transfer, name, number, to=to, amount=amount, seq=max(1, account.seq + ahead)
        )

    @precondition(lambda self: self.state.pending or len(self.log) % 5 == 0)
    @rule(number=some)
    def work_is_disputed(self, number: int) -> None:
        source = self.contribution(number)
        item = self.state.pending.get(source)
        others = [n for n in self.state.accounts if item is None or n != item.credit.account]
        name = pick((number % 8 and others) or self.state.accounts, number // 5)
        fields = {"contribution": source, "reason": "doubt", "evidence": ""}
        self.say(entries.Dispute, name, number, **fields)

    @precondition(lambda self: any(audit.draws for audit in self.state.audits.values()))
    @rule(number=some, said=st.sampled_from(["accept", "reject", "reject", "inconclusive"]))
    def auditor_gives_a_verdict(self, number: int, said: str) -> None:
        asked = [source for source, audit in self.state.audits.items() if audit.draws]
        source = pick(asked, number)
        drawn = [draw.node for draw in self.state.audits[source].draws]
        auditor = NODES[pick(drawn if number % 8 else list(NODES), number // 3)]
        committed, shown = self.world.verdicts(auditor, source, said)
        if number % 5:
            self.add(committed)
        if number % 7:
            self.add(shown)

    @precondition(lambda self: self.state.pending or len(self.log) % 5 == 0)
    @rule(number=some, decision=st.sampled_from(["dismissed", "soft", "soft", "hard"]))
    def arbiter_rules(self, number: int, decision: str) -> None:
        arbiter = self.world.organiser if number % 8 else self.world.coordinator
        self.add(self.world.ruling(self.contribution(number), decision, arbiter))

    # --- trust ------------------------------------------------------------------------------------

    @rule(number=some, back=st.integers(-1, 6))
    def tree_head_is_witnessed(self, number: int, back: int) -> None:
        size = max(1, self.state.size - back)
        bound = [NODES[peer] for peer in self.state.nodes]
        members = subset(bound if number % 8 else self.world.members, ~number // 8) or bound
        # The fold does not know roots; any that the witnesses cosigned will do.
        self.add(self.world.witnessed([b"entry"] * size, members))

    def note_heads(self, entry: Entry, outcome: Outcome, before: FoldState) -> None:
        """Who has which head after this entry, and which former electors nobody asks any more."""
        if entry.kind == "witnessed" and not outcome.reason:
            for item in entry.body.cosignatures:
                self.signed[item.node] = max(entry.body.size, self.signed.get(item.node, 0))
            if outcome.notes["certified"]:
                self.certified.append((before.size, entry.body.size))
        elif entry.kind == "state_agreed":
            left = {each.since for each in self.state.electors.sets}
            self.dropped |= {each.since for each in before.electors.sets} - left

    def certificate(self, node: str) -> int:
        """The size of the largest certified head of which the node holds the record."""
        found = (size for index, size in self.certified if index < self.signed.get(node, 0))
        return max(found, default=0)

    def handed(
        self, state: FoldState, by: list[str], ahead: int, size: int, sealed: int = 0
    ) -> Entry:
        """A handover to whose turn it is in the next term but so many; with seals of these."""
        term = max(1, state.term.number + ahead)
        chosen = candidate(state, term) if ahead else ""
        leader = KEYS.get(chosen, self.world.coordinator)
        seals = []
        for peer in by:
            known = {"term": term - 1 + sealed, "next": leader.key, "size": size}
            said = seal(NODES[peer], self.world.run, **known)
            seals.append(open_seal(said.encode())[1])
        made = handover(leader, self.world.run, term=term, seals=seals)
        return decode(made.encode())

    @precondition(lambda self: self.state.electors.sets or len(self.log) % 5 == 0)
    @rule(number=some, ahead=st.sampled_from([1, 1, 1, 2, 3, 4, 0]))
    def another_coordinator_leads(self, number: int, ahead: int) -> None:
        state = self.state
        bound = sorted(state.nodes)
        by = (not number % 4 and subset(bound, number // 4)) or bound
        size = state.size + 1 if number % 16 == 5 else max(map(self.certificate, by))
        made = self.handed(state, by, ahead, size, sealed=int(number % 16 == 9))
        outcome = self.add(made)
        if outcome.status != "ignored":
            assert (state.term.leader, state.term.begins) == (made.body.coordinator, state.size - 1)
            assert state.led_by([made.body.coordinator])

    @precondition(lambda self: self.certified)
    @rule(number=some)
    def log_is_cut_and_goes_on_in_another_term(self, number: int) -> None:
        """Of any electors that can seal a term, those who know the least: all that is final stays
        in what a new leader can make of that."""
        cut = number % (len(self.log) + 1)
        state = fold(self.log[:cut])
        by: list[str] = []
        electors = {peer for each in state.electors.sets for peer in each.weights}
        for peer in sorted(state.trusted(electors), key=self.certificate):
            by.append(peer)
            if state.electors.quorum(by):
                break
        if not by or not state.electors.quorum(by):
            return
        made = self.handed(state, by, 1, max(map(self.certificate, by)))
        if state.convicted.keys() & set(made.envelope.signers):
            return
        known = max(item.size for item in made.body.seals)
        outcome = apply(state, made)
        assert outcome.reason == (reasons.OUT_OF_ORDER if known > cut else "")
        if not outcome.reason and not self.dropped & {each.since for each in state.electors.sets}:
            assert cut >= self.state.final

    @precondition(lambda self: len(self.log) % 5 == 0)
    @rule(number=some)
    def two_histories_are_seen(self, number: int) -> None:
        signer = pick([None, None, *self.world.members], number)
        name = pick(self.state.accounts, number // 7)
        self.say(entries.SplitSeen, name, number, evidence=split_view(self.world, signer))

    # --- what does not belong there ---------------------------------------------------------------

    @rule(number=some)
    def entry_is_repeated(self, number: int) -> None:
        """What counted once never counts again."""
        outcome = self.add(again := pick(self.counted, number))
        assert outcome.status == "ignored" or again.kind == "diverged"

    def teardown(self) -> None:
        for entry in self.counted:
            # What nodes measured of a state is true again when a run comes to the same one again.
            assert check(self.state, entry) or entry.kind == "diverged"
        require_same(self.log, self.state, self.reasons)

    @rule(number=some)
    def any_entry_is_played_back(self, number: int) -> None:
        self.add(pick(self.log, number))

    @rule(number=some)
    def entry_of_another_run(self, number: int) -> None:
        assert self.add(pick(FOREIGN_ENTRIES, number)).status == "ignored"

    @rule(number=some, signer=some)
    def the_wrong_ones_sign(self, number: int, signer: int) -> None:
        """A stranger's signature is never enough, and never harmless."""
        entry = pick(self.log, number)
        strangers = [key("stranger")]
        if signer % 2:
            known = {identity.key: identity for identity in (*KEYS.values(), key("stranger"))}
            strangers += [known[name] for name in entry.signers if name in known]
        try:
            false = forged(entry.envelope, *strangers)
        except DecodeError:
            return
        assert self.add(false).status == "ignored"

    # --- choices ----------------------------------------------------------------------------------

    def speaker(self, name: str, number: int) -> Identity:
        """Mostly the account's present key, sometimes its first one."""
        return KEYS[name if number % 8 == 7 else self.state.accounts[name].key]

    def say(self, schema: type[entries.Body], name: str, number: int, **fields: Any) -> None:
        speaker = self.speaker(name, number)
        self.add(entries.by_account(schema, speaker, self.world.run, account=name, **fields))

    def contribution(self, number: int) -> str:
        """Mostly something that is pending; or long vested, or nothing of the kind."""
        pending = [s for s, item in self.state.pending.items() if item.credit.kind == "compute"]
        made = [entry.id for entry in self.log if entry.kind == "contribution"]
        return str(pick((pending if number % 8 else made) or [digest("nothing")], number // 4))

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def credit_is_conserved(self) -> None:
        state = self.state
        pending = dict.fromkeys(state.accounts, 0)
        for source, item in state.pending.items():
            assert source == item.credit.source
            pending[item.credit.account] += item.credit.amount
        for name, account in state.accounts.items():
            assert account.pending == pending[name]
            assert account.granted == (
                account.vested
                + account.pending
                + account.invalidated
                + account.sent
                - account.received
            )
            rates = state.rules.rates if state.rules is not None else {}
            assert account.granted == sum(n * rates[kind] for kind, n in account.units.items())
            numbers = [value for value in vars(account).values() if isinstance(value, int)]
            assert min((*numbers, *account.units.values())) >= 0
            assert not (account.barred and account.pending)
            # Nothing but the owner's own transfer, going back, and a conviction takes vested
            # credit away.
            kept = account.vested + account.sent - account.received
            assert kept >= self.floor.get(name, 0)
            self.floor[name] = kept
        assert sum(a.sent for a in state.accounts.values()) == sum(
            a.received for a in state.accounts.values()
        )
        assert state.total == state.total_vested + state.total_pending

    @invariant()
    def nothing_that_is_pending_is_forgotten(self) -> None:
        state = self.state
        if state.closed == 2:
            assert state.pending == {}
        if not state.closed:
            waiting = [source for some in state.due.values() for source in some]
            waiting += [source for some in state.unproven.values() for source in some]
            for source in state.pending:
                assert waiting.count(source) == 1
            assert all(number > state.round for number in state.due)

    @invariant()
    def disputes_are_counted(self) -> None:
        open_disputes = [item.disputed_by for item in self.state.pending.values()]
        for name, account in self.state.accounts.items():
            assert account.disputes == open_disputes.count(name)
        assert MAX_OPEN_DISPUTES > 0

    @invariant()
    def every_key_speaks_for_one_account(self) -> None:
        state = self.state
        assert state.keys == {account.key: name for name, account in state.accounts.items()}
        assert len(state.keys) == len(state.accounts)
        assert all(name in state.accounts for name in state.nodes.values())

    @invariant()
    def nobody_is_paid_for_more_than_was_assigned(self) -> None:
        state = self.state
        assert state.node_tokens == self.paid
        if state.rules is None:
            return
        work = state.work
        # In so many agreed rounds nobody can have made more steps than all of them assign.
        for peer, tokens in self.paid.items():
            assert tokens <= work.tokens(work.most) * state.kinds.get("state_agreed", 0), peer
            assert tokens % work.tokens(1) == 0
        attempt = state.attempt
        for slice, accuser in attempt.wrong.items() if attempt is not None else ():
            assert attempt is not None
            assert accuser == checker(sorted(attempt.accepted), attempt.round, slice)
            assert accuser != attempt.slices[slice].node

    @invariant()
    def finality_and_rounds_go_on(self) -> None:
        state = self.state
        assert state.final <= state.witnessed <= state.size == len(self.log)
        assert state.round <= TOTAL

    @invariant()
    def shares_add_up(self) -> None:
        for with_pending in (False, True):
            rows = shares(self.state, with_pending=with_pending)
            if rows:
                assert sum(row.units for row in rows) == SHARE_SCALE
                assert sum(row.share for row in rows) == 1.0
                assert sum(row.share for row in reversed(rows)) == 1.0
            total = self.state.total if with_pending else self.state.total_vested
            assert sum(row.credit for row in rows) == total

    @rule(number=some)
    def folding_in_two_parts_is_folding_once(self, number: int) -> None:
        cut = number % (len(self.log) + 1)
        prefix, seen = fold(self.log[:cut]), list[Outcome]()
        assert fold(self.log[cut:], prefix) == self.state
        stored = FoldState.decode(prefix.encode())
        assert stored == prefix
        again = fold(self.log[cut:], stored, lambda _i, _e, outcome: seen.append(outcome))
        assert again == self.state
        # Not only the same numbers: the same outcomes, in the same order.
        expected = list[Outcome]()
        fold(self.log, observe=lambda _i, _e, outcome: expected.append(outcome))
        assert expected[cut:] == seen

    @precondition(lambda self: len(self.log) % 6 == 0)
    @rule(number=some)
    def any_entry_can_be_explained(self, number: int) -> None:
        index = number % len(self.log)
        seen: list[Outcome] = []
        fold(self.log[: index + 1], observe=lambda _i, _e, outcome: seen.append(outcome))
        told = explain(read(Log([entry.envelope for entry in self.log])), index)
        did = seen[index]
        assert (told.did.status, told.did.reason) == (did.status, did.reason)
        assert len(told.lines()) > 1
        for trails, credits in (
            (told.granted, did.granted),
            (told.settled("vested"), did.vested),
            (told.settled("invalidated"), (*did.invalidated, *did.taken)),
        ):
            amounts = sum(trail.credit.amount for trail in trails)
            assert amounts == sum(credit.amount for credit in credits)


@cache
def split_view(world: World, signer: Identity | None) -> dict[str, Any]:
    one = [b"one", b"history"]
    return world.split_view(one, [b"another", *one], signer)


def run(examples: int, steps: int, *, fixed: bool) -> None:
    run_state_machine_as_test(
        FoldMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=fixed,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_history_breaks_the_accounts() -> None:
    run(examples=100, steps=40, fixed=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # an hour where other work goes on
def test_no_long_history_breaks_the_accounts() -> None:
    run(examples=2000, steps=80, fixed=False)


def test_no_history_with_going_back_breaks_the_accounts() -> None:
    """The same machine, by walks in which states are proven wrong often."""
    assert sum(walked(seed) for seed in range(6)) > 12


def walked(seed: int) -> int:
    """One walk; how often the run went back in it."""
    chance, machine = Random(seed), FoldMachine()
    rules = {"wait": seed % 4, "transfers": True, "contributed": seed % 2 == 0}
    rules |= {"topology": "auto", "uneven": seed % 3 > 0, "span": (0, 1, 3)[seed % 3]}
    rules |= {"waiting": 1 + seed % 2}
    machine.begin(**rules)
    walk: list[Callable[[int], None]] = [
        *(machine.on_with_the_round, machine.attempt_fails, machine.work_is_disputed),
        *(machine.any_entry_is_played_back, machine.account_appears),
        lambda number: machine.state.setbacks[1] < 3 and machine.training_diverges(number, 0, 0),
        *[lambda number: machine.tree_head_is_witnessed(number, 1)] * 3,
        lambda number: machine.another_coordinator_leads(number, 1),
        lambda number: machine.node_moves(number, 2),
        lambda number: machine.arbiter_rules(number, "soft"),
        lambda number: machine.organiser_amends(number, number % 3),
        lambda number: machine.state_is_called_wrong(number, 0, "right"),
        lambda number: machine.state.charges and machine.jury_answers(number, "recorded"),
        lambda number: machine.state.charges and machine.state_is_upheld(number),
        lambda number: machine.state.total_vested and machine.credit_is_given(number, 1, 8),
    ]
    for turn in range(40):
        number = chance.getrandbits(30)
        if turn % 4 == 0 and machine.state.round < TOTAL:
            machine.whole_rounds(32 * number, 2)
        elif turn % 4 == 3 and machine.state.round:
            machine.wrong_state_is_undone(16 * number + 1, number % 3, number % 2)
        else:
            chance.choice(walk)(number)
        for name, method in vars(FoldMachine).items():
            if hasattr(method, "hypothesis_stateful_invariant"):
                getattr(machine, name)()
    machine.folding_in_two_parts_is_folding_once(seed)
    for cut in range(machine.state.final):
        machine.log_is_cut_and_goes_on_in_another_term(cut)
    machine.teardown()
    ledger = Log([entry.envelope for entry in machine.log])
    for size in (len(machine.log), *(chance.randrange(1, len(machine.log)) for _ in range(4))):
        history = read(ledger, size)
        for name in history.state.accounts:
            history.sums_of(name)  # what is told comes to what the state has
        told = explain(history, size - 1)
        assert told.lines()
    return [entry.kind for entry in machine.counted].count("rolled_back")
