"""What the entries of a ledger amount to: accounts, credit and the round under way.

The state of the fold (:mod:`ledger.fold.shares`); only its rules (``ledger.rules_*``) change it.
Credit is an integer: units of work times the manifest's rate. All that an account was ever granted
is somewhere: ``granted == vested + pending + invalidated + sent - received``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from artel.ledger.entries import DataUse, Rules
from artel.protocol.assignment import Work
from artel.protocol.run_config import Ownership

KINDS_OF_WORK = ("compute", "data", "audit", "witness")


@dataclass(frozen=True)
class Credit:
    """``units`` of work of a ``kind``, worth ``amount`` = units × ``rate`` to an account.

    ``source`` is what it was given for: a contribution's entry id, or a name made of the kind.
    """

    source: str
    kind: str
    account: str
    node: str
    round: int
    units: int
    rate: int

    @property
    def amount(self) -> int:
        return self.units * self.rate


@dataclass(frozen=True)
class Outcome:
    """What an entry did: ``credited``, ``recorded``, or ``ignored`` for ``reason``.

    The other fields list the credit that it granted (still pending, unless the run vests at once),
    made vest, and took away. ``denied`` are accepted contributions (entry ids) that earn nothing,
    because their node had combined a slice wrongly.
    """

    status: str
    reason: str = ""
    granted: tuple[Credit, ...] = ()
    vested: tuple[Credit, ...] = ()
    invalidated: tuple[Credit, ...] = ()
    denied: tuple[str, ...] = ()


Effect = Callable[[], Outcome]
"""What a rule returns when an entry fits: a call of it changes the state. Otherwise a reason."""


@dataclass
class Pending:
    """Credit that has not vested."""

    credit: Credit
    due: int
    """It vests when the state with this number is agreed."""
    auditors: list[str] = field(default_factory=list)
    """Nodes whose verdict on this contribution counts."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """Auditing node to its verdict."""
    disputed_by: str = ""
    """Account that froze it; "" when it is not frozen."""
    lapses: int = 0
    """The dispute ends when the state with this number is agreed and nobody has ruled."""
    ruled: bool = False
    """Dismissed once: it cannot be disputed again."""
    about: str = ""
    """Of an audit: the contribution that it judges; while that one is frozen, so is this."""


@dataclass
class Account:
    """One owner; ``key`` is its present key (hex), its name is the first one."""

    key: str
    recovery: str = ""
    seq: int = 0
    registered: bool = False
    """False for a contributor of data whom only the manifest names."""
    units: dict[str, int] = field(default_factory=dict)
    """Units of work ever granted, by kind."""
    granted: int = 0
    vested: int = 0
    pending: int = 0
    invalidated: int = 0
    sent: int = 0
    received: int = 0
    witnessed: int = 0
    """Entries before this index are not paid for as witnessed again."""
    disputes: int = 0
    """Open disputes that it has begun."""
    barred: bool = False
    """Fraud is proven: it earns no more, and its nodes' cosignatures do not count."""


@dataclass(frozen=True)
class Slice:
    """What the aggregator ``node`` of a slice recorded: ``blob`` of ``size`` bytes."""

    node: str
    blob: str
    size: int


@dataclass
class Attempt:
    """The round that is under way."""

    round: int
    attempt: int
    accounts: dict[str, str]
    """Members (peer ids) and the account of each when the round was opened."""
    steps: dict[str, int] = field(default_factory=dict)
    """Member to the inner steps that it is assigned."""
    phase: str = "training"
    """training, revealing (commitments are known), applying (closed with somebody), failed."""
    commitments: dict[str, str] = field(default_factory=dict)
    contributions: dict[str, str] = field(default_factory=dict)
    """Node to entry id of its valid contribution."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Node to the tokens of that contribution."""
    heads: dict[str, int] = field(default_factory=dict)
    """Node to the steps of this round's assignment in it."""
    salts: dict[str, str] = field(default_factory=dict)
    """Node to the salt that it revealed: secret until then, and fixed by its commitment."""
    accepted: dict[str, int] = field(default_factory=dict)
    """Node to tokens."""
    slices: dict[int, Slice] = field(default_factory=dict)
    """Of a sharded round: what was recorded for each slice."""
    wrong: dict[int, dict[str, str]] = field(default_factory=dict)
    """Slice to those who say that it is wrong, and the blob that each got instead."""


@dataclass
class FoldState:
    """Everything that the entries so far amount to. Changed by its owner alone."""

    size: int = 0
    """Entries folded."""
    run: str = ""
    organiser: str = ""
    coordinators: list[str] = field(default_factory=list)
    rules: Rules | None = None
    states: list[str] = field(default_factory=list)
    """Agreed state roots; ``states[r]`` is what round r starts from."""
    accounts: dict[str, Account] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """Present key to the account that it speaks for."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Node (peer id) to its present account."""
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
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Node to how often its work was left out, by reason."""
    ignored: dict[str, int] = field(default_factory=dict)
    """How many entries changed nothing, by reason."""
    pending: dict[str, Pending] = field(default_factory=dict)
    """Credit that has not vested, by source, oldest first."""
    due: dict[int, list[str]] = field(default_factory=dict)
    """Number of a state to the sources whose credit is to vest when it is agreed."""
    recent: list[str] = field(default_factory=list)
    """Accounts that the newest agreed state credited with compute."""
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

    @property
    def round(self) -> int:
        """The round that is under way or comes next: the number of the newest agreed state."""
        return max(0, len(self.states) - 1)

    @property
    def work(self) -> Work:
        """How much a round asks of its members. Only where there is a manifest."""
        assert self.rules is not None
        return self.rules.work

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

    def rejected_by_account(self) -> dict[str, dict[str, int]]:
        """Present account to how often the work of its nodes was left out, by reason."""
        tally: dict[str, Counter[str]] = {}
        for peer, counts in self.rejected.items():
            tally.setdefault(self.account_of(peer), Counter()).update(counts)
        return {account: dict(counts) for account, counts in tally.items()}

    def copy(self) -> FoldState:
        """An independent state with the same contents."""
        return copy.deepcopy(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_dict` reads back (for a cache of one's own making)."""
        rules, self_rules = self.rules, None
        if rules is not None:
            self_rules = {
                "total": rules.total,
                "work": asdict(rules.work),
                "ownership": rules.ownership.model_dump(mode="json"),
                "witnesses": rules.witnesses,
                "arbiters": sorted(rules.arbiters),
                "data": None if rules.data is None else asdict(rules.data),
            }
        fields = {name: value for name, value in vars(self).items() if name != "rules"}
        plain = {name: _plain(value) for name, value in fields.items()}
        # A list, because the order matters and not every JSON writer keeps that of an object.
        return plain | {"rules": self_rules, "pending": list(plain["pending"].values())}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FoldState:
        """Inverse of :meth:`to_dict`; not a decoder for what others wrote."""
        fields = copy.deepcopy(value)
        rules, attempt = fields.pop("rules"), fields.pop("attempt")
        state = cls(**fields)
        state.due = {int(number): sources for number, sources in fields["due"].items()}
        state.accounts = {name: Account(**item) for name, item in fields["accounts"].items()}
        state.pending = {
            item["credit"]["source"]: Pending(**item | {"credit": Credit(**item["credit"])})
            for item in fields["pending"]
        }
        state.attempt = None if attempt is None else _attempt(attempt)
        if rules is not None:
            data = rules["data"]
            if data is not None:
                pairs = tuple((account, tokens) for account, tokens in data["contributed"])
                data = DataUse(**data | {"contributed": pairs})
            ownership = Ownership(
                **rules["ownership"] | {"arbiters": tuple(rules["ownership"]["arbiters"])}
            )
            state.rules = Rules(
                total=rules["total"],
                work=Work(**rules["work"]),
                ownership=ownership,
                witnesses=rules["witnesses"],
                arbiters=frozenset(rules["arbiters"]),
                data=data,
            )
        return state


def _attempt(fields: dict[str, Any]) -> Attempt:
    slices = {int(number): Slice(**item) for number, item in fields["slices"].items()}
    wrong = {int(number): item for number, item in fields["wrong"].items()}
    return Attempt(**fields | {"slices": slices, "wrong": wrong})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


# --- changes of credit, for the rules -------------------------------------------------------------


def grant(state: FoldState, pending: Pending) -> None:
    """Add credit that waits to vest; nothing for a barred account is ever granted."""
    credit = pending.credit
    account = state.accounts[credit.account]
    account.units[credit.kind] = account.units.get(credit.kind, 0) + credit.units
    account.granted += credit.amount
    account.pending += credit.amount
    state.pending[credit.source] = pending
    state.due.setdefault(pending.due, []).append(credit.source)


def vest(state: FoldState, source: str) -> Credit:
    """Move pending credit to vested."""
    credit = _taken(state, source)
    state.accounts[credit.account].vested += credit.amount
    return credit


def invalidate(state: FoldState, source: str) -> Credit:
    """Take pending credit away; the account's units keep what was once granted."""
    credit = _taken(state, source)
    state.accounts[credit.account].invalidated += credit.amount
    return credit


def bar(state: FoldState, account: str) -> tuple[Credit, ...]:
    """Fraud is proven: everything that has not vested goes, and nothing more is earned."""
    state.accounts[account].barred = True
    sources = [item.credit.source for item in state.pending_of(account)]
    return tuple(invalidate(state, source) for source in sources)


def end_dispute(state: FoldState, item: Pending) -> None:
    """Unfreeze; whoever froze it may begin another dispute."""
    if item.disputed_by:
        state.accounts[item.disputed_by].disputes -= 1
        item.disputed_by = ""


def frozen_until(state: FoldState, item: Pending) -> int:
    """Number of the state whose agreement ends the dispute that holds this back; 0: none does."""
    judged = state.pending.get(item.about) if item.about else item
    return judged.lapses if judged is not None and judged.disputed_by else 0


def vest_due(state: FoldState, number: int) -> tuple[Credit, ...]:
    """Vest what is due now that state ``number`` is agreed; what is frozen waits."""
    vested: list[Credit] = []
    for source in state.due.pop(number, []):
        item = state.pending.get(source)
        if item is None:
            continue  # invalidated, or vested by a ruling, in between
        until = frozen_until(state, item)
        if number < until:
            state.due.setdefault(until, []).append(source)
            continue
        vested.append(vest(state, source))
    return tuple(vested)


def _taken(state: FoldState, source: str) -> Credit:
    item = state.pending.pop(source)
    end_dispute(state, item)
    state.accounts[item.credit.account].pending -= item.credit.amount
    return item.credit
