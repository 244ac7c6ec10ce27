"""Rounds, terms and the fold together: any schedule of what can happen to four nodes, one of which
lies, and to coordinators that come and go.

Messages are lost, late, twice and in any order; nodes and coordinators crash, in the middle of a
round too, and begin again with what is on their disks; coordinators come back with an old one, or
go on from it and so sign two histories; electors seal terms when they like, and whose turn it is
takes over. What may never happen raises :class:`Broken`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from artel.ledger import entries
from artel.ledger.entries.kinds.handover import Sealed, candidate
from artel.protocol import duties, round_state
from artel.protocol.round_state import Phase
from ledger_world import digest
from paper_world import (
    NO_SIGNATURE,
    RULES,
    WORLDS,
    Broken,
    Leader,
    Ledger,
    Member,
    beginning,
    made,
    quorum,
    right_root,
    signed,
)

SECONDS = (0.2, 0.2, 1.0, 1.0, 1.0, 3.0, 3.0, 6.0, 12.0, 65.0)


@dataclass(frozen=True)
class Message:
    to: Any
    kind: str
    by: str
    what: Any


class Schedule:
    """A run of the protocol by a seed; each call of :meth:`happen` is one thing that happens."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.members_carry = self.chance.random() < 0.5
        self.world = WORLDS[self.members_carry]
        start = beginning(self.members_carry)
        start.children.clear()
        names = sorted(member.peer_id for member in self.world.members)
        self.chance.shuffle(names)
        self.liar, *honest = names
        self.members = {name: Member(name, start) for name in honest}
        first, second = self.world.coordinator, self.world.standbys[0]
        self.leaders = [Leader(first, start), Leader(second, start)]
        own = {member.peer_id: member.elected for member in self.world.members}
        self.leaders += [Leader(own[name], start) for name in honest]
        self.idle: list[Leader] = []
        """In the end these open no round any more."""
        self.mail: list[Message] = []
        self.seals: dict[int, dict[str, tuple[Ledger | None, str]]] = {}
        """By term and elector: the newest head that it knows to be certified, and whom for."""
        self.cosigned: dict[Ledger, set[str]] = {}
        """By honest nodes; the liar cosigns everything."""
        self.final = start.at(0)
        self.least = start.size
        self.finals: dict[int, Ledger] = {}
        """Term of a certified head to the largest that is final by one of it."""
        self.terms: list[Ledger] = []
        """The first heads of the terms that were taken over."""
        self.counts = dict.fromkeys(("finals", "handovers", "forks", "crashes"), 0)
        self.leads(self.leaders[0], 0)

    def leads(self, leader: Leader, term: int) -> None:
        leader.term, leader.cosigned = term, {}
        leader.begin()

    # --- what must hold ---------------------------------------------------------------------------

    def cosign(self, name: str, head: Ledger) -> None:
        """An honest node's cosignature is out."""
        by = self.cosigned.setdefault(head, set())
        by.add(name)
        if self.leaders[0].forks and not head.state.electors.sets:
            return  # nobody else has to agree yet: its word is all there is, and worth nothing
        if quorum(head, {*by, self.liar}):
            size = head.state.electors.final_by(head.size)
            if size:
                self.finish(head.at(size), head.term)

    def finish(self, final: Ledger, term: int) -> None:
        """Entries are final by a head of this term."""
        if not (final.begins_with(self.final) or self.final.begins_with(final)):
            raise Broken(f"two final histories: {final.size} entries and {self.final.size}")
        self.counts["finals"] += final.size > self.final.size
        self.final = max(self.final, final, key=lambda each: each.size)
        self.finals[term] = max(self.finals.get(term, final), final, key=lambda each: each.size)
        for begun in self.terms:
            self.keeps(begun)

    def keeps(self, begun: Ledger) -> None:
        """A term has all that is final by heads of those before it."""
        for term, final in self.finals.items():
            if term < begun.term and not begun.begins_with(final):
                raise Broken(f"lost: term {begun.term} begins behind {begun.size - 1} entries")

    # --- what happens -----------------------------------------------------------------------------

    def happen(self) -> None:
        which = self.chance.random()
        if which < 0.45:
            self.exchange(self.some_member())
        elif which < 0.70 and self.mail:
            self.deliver()
        elif which < 0.78:
            self.beat(self.some_member())
        elif which < 0.84:
            self.pass_time(self.some_leader(), self.chance.choice(SECONDS))
        elif which < 0.865:
            self.fail()
        elif which < 0.885:
            self.seal(self.some_member(), self.chance.choice((0, 0, 0, 1)))
        elif which < 0.915:
            self.take_over(self.chance.choice(self.leaders))
        else:
            self.lie()

    def exchange(self, member: Member) -> None:
        """A node and its leader talk to each other for once without waiting for others."""
        kept, self.mail = self.mail, []
        self.beat(member)
        while self.mail:
            self.deliver()
        self.mail = kept

    def some_member(self) -> Member:
        return self.chance.choice(list(self.members.values()))

    def some_leader(self) -> Leader:
        leading = [each for each in self.leaders if each.term >= 0]
        return self.chance.choice(leading[-2:] if self.chance.random() < 0.8 else leading)

    def send(self, to: Any, kind: str, by: str, what: Any) -> None:
        """Most messages arrive, some twice, in any order; of many the oldest are lost."""
        if self.chance.random() < 0.92:
            self.mail.append(Message(to, kind, by, what))
        if len(self.mail) > 40:
            self.mail.pop(0)

    def deliver(self) -> None:
        chance = self.chance.random()
        last = len(self.mail) - 1
        place = last if chance < 0.5 else 0 if chance < 0.7 else self.chance.randrange(last + 1)
        message = self.mail.pop(place) if self.chance.random() < 0.95 else self.mail[place]
        if message.to.up:
            getattr(self, f"on_{message.kind}")(message.to, message.by, message.what)

    def leading(self, member: Member) -> Leader | None:
        """Whom a node holds for the leader, by its own ledger."""
        key = member.ledger.state.term.leader
        return next((each for each in self.leaders if each.identity.key == key), None)

    def beat(self, member: Member) -> None:
        leader = self.leading(member)
        if self.chance.random() < 0.2:  # it looks around for a later term
            leader = self.some_leader()
        if member.up and leader is not None:
            self.send(leader, "beat", member.name, member.ledger.state.states[-1])

    def on_beat(self, leader: Leader, by: str, root: str) -> None:
        if leader.rounds is None:
            return
        leader.feed(round_state.Seen(leader.now, by, root))
        duty = duties.directive(RULES, leader.rounds, by, leader.now)
        if by in self.members:
            place = (leader.rounds.round, leader.rounds.attempt)
            self.send(self.members[by], "duty", "", (leader, leader.ledger, duty.task, place))

    def on_duty(self, member: Member, _: str, what: Any) -> None:
        """It follows the ledger, and does its part by what that says."""
        leader, head, task, place = what
        if not member.takes(head) or head.term != member.ledger.term:
            return
        if member.cosigns(head):
            self.cosign(member.name, head)
            self.send(leader, "cosigned", member.name, head)
        for step in ("train", "reveal", "apply"):
            if task == step:
                self.send(leader, step, member.name, (member.ledger, place))

    def attempt_of(self, ledger: Ledger, place: tuple[int, int]) -> bool:
        now = ledger.state.attempt
        return now is not None and (now.round, now.attempt) == place

    def on_train(self, leader: Leader, by: str, what: Any) -> None:
        ledger, place = what
        if leader.rounds is not None and self.attempt_of(ledger, place):
            commitment, _ = made(ledger.state, by)
            leader.feed(round_state.Committed(leader.now, by, *place, commitment))

    def on_reveal(self, leader: Leader, by: str, what: Any) -> None:
        ledger, place = what
        fold = leader.ledger.state
        if leader.rounds is None or not self.attempt_of(ledger, place):
            return
        _, shown = made(ledger.state, by)
        attempt = fold.attempt
        fits = attempt is not None and self.attempt_of(leader.ledger, place)
        if fits and attempt is not None and by not in attempt.shown and by in attempt.commitments:
            leader.feed(round_state.Revealed(leader.now, by, *place, ""), shown)

    def on_apply(self, leader: Leader, by: str, what: Any) -> None:
        ledger, place, *said = what
        root = said[0] if said else right_root(ledger.state)
        if leader.rounds is not None and root and self.attempt_of(ledger, place):
            leader.feed(round_state.StateSigned(leader.now, by, *place, root))
            leader.look()

    def on_cosigned(self, leader: Leader, by: str, head: Ledger) -> None:
        if leader.term < 0:
            return
        leader.cosigned.setdefault(head, set()).add(by)
        names = leader.cosigned[head]
        if quorum(head, names):
            for name in self.members:
                self.send(self.members[name], "certified", "", head)

    def on_certified(self, member: Member, _: str, head: Ledger) -> None:
        member.known.add(head)

    def pass_time(self, leader: Leader, seconds: float) -> None:
        if leader.up and leader.rounds is not None:
            leader.now += seconds
            leader.feed(round_state.Tick(leader.now))
            leader.look()
            if self.chance.random() < 0.3 and leader.rounds.phase is Phase.WAITING:
                leader.witness()

    # --- crashes and disks ------------------------------------------------------------------------

    def fail(self) -> None:
        """Something stops, or what had stopped begins again with what is on its disk."""
        which = self.chance.random()
        if which < 0.4:
            member = self.some_member()
            member.up = not member.up
            return
        leader = self.some_leader()
        if leader.up and self.chance.random() < 0.5:
            leader.up, leader.rounds = False, None
            return
        self.restart(leader, old=self.chance.random() < 0.4)

    def restart(self, leader: Leader, *, old: bool) -> None:
        """A leader begins again; from an old disk behind what it remembers to have signed, or what
        all members have, or in spite of both."""
        if leader.term < 0:
            return
        self.counts["crashes"] += 1
        ledger = leader.signed or leader.ledger
        if old:
            begun = max((t.size for t in self.terms if ledger.begins_with(t)), default=self.least)
            ledger = ledger.at(self.chance.randrange(begun, ledger.size + 1))
            held = [member.ledger for member in self.members.values() if member.up]
            if leader.forks:
                self.counts["forks"] += 1
            elif len(held) == len(self.members) and self.chance.random() < 0.5:
                held = [each for each in held if each.term == leader.term]
                ledger = max([ledger, *held], key=lambda each: each.size)
            else:
                ledger = leader.signed or leader.ledger
        leader.ledger = leader.signed = ledger
        leader.up, leader.cosigned = True, {}
        leader.now += 1.0
        leader.begin()

    # --- terms ------------------------------------------------------------------------------------

    def seal(self, member: Member, ahead: int) -> None:
        """The leader does not answer; or the next one has not come either."""
        term = max(member.ledger.term, member.sealed) + ahead
        if not member.up or term > 5:
            return
        self.sealed(member, term)

    def sealed(self, member: Member, term: int) -> None:
        member.sealed = max(member.sealed, term)
        known, turn = self.seals.setdefault(term, {}), candidate(member.ledger.state, term + 1)
        _, turn = known.get(member.name, (None, turn))
        known[member.name] = member.newest_certified(), turn

    def take_over(self, leader: Leader) -> bool:
        """A candidate asks for seals of the term before one that is its own."""
        standing_by = leader.term < 0 or any(leader.term < begun.term for begun in self.terms)
        if not leader.up or not standing_by:
            return False
        names = [name for name in self.members if self.chance.random() < 0.8]
        return any(self.begin_term(leader, n + 1, names) for n in sorted(self.seals, reverse=True))

    def begin_term(self, leader: Leader, term: int, names: Iterable[str]) -> bool:
        """With the seals of these, as far as they have sealed, and whatever the liar says."""
        chosen = leader.identity.key
        said = self.seals.get(term - 1, {})
        given = {name: head for name, (head, turn) in said.items() if turn == chosen}
        asked = [name for name in names if name in given]
        heads = [head for name in asked if (head := given[name]) is not None]
        base = max(heads, key=lambda head: head.place, default=beginning(self.members_carry))
        shown = [self.members[name].ledger for name in asked if self.members[name].up]
        longer = [each for each in (leader.ledger, *shown) if each.begins_with(base)]
        if self.chance.random() < 0.5:  # nobody has to show it
            base = max(longer, key=lambda each: each.place, default=base)
        fold = base.state
        sealers = sorted({*asked, self.liar} & fold.nodes.keys())
        if max(base.term, leader.term) >= term or candidate(fold, term) != chosen:
            return False
        if not fold.electors.sets or not fold.electors.quorum(fold.trusted(sealers)):
            return False
        self.handed(leader, base, term, {name: given.get(name) for name in sealers})
        return True

    def handed(
        self, leader: Leader, base: Ledger, term: int, seals: dict[str, Ledger | None]
    ) -> None:
        parts = tuple(
            Sealed.model_construct(
                node=name,
                of=head.term if head is not None else 0,
                size=head.size if head is not None else 0,
                root="",
                signature=NO_SIGNATURE,
            )
            for name, head in seals.items()
        )
        leader.ledger, leader.term, leader.cosigned = base, term, {}
        fields = {"run": base.state.run, "term": term, "coordinator": leader.identity.key}
        fields |= {"seals": parts}
        leader.take(signed(entries.Handover, fields, leader.identity.key))
        self.counts["handovers"] += 1
        self.terms.append(leader.ledger)
        self.keeps(leader.ledger)
        leader.begin()

    # --- lies -------------------------------------------------------------------------------------

    def lie(self) -> None:
        """The liar says anything to a leader; it cosigns and seals anyway."""
        leader = self.some_leader()
        if leader.rounds is None:
            return
        place = (leader.rounds.round, leader.rounds.attempt)
        which = self.chance.randrange(6)
        if which < 2:
            self.on_beat(leader, self.liar, leader.rounds.base if which else digest("a lie"))
        elif which == 2:
            self.on_train(leader, self.liar, (leader.ledger, place))
        elif which == 3:
            self.on_reveal(leader, self.liar, (leader.ledger, place))
        elif which == 4:
            root = self.chance.choice([digest("a lie"), right_root(leader.ledger.state)])
            if root:
                self.on_apply(leader, self.liar, (leader.ledger, place, root))
        else:
            for head in list(leader.cosigned)[-3:]:
                self.on_cosigned(leader, self.liar, head)

    # --- and in the end ---------------------------------------------------------------------------

    def fair_end(self) -> None:
        """Everybody honest is back and heard: a round gets done, under somebody who opens any.

        :raises Broken: none does
        """
        self.mail.clear()
        for member in self.members.values():
            member.up = True
        for each in self.leaders:
            if not each.up:
                self.restart(each, old=False)
        before = None
        for _ in range(240):
            newest = [each for each in self.leaders if each.term >= 0 and not each.forks]
            leader = max(newest, key=lambda each: each.term, default=None)
            if leader in self.idle:
                if not leader.ledger.state.electors.sets:
                    return  # the same
                for member in self.members.values():
                    member.takes(leader.ledger)  # it answers everybody
            over = leader in self.idle or not self.can_certify(leader)
            if over and self.everybody_seals():
                before = None
                continue
            if leader is None:
                return  # it has lied before there was anybody who could have sealed its term
            before = leader.ledger.state.round if before is None else before
            if leader not in self.idle:
                self.done_together(leader)
            if leader.ledger.state.round > before:
                return
        raise Broken(f"stuck: {leader.rounds if leader is not None else None}")

    def can_certify(self, leader: Leader | None) -> bool:
        """Whether nobody who is asked has sealed its term, or few enough."""
        if leader is None:
            return False
        fold = leader.ledger.state
        able = {m.name for m in self.members.values() if m.sealed < leader.term}
        sealed = self.members.keys() - able
        asked = {node for each in fold.electors.sets for node in each.weights}
        return not sealed & asked or fold.electors.quorum(fold.trusted(able))

    def everybody_seals(self) -> bool:
        """All honest ones seal up to where somebody honest can go on; whether somebody did."""
        top = max(max(m.ledger.term, m.sealed) for m in self.members.values())
        for term in range(top, top + 8):
            for member in self.members.values():
                self.sealed(member, term)
            for leader in self.leaders:
                leader.up = True
                if not leader.forks and self.begin_term(leader, term + 1, self.members):
                    return True
        return False

    def done_together(self, leader: Leader) -> None:
        if leader.rounds is None:
            leader.begin()
        for member in self.members.values():
            assert leader.rounds is not None
            self.on_beat(leader, member.name, member.ledger.state.states[-1])
            while self.mail:
                message = self.mail.pop()
                getattr(self, f"on_{message.kind}")(message.to, message.by, message.what)
        leader.now += 1.0
        leader.feed(round_state.Tick(leader.now))
        leader.look()


def walk(seed: int, steps: int, fair: bool = True) -> Schedule:
    """One schedule, and its fair end."""
    schedule = Schedule(seed)
    if schedule.chance.random() < 0.3:
        schedule.leaders[0].forks = True
    if seed % 4 == 0:
        schedule.idle = schedule.leaders[:2]
    for _ in range(steps):
        schedule.happen()
    if fair:
        schedule.fair_end()
    return schedule
