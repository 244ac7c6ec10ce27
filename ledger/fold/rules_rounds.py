"""The rules of the fold for rounds: opened, committed, contributed, closed, agreed, ended.

Each rule looks at an entry and returns the reason why it changes nothing, or the effect that
changes the state. Credit is granted by ``state_agreed``: each accepted contribution of the closed
round gives its tokens to the account that its node belonged to *when the round was opened*, unless
that node combined a slice wrongly.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

from artel.ledger.entries import (
    Contribution,
    DataUse,
    Entry,
    Genesis,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RunClosed,
    StateAgreed,
    reasons,
)
from artel.ledger.fold import rules_slices
from artel.ledger.fold.accounts import (
    Account,
    Attempt,
    Credit,
    Effect,
    FoldState,
    Outcome,
    Pending,
    frozen_until,
    grant,
    vest,
    vest_due,
)
from artel.ledger.fold.rules_common import (
    RECORDED,
    by_coordinators,
    current,
    key_of,
    peer_of,
    reject,
)
from artel.protocol import assignment
from artel.protocol.round_state import BAD_SIGNATURE, COMMITMENT_MISMATCH, WRONG_STATE, WRONG_TOKENS
from artel.protocol.rounds import commitment


def genesis(state: FoldState, body: Genesis, entry: Entry) -> str | Effect:
    if state.size:
        return reasons.SECOND_GENESIS if state.run else reasons.NO_GENESIS
    if not entry.signers:
        return BAD_SIGNATURE
    if entry.signers != {body.organiser}:
        return reasons.WRONG_SIGNERS

    def effect() -> Outcome:
        state.run, state.organiser, state.rules = body.run, body.organiser, body.rules
        state.coordinators = list(body.coordinators)
        state.states = [body.initial_state]
        # Contributors of data earn without having a node, or ever having registered.
        for account, _ in body.rules.data.contributed if body.rules.data else ():
            if account and account not in state.accounts:
                state.accounts[account] = Account(account)
                state.keys[account] = account
        return RECORDED

    return effect


def opened(state: FoldState, body: RoundOpened, entry: Entry) -> str | Effect:
    previous = state.attempt
    if not by_coordinators(state, entry):
        return reasons.WRONG_SIGNERS
    assert state.rules is not None
    if body.round != state.round or body.round >= state.rules.total:
        return reasons.OUT_OF_ORDER
    if body.cursor < state.cursor:
        return reasons.OUT_OF_ORDER
    # Any later attempt may begin: whatever stopped the one before must not stop the run.
    if previous is not None and previous.round == body.round and body.attempt <= previous.attempt:
        return reasons.OUT_OF_ORDER
    if body.base != state.states[-1]:
        return WRONG_STATE
    if not all(peer in state.nodes for peer in body.members):
        return reasons.UNKNOWN_NODE
    if not all(state.work.least <= steps <= state.work.most for steps in body.steps):
        return reasons.WRONG_STEPS

    def effect() -> Outcome:
        _void(state)
        accounts = {peer: state.account_of(peer) for peer in body.members}
        steps = dict(zip(body.members, body.steps, strict=True))
        state.attempt = Attempt(body.round, body.attempt, accounts, steps)
        state.cursor, state.steps = body.cursor, sum(body.steps)
        return RECORDED

    return effect


def committed(state: FoldState, body: RoundCommitted, entry: Entry) -> str | Effect:
    if not by_coordinators(state, entry):
        return reasons.WRONG_SIGNERS
    attempt = current(state, body.round, body.attempt, "training")
    if attempt is None:
        return reasons.OUT_OF_ORDER
    if not body.commitments.keys() <= attempt.accounts.keys():
        return reasons.NOT_MEMBER

    def effect() -> Outcome:
        attempt.commitments = dict(body.commitments)
        attempt.phase = "revealing"
        return RECORDED

    return effect


def contribution(state: FoldState, body: Contribution, entry: Entry) -> str | Effect:
    if entry.signers != {key_of(body.node)}:
        return reasons.WRONG_SIGNERS
    attempt = current(state, body.round, body.attempt, "revealing")
    if attempt is None:
        return reasons.OUT_OF_ORDER
    if body.node not in attempt.accounts:
        return reasons.NOT_MEMBER
    if body.node not in attempt.commitments:
        return reasons.NOT_COMMITTED
    if body.node in attempt.contributions:
        return reasons.DUPLICATE
    if body.base != state.states[-1]:
        return WRONG_STATE
    if not _in_bounds(state, attempt, body):
        return WRONG_TOKENS
    salt = bytes.fromhex(body.salt)
    shown = commitment(body.run, body.round, body.attempt, body.node, body.blob, salt)
    if shown != attempt.commitments[body.node]:
        return COMMITMENT_MISMATCH

    def effect() -> Outcome:
        attempt.contributions[body.node] = entry.id
        attempt.tokens[body.node], attempt.heads[body.node] = body.tokens, body.head
        attempt.salts[body.node] = body.salt
        return RECORDED

    return effect


def _in_bounds(state: FoldState, attempt: Attempt, body: Contribution) -> bool:
    """Whether the steps are ones that the node was assigned, and the tokens are those steps'."""
    work, assigned = state.work, attempt.steps[body.node]
    return (
        work.least_head(body.round, assigned) <= body.head <= work.head(body.round, assigned)
        and body.tail <= state.tails.get(body.node, 0)
        and body.tokens == work.tokens(body.tail + body.head)
    )


def closed(state: FoldState, body: RoundClosed, entry: Entry) -> str | Effect:
    if not by_coordinators(state, entry):
        return reasons.WRONG_SIGNERS
    phases = ("revealing",) if body.accepted else ("training", "revealing", "applying")
    attempt = current(state, body.round, body.attempt, *phases)
    if attempt is None:
        return reasons.OUT_OF_ORDER
    accepted = {item.node: item for item in body.accepted}
    rejected = {item.node: item.reason for item in body.rejected}
    if not rejected.keys() <= attempt.accounts.keys() - accepted.keys():
        return reasons.NOT_MEMBER
    for peer, item in accepted.items():
        if attempt.contributions.get(peer) != item.entry:
            return reasons.UNKNOWN_CONTRIBUTION
        if item.weight != attempt.tokens[peer]:
            return WRONG_TOKENS

    def effect() -> Outcome:
        if attempt.phase == "applying":
            # Closed a second time, now with nobody: the nodes did not agree on a state. Who was
            # left out at the first closing has been counted then.
            _void(state)
            attempt.slices, attempt.wrong = {}, {}
        else:
            for peer, reason in rejected.items():
                reject(state, peer, reason)
        attempt.accepted = {peer: item.weight for peer, item in accepted.items()}
        attempt.phase = "applying" if accepted else "failed"
        return RECORDED

    return effect


def agreed(state: FoldState, body: StateAgreed, entry: Entry) -> str | Effect:
    coordinators = set(state.coordinators)
    others = (peer_of(key) for key in entry.signers - coordinators)
    if not entry.signers & coordinators or not all(peer in state.nodes for peer in others):
        return reasons.WRONG_SIGNERS
    attempt = state.attempt
    if attempt is None or attempt.phase != "applying" or body.round != attempt.round + 1:
        return reasons.OUT_OF_ORDER
    agreeing = [peer for peer in attempt.accepted if key_of(peer) in entry.signers]
    if 2 * len(agreeing) <= len(attempt.accepted):
        return reasons.NO_MAJORITY
    if not attempt.wrong.keys() >= set(body.wrong):  # whoever is in there speaks of a recorded one
        return reasons.UNKNOWN_SLICE

    def effect() -> Outcome:
        denied = rules_slices.judge(state, attempt, body.wrong)
        granted = _credit_round(state, attempt, denied)
        state.states.append(body.root)
        tails = {peer: state.work.tail(attempt.round, h) for peer, h in attempt.steps.items()}
        state.tails = {peer: steps for peer, steps in tails.items() if steps}
        state.attempt = None
        sources = tuple(attempt.contributions[peer] for peer in sorted(denied))
        vested = vest_due(state, state.round)
        return Outcome("credited", granted=granted, vested=vested, denied=sources)

    return effect


def run_closed(state: FoldState, body: RunClosed, entry: Entry) -> str | Effect:
    assert state.rules is not None
    if not by_coordinators(state, entry):
        return reasons.WRONG_SIGNERS
    if body.round != state.round or state.round < state.rules.total:
        return reasons.OUT_OF_ORDER
    if body.closing != state.closed + 1:
        return reasons.DUPLICATE if body.closing <= state.closed else reasons.OUT_OF_ORDER

    def effect() -> Outcome:
        state.closed = body.closing
        state.due = {}  # there will be no further state
        free = [
            source
            for source, item in state.pending.items()
            if state.closed == 2 or not frozen_until(state, item)
        ]
        return Outcome("recorded", vested=tuple(vest(state, source) for source in free))

    return effect


# --- credit ---------------------------------------------------------------------------------------


def _credit_round(state: FoldState, attempt: Attempt, denied: set[str]) -> tuple[Credit, ...]:
    """Grant compute to the accepted members, and data to those whose text was new to the run.

    :param denied: members who earn no compute in this round
    """
    assert state.rules is not None
    rates, due = state.rules.rates, attempt.round + 1 + state.rules.ownership.vesting_rounds
    # Not the entry ids: a node can sign its contribution in many ways until it likes the lot.
    seed = hashlib.sha256("".join(sorted(attempt.salts.values())).encode()).digest()
    granted: list[Credit] = []
    for peer, tokens in attempt.accepted.items():
        account, source = attempt.accounts[peer], attempt.contributions[peer]
        if peer in denied or state.accounts[account].barred:
            continue
        credit = Credit(source, "compute", account, peer, attempt.round, tokens, rates["compute"])
        drawn = _auditors(attempt, peer, seed, state.rules.ownership.auditors)
        grant(state, Pending(credit, due, auditors=drawn))
        state.node_tokens[peer] = state.node_tokens.get(peer, 0) + tokens
        granted.append(credit)
    state.recent = sorted({credit.account for credit in granted})
    if state.rules.data is not None:
        used = _text_used(state, state.rules.data, attempt)
        for account, tokens in sorted(used.items()):
            if state.accounts[account].barred:
                continue
            source = f"data/{attempt.round}/{account}"
            credit = Credit(source, "data", account, "", attempt.round, tokens, rates["data"])
            grant(state, Pending(credit, due))
            granted.append(credit)
    return tuple(granted)


def _auditors(attempt: Attempt, peer: str, seed: bytes, count: int) -> list[str]:
    """Members of other accounts, by a lot that nobody knew when the work was committed to.

    :param seed: made of the salts of everybody who revealed
    """
    if not count:
        return []
    others = [m for m, account in attempt.accounts.items() if account != attempt.accounts[peer]]

    def lot(member: str) -> bytes:
        return hashlib.sha256(seed + f"/{peer}/{member}".encode()).digest()

    return sorted(others, key=lot)[:count]


def _text_used(state: FoldState, data: DataUse, attempt: Attempt) -> Counter[str]:
    """Account to tokens of its text that the accepted members read for the first time.

    Of the head the windows of the steps that were made count, of the tail all: how much of it a
    member got to is known only when its next contribution is shown, if ever.
    """
    work = state.work
    split = assignment.Split(data.tokens, data.shard_tokens, data.seq_len, data.span_windows)
    ends = list(accumulate(tokens for _, tokens in data.contributed))
    count = work.windows(sum(attempt.steps.values()))
    used: Counter[str] = Counter()
    if count > split.windows:
        return used  # no such round can be assigned
    start = first = assignment.round_start(split, state.cursor, count)
    if first < state.text_used or first + count > split.windows:
        return used  # this text has earned already, in an earlier round or the first pass
    state.text_used = first + count
    for member, steps in sorted(attempt.steps.items()):
        stretch = assignment.windows_at(data.seed, split, start, work.windows(steps))
        start += len(stretch)
        if member not in attempt.accepted:
            continue
        made, head = attempt.heads[member], work.head(attempt.round, steps)
        for index, window in enumerate(stretch):
            if made <= index % steps < head:  # of a step that there was no time for
                continue
            # Its first token decides whose a window is.
            token = window.shard * data.shard_tokens + window.offset
            account = data.contributed[bisect_right(ends, token)][0]
            if account:
                used[account] += data.seq_len
    return used


def _void(state: FoldState) -> None:
    """What was accepted but never agreed on gives no credit; say so."""
    if state.attempt is not None:
        for peer in state.attempt.accepted:
            reject(state, peer, reasons.NOT_AGREED)
        state.attempt.accepted = {}
