"""The rules of the fold for the slices of a sharded round: recorded, called wrong, judged.

Each slice is combined by one accepted member for all (:func:`protocol.assignment.aggregator`). The
inputs are named in the ledger and the arithmetic is exact, so everybody can recompute a slice; one
that differs is replaced, and whoever recorded it earns nothing in that round.
"""

from __future__ import annotations

from collections.abc import Iterable

from artel.ledger.entries import Aggregate, Entry, SliceWrong, reasons
from artel.ledger.fold.accounts import Attempt, Effect, FoldState, Outcome, Slice
from artel.ledger.fold.rules_common import RECORDED, current, key_of, reject
from artel.protocol import assignment


def aggregate(state: FoldState, body: Aggregate, entry: Entry) -> str | Effect:
    if entry.signers != {key_of(body.node)}:
        return reasons.WRONG_SIGNERS
    attempt = current(state, body.round, body.attempt, "applying")
    if attempt is None:
        return reasons.OUT_OF_ORDER
    if state.work.topology_of(len(attempt.accounts)) != "sharded":
        return reasons.NOT_SHARDED
    # How many slices there are follows from the model, which is unknown here: never more than
    # members. The nodes know, and take no slice of another division.
    if not body.slice < body.slices <= len(attempt.accounts):
        return reasons.UNKNOWN_SLICE
    if body.node != assignment.aggregator(sorted(attempt.accepted), body.round, body.slice):
        return reasons.NOT_AGGREGATOR
    if body.slice in attempt.slices:
        return reasons.DUPLICATE

    def effect() -> Outcome:
        attempt.slices[body.slice] = Slice(body.node, body.blob, body.size)
        return RECORDED

    return effect


def slice_wrong(state: FoldState, body: SliceWrong, entry: Entry) -> str | Effect:
    if entry.signers != {key_of(body.node)}:
        return reasons.WRONG_SIGNERS
    attempt = current(state, body.round, body.attempt, "applying")
    if attempt is None:
        return reasons.OUT_OF_ORDER
    if body.node not in attempt.accepted:
        return reasons.NOT_MEMBER
    recorded = attempt.slices.get(body.slice)
    if recorded is None:
        return reasons.UNKNOWN_SLICE
    if body.node == recorded.node:
        return reasons.OWN_WORK
    if body.blob == recorded.blob:
        return reasons.SAME_BLOB
    if body.node in attempt.wrong.get(body.slice, {}):
        return reasons.DUPLICATE

    def effect() -> Outcome:
        attempt.wrong.setdefault(body.slice, {})[body.node] = body.blob
        return RECORDED

    return effect


def held_against(attempt: Attempt, wrong: Iterable[int]) -> list[tuple[str, str]]:
    """(node, reason) of whoever combined a slice wrongly, once, and of every false accusation.

    :param wrong: the slices that an agreed state was made without
    """
    wrong = set(wrong)
    found = [(node, reasons.WRONG_SLICE) for node in {attempt.slices[n].node for n in wrong}]
    for number, accusers in attempt.wrong.items():
        if number not in wrong:
            found += [(node, reasons.FALSE_ACCUSATION) for node in accusers]
    return sorted(found)


def judge(state: FoldState, attempt: Attempt, wrong: Iterable[int]) -> set[str]:
    """Count what is held against the nodes; returns those who earn nothing in this round."""
    found = held_against(attempt, wrong)
    for node, reason in found:
        reject(state, node, reason)
    return {node for node, reason in found if reason == reasons.WRONG_SLICE}
