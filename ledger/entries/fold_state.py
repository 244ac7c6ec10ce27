"""What the entries of a ledger amount to: accounts, credit and the round under way.

The state of the fold (:mod:`ledger.fold.shares`); only the rules of the kinds change it. Credit is
an integer: units of work times the manifest's rate. All that an account was ever granted is
somewhere: ``granted == vested + pending + invalidated + sent - received``.

A state that others may read is never changed: its owner works on a :meth:`FoldState.copy`, which
is cheap because both share their accounts and pending credit until one of them changes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache

from pydantic import TypeAdapter

from artel.ledger.entries import lot
from artel.ledger.entries.credit_map import CreditMap, KeptMap
from artel.ledger.entries.electors import Electors
from artel.ledger.entries.records import (
    Account,
    Amendment,
    Anchor,
    Attempt,
    Audit,
    Charge,
    Credit,
    LeftOut,
    Pending,
    RestsOn,
    Term,
    changes_of,
    twin,
)
from artel.ledger.entries.rules import LedgerRules
from artel.ledger.entries.standing import Standings
from artel.protocol.assignment import Work
from artel.protocol.identity import peer_id_of, public_of

REMEMBERED = 4096
"""Contributions whose numbers are known again: of four rounds of as many members as a round can
have, of a day with ten members and a round each four minutes."""
MOST_SETBACKS = 3
"""How often in a row a run goes back and on since training diverged: what three stretches of other
data do not mend is in its rules."""
_KNOWN_BY = 16
"""Hex digits of a payload's digest: nobody can make another's come out alike before it is shown."""


@dataclass
class FoldState:
    """Everything that the entries so far amount to. Changed by its owner alone."""

    size: int = 0
    """Entries folded."""
    run: str = ""
    organiser: str = ""
    coordinators: list[str] = field(default_factory=list)
    """Keys (hex) that the manifest names, in order."""
    terms: list[Term] = field(default_factory=list)
    """Who has led the run, the last one does."""
    electors: Electors = field(default_factory=Electors)
    rules: LedgerRules | None = None
    """As the manifest has them."""
    amendments: list[Amendment] = field(default_factory=list)
    """What the organiser has changed, as it came."""
    states: list[str] = field(default_factory=list)
    """Agreed state roots; ``states[r]`` is what round r starts from."""
    accounts: dict[str, Account] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Present key to the account that it speaks for."""
    admitted: dict[str, int] = field(default_factory=dict)
    """Accounts that the organiser let in, to the index of the entry that says so."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Node (peer id) to its present account."""
    left: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    """Node to the accounts that it has left, each with the index of the entry by which it did, the
    oldest first."""
    coordinator_of: dict[str, str] = field(default_factory=dict)
    """Node to the key (hex) with which its own coordinator leads, should members choose it."""
    node_seq: dict[str, int] = field(default_factory=dict)
    node_tokens: dict[str, int] = field(default_factory=dict)
    """Node to the tokens of its credited contributions."""
    attempt: Attempt | None = None
    cursor: int = 0
    """First data window of the newest round; it never goes back."""
    text_used: int = 0
    """Positions of the data before this one have earned for those who gave the text."""
    steps: int = 0
    """Inner steps of all members of the newest round; with ``cursor``, where its data ends."""
    tails: dict[str, int] = field(default_factory=dict)
    """Member of the last agreed round to the steps of it that count in its next contribution."""
    spans: dict[str, int] = field(default_factory=dict)
    """In a run with spans: who contributed to the last agreed round, to where its span began."""
    payloads: dict[str, tuple[str, int]] = field(default_factory=dict)
    """What the newest shown contributions are known by (:meth:`remember`), to the node that showed
    each first and the round, oldest first."""
    cleared: dict[str, int] = field(default_factory=dict)
    """In a run with audits: node to its rounds, since it was new, that audits found right."""
    found_right: dict[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    """Node to the newest round that audits of it found right, and the auditor's account: the newest
    two by different ones, the newest first."""
    unproven: dict[str, list[str]] = field(default_factory=dict)
    """Node to the sources of what is due but was not found right yet."""
    untold: dict[str, tuple[int, int]] = field(default_factory=dict)
    """New node to how often in a row auditors could not tell whether it worked, and to the round
    from which on they are asked again."""
    hardware: dict[str, str] = field(default_factory=dict)
    """Node to the class of machine that its newest agreed contribution names."""
    present: list[str] = field(default_factory=list)
    """In a run with audits: the nodes whose contributions the newest agreed state holds."""
    audits: dict[str, Audit] = field(default_factory=dict)
    """By the last contribution (entry id) that it judges: what is not decided, oldest first."""
    lighter: list[str] = field(default_factory=list)
    """Nodes that owed an audit when the newest state was agreed: they may be assigned less."""
    struck: dict[str, int] = field(default_factory=dict)
    """Account whose auditor most others contradicted, to the state from which on it is drawn
    again."""
    anchors: list[Anchor] = field(default_factory=list)
    """Of the newest agreed states, oldest first."""
    charges: dict[int, Charge] = field(default_factory=dict)
    """Number of an agreed state to who calls it wrong, as long as that is not settled."""
    heard: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Number of an agreed state to the accounts that have called it wrong, settled or not, and the
    nodes that did so for them."""
    setbacks: tuple[int, int] = (0, 0)
    """The newest state from which training diverged, and how often in a row it has."""
    begun: dict[int, int] = field(default_factory=dict)
    """Round that was gone back behind to the number that its next attempt has at least."""
    paid: dict[int, tuple[Credit, ...]] = field(default_factory=dict)
    """Round of the newest agreed states to the compute and audit credit of it that has vested."""
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Node to how often its work was left out, by reason."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How many entries there are, by kind."""
    ignored: dict[str, int] = field(default_factory=dict)
    """How many entries changed nothing, by reason."""
    credits: int = 0
    """How many credits were ever granted: the number of the next one."""
    pending: dict[str, Pending] = field(default_factory=dict)
    """Credit that has not vested, by source, oldest first."""
    due: dict[int, list[str]] = field(default_factory=dict)
    """Number of a state to the sources whose credit is to vest when it is agreed."""
    recent: list[str] = field(default_factory=list)
    """Accounts that the newest agreed state credited with compute."""
    standing: Standings = field(default_factory=Standings)
    lot: str = lot.NONE
    """What the newest agreed round left to draw lots by (:mod:`ledger.entries.lot`)."""
    closed: int = 0
    """How often the run was closed: 0, 1, or 2 when nothing can be pending any more."""
    witnessed: int = 0
    """Size of the newest tree head that a ``witnessed`` entry recorded."""
    final: int = 0
    """Entries before this index are final by a ``witnessed`` entry."""
    cosigners: list[str] = field(default_factory=list)
    """Accounts whose nodes cosigned the newest recorded tree head."""
    convicted: dict[str, int] = field(default_factory=dict)
    """Key (hex) to the index of the entry that proves it signed two histories."""
    rooted: KeptMap = field(default_factory=CreditMap)
    """The newest credit map whose root an entry names: a state, or a closing of the run."""
    rooted_by: int = 0
    """Index of that entry; 0: there is none."""

    def __post_init__(self) -> None:
        # Names of the accounts and sources of the pending credit that no copy shares.
        self._accounts, self._pending = set[str](), set[str]()
        self._credits, self._moved = CreditMap(), set(self.accounts)
        self._ruled: tuple[tuple[int, int], LedgerRules] | None = (
            None  # of a round, when asked last
        )

    @property
    def round(self) -> int:
        """The round that is under way or comes next: the number of the newest agreed state."""
        return max(0, len(self.states) - 1)

    @property
    def written(self) -> LedgerRules:
        """The rules of the manifest. Only where there is one."""
        assert self.rules is not None
        return self.rules

    @property
    def founded(self) -> LedgerRules:
        """The rules of :attr:`round`. Only where there is a manifest."""
        at, known = (self.round, len(self.amendments)), self._ruled
        if known is None or known[0] != at:
            known = self._ruled = at, self.rules_at(self.round)
        return known[1]

    @property
    def stuck(self) -> bool:
        """Whether training has diverged too often in a row: no round begins until the organiser
        amends the rules, whoever leads."""
        return self.setbacks[1] > MOST_SETBACKS

    @property
    def halted(self) -> bool:
        """Whether no round begins: as long as the run has to go back, or is stuck."""
        return self.stuck or any(charge.proven for charge in self.charges.values())

    def changes_at(self, round: int) -> dict[str, str]:
        """What has been amended of the manifest for a round: setting to value."""
        return changes_of(self.amendments, round)

    def rules_at(self, round: int) -> LedgerRules:
        """The rules of a round, as far as they are known; of one that was opened for good."""
        return self.written.amended(self.changes_at(round)) if self.amendments else self.written

    @property
    def term(self) -> Term:
        """Whose time it is. Only where there is a manifest."""
        return self.terms[-1]

    @property
    def worked(self) -> int:
        """The newest term in which a state was agreed on, or gone back to, or the run was closed;
        0 before."""
        return max((each.number for each in self.terms if each.begins <= self.rooted_by), default=0)

    def leaders(self) -> set[str]:
        """Keys (hex) that may lead: all that the manifest names, and who has led. Whose heads of
        a term count says :func:`.records.signers_in`."""
        return {*self.coordinators, *(term.leader for term in self.terms)}

    @property
    def work(self) -> Work:
        """How much a round asks of its members. Only where there is a manifest."""
        return self.founded.work

    @property
    def total(self) -> int:
        """All credit, vested and pending."""
        return sum(a.vested + a.pending for a in self.accounts.values())

    @property
    def total_vested(self) -> int:
        return sum(a.vested for a in self.accounts.values())

    @property
    def total_pending(self) -> int:
        return sum(a.pending for a in self.accounts.values())

    def credit(self, account: str) -> int:
        """Vested and pending credit of an account; 0 when it is unknown."""
        found = self.accounts.get(account)
        return found.vested + found.pending if found is not None else 0

    def account_of(self, node: str) -> str:
        """The account that a node belongs to now; "" when it is unknown."""
        return self.nodes.get(node, "")

    def account_at(self, node: str, size: int) -> str:
        """The account that a known node belonged to when there were so many entries, or its first
        one."""
        gone = (name for at, name in self.left.get(node, ()) if size <= at)
        return next(gone, self.nodes[node])

    def starts(self, key: str) -> str:
        """The node whose own coordinator has this key (hex); "" for one of the manifest."""
        return next((node for node, led in self.coordinator_of.items() if led == key), "")

    def accounts_like(self, digits: str) -> set[str]:
        """Accounts whose name or one of whose keys begins with these hex digits, 8 or more."""
        if len(digits) < 8:
            return set()
        found = {name for name in self.accounts if name.startswith(digits)}
        return found | {name for key, name in self.keys.items() if key.startswith(digits)}

    def nodes_of(self, account: str) -> list[str]:
        """The nodes that belong to an account now."""
        return sorted(node for node, owner in self.nodes.items() if owner == account)

    @property
    def rests_on(self) -> RestsOn:
        """Who has to be right for the states to be: enough members with standing, or the
        coordinator as long as there are fewer."""
        members = len(self.standing.sums) >= self.founded.trust.founders
        return "members" if members else "coordinator"

    def standings(self) -> Mapping[str, int]:
        """Account to its standing; only those that have any."""
        return self.standing.of_all()

    def standing_of(self, node: str) -> int:
        """The standing of the account that a node belongs to now."""
        return self.standings().get(self.account_of(node), 0)

    def most_steps(self, node: str) -> int:
        """Most inner steps that a node can be assigned: as many as everybody, or twice what its
        account has shown."""
        account = self.accounts.get(self.account_of(node))
        shown = account.shown if account is not None else 0
        return min(self.work.most, max(self.work.inner_steps, 2 * shown))

    def weights(self, nodes: Iterable[str]) -> dict[str, int]:
        """Node to its part of its account's standing, which those of one account share."""
        accounts = {node: self.account_of(node) for node in nodes}
        shared, standings = Counter(accounts.values()), self.standings()
        return {
            node: -(-standings.get(account, 0) // shared[account])
            for node, account in accounts.items()
        }

    def owed_by(self, node: str) -> tuple[str, Audit] | None:
        """What a node was drawn to repeat and has said nothing of: the contribution, and the audit
        that names it."""
        for source, audit in self.audits.items():
            if any(draw.node == node and not draw.commitment for draw in audit.awaited):
                return source, audit
        return None

    def awaiting(self) -> dict[str, int]:
        """Account to credit that is accepted, but whose state is not agreed yet."""
        tally: Counter[str] = Counter()
        if self.attempt is not None and self.rules is not None:
            for peer, tokens in self.attempt.accepted.items():
                account = self.attempt.accounts[peer]
                if not self.accounts[account].barred:
                    tally[account] += tokens * self.rules.rates["compute"]
        return dict(tally)

    def pending_of(self, account: str) -> Iterator[Pending]:
        """What has not vested of one account, oldest first."""
        return (item for item in self.pending.values() if item.credit.account == account)

    def work_pending(self, contribution: str) -> Pending | None:
        """The pending compute credit of a contribution (entry id), if it is one."""
        item = self.pending.get(contribution)
        return item if item is not None and item.credit.kind == "compute" else None

    def rejected_by_account(self) -> dict[str, dict[str, int]]:
        """Present account to how often the work of its nodes was left out, by reason."""
        tally: dict[str, Counter[str]] = {}
        for peer, counts in self.rejected.items():
            tally.setdefault(self.account_of(peer), Counter()).update(counts)
        return {account: dict(counts) for account, counts in tally.items()}

    # --- for rules and owners ---------------------------------------------------------------------

    def copy(self) -> FoldState:
        """An independent state with the same contents, for whoever wants to go on from here."""
        other = twin(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list):
                setattr(other, name, value.copy())
        other.due = {number: list(sources) for number, sources in self.due.items()}
        other.unproven = {node: list(sources) for node, sources in self.unproven.items()}
        other.standing, other.electors = self.standing.copy(), self.electors.copy()
        other.attempt = self.attempt.copy() if self.attempt is not None else None
        for state in (self, other):
            state._accounts, state._pending = set(), set()
        other._moved = set(self._moved)
        return other

    def changing(self, name: str) -> Account:
        """The account, to be changed: from here on no copy of the state shares it."""
        self._moved.add(name)
        if name not in self._accounts:
            self.accounts[name] = twin(self.accounts[name])
            self._accounts.add(name)
        return self.accounts[name]

    def freezing(self, source: str) -> Pending:
        """The pending credit, to be changed: from here on no copy of the state shares it."""
        if source not in self._pending:
            self.pending[source] = twin(self.pending[source])
            self._pending.add(source)
        return self.pending[source]

    def credit_map(self) -> CreditMap:
        """What every account has now; costs what changed since it was asked for last."""
        moved = ((name, self.accounts[name]) for name in self._moved)
        now = {name: (owner.vested, owner.pending) for name, owner in moved}
        self._credits, self._moved = self._credits.changed(now), set()
        return self._credits

    def take(self, source: str) -> Credit:
        """Credit that is pending no more."""
        self._pending.discard(source)
        return self.pending.pop(source).credit

    def leave_out(self, left_out: tuple[LeftOut, ...]) -> tuple[LeftOut, ...]:
        """Count these; they are returned."""
        for item in left_out:
            counts = self.rejected.get(item.node, {})
            self.rejected[item.node] = counts | {item.reason: counts.get(item.reason, 0) + 1}
        return left_out

    def shown_by(self, payload: str) -> tuple[str, int] | None:
        """Who first showed a contribution with these numbers, and in which round, if it is among
        the newest."""
        return self.payloads.get(payload[:_KNOWN_BY])

    def remember(self, payload: str, node: str, round: int) -> None:
        """Keep that the node showed these numbers; the oldest are forgotten."""
        self.payloads.setdefault(payload[:_KNOWN_BY], (node, round))
        if len(self.payloads) > REMEMBERED:
            del self.payloads[next(iter(self.payloads))]

    def registered(self, name: str) -> Account | None:
        """The account; one that only the manifest names can do nothing yet."""
        owner = self.accounts.get(name)
        return owner if owner is not None and owner.registered else None

    def admits(self, account: str) -> bool:
        """Whether it may register."""
        trust = self.founded.trust
        return trust.admission == "open" or account in {*trust.admitted, *self.admitted}

    def led_by(self, signers: Iterable[str]) -> bool:
        """Signed by the leader alone: a stranger's signature would make a second id."""
        return set(signers) == {self.term.leader}

    def trusted(self, nodes: Iterable[str]) -> list[str]:
        """Those of these known nodes whose cosignatures and seals count, and who may be elected:
        neither they, nor the coordinators that they start, nor their accounts were proven to have
        lied."""
        return [
            node
            for node in nodes
            if node in self.nodes
            and not self.convicted.keys() & {key_of(node), self.coordinator_of[node]}
            and not self.accounts[self.nodes[node]].barred
        ]

    def current(self, round: int, attempt: int, *phases: str) -> Attempt | None:
        """The attempt under way, when it is this one and in one of these phases."""
        now = self.attempt
        if now is None or (now.round, now.attempt) != (round, attempt) or now.phase not in phases:
            return None
        return now

    # --- at rest ----------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """JSON that :meth:`decode` reads back."""
        return _adapter().dump_json(self)

    @classmethod
    def decode(cls, data: bytes) -> FoldState:
        """Inverse of :meth:`encode`; not a decoder for what others wrote.

        :raises ValueError: it is none
        """
        return _adapter().validate_json(data)


@cache
def _adapter() -> TypeAdapter[FoldState]:
    return TypeAdapter(FoldState)


@lru_cache(maxsize=4096)
def key_of(peer: str) -> str:
    """The key (hex) of a node."""
    return public_of(peer).hex()


@lru_cache(maxsize=4096)
def peer_of(key: str) -> str:
    """The node whose key (hex) this is."""
    return peer_id_of(bytes.fromhex(key))
