"""``split_seen``: one key signed two histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from artel.ledger.entries import evidence, reasons
from artel.ledger.entries.audits import convict
from artel.ledger.entries.body import Body, Digest, Entry
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.kinds.dispute import speaking
from artel.ledger.entries.records import Effect, Loss, Outcome
from artel.ledger.entries.story import Fact, Story, totals
from artel.ledger.entries.words import short_key
from artel.ledger.tlog.cosignature import WITNESS_PREFIX, CosignerKey, witness_key
from artel.ledger.tlog.note import VerifierKey
from artel.protocol.errors import ArtelError, DecodeError


def _evidence(value: dict[str, Any]) -> dict[str, Any]:
    try:
        evidence.SplitView.from_dict(value)
    except DecodeError as error:
        raise ValueError(error.message) from None
    return value


class SplitSeen(Body):
    """Proof that one key signed two histories (:mod:`ledger.entries.evidence`); by any account."""

    KIND: ClassVar = "split_seen"
    TITLE: ClassVar = "Two histories seen"
    kind: Literal["split_seen"] = "split_seen"
    account: Digest
    evidence: Annotated[dict[str, Any], AfterValidator(_evidence)]

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        reporter = speaking(state, self.account, entry)
        if isinstance(reporter, str):
            return reporter
        try:
            view = evidence.SplitView.from_dict(self.evidence)
            culprit = evidence.check(view, signers_of(state, view))
        except ArtelError:
            return reasons.PROVES_NOTHING
        key = culprit.public.hex()
        guilty = answering(state, key, view.sizes[0])
        if key in state.convicted and all(state.accounts[name].barred for name in guilty):
            return reasons.DUPLICATE

        def effect() -> Outcome:
            state.convicted.setdefault(key, state.size)
            lost = sum((convict(state, name) for name in sorted(guilty)), Loss())
            notes = {"key": key} | lost.notes
            return Outcome("recorded", invalidated=lost.credits, notes=notes)

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account}

    def says(self) -> str:
        return f"account {short_key(self.account)} reports two histories signed with one key"

    def explain(self, story: Story) -> Iterator[Fact]:
        key = story.outcome.notes["key"]
        coordinator = key in story.state.leaders()
        who = "coordinator" if coordinator else "witness"
        yield Fact(f"the {who} with the key {key} signed two tree heads that cannot both be true")
        if coordinator:
            yield Fact("its heads are not to be believed any more")
        if not coordinator or story.state.starts(key):
            yield Fact(
                "the account that its node belonged to then loses what is pending and earns no "
                "more; the node's cosignatures and seals count no more, and nobody elects it"
            )
        yield from totals(story)


def answering(state: FoldState, key: str, size: int) -> set[str]:
    """The accounts that answer for two heads which this key signed, the smaller one of so many
    entries: to which the node belonged when there were as many. When it signed nobody can prove,
    so an account answers for what is said of its own time: not for less because the node has
    moved since, and not for what it was before it came."""
    led = state.coordinator_of
    own = {peer for peer in state.nodes if key in (key_of(peer), led[peer])}
    return {state.account_at(peer, size) for peer in own}


def signers_of(state: FoldState, view: evidence.SplitView) -> list[VerifierKey] | list[CosignerKey]:
    """The keys of this run that could have signed what the evidence shows."""
    if not view.origin.startswith(f"artel/{state.run}/term/"):
        return []
    if view.signer == view.origin:
        return [VerifierKey(view.origin, bytes.fromhex(key)) for key in state.leaders()]
    peer = view.signer.removeprefix(WITNESS_PREFIX)
    return [witness_key(peer)] if peer in state.nodes else []
