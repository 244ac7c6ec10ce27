"""What a replay's difference means, by the classes of the two machines.

Machines of one class come to the same bits. Others begin a span within rounding of each other, and
drift apart with every step, as training does; how far was measured (``docs/results/replay.md``;
``artel node measure`` measures other machines). Between what honest work comes to and what work
that was not done comes to, nothing follows: a wrong conviction is worse than an audit that is drawn
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from artel.protocol.terms import ToleranceSection

Verdict = Literal["accept", "reject", "inconclusive"]


def verdict_of(
    tolerances: Sequence[ToleranceSection],
    made_on: str,
    repeated_on: str,
    found: Iterable[tuple[float, int]],
) -> Verdict:
    """What an auditor says of all contributions that it repeated: one that was not honestly made is
    enough, and so is one of which it cannot tell where all others were.

    :param found: error and steps of each, as in :func:`judged`
    """
    said = {judged(tolerances, made_on, repeated_on, *one) for one in found}
    return "reject" if "reject" in said else "accept" if said == {"accept"} else "inconclusive"


def judged(
    tolerances: Sequence[ToleranceSection], made_on: str, repeated_on: str, error: float, steps: int
) -> Verdict:
    """What an auditor says of a contribution.

    :param tolerances: the run's; the first that fits counts
    :param made_on: hardware class of the node, by its own account
    :param repeated_on: that of the auditor
    :param error: relative, as :class:`node.trainer.orders.Compared` has it
    :param steps: inner steps since the span began, the contribution's own included
    """
    found = tolerance_of(tolerances, made_on, repeated_on, steps)
    if found is None:
        return "inconclusive"
    if error <= found.accept:
        return "accept"
    return "inconclusive" if error < found.reject else "reject"


def tolerance_of(
    tolerances: Sequence[ToleranceSection], one: str, other: str, steps: int
) -> ToleranceSection | None:
    """The first row for a pair of classes, in either order, and so many steps of a span; None when
    there is none."""
    near = (row for row in tolerances if not row.steps or steps <= row.steps)
    return next((row for row in near if _fit(row, one, other) or _fit(row, other, one)), None)


def covered(tolerances: Sequence[ToleranceSection], hardware: str, steps: int) -> bool:
    """Whether a machine of some class could check what one of this class makes in so many steps."""
    near = (row for row in tolerances if not row.steps or steps <= row.steps)
    return any(_is(hardware, row.one) or _is(hardware, row.other) for row in near)


def _fit(row: ToleranceSection, one: str, other: str) -> bool:
    return _is(one, row.one) and (_is(other, row.other) if row.other else one == other)


def _is(hardware: str, pattern: str) -> bool:
    """Whether a class is one of a pattern: the same parts between slashes, ``*`` for any."""
    mine, wanted = hardware.split("/"), pattern.split("/")
    fits = all(want in ("*", part) for part, want in zip(mine, wanted, strict=False))
    return bool(hardware) and len(mine) == len(wanted) and fits
