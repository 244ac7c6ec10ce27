"""The rules of the fold for trust in the log itself: cosigned tree heads, proven split views."""

from __future__ import annotations

from artel.ledger.entries import Entry, SplitSeen, Witnessed, evidence, reasons
from artel.ledger.fold.accounts import Credit, Effect, FoldState, Outcome, Pending, bar, grant
from artel.ledger.fold.rules_common import RECORDED, key_of
from artel.ledger.fold.rules_people import speaking
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.cosignature import (
    WITNESS_PREFIX,
    CosignerKey,
    verify_cosignature,
    witness_key,
)
from artel.ledger.tlog.note import SignatureLine, VerifierKey
from artel.protocol.errors import ArtelError


def witnessed(state: FoldState, body: Witnessed, entry: Entry) -> str | Effect:
    assert state.rules is not None
    rules = state.rules
    if not entry.signers <= set(state.coordinators):
        return reasons.WRONG_SIGNERS
    if not state.witnessed < body.size <= state.size:
        return reasons.OUT_OF_ORDER
    if not all(item.node in state.nodes for item in body.cosignatures):
        return reasons.UNKNOWN_NODE
    head = Checkpoint(origin_of(state.run, body.term), body.size, bytes.fromhex(body.root))
    text = head.encode()
    for item in body.cosignatures:
        key = witness_key(item.node)
        signature = item.time.to_bytes(8, "big") + bytes.fromhex(item.signature)
        try:
            verify_cosignature(key, SignatureLine(key.name, key.key_id, signature), text)
        except ArtelError:
            return reasons.BAD_COSIGNATURE
    seats = {
        state.account_of(item.node): item.node
        for item in reversed(body.cosignatures)
        if key_of(item.node) not in state.convicted
    }
    accounts = sorted(name for name in seats if not state.accounts[name].barred)

    def effect() -> Outcome:
        state.witnessed, state.cosigners = body.size, accounts
        if rules.witnesses and len(accounts) >= rules.witnesses:
            state.final = body.size
        granted: list[Credit] = []
        due = state.round + max(1, rules.ownership.vesting_rounds)
        for name in accounts:
            owner = state.accounts[name]
            units, owner.witnessed = body.size - owner.witnessed, max(owner.witnessed, body.size)
            # Accounts cost nothing; only those that also compute are paid for watching.
            if units <= 0 or name not in state.recent or state.closed:
                continue
            source, rate = f"witness/{body.size}/{name}", rules.rates["witness"]
            credit = Credit(source, "witness", name, seats[name], state.round, units, rate)
            grant(state, Pending(credit, due))
            granted.append(credit)
        return Outcome("credited", granted=tuple(granted)) if granted else RECORDED

    return effect


def split_seen(state: FoldState, body: SplitSeen, entry: Entry) -> str | Effect:
    reporter = speaking(state, body.account, entry)
    if isinstance(reporter, str):
        return reporter
    try:
        view = evidence.SplitView.from_dict(body.evidence)
        culprit = evidence.check(view, signers_of(state, view))
    except ArtelError:
        return reasons.PROVES_NOTHING
    key = culprit.public.hex()
    if key in state.convicted:
        return reasons.DUPLICATE

    def effect() -> Outcome:
        state.convicted[key] = state.size
        guilty = {account for peer, account in state.nodes.items() if key_of(peer) == key}
        lost = tuple(credit for name in sorted(guilty) for credit in bar(state, name))
        return Outcome("recorded", invalidated=lost)

    return effect


def signers_of(state: FoldState, view: evidence.SplitView) -> list[VerifierKey] | list[CosignerKey]:
    """The keys of this run that could have signed what the evidence shows."""
    if not view.origin.startswith(f"artel/{state.run}/term/"):
        return []
    if view.signer == view.origin:
        return [VerifierKey(view.origin, bytes.fromhex(key)) for key in state.coordinators]
    peer = view.signer.removeprefix(WITNESS_PREFIX)
    return [witness_key(peer)] if peer in state.nodes else []
