"""Credit and shares: a pure integer fold over the entries.

``state = step(state, index, entry)``. Balances are stored nowhere; whoever has the entries gets the
same numbers. An entry that does not fit (wrong signer, wrong order, unknown contribution) stays in
the log and changes nothing; the :class:`Outcome` says why.

Credit is granted by ``state_agreed``: each accepted contribution of the closed round gives its
assigned tokens to the account that its node belonged to *when the round was opened*.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger import reasons
from ledger.entries import (
    Account,
    Body,
    Contribution,
    Entry,
    Genesis,
    Node,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    StateAgreed,
)
from protocol.identity import peer_id_of, public_of
from protocol.rounds import (
    BAD_SIGNATURE,
    COMMITMENT_MISMATCH,
    WRONG_STATE,
    WRONG_TOKENS,
    commitment,
)

SHARE_SCALE = 1 << 30
"""Shares are whole multiples of 2^-30, so that as floats they still add up to exactly 1."""


@dataclass(frozen=True)
class Outcome:
    """What an entry did: ``credited``, ``recorded``, or ``ignored`` for ``reason``.

    ``credits`` lists (account, node, tokens).
    """

    status: str
    reason: str = ""
    credits: tuple[tuple[str, str, int], ...] = ()


RECORDED = Outcome("recorded")


@dataclass
class Attempt:
    """The round that is under way. Owned by its :class:`FoldState`."""

    round: int
    attempt: int
    accounts: dict[str, str]
    """Members (peer ids) and the account of each when the round was opened."""
    phase: str = "training"
    """training, revealing (commitments are known), applying (closed with somebody), failed."""
    commitments: dict[str, str] = field(default_factory=dict)
    contributions: dict[str, str] = field(default_factory=dict)
    """Node to entry id of its valid contribution."""
    accepted: dict[str, int] = field(default_factory=dict)
    """Node to tokens."""


@dataclass
class FoldState:
    """Everything that the entries so far amount to.

    A value: the functions of this module never change the one that they are given.
    """

    size: int = 0
    """Entries folded."""
    run: str = ""
    organiser: str = ""
    coordinators: list[str] = field(default_factory=list)
    tokens: int = 0
    """Assigned to each member in each round."""
    states: list[str] = field(default_factory=list)
    """Agreed state roots; ``states[r]`` is what round r starts from."""
    credit: dict[str, int] = field(default_factory=dict)
    """Account (hex) to tokens; an account without credit stands here with 0."""
    node_credit: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, list[str]] = field(default_factory=dict)
    """Node (peer id) to all its accounts in order; the last one is the present one."""
    attempt: Attempt | None = None
    cursor: int = 0
    """First data window of the newest round; it never goes back."""
    members: int = 0
    """How many members the newest round was opened for; with ``cursor``, where its data ends."""
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Node to how often its work was left out, by reason."""
    ignored: dict[str, int] = field(default_factory=dict)
    """How many entries changed nothing, by reason."""

    @property
    def round(self) -> int:
        """The round that is under way or comes next: the number of the newest agreed state."""
        return max(0, len(self.states) - 1)

    @property
    def total(self) -> int:
        """All credit, in tokens."""
        return sum(self.credit.values())

    def account_of(self, node: str) -> str:
        """The account that a node belongs to now; "" when it is unknown."""
        return self.nodes.get(node, [""])[-1]

    def pending(self) -> dict[str, int]:
        """Account to tokens that are accepted but whose state is not agreed yet."""
        tally: Counter[str] = Counter()
        if self.attempt is not None:
            for peer, tokens in self.attempt.accepted.items():
                tally[self.attempt.accounts[peer]] += tokens
        return dict(tally)

    def rejected_by_account(self) -> dict[str, dict[str, int]]:
        """Present account to how often the work of its nodes was left out, by reason."""
        tally: dict[str, Counter[str]] = {}
        for peer, counts in self.rejected.items():
            tally.setdefault(self.account_of(peer), Counter()).update(counts)
        return {account: dict(counts) for account, counts in tally.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_dict` reads back (for a cache of one's own making)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FoldState:
        """Inverse of :meth:`to_dict`; not a decoder for what others wrote."""
        fields = copy.deepcopy(value)
        attempt = fields.pop("attempt")
        return cls(**fields, attempt=None if attempt is None else Attempt(**attempt))


def step(state: FoldState, index: int, entry: Entry) -> tuple[FoldState, Outcome]:
    """Apply the entry at ``index``, which must be ``state.size``. Copies: for many, use fold."""
    outcomes: list[Outcome] = []
    if index != state.size:
        raise ValueError(f"the next entry is {state.size}, not {index}")
    after = fold([entry], state, lambda _index, _entry, outcome: outcomes.append(outcome))
    return after, outcomes[0]


def fold(
    entries: Iterable[Entry],
    state: FoldState | None = None,
    observe: Callable[[int, Entry, Outcome], None] | None = None,
) -> FoldState:
    """Apply entries in order to ``state`` (default: the empty ledger) and return the new state.

    :param observe: called after each entry with its index, itself and its outcome
    """
    state = FoldState() if state is None else copy.deepcopy(state)
    for entry in entries:
        outcome = _apply(state, entry)
        if outcome.status == "ignored":
            state.ignored[outcome.reason] = state.ignored.get(outcome.reason, 0) + 1
        index, state.size = state.size, state.size + 1
        if observe is not None:
            observe(index, entry, outcome)
    return state


@dataclass(frozen=True)
class Share:
    """``credit`` in tokens, ``units`` of 2^30, ``share`` = units / 2^30 exactly."""

    account: str
    credit: int
    units: int
    share: float


def shares(state: FoldState) -> list[Share]:
    """Split 2^30 units by credit, the largest share first; empty while nobody has credit.

    Largest remainder: everybody gets the whole units of their quota, and the units that are left
    go to the largest fractions, ties to the account that sorts first.
    """
    credit = {account: tokens for account, tokens in state.credit.items() if tokens > 0}
    total = sum(credit.values())
    if not total:
        return []
    units = {account: tokens * SHARE_SCALE // total for account, tokens in credit.items()}
    remainders = sorted(credit, key=lambda a: (-(credit[a] * SHARE_SCALE % total), a))
    for account in remainders[: SHARE_SCALE - sum(units.values())]:
        units[account] += 1
    ranked = sorted(credit, key=lambda account: (-units[account], account))
    return [Share(a, credit[a], units[a], units[a] / SHARE_SCALE) for a in ranked]


# --- one entry; these functions change the state that fold owns -----------------------------------


def _apply(state: FoldState, entry: Entry) -> Outcome:
    body = entry.body
    if isinstance(body, Genesis):
        return _genesis(state, body, entry)
    if not state.run:
        return _ignored(reasons.NO_GENESIS)
    if body.run != state.run:
        return _ignored(reasons.WRONG_RUN)
    if not entry.signers:
        return _ignored(BAD_SIGNATURE)
    if not _may_sign(state, body, entry.signers):
        return _ignored(reasons.WRONG_SIGNERS)
    match body:
        case Account():
            return _account(state, body)
        case Node():
            return _node(state, body)
        case RoundOpened():
            return _opened(state, body)
        case RoundCommitted():
            return _committed(state, body)
        case Contribution():
            return _contribution(state, body, entry.id)
        case RoundClosed():
            return _closed(state, body)
        case StateAgreed():
            return _agreed(state, body, entry.signers)
    raise AssertionError(f"no rule for {body.KIND}")


def _ignored(reason: str) -> Outcome:
    return Outcome("ignored", reason)


def _may_sign(state: FoldState, body: Body, signers: frozenset[str]) -> bool:
    """Exactly the right keys: a stranger's extra signature would make a second id for one fact."""
    coordinators = set(state.coordinators)
    match body:
        case Account():
            return signers == {body.account}
        case Node():
            return signers == {body.account, public_of(body.node).hex()}
        case Contribution():
            return signers == {public_of(body.node).hex()}
        case StateAgreed():
            others = (peer_id_of(bytes.fromhex(key)) for key in signers - coordinators)
            return bool(signers & coordinators) and all(peer in state.nodes for peer in others)
    return signers <= coordinators


def _genesis(state: FoldState, body: Genesis, entry: Entry) -> Outcome:
    if state.size:
        return _ignored(reasons.SECOND_GENESIS if state.run else reasons.NO_GENESIS)
    if not entry.signers:
        return _ignored(BAD_SIGNATURE)
    if entry.signers != {body.organiser}:
        return _ignored(reasons.WRONG_SIGNERS)
    state.run, state.organiser, state.tokens = body.run, body.organiser, body.tokens
    state.coordinators = list(body.coordinators)
    state.states = [body.initial_state]
    return RECORDED


def _account(state: FoldState, body: Account) -> Outcome:
    if body.account in state.credit:
        return _ignored(reasons.DUPLICATE)
    state.credit[body.account] = 0
    return RECORDED


def _node(state: FoldState, body: Node) -> Outcome:
    if body.account not in state.credit:
        return _ignored(reasons.UNKNOWN_ACCOUNT)
    accounts = state.nodes.setdefault(body.node, [])
    # A binding takes effect once: otherwise an old entry, repeated by somebody else, would move a
    # node back to an account that it has left.
    if body.account in accounts:
        return _ignored(reasons.DUPLICATE)
    accounts.append(body.account)
    return RECORDED


def _opened(state: FoldState, body: RoundOpened) -> Outcome:
    previous = state.attempt
    if body.round != state.round or body.cursor < state.cursor:
        return _ignored(reasons.OUT_OF_ORDER)
    # Any later attempt may begin: whatever stopped the one before must not stop the run.
    if previous is not None and previous.round == body.round and body.attempt <= previous.attempt:
        return _ignored(reasons.OUT_OF_ORDER)
    if body.base != state.states[-1]:
        return _ignored(WRONG_STATE)
    if not all(peer in state.nodes for peer in body.members):
        return _ignored(reasons.UNKNOWN_NODE)
    _void(state)
    accounts = {peer: state.account_of(peer) for peer in body.members}
    state.attempt = Attempt(body.round, body.attempt, accounts)
    state.cursor, state.members = body.cursor, len(body.members)
    return RECORDED


def _committed(state: FoldState, body: RoundCommitted) -> Outcome:
    attempt = _current(state, body.round, body.attempt, "training")
    if attempt is None:
        return _ignored(reasons.OUT_OF_ORDER)
    if not body.commitments.keys() <= attempt.accounts.keys():
        return _ignored(reasons.NOT_MEMBER)
    attempt.commitments = dict(body.commitments)
    attempt.phase = "revealing"
    return RECORDED


def _contribution(state: FoldState, body: Contribution, entry: str) -> Outcome:
    attempt = _current(state, body.round, body.attempt, "revealing")
    if attempt is None:
        return _ignored(reasons.OUT_OF_ORDER)
    if body.node not in attempt.accounts:
        return _ignored(reasons.NOT_MEMBER)
    if body.node not in attempt.commitments:
        return _ignored(reasons.NOT_COMMITTED)
    if body.node in attempt.contributions:
        return _ignored(reasons.DUPLICATE)
    if body.base != state.states[-1]:
        return _ignored(WRONG_STATE)
    if body.tokens != state.tokens:
        return _ignored(WRONG_TOKENS)
    salt = bytes.fromhex(body.salt)
    opened = commitment(body.run, body.round, body.attempt, body.node, body.blob, salt)
    if opened != attempt.commitments[body.node]:
        return _ignored(COMMITMENT_MISMATCH)
    attempt.contributions[body.node] = entry
    return RECORDED


def _closed(state: FoldState, body: RoundClosed) -> Outcome:
    phases = ("revealing",) if body.accepted else ("training", "revealing", "applying")
    attempt = _current(state, body.round, body.attempt, *phases)
    if attempt is None:
        return _ignored(reasons.OUT_OF_ORDER)
    accepted = {item.node: item for item in body.accepted}
    rejected = {item.node: item.reason for item in body.rejected}
    if not rejected.keys() <= attempt.accounts.keys() - accepted.keys():
        return _ignored(reasons.NOT_MEMBER)
    for peer, item in accepted.items():
        if attempt.contributions.get(peer) != item.entry:
            return _ignored(reasons.UNKNOWN_CONTRIBUTION)
        if item.weight != state.tokens:
            return _ignored(WRONG_TOKENS)
    if attempt.phase == "applying":
        # Closed a second time, now with nobody: the nodes did not agree on a state. Who was left
        # out at the first closing has been counted then.
        _void(state)
    else:
        for peer, reason in rejected.items():
            _reject(state, peer, reason)
    attempt.accepted = {peer: item.weight for peer, item in accepted.items()}
    attempt.phase = "applying" if accepted else "failed"
    return RECORDED


def _agreed(state: FoldState, body: StateAgreed, signers: frozenset[str]) -> Outcome:
    attempt = state.attempt
    if attempt is None or attempt.phase != "applying" or body.round != attempt.round + 1:
        return _ignored(reasons.OUT_OF_ORDER)
    agreeing = [peer for peer in attempt.accepted if public_of(peer).hex() in signers]
    if 2 * len(agreeing) <= len(attempt.accepted):
        return _ignored(reasons.NO_MAJORITY)
    credits: list[tuple[str, str, int]] = []
    for peer, tokens in attempt.accepted.items():
        account = attempt.accounts[peer]
        state.credit[account] += tokens
        state.node_credit[peer] = state.node_credit.get(peer, 0) + tokens
        credits.append((account, peer, tokens))
    state.states.append(body.root)
    state.attempt = None
    return Outcome("credited", credits=tuple(credits))


def _current(state: FoldState, round: int, attempt: int, *phases: str) -> Attempt | None:
    """The attempt under way, when it is this one and in one of these phases."""
    now = state.attempt
    if now is None or (now.round, now.attempt) != (round, attempt) or now.phase not in phases:
        return None
    return now


def _void(state: FoldState) -> None:
    """What was accepted but never agreed on gives no credit; say so."""
    if state.attempt is not None:
        for peer in state.attempt.accepted:
            _reject(state, peer, reasons.NOT_AGREED)
        state.attempt.accepted = {}


def _reject(state: FoldState, peer: str, reason: str) -> None:
    counts = state.rejected.setdefault(peer, {})
    counts[reason] = counts.get(reason, 0) + 1
