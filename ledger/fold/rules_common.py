"""What the rules of the fold share: who signed, which attempt is meant, what is counted."""

from __future__ import annotations

from functools import lru_cache

from artel.ledger.entries import Entry
from artel.ledger.fold.accounts import Attempt, FoldState, Outcome
from artel.protocol.identity import peer_id_of, public_of

RECORDED = Outcome("recorded")


@lru_cache(maxsize=4096)
def key_of(peer: str) -> str:
    return public_of(peer).hex()


@lru_cache(maxsize=4096)
def peer_of(key: str) -> str:
    return peer_id_of(bytes.fromhex(key))


def by_coordinators(state: FoldState, entry: Entry) -> bool:
    """Signed by coordinators alone: a stranger's signature would make a second id for one fact."""
    return entry.signers <= set(state.coordinators)


def current(state: FoldState, round: int, attempt: int, *phases: str) -> Attempt | None:
    """The attempt under way, when it is this one and in one of these phases."""
    now = state.attempt
    if now is None or (now.round, now.attempt) != (round, attempt) or now.phase not in phases:
        return None
    return now


def reject(state: FoldState, peer: str, reason: str) -> None:
    counts = state.rejected.setdefault(peer, {})
    counts[reason] = counts.get(reason, 0) + 1
