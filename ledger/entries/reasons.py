"""Every reason code that can stand in the ledger or in its fold, with a sentence for people.

Two families: why the *coordinator* left a member's work out (written into ``round_closed``), and
why the *fold* ignores an entry (never written; every reader finds it again for itself).
"""

from __future__ import annotations

from artel.protocol.round_state import (
    BAD_SIGNATURE,
    COMMITMENT_MISMATCH,
    COPIED,
    DISCONNECTED,
    HANDED_BACK,
    LATE,
    MALFORMED,
    MISSING_REVEAL,
    NO_FINGERPRINTS,
    NON_FINITE,
    TOO_LARGE,
    WRONG_SPAN,
    WRONG_STATE,
    WRONG_TOKENS,
)

NOT_AGREED = "not_agreed"
"""Accepted by the coordinator, but no majority agreed on the state that came out."""
WRONG_SLICE = "wrong_slice"
"""Accepted, but a slice of the round that the node combined for all was wrong."""
EMPTY = "empty"
"""Accepted, but all its numbers are zero."""
FALSE_ACCUSATION = "false_accusation"
"""The node called a slice or a state wrong, and those who decide found it right."""
FALSE_CHECK = "false_check"
"""The node computed a state that was called wrong, and those who decide got another root."""
SIGNED_WRONG = "signed_wrong"
"""The node signed a state that was proven wrong."""
UNCHECKED = "unchecked"
"""Accepted, and no auditor could tell whether it was honestly made."""
ROLLED_BACK = "rolled_back"
"""Accepted and agreed, and the state that came of it was gone back behind."""

REJECTIONS = {
    LATE: "came after the round's commitments were closed",
    MISSING_REVEAL: "committed to a contribution and never showed it",
    COMMITMENT_MISMATCH: "what was shown is not what had been committed to",
    WRONG_STATE: "started from another state than the round's base",
    MALFORMED: "could not be decoded",
    NON_FINITE: "holds infinities or NaN",
    BAD_SIGNATURE: "a signature does not verify",
    TOO_LARGE: "larger than the run's limit",
    WRONG_TOKENS: "claims other tokens than its steps have, or more steps than it was assigned",
    WRONG_SPAN: "goes on with a span that is over or that it was not in, on another class of "
    "machine, or without its tail",
    COPIED: "its numbers were shown before, by another node or in another round",
    NO_FINGERPRINTS: "the fingerprints of its steps were not sent along to the coordinator, or are "
    "not as many as its steps",
    HANDED_BACK: "the node gave the round back",
    DISCONNECTED: "the node went away before its contribution was complete",
    NOT_AGREED: "accepted, but no majority of nodes agreed on the resulting state",
    WRONG_SLICE: "combined a slice of the round for all, and the result was wrong",
    EMPTY: "its numbers are all zero: the round went on with it, and nothing is paid for it",
    FALSE_ACCUSATION: "said that a slice or a state was wrong which was right (takes no credit)",
    FALSE_CHECK: "computed a state that was called wrong, and said what others did not find",
    SIGNED_WRONG: "signed a state that was proven wrong",
    UNCHECKED: "no auditor could tell whether the work was done, so it is not paid (the node names "
    "a class of machine that nobody of the run can check; trust.tolerances)",
    ROLLED_BACK: "accepted, but the run went back to a state before, since one was proven wrong or "
    "training had diverged",
}
"""Why a member earned nothing in a round, or (false_accusation) what is held against it."""

NO_GENESIS = "no_genesis"
SECOND_GENESIS = "second_genesis"
WRONG_RUN = "wrong_run"
WRONG_SIGNERS = "wrong_signers"
DUPLICATE = "duplicate"
UNKNOWN_ACCOUNT = "unknown_account"
UNKNOWN_NODE = "unknown_node"
OUT_OF_ORDER = "out_of_order"
NOT_MEMBER = "not_member"
NOT_COMMITTED = "not_committed"
UNKNOWN_CONTRIBUTION = "unknown_contribution"
NO_MAJORITY = "no_majority"
WRONG_SEQUENCE = "wrong_sequence"
KEY_IN_USE = "key_in_use"
NOT_ALLOWED = "not_allowed"
NOT_ADMITTED = "not_admitted"
NOT_ENOUGH = "not_enough"
NOT_PENDING = "not_pending"
OWN_WORK = "own_work"
TOO_MANY = "too_many"
NO_CREDIT = "no_credit"
NO_STANDING = "no_standing"
NOT_DRAWN = "not_drawn"
TOO_EARLY = "too_early"
BARRED = "barred"
NO_QUORUM = "no_quorum"
NOT_SEALED = "not_sealed"
PROVES_NOTHING = "proves_nothing"
WRONG_STEPS = "wrong_steps"
NOT_SHARDED = "not_sharded"
NOT_AGGREGATOR = "not_aggregator"
NOT_CHECKER = "not_checker"
UNKNOWN_SLICE = "unknown_slice"
SAME_BLOB = "same_blob"
WRONG_CREDITS = "wrong_credits"
SAME_ROOT = "same_root"
NO_JURY = "no_jury"
NOT_ACCUSED = "not_accused"
NOT_PROVEN = "not_proven"
PROVEN_WRONG = "proven_wrong"
TOO_MANY_SETBACKS = "too_many_setbacks"
NEWCOMERS = "too_many_newcomers"
TOO_MANY_SEATS = "too_many_seats"
TOO_MANY_NODES = "too_many_nodes"
WRONG_GROUNDS = "wrong_grounds"
NOT_AMENDABLE = "not_amendable"
RUN_PAUSED = "run_paused"

IGNORED = {
    BAD_SIGNATURE: "a signature does not verify",
    NO_GENESIS: "the ledger does not begin with a valid manifest",
    SECOND_GENESIS: "only the first entry can be the manifest",
    WRONG_RUN: "made for another run",
    WRONG_SIGNERS: "not signed by exactly those who may say this",
    DUPLICATE: "says what the ledger already said",
    UNKNOWN_ACCOUNT: "the account has not been registered",
    UNKNOWN_NODE: "a member is bound to no account",
    OUT_OF_ORDER: "does not fit the round, attempt or phase that the ledger is in",
    WRONG_STATE: "names another state than the agreed one",
    WRONG_TOKENS: "claims other tokens than its steps have, or more steps than were assigned",
    WRONG_SPAN: "goes on with a span that is over or that the node was not in, on another class of "
    "machine, or without its tail",
    NOT_MEMBER: "the node is not a member of the round",
    NOT_COMMITTED: "the node committed to nothing before",
    COMMITMENT_MISMATCH: "is not what the node had committed to",
    COPIED: "holds numbers that were shown before, by another node or in another round",
    UNKNOWN_CONTRIBUTION: "accepts a contribution that the ledger does not hold",
    NO_MAJORITY: "not said by accepted contributors with more than half of the standing of all "
    "(of their number, while none has any)",
    WRONG_GROUNDS: "says that the state rests on others than the run's rules let it rest on",
    WRONG_SEQUENCE: "its number is not the next one, so it is old or came out of order",
    KEY_IN_USE: "the key already speaks for an account, or is the name of one",
    NOT_ALLOWED: "the run's rules do not provide for this",
    NOT_ADMITTED: "only accounts that the organiser has let in may register in this run",
    NOT_ENOUGH: "more than the account has vested",
    NOT_PENDING: "names no contribution whose credit is pending",
    OWN_WORK: "nobody can dispute their own work",
    TOO_MANY: "the account has too many open disputes or accusations, or accused falsely lately",
    NO_CREDIT: "only accounts that have earned credit in this run can dispute or accuse",
    NO_STANDING: "once a run rests on its members, who calls a state wrong needs standing",
    NOT_DRAWN: "the node, or its account, was not drawn to check this, or its time is over",
    TOO_EARLY: "other auditors of this contribution have not committed to their verdicts yet",
    BARRED: "the account is barred for proven fraud",
    NO_QUORUM: "signed by fewer arbiters than the manifest asks for",
    NOT_SEALED: "not sealed by a quorum of the electors",
    PROVES_NOTHING: "the evidence does not show that one key signed two histories",
    WRONG_STEPS: "assigns a number of steps that the run's rules do not allow",
    NEWCOMERS: "more of the members have no standing than a quarter, or two of one such account",
    TOO_MANY_SEATS: "an account has more of the members than its part of all standing, rounded up",
    TOO_MANY_NODES: "the account has 64 nodes already: give one of them to another account first",
    NOT_SHARDED: "the round is not sharded: there are no slices",
    NOT_AGGREGATOR: "another member combines this slice",
    NOT_CHECKER: "another member checks this slice",
    UNKNOWN_SLICE: "speaks of a slice that nobody recorded, or that nobody has called wrong",
    WRONG_CREDITS: "names another credit root than the entries before it lead to",
    SAME_BLOB: "names the very blob that was recorded: there is no difference",
    SAME_ROOT: "names the very root that was recorded: there is no difference",
    NO_JURY: "fewer than two other accounts, with standing once the run is founded, could check it",
    NOT_ACCUSED: "speaks of a state that nobody calls wrong, or on which is decided",
    NOT_PROVEN: "goes back behind, or upholds, a state that was not proven wrong",
    NOT_AMENDABLE: "changes what cannot be changed while the run goes on, or to what it cannot be",
    RUN_PAUSED: "the organiser has paused the run, and opened it for no round since",
    PROVEN_WRONG: "a jury has proven a state wrong, or training diverged, and the coordinator has "
    "not yet gone back behind that state, or upheld it",
    TOO_MANY_SETBACKS: "training diverged more than three times in a row, and the organiser has "
    "amended nothing since",
}
"""Why an entry changes nothing."""


def explain(code: str) -> str:
    """The sentence for a code; codes of newer versions are shown as they are."""
    return REJECTIONS.get(code) or IGNORED.get(code) or code
