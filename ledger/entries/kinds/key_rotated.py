"""``key_rotated``: another key for an account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, OptionalDigest, Positive, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.account import recovery_digest
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story, account_now
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity


class KeyRotated(Body):
    """Gives an account another key. Signed by the new key, and by the present or the recovery key.

    ``seq`` is the account's next number; it counts rotations and transfers. An empty ``recovery``
    keeps the recovery key; once there is one, only itself can name another, so that whoever stole
    the present key cannot shut the owner out.
    """

    KIND: ClassVar = "key_rotated"
    TITLE: ClassVar = "New key"
    kind: Literal["key_rotated"] = "key_rotated"
    account: Digest
    key: Digest
    recovery: OptionalDigest
    seq: Positive

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        known = state.registered(self.account)
        if known is None:
            return reasons.UNKNOWN_ACCOUNT
        others = entry.signers - {self.key}
        if self.key not in entry.signers or len(others) != 1:
            return reasons.WRONG_SIGNERS
        (signer,) = others
        if signer == known.key:
            # A thief of the present key must not take the owner's way back.
            if known.recovery and self.recovery not in ("", known.recovery):
                return reasons.WRONG_SIGNERS
        elif recovery_digest(bytes.fromhex(signer)) != known.recovery:
            return reasons.WRONG_SIGNERS
        if self.seq != known.seq + 1:
            return reasons.WRONG_SEQUENCE
        # A key speaks for one account, and the name of an account is never another one's key.
        if self.key in state.keys or self.key in state.accounts:
            return reasons.KEY_IN_USE

        def effect() -> Outcome:
            owner = state.changing(self.account)
            del state.keys[owner.key]
            state.keys[self.key] = self.account
            notes = {"recovered": signer != owner.key}
            owner.key, owner.seq = self.key, self.seq
            owner.recovery = self.recovery or owner.recovery
            return Outcome("recorded", notes=notes)

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account}

    def says(self) -> str:
        return f"account {short_key(self.account)} has the key {short_key(self.key)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        recovered = story.outcome.notes["recovered"]
        by = "the recovery key" if recovered else "the key until then"
        yield Fact(f"signed by the new key {self.key} and by {by}")
        name = short_key(self.account)
        yield Fact(f"number {self.seq} of account {name}; its name and its credit stay")
        yield account_now(story, self.account)


def key_rotated(
    signer: Identity, new: Identity, run: str, *, account: str, seq: int, recovery: str = ""
) -> Envelope:
    """Give ``account`` the key ``new``. ``signer`` is its present key or its recovery key."""
    body = {"run": run, "account": account, "key": new.key, "recovery": recovery, "seq": seq}
    return signed(KeyRotated, body, signer, new)
