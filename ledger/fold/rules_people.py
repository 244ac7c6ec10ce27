"""The rules of the fold for people: accounts, keys, nodes, disputes, verdicts, rulings, transfers.

Each rule returns the reason why an entry changes nothing, or the effect that changes the state.
"""

from __future__ import annotations

from artel.ledger.entries import Account as AccountBody
from artel.ledger.entries import (
    Dispute,
    Entry,
    KeyRotated,
    Node,
    Ruling,
    Transfer,
    Verdict,
    reasons,
    recovery_digest,
)
from artel.ledger.fold.accounts import (
    Account,
    Credit,
    Effect,
    FoldState,
    Outcome,
    Pending,
    bar,
    end_dispute,
    grant,
    invalidate,
    vest,
)
from artel.ledger.fold.rules_common import RECORDED, key_of

MAX_OPEN_DISPUTES = 8
"""Of one account: a dispute is cheap to begin and delays somebody's credit."""


def account(state: FoldState, body: AccountBody, entry: Entry) -> str | Effect:
    if entry.signers != {body.account}:
        return reasons.WRONG_SIGNERS
    known = state.accounts.get(body.account)  # unregistered: named by the manifest
    if known is not None and known.registered:
        return reasons.DUPLICATE
    if known is None and body.account in state.keys:
        return reasons.KEY_IN_USE

    def effect() -> Outcome:
        owner = known if known is not None else Account(body.account)
        owner.registered, owner.recovery, owner.witnessed = True, body.recovery, state.size
        state.accounts[body.account] = owner
        state.keys[body.account] = body.account
        return RECORDED

    return effect


def key_rotated(state: FoldState, body: KeyRotated, entry: Entry) -> str | Effect:
    owner = _registered(state, body.account)
    if owner is None:
        return reasons.UNKNOWN_ACCOUNT
    others = entry.signers - {body.key}
    if body.key not in entry.signers or len(others) != 1:
        return reasons.WRONG_SIGNERS
    (signer,) = others
    if signer == owner.key:
        # A thief of the present key must not take the owner's way back.
        if owner.recovery and body.recovery not in ("", owner.recovery):
            return reasons.WRONG_SIGNERS
    elif recovery_digest(bytes.fromhex(signer)) != owner.recovery:
        return reasons.WRONG_SIGNERS
    if body.seq != owner.seq + 1:
        return reasons.WRONG_SEQUENCE
    # A key speaks for one account, and the name of an account is never another one's key.
    if body.key in state.keys or body.key in state.accounts:
        return reasons.KEY_IN_USE

    def effect() -> Outcome:
        del state.keys[owner.key]
        state.keys[body.key] = body.account
        owner.key, owner.seq = body.key, body.seq
        owner.recovery = body.recovery or owner.recovery
        return RECORDED

    return effect


def node(state: FoldState, body: Node, entry: Entry) -> str | Effect:
    owner = _registered(state, body.account)
    if owner is None:
        return reasons.UNKNOWN_ACCOUNT
    if entry.signers != {owner.key, key_of(body.node)}:
        return reasons.WRONG_SIGNERS
    if body.seq <= state.node_seq.get(body.node, 0):
        return reasons.WRONG_SEQUENCE
    if state.nodes.get(body.node) == body.account:
        return reasons.DUPLICATE

    def effect() -> Outcome:
        state.nodes[body.node] = body.account
        state.node_seq[body.node] = body.seq
        return RECORDED

    return effect


def transfer(state: FoldState, body: Transfer, entry: Entry) -> str | Effect:
    assert state.rules is not None
    giver = speaking(state, body.account, entry)
    if isinstance(giver, str):
        return giver
    if not state.rules.ownership.transfers or body.to == body.account:
        return reasons.NOT_ALLOWED
    taker = _registered(state, body.to)
    if taker is None:
        return reasons.UNKNOWN_ACCOUNT
    if body.seq != giver.seq + 1:
        return reasons.WRONG_SEQUENCE
    if body.amount > giver.vested:
        return reasons.NOT_ENOUGH

    def effect() -> Outcome:
        giver.seq = body.seq
        giver.vested -= body.amount
        giver.sent += body.amount
        taker.vested += body.amount
        taker.received += body.amount
        return RECORDED

    return effect


def dispute(state: FoldState, body: Dispute, entry: Entry) -> str | Effect:
    owner = speaking(state, body.account, entry)
    if isinstance(owner, str):
        return owner
    item = _contribution(state, body.contribution)
    if item is None:
        return reasons.NOT_PENDING
    if item.credit.account == body.account:
        return reasons.OWN_WORK
    if item.disputed_by or item.ruled:
        return reasons.DUPLICATE
    if owner.barred:
        return reasons.BARRED
    # Accounts cost nothing: without a stake in the run, thousands could freeze everybody's credit.
    if owner.vested + owner.pending == 0:
        return reasons.NO_CREDIT
    if owner.disputes >= MAX_OPEN_DISPUTES:
        return reasons.TOO_MANY

    def effect() -> Outcome:
        _freeze(state, item, body.account)
        return RECORDED

    return effect


def verdict(state: FoldState, body: Verdict, entry: Entry) -> str | Effect:
    assert state.rules is not None
    rules = state.rules
    if entry.signers != {key_of(body.node)}:
        return reasons.WRONG_SIGNERS
    item = _contribution(state, body.contribution)
    if item is None:
        return reasons.NOT_PENDING
    name = state.account_of(body.node)
    if body.node not in item.auditors or name == item.credit.account:
        return reasons.NOT_DRAWN
    if body.node in item.verdicts:
        return reasons.DUPLICATE
    if state.accounts[name].barred:
        return reasons.BARRED

    def effect() -> Outcome:
        item.verdicts[body.node] = body.verdict
        if body.verdict == "reject" and not item.disputed_by and not item.ruled:
            _freeze(state, item, name)
        source = f"audit/{body.contribution}/{body.node}"
        rate, units = rules.rates["audit"], item.credit.units
        credit = Credit(source, "audit", name, body.node, item.credit.round, units, rate)
        # Not before what it judges: a ruling may find the verdict wrong.
        due = max(item.due, state.round + 1)
        grant(state, Pending(credit, due, about=body.contribution))
        return Outcome("credited", granted=(credit,))

    return effect


def ruling(state: FoldState, body: Ruling, entry: Entry) -> str | Effect:
    assert state.rules is not None
    rules = state.rules
    if not entry.signers <= rules.arbiters:
        return reasons.WRONG_SIGNERS
    if len(entry.signers) < rules.ownership.arbiter_quorum:
        return reasons.NO_QUORUM
    item = _contribution(state, body.contribution)
    if item is None:
        return reasons.NOT_PENDING
    if item.ruled and body.decision == "dismissed":
        return reasons.DUPLICATE

    def effect() -> Outcome:
        wrong = "reject" if body.decision == "dismissed" else "accept"
        lost = _wrong_verdicts(state, item, wrong)
        if body.decision == "dismissed":
            item.ruled = True
            end_dispute(state, item)
            # Its time may have come while it was frozen.
            vested = (
                (vest(state, body.contribution),) if state.round >= item.due or state.closed else ()
            )
            return Outcome("recorded", vested=vested, invalidated=lost)
        if body.decision == "soft":
            return Outcome("recorded", invalidated=(*lost, invalidate(state, body.contribution)))
        return Outcome("recorded", invalidated=(*lost, *bar(state, item.credit.account)))

    return effect


def _registered(state: FoldState, name: str) -> Account | None:
    """The account; one that only the manifest names can do nothing yet."""
    owner = state.accounts.get(name)
    return owner if owner is not None and owner.registered else None


def speaking(state: FoldState, name: str, entry: Entry) -> Account | str:
    """The account, when its present key alone signed; otherwise the reason."""
    owner = _registered(state, name)
    if owner is None:
        return reasons.UNKNOWN_ACCOUNT
    return owner if entry.signers == {owner.key} else reasons.WRONG_SIGNERS


def _contribution(state: FoldState, source: str) -> Pending | None:
    item = state.pending.get(source)
    return item if item is not None and item.credit.kind == "compute" else None


def _freeze(state: FoldState, item: Pending, by: str) -> None:
    assert state.rules is not None
    item.disputed_by = by
    # Counted from when it would vest, not from now: an accomplice who is the first to dispute it
    # must not leave the arbiters less time.
    item.lapses = item.due + max(1, state.rules.ownership.vesting_rounds)
    state.accounts[by].disputes += 1


def _wrong_verdicts(state: FoldState, item: Pending, wrong: str) -> tuple[Credit, ...]:
    """Auditors who said what the ruling says is wrong are not paid for it."""
    found = (
        f"audit/{item.credit.source}/{node}"
        for node, said in item.verdicts.items()
        if said == wrong
    )
    return tuple(invalidate(state, source) for source in found if source in state.pending)
