"""The entries by which decisions of the rounds become durable (:mod:`coordinator.service`)."""

from __future__ import annotations

from collections.abc import Mapping

from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.state_agreed import drawn_outside
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import AgreeState, CloseRound


def closed(leader: Identity, fold: FoldState, action: CloseRound) -> Envelope:
    """Who counts in a round, and who does not and why."""
    attempt = fold.attempt
    assert attempt is not None
    shown = attempt.shown
    accepted = [
        entries.Accepted(node=peer, entry=shown[peer].entry, weight=shown[peer].tokens)
        for peer in action.accepted
    ]
    place, out = {"round": action.round, "attempt": action.attempt}, action.rejected
    return entries.round_closed(leader, fold.run, **place, accepted=accepted, rejected=out)


def agreed(
    leader: Identity, fold: FoldState, action: AgreeState, votes: Mapping[str, str]
) -> Entry:
    """The state that a round has led to.

    :param votes: node to its signature (hex) under the state; each was checked when it came
    """
    attempt = fold.attempt
    assert attempt is not None
    outside = drawn_outside(fold, attempt, action.outside)
    said = entries.state_agreed(
        leader,
        fold.run,
        round=action.round,
        attempt=attempt.attempt,
        root=action.root,
        credits=attempt.credits.root,
        wrong=action.wrong,
        rests_on="coordinator" if action.recomputed else attempt.rests_on,
        outside=outside,
        signatures={peer: votes[peer] for peer in (*action.signers, outside) if peer},
    )
    return entries.decode(said.encode()).checked(True)
