"""Entries that are handed in, by people, auditors and whoever recomputes a state: which these are,
whose they are, and which of them nobody who leads has a reason of his own to refuse."""

from __future__ import annotations

from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.fold.shares import FoldState

SUBMITTED = (
    *(entries.AccountBody, entries.Admitted, entries.Amended, entries.KeyRotated, entries.Dispute),
    *(entries.Ruling, entries.Transfer, entries.SplitSeen, entries.VerdictCommitted),
    *(entries.Verdict, entries.StateWrong, entries.JuryAnswer),
)
"""Other kinds belong to the rounds."""
BUDGETED = (*SUBMITTED, entries.Node)
"""Of these the coordinator takes only so many of one speaker in a minute. The fold counts none that
its speaker has not signed."""
DECIDED = (
    *(entries.Admitted, entries.Amended, entries.KeyRotated, entries.Dispute, entries.Ruling),
    *(entries.Transfer, entries.VerdictCommitted, entries.StateWrong, entries.JuryAnswer),
)
"""Whether one of these counts follows from the ledger alone. How many registrations are taken in a
minute, and whether a verdict was shown, only the coordinator knows; a split view has a way of its
own (:mod:`node.watch`)."""
BY_NODE = (entries.VerdictCommitted, entries.Verdict, entries.StateWrong, entries.JuryAnswer)


def speaker(entry: Entry) -> str:
    """Who says it: an account or a node, or else the signers."""
    body = entry.body
    if isinstance(body, BY_NODE):
        return body.node
    return getattr(body, "account", "") or ",".join(sorted(entry.signers))


def is_strangers(state: FoldState, entry: Entry) -> bool:
    """Whether it is of an account without accepted work: only so many of those are taken."""
    account = getattr(entry.body, "account", "")
    known = state.accounts.get(account)
    return bool(account) and not (known is not None and known.granted)


def must_be_taken(state: FoldState, entry: Entry) -> bool:
    """Whether who leads has no reason to refuse it, if it would count."""
    return isinstance(entry.body, DECIDED) and not is_strangers(state, entry)
