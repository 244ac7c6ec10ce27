"""A run with audits, whose rounds all go well, and what its auditors say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account, Audit, Outcome
from artel.ledger.fold.shares import apply
from artel.protocol.dsse import Envelope
from ledger_world import World, complete, require_same

RULES = {"audit_rate": 0.05, "newcomer_rounds": 3, "audit_rounds": 3}
Says = Callable[[int, Audit], str]
"""What an auditor (its number) says of something; "" for nothing."""


def honest(liars: Iterable[int] = (), since: int = 0) -> Says:
    """True verdicts, when what these members did from a round on is false."""
    bad = set(liars)

    def says(_: int, audit: Audit) -> str:
        return "reject" if NUMBER[audit.node] in bad and audit.last >= since else "accept"

    return says


NUMBER: dict[str, int] = {}
"""Node to its place among the members of its world."""


class Run:
    """A run whose rounds all go well; ``says`` is what auditors find, between two rounds."""

    def __init__(self, nodes: int = 5, span: int = 10, total: int = 60, **changes: object) -> None:
        trust = RULES | {name: changes.pop(name) for name in RULES if name in changes}
        self.world = World(
            name=f"audits {nodes} {span} {sorted(changes.items())}",
            nodes=nodes,
            total=total,
            rounds={"span": span},
            ownership={"vesting_rounds": 2},
            trust=trust | changes,
        )
        NUMBER.update({m.peer_id: n for n, m in enumerate(self.world.members)})
        self.state, self.log = FoldState(), list[Entry]()
        self.outcomes = list[Outcome]()
        self.feed(*self.world.start)

    def feed(self, *envelopes: Envelope) -> Outcome:
        for envelope in complete(envelopes, self.state.copy()):
            entry = entries.decode(envelope.encode())
            self.log.append(entry)
            self.outcomes.append(apply(self.state, entry))
            if entry.kind == "state_agreed":
                self.world.follow(self.state)
        return self.outcomes[-1]

    def play(self, rounds: int, says: Says) -> Run:
        """So many rounds more, with the verdicts that are due before each."""
        for _ in range(rounds):
            self.judge(says)
            self.feed(*self.world.round(self.state.round))
        return self

    def judge(self, says: Says) -> list[Outcome]:
        """Everybody who was drawn commits, then all show."""
        given = []
        for source, audit in self.state.audits.items():
            for draw in audit.awaited:
                if (said := says(NUMBER[draw.node], audit)) and not draw.commitment:
                    member = self.world.members[NUMBER[draw.node]]
                    given.append(self.world.verdicts(member, source, said))
        for committed, _ in given:
            self.feed(committed)
        return [self.feed(shown) for _, shown in given]

    def one(self, number: int) -> tuple[str, Audit]:
        """The audit that is under way of a member's work."""
        peer = self.world.members[number].peer_id
        ((source, audit),) = ((s, a) for s, a in self.state.audits.items() if a.node == peer)
        return source, audit

    def account(self, number: int) -> Account:
        return self.state.accounts[self.world.owners[number].key]

    def barred(self) -> list[int]:
        return [n for n, o in enumerate(self.world.owners) if self.state.accounts[o.key].barred]

    def checked(self) -> Run:
        """Whoever has only docs/ledger.md comes to the same."""
        require_same(self.log, self.state, [outcome.reason for outcome in self.outcomes])
        assert FoldState.decode(self.state.encode()) == self.state
        return self


def telling(run: Run, friends: Iterable[int] = ()) -> Says:
    """Of another class than the auditor's nobody can tell; ``friends`` accept each other's work,
    which is false, of their own class or not."""
    friends, kinds = set(friends), run.world.classes

    def says(auditor: int, audit: Audit) -> str:
        if NUMBER[audit.node] in friends and auditor in friends:
            return "accept"
        alike = kinds.get(run.world.members[auditor].peer_id) == kinds.get(audit.node)
        if not alike:
            return "inconclusive"
        return "reject" if NUMBER[audit.node] in friends else "accept"

    return says


def named(run: Run, kind: str, *numbers: int) -> Run:
    run.world.classes.update((run.world.members[n].peer_id, kind) for n in numbers)
    return run


def paid(run: Run, number: int, since: int = 0) -> int:
    """What a member's work from a round on vested."""
    peer = run.world.members[number].peer_id
    vested = (credit for outcome in run.outcomes for credit in outcome.vested)
    return sum(
        c.amount for c in vested if (c.kind, c.node) == ("compute", peer) and c.round >= since
    )
