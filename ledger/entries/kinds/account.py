"""``account``: a new account."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons, records
from artel.ledger.entries.body import Body, Digest, Entry, OptionalDigest, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import RECORDED, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, account_now
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity


class AccountBody(Body):
    """Registers an account, which is named by its first key for ever; signed by that key.

    ``recovery`` is the SHA-256 of a second public key that can replace a lost or stolen one.
    """

    KIND: ClassVar = "account"
    TITLE: ClassVar = "New account"
    kind: Literal["account"] = "account"
    account: Digest
    recovery: OptionalDigest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {self.account}:
            return reasons.WRONG_SIGNERS
        known = state.accounts.get(self.account)  # unregistered: named by the manifest
        if known is not None and known.registered:
            return reasons.DUPLICATE
        if known is None and self.account in state.keys:
            return reasons.KEY_IN_USE
        if not state.admits(self.account):
            return reasons.NOT_ADMITTED

        def effect() -> Outcome:
            if known is None:
                state.accounts[self.account] = records.Account(self.account)
            owner = state.changing(self.account)
            # It is paid for watching what comes from here on.
            owner.registered, owner.recovery, owner.witnessed = True, self.recovery, state.size
            state.keys[self.account] = self.account
            return RECORDED

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account}

    def says(self) -> str:
        recovery = ", with a recovery key" if self.recovery else ""
        return f"account {short_key(self.account)}{recovery}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact(f"registered, signed by its own key; its name is {self.account} for ever")
        recovery = "can be recovered with another" if self.recovery else "has no recovery"
        yield Fact(f"at registration it {recovery} key")
        yield account_now(story, self.account)


def account(owner: Identity, run: str, recovery: str = "") -> Envelope:
    """Register ``owner`` as an account; ``recovery`` as in :func:`recovery_digest`."""
    return signed(AccountBody, {"run": run, "account": owner.key, "recovery": recovery}, owner)


def recovery_digest(public: bytes) -> str:
    """What an account publishes of its recovery key (32 bytes): only the hash, in hex."""
    return hashlib.sha256(public).hexdigest()
