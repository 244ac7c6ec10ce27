"""The round state that a ledger implies: where a coordinator goes on after it was started again.

An attempt under way goes on in the phase that the ledger has it in. What was on its way to the
process that is gone comes again, since every node is told again what it owes: commitments, the
contributions that are not recorded, signatures. All waiting begins anew.

The same when an entry of its own changed nothing: then the rounds that it had in mind are not
those of the ledger, and the ledger is right. What the process alone knows (who is here, who was in
the way) is kept in that case, and forgotten by a restart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from artel.ledger.entries import Contribution, decode, lot, reasons
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.store.reader import LedgerReader
from artel.protocol.members import sat_now
from artel.protocol.round_state import Phase, Presence, Ranked, RunState
from artel.protocol.seats import Seat

PHASES = {
    "training": Phase.TRAINING,
    "revealing": Phase.REVEALING,
    "applying": Phase.APPLYING,
}


class NoEffect(Exception):
    """An entry of the coordinator's own changed nothing in the fold."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def resumed(fold: FoldState, now: float, before: RunState | None = None) -> RunState:
    """The state of the rounds according to the ledger.

    :param now: seconds on the coordinator's clock
    :param before: what this process had in mind until now
    """
    state = RunState(
        Phase.WAITING,
        round=fold.round,
        attempt=0,
        base=fold.states[-1],
        since=now,
        proven=frozenset(fold.node_tokens),
        begun=dict(fold.begun),
        halted=fold.halted,
        unranked=True,
    )
    if before is not None:
        state = replace(
            state,
            peers=before.peers,
            pauses=before.pauses,
            sat=before.sat,
            proven=before.proven,
            unawaited=before.unawaited,
            wary_until=before.wary_until,
        )
    else:
        # As if all had just been heard of, somewhere else: so the first round waits a moment for
        # those who are on their way back, and an attempt does not fail before their heartbeats.
        members = last_members(fold)
        state = replace(state, members=members, peers={peer: Presence(now, "") for peer in members})
    liars = {node for node, why in fold.rejected.items() if reasons.SIGNED_WRONG in why}
    state = replace(state, proven=state.proven - liars)
    attempt = fold.attempt
    again = before.attempt + 1 if before is not None and before.round == fold.round else 0
    again = max(again, fold.begun.get(fold.round, 0))
    if attempt is None or attempt.round != fold.round:
        return replace(state, attempt=again)
    # One in which an entry had no effect cannot go on, unless it is closed.
    if attempt.phase in PHASES and (before is None or attempt.phase == "applying"):
        members = tuple(sorted(attempt.accounts))
        closed = attempt.phase == "applying"
        awaited = attempt.accepted if closed else members
        state = replace(
            state,
            phase=PHASES[attempt.phase],
            attempt=attempt.attempt,
            members=members,
            commitments=dict(attempt.commitments),
            revealed=frozenset(attempt.accepted if closed else attempt.shown),
            accused=frozenset(attempt.wrong),
            weights=attempt.weights,
            peers={peer: Presence(now, "") for peer in awaited} | dict(state.peers),
        )
        return replace(state, sat=sat_now(state, members))
    return replace(state, attempt=max(attempt.attempt + 1, again))


def shown_so_far(fold: FoldState, store: LedgerReader) -> dict[str, Contribution]:
    """What the ledger has of the attempt that is being revealed: contribution by node."""
    attempt, found = fold.attempt, dict[str, Contribution]()
    if attempt is not None and attempt.phase == "revealing":
        for peer, shown in attempt.shown.items():
            body = decode(store.leaf(shown.index)).body
            assert isinstance(body, Contribution)
            found[peer] = body
    return found


def ranked(fold: FoldState, peers: Collection[str], now: float) -> Ranked:
    """Who gets a seat before whom: by standing and by the lot of the newest agreed round."""
    drawn = lot.order(fold.lot, f"seats/{fold.round}", fold.weights(peers))
    seats = {peer: seat(fold, peer, place) for place, peer in enumerate(drawn)}
    return Ranked(now, seats, fold.rests_on == "members")


def seat(fold: FoldState, peer: str, place: int) -> Seat:
    """What a node has when seats are given away."""
    whole = sum(fold.standings().values())
    return Seat(fold.account_of(peer), fold.standing_of(peer), place, whole)


def last_members(fold: FoldState) -> tuple[str, ...]:
    """The members of the newest attempt; after its state was agreed, the nodes that have earned
    and whose accounts were credited with it."""
    if fold.attempt is not None:
        return tuple(sorted(fold.attempt.accounts))
    return tuple(sorted(p for p in fold.node_tokens if fold.account_of(p) in fold.recent))
