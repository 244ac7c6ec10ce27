"""What the fold keeps of one thing: a credit, an account, an audit, an attempt, an agreed state.

The parts of :class:`ledger.entries.fold_state.FoldState`, and what an entry did to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from artel.ledger.entries.credit_map import CreditMap, KeptMap

KINDS_OF_WORK = ("compute", "data", "audit", "witness")


@dataclass(frozen=True)
class Credit:
    """``units`` of work of a ``kind``, worth ``amount`` = units × ``rate`` to an account.

    ``number`` counts all credit of the ledger. ``source`` is what it was given for: a
    contribution's entry id, or a name made of the kind; ``work`` is the index of that contribution,
    or of the entry that granted it.
    """

    number: int
    source: str
    kind: str
    account: str
    node: str
    round: int
    units: int
    rate: int
    work: int

    @property
    def amount(self) -> int:
        return self.units * self.rate


RestsOn = Literal["coordinator", "members"]


@dataclass(frozen=True)
class Term:
    """A time in which one coordinator leads the run, and adds to its ledger."""

    number: int
    begins: int
    """Index of its first entry."""
    leader: str
    """The coordinator's key (hex)."""


def signers_in(term: int | None, terms: Iterable[Term]) -> list[str]:
    """Keys (hex) by which a tree head of one term counts: its leader's alone, as far as ``terms``
    tell who that is. What another coordinator of the run signs for it says nothing."""
    return [each.leader for each in terms if each.number == term]


@dataclass(frozen=True)
class Amendment:
    """What the organiser has changed (:mod:`ledger.entries.kinds.amended`)."""

    index: int
    """Of its entry."""
    round: int
    """From which on it holds."""
    changes: dict[str, str]


def changes_of(amendments: Iterable[Amendment], round: int) -> dict[str, str]:
    """What holds in a round: setting to value.

    :param amendments: as they came
    """
    known = (one.changes for one in amendments if one.round <= round)
    return {name: text for changes in known for name, text in changes.items()}


@dataclass(frozen=True)
class LeftOut:
    """Work of a member that does not count, or what is held against it; see ``reasons``."""

    round: int
    attempt: int
    node: str
    account: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What an entry did: ``credited``, ``recorded``, or ``ignored`` for ``reason``.

    The other fields list the credit that it granted (still pending, unless the run vests at once),
    made vest and took away before and after it had vested, whose work it left out, and the vested
    credit that changed owners (account and amount, negative for the giver). ``notes`` is what an
    explanation has to know of the moment and later entries may change: JSON values.
    """

    status: str
    reason: str = ""
    granted: tuple[Credit, ...] = ()
    vested: tuple[Credit, ...] = ()
    invalidated: tuple[Credit, ...] = ()
    taken: tuple[Credit, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    moved: tuple[tuple[str, int], ...] = ()
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def stakes(self) -> list[tuple[str, int]]:
        """Convicted accounts, and what each lost that had vested."""
        return [(account, amount) for account, amount in self.notes.get("stakes", ())]


@dataclass(frozen=True)
class Loss:
    """Pending credit that is taken away, and vested credit of convicted accounts: see
    :func:`ledger.entries.credit.bar`."""

    credits: tuple[Credit, ...] = ()
    stakes: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.credits + other.credits, self.stakes + other.stakes)

    @property
    def notes(self) -> dict[str, Any]:
        """For :attr:`Outcome.notes`."""
        return {"stakes": [list(stake) for stake in self.stakes]} if self.stakes else {}


Effect = Callable[[], Outcome]
"""What a rule returns when an entry fits: a call of it changes the state. Otherwise a reason."""

RECORDED = Outcome("recorded")


@dataclass
class Pending:
    """Credit that has not vested."""

    credit: Credit
    due: int
    """It vests when the state with this number is agreed."""
    disputed_by: str = ""
    """Account that froze it; "" when it is not frozen."""
    lapses: int = 0
    """The dispute ends when the state with this number is agreed and nobody has ruled."""
    ruled: bool = False
    """Dismissed once: it cannot be disputed again."""
    right: bool = False
    """The last round of an audit that found it right."""
    about: str = ""
    """Of an audit: the contribution that it names; while that is frozen or its audit is under way,
    this waits."""

    def frozen(self) -> dict[str, Any]:
        """What an explanation says of a dispute on this; empty when there is none."""
        if not self.disputed_by:
            return {}
        return {"frozen_for": self.disputed_by, "due": self.due, "lapses": self.lapses}


@dataclass(frozen=True)
class Draw:
    """A node that was drawn to repeat what an :class:`Audit` names, and its account then."""

    node: str
    account: str
    due: int
    """It lapses when the state with this number is agreed."""
    commitment: str = ""
    verdict: str = ""
    """accept, reject, inconclusive or lapsed; "" while it is awaited."""


@dataclass(frozen=True)
class Audit:
    """What is repeated of a node's work: rounds ``first`` to ``last`` of one span; see
    :mod:`ledger.entries.audits`."""

    node: str
    account: str
    why: str
    """newcomer, first or prefix."""
    first: int
    last: int
    steps: int
    tokens: int
    since: int
    """Number of the state with which it was decided on."""
    hardware: str = ""
    """The class of machine that the node named last."""
    panel: int = 1
    """Of how many auditors most decide."""
    draws: tuple[Draw, ...] = ()

    @property
    def awaited(self) -> tuple[Draw, ...]:
        """Auditors who still have to say what they found."""
        return tuple(draw for draw in self.draws if not draw.verdict)

    def saying(self, news: Draw) -> Audit:
        """With this in the place of what was known of its auditor."""
        draws = (news if draw.node == news.node else draw for draw in self.draws)
        return replace(self, draws=tuple(draws))

    def draw_of(self, node: str) -> Draw | None:
        """What is known of this auditor."""
        return next((draw for draw in self.draws if draw.node == node), None)


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
    staked: int = 0
    """Of ``invalidated``: what had vested of no credit by name, see :func:`.credit.bar`."""
    sent: int = 0
    received: int = 0
    witnessed: int = 0
    """Entries before this index are not paid for as witnessed again."""
    disputes: int = 0
    """Open disputes that it has begun."""
    barred: bool = False
    """Fraud is proven: it earns no more, and its nodes' cosignatures do not count."""
    shown: int = 0
    """Most inner steps of a contribution of it that has vested."""
    silenced: int = 0
    """It can call no state wrong, and is drawn for no jury, before the one with this number."""


@dataclass(frozen=True)
class Slice:
    """What the aggregator ``node`` of a slice recorded: ``blob`` of ``size`` bytes."""

    node: str
    blob: str
    size: int


@dataclass(frozen=True)
class ValidContribution:
    """A valid contribution: its entry id and index, tokens, steps of this round's assignment, the
    round in which its span began, the salt that the node revealed (secret until then, and fixed by
    its commitment), the class of machine that it names, and whether all its numbers are zero."""

    entry: str
    index: int
    tokens: int
    head: int
    span: int
    salt: str
    hardware: str
    empty: bool = False


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
    shown: dict[str, ValidContribution] = field(default_factory=dict)
    """Node to its valid contribution."""
    accepted: dict[str, int] = field(default_factory=dict)
    """Node to tokens."""
    slices: dict[int, Slice] = field(default_factory=dict)
    """Of a sharded round: what was recorded for each slice."""
    wrong: dict[int, str] = field(default_factory=dict)
    """Slice to its checker, who says that it is wrong."""
    weights: dict[str, int] = field(default_factory=dict)
    """Accepted node to its part of its account's standing when it was closed: what its signature
    under the next state weighs."""
    rests_on: RestsOn = "coordinator"
    """Who had to be right for the next state to be when it was closed."""
    credits: KeptMap = field(default_factory=CreditMap)
    """What every account had when it was closed with somebody: the next state names its root."""

    def copy(self) -> Attempt:
        other = twin(self)
        for name in ("accounts", "steps", "commitments", "shown", "accepted", "slices", "wrong"):
            setattr(other, name, dict(getattr(self, name)))
        return other

    @property
    def moved_by(self) -> list[str]:
        """Accepted nodes whose numbers are not all zero, ascending: whoever sent zeros has shown
        nothing that could be repeated, and is no better known for it."""
        return [node for node in self.accepted if not self.shown[node].empty]

    def left_out(self, reasons: Iterable[tuple[str, str]]) -> tuple[LeftOut, ...]:
        """Members and reasons, with whose work that is."""
        return tuple(
            LeftOut(self.round, self.attempt, node, self.accounts[node], reason)
            for node, reason in reasons
        )


@dataclass(frozen=True)
class Anchor:
    """An agreed state that the run can go back to, and what the fold had when it was agreed on."""

    attempt: int = 0
    """Number of the attempt that made it."""
    signers: dict[str, str] = field(default_factory=dict)
    """Nodes that signed it and the account of each then."""
    rests_on: RestsOn = "members"
    """"coordinator": it has computed the state itself, by what it says."""
    moved_by: tuple[str, ...] = ()
    """As :attr:`Attempt.moved_by`."""
    cursor: int = 0
    steps: int = 0
    text_used: int = 0
    tails: dict[str, int] = field(default_factory=dict)
    spans: dict[str, int] = field(default_factory=dict)
    recent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Charge:
    """An agreed state that a node calls wrong: it computed ``root`` from the same contributions."""

    entry: str
    """Id of the entry that says so; ``index`` is its place."""
    index: int
    node: str
    account: str
    root: str
    jury: tuple[str, ...]
    """Accounts in the order of the lot: the first of them are asked to compute it too."""
    attempts: int = 0
    """Attempts opened since."""
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Account of the jury to its node that answered, and the root that this one computed."""
    proven: str = ""
    """The right root, once enough of the jury have computed it."""
    better: int = -1
    """Of a state that is not wrong, but from which training diverged: the number of the one that
    was better, whose root is ``proven``. Nobody is accused, and there is no jury."""


_T = TypeVar("_T")


def twin(item: _T) -> _T:
    """As ``copy.copy``, which takes ten times as long."""
    other = object.__new__(type(item))
    vars(other).update(vars(item))
    return other
