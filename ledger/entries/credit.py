"""Changes of credit, for the rules of several kinds: granted, vested, taken away, frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account, Audit, Credit, Loss, Pending
from artel.ledger.entries.standing import KINDS_THAT_COUNT

AUDITORS = 2
"""Other accounts that have to find later work of a node right before what it did vests."""


def grant(
    state: FoldState,
    kind: str,
    source: str,
    account: str,
    *,
    units: int,
    due: int,
    round: int,
    node: str = "",
    work: int | None = None,
    about: str = "",
) -> Credit:
    """Add credit that waits to vest; the caller grants nothing to a barred account.

    :param due: number of the state with which it vests
    :param work: index of what it is for (default: of the entry that is being folded)
    """
    rate = state.founded.rates[kind]
    at = state.size if work is None else work
    credit = Credit(state.credits, source, kind, account, node, round, units, rate, at)
    state.credits += 1
    owner = state.changing(account)
    owner.units = owner.units | {kind: owner.units.get(kind, 0) + units}
    owner.granted += credit.amount
    owner.pending += credit.amount
    state.pending[source] = Pending(credit, due, about=about)
    state.due.setdefault(due, []).append(source)
    return credit


def vest(state: FoldState, source: str) -> Credit:
    """Move pending credit to vested."""
    credit, owner = _taken(state, source)
    owner.vested += credit.amount
    if credit.kind == "compute":
        owner.shown = max(owner.shown, credit.units // state.work.tokens(1))
    if credit.kind in KINDS_THAT_COUNT:
        state.paid[credit.round] = (*state.paid.get(credit.round, ()), credit)
        if not owner.barred:
            rounds = state.founded.trust.standing_rounds
            state.standing.earned(credit.account, credit.amount, state.round, rounds)
    return credit


def take_back(state: FoldState, credit: Credit) -> bool:
    """Take credit away that has vested; no when the account has given too much of it to others."""
    if state.accounts[credit.account].vested < credit.amount:
        return False
    owner = state.changing(credit.account)
    owner.vested -= credit.amount
    owner.invalidated += credit.amount
    return True


def invalidate(state: FoldState, source: str) -> Credit:
    """Take pending credit away; the account's units keep what was once granted."""
    credit, owner = _taken(state, source)
    owner.invalidated += credit.amount
    return credit


def bar(state: FoldState, account: str) -> Loss:
    """Fraud is proven: nothing more is earned, and everything goes that has not vested, and what
    standing came of, as far as the account still has it.

    Audits find who cheats only where they look late; what is lost then has to be worth more than
    what was saved until then.
    """
    owner = state.changing(account)
    stake = min(owner.vested, state.standing.stake(account))
    owner.vested -= stake
    owner.invalidated += stake
    owner.staked += stake
    owner.barred = True
    state.standing.forfeit(account)
    sources = [item.credit.source for item in state.pending_of(account)]
    gone = tuple(invalidate(state, source) for source in sources)
    return Loss(gone, ((account, stake),) if stake else ())


def freeze(state: FoldState, source: str, by: str) -> Pending:
    """Hold a contribution's credit back for the account ``by``, which disputes it."""
    item = state.freezing(source)
    item.disputed_by = by
    # Counted from when it would vest, not from now: an accomplice who is the first to dispute it
    # must not leave the arbiters less time.
    item.lapses = max(item.due, state.round) + max(1, state.founded.ownership.vesting_rounds)
    state.changing(by).disputes += 1
    return item


def end_dispute(state: FoldState, source: str) -> None:
    """Unfreeze; whoever froze it may begin another dispute."""
    by = state.pending[source].disputed_by
    if by:
        state.changing(by).disputes -= 1
        state.freezing(source).disputed_by = ""


def frozen_until(state: FoldState, item: Pending) -> int:
    """Number of the state whose agreement ends the dispute that holds this back; 0: none does."""
    judged = state.pending.get(item.about) if item.about else item
    return judged.lapses if judged is not None and judged.disputed_by else 0


def audited(state: FoldState, audits: Iterable[Audit]) -> Callable[[Pending], bool]:
    """Whether credit is for work that one of these audits judges, or for a verdict that is not
    decided on or by an account whose own work is audited."""
    doubted: dict[str, int] = {}
    for audit in audits:
        doubted[audit.account] = min(audit.first, doubted.get(audit.account, audit.first))

    def under_way(item: Pending) -> bool:
        credit = item.credit
        if credit.kind == "audit":
            return item.about in state.audits or credit.account in doubted
        return credit.kind == "compute" and credit.round >= doubted.get(
            credit.account, credit.round + 1
        )

    return under_way


def proven(state: FoldState, item: Pending) -> bool:
    """Whether it was repeated, or auditors of two other accounts, or of all where these are fewer,
    have found work of its node right that is no older. Whoever cheats all the time is then paid for
    nothing that it did since but what an accomplice repeats."""
    credit = item.credit
    if credit.kind != "compute" or not state.founded.audits or item.right:
        return True
    found = state.found_right.get(credit.node, ())
    accounts = {name for last, name in found if last >= credit.round} - {credit.account}
    others = {state.account_of(node) for node in state.present} - {credit.account}
    return len(accounts) >= min(AUDITORS, len(others))


def unproven(state: FoldState, node: str, account: str) -> list[Credit]:
    """What a node did for an account and nobody found right: it is lost when the node moves."""
    mine = (item for item in state.pending_of(account) if item.credit.node == node)
    return [item.credit for item in mine if not proven(state, item)]


def found_right(state: FoldState, source: str, audit: Audit, auditors: Iterable[str]) -> None:
    """The accounts of these auditors found this right: what waited for that is due again.

    :param source: of the last round that the audit is about
    """
    if source in state.pending:
        state.freezing(source).right = True
    newest = dict.fromkeys(auditors, audit.last)
    for last, name in state.found_right.get(audit.node, ()):
        newest[name] = max(last, newest.get(name, 0))
    kept = sorted(((last, name) for name, last in newest.items()), reverse=True)[:AUDITORS]
    state.found_right[audit.node] = tuple(kept)
    again = [s for s in state.unproven.pop(audit.node, []) if s in state.pending]
    if not again:
        return
    state.due.setdefault(state.round + 1, []).extend(again)
    later = state.round + 1 + max(1, state.founded.ownership.vesting_rounds)
    for source in again:
        if state.pending[source].disputed_by:  # see freeze
            state.freezing(source).lapses = later


def vest_due(state: FoldState, number: int) -> tuple[Credit, ...]:
    """Vest what is due now that state ``number`` is agreed; what is frozen or audited waits, and
    what nobody has found right yet."""
    vested: list[Credit] = []
    under_way = audited(state, state.audits.values())
    for source in state.due.pop(number, []):
        item = state.pending.get(source)
        if item is None:
            continue  # invalidated, or vested by a ruling, in between
        until = max(frozen_until(state, item), number + 1 if under_way(item) else 0)
        if number < until:
            state.due.setdefault(until, []).append(source)
            continue
        if not proven(state, item):
            state.unproven.setdefault(item.credit.node, []).append(source)  # see found_right
            continue
        vested.append(vest(state, source))
    return tuple(vested)


def _taken(state: FoldState, source: str) -> tuple[Credit, Account]:
    end_dispute(state, source)
    credit = state.take(source)
    owner = state.changing(credit.account)
    owner.pending -= credit.amount
    return credit, owner
