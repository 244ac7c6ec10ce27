"""What may honestly be said about a ledger: how final it is, and what its witnesses are worth.

With q cosignatures needed and n accounts that could cosign, two sets of q share at least 2q - n
accounts. A lying coordinator that wants two histories to look final needs all of those to lie too;
when 2q <= n the sets need not meet, and nobody has to. Once there are electors, two quorums of them
share at least one with a voice each, and more than a third of all standing where that weighs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artel.ledger.entries.words import plural

if TYPE_CHECKING:
    from artel.ledger.entries import StateAgreed


@dataclass(frozen=True)
class Unchecked:
    """Something that a check of a ledger does not cover."""

    name: str
    detail: str


class Recomputations:
    """What entries say of who came to agreed states beside those who made them."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[bool, bool]] = {}

    def note(self, body: StateAgreed) -> None:
        """Another state was agreed on; of one that is made again the last word counts."""
        self._said[body.round] = body.rests_on == "coordinator", bool(body.outside)

    def counts(self, states: int) -> dict[str, int]:
        """Of so many states: to how many a coordinator came, and to how many a node outside."""
        said = [self._said[number] for number in self._said if number <= states]
        by_coordinator, outside = map(sum, zip(*said, strict=True)) if said else (0, 0)
        return {"coordinator": by_coordinator, "outside": outside}


def unchecked(
    states: int, size: int, final: int, told: Mapping[str, int] | None = None
) -> tuple[Unchecked, ...]:
    """What a check of one whole ledger, however thorough, leaves open.

    :param states: how many agreed states it records
    :param final: entries before this index are final
    :param told: see :meth:`Recomputations.counts`
    """
    found = [
        state_roots(states, told),
        Unchecked(
            "training",
            "no step was trained again here, no data looked at; verdicts are the auditors' word",
        ),
        Unchecked("other copies", "whether others see this history: artel ledger compare"),
    ]
    if final < size:
        last = f"entries {final} to {size - 1}" if size - final > 1 else f"entry {final}"
        found.append(
            Unchecked("finality", f"{last}: signed by the coordinator, not final by witnesses")
        )
    return tuple(found)


def state_roots(
    states: int, told: Mapping[str, int] | None = None, recomputed: int = 0
) -> Unchecked:
    """What is open of so many agreed states, of which a check has recomputed some."""
    said = f"those of {plural(states - recomputed, 'state')} are what members signed; "
    told = told or {}
    if own := told.get("coordinator"):
        said += f"the coordinator says that it came to {own} of all {states} itself; "
    if outside := told.get("outside"):
        said += f"a node from outside the round signed {outside} of all {states}; "
    if recomputed:
        return Unchecked("state roots", f"{said}{recomputed} were recomputed here")
    return Unchecked(
        "state roots", f"{said}none was recomputed here: artel ledger verify --states N"
    )


UNWITNESSED = "tamper-evident to whoever kept a checkpoint; not witnessed"


@dataclass(frozen=True)
class Trust:
    """``needed`` accounts have to cosign a checkpoint, ``known`` accounts could; so do a quorum of
    the electors, once there are some."""

    needed: int
    known: int
    voices: int = 0
    """Electors with one voice each; 0 while there are none, and when words weigh by standing."""
    by_standing: bool = False
    """Whether there are electors whose words weigh by standing."""

    @property
    def liars(self) -> int:
        """Witness accounts that must lie beside the coordinator for two final histories, which
        have the same electors."""
        if not self.needed:
            return 0
        common = 2 * (self.voices // 2 + 1) - self.voices if self.voices else 0
        return max(0, 2 * self.needed - self.known, common)

    @property
    def absent(self) -> int:
        """Witness accounts that may be away, whoever they are, while entries become final."""
        spare = max(0, self.known - self.needed)
        return min(spare, (self.voices - 1) // 2) if self.voices else spare

    @property
    def lines(self) -> tuple[str, ...]:
        """One fact a line."""
        if not self.needed:
            return (UNWITNESSED,)
        return (self._split(), self._progress(), self._seats())

    @property
    def label(self) -> str:
        """All of it in one line."""
        return "; ".join(self.lines)

    def _split(self) -> str:
        if self.known < self.needed:
            return "nothing can become final yet"
        of = f"{self.needed} of {plural(self.known, 'account')}"
        if self.by_standing:
            return (
                "two histories could both look final only if electors with more than a third of "
                "all standing lied beside the coordinator"
            )
        if not self.liars:
            return (
                f"{of} do not prevent a split view, as two sets of witnesses need not overlap; "
                "they make one detectable"
            )
        who = plural(self.liars, "witness account")
        return f"two histories could both look final only if {who} lied beside the coordinator"

    def _progress(self) -> str:
        if self.known < self.needed:
            missing = self.needed - self.known
            return f"{plural(missing, 'more account')} with a node must join"
        if self.by_standing:
            return "progress needs electors with more than two thirds of all standing"
        if not self.absent:
            return "every witness account is needed for progress"
        return f"progress survives {plural(self.absent, 'absent witness account')}"

    def _seats(self) -> str:
        if self.by_standing:
            return "words weigh by standing: keys that cost nothing have none"
        return "seats are open: whoever registers enough accounts holds them"


def finality(final: int, size: int, needed: int) -> str:
    """ "final" or "pending", and up to where, as of the newest checkpoint."""
    as_of = f"as of checkpoint {size:,}"
    if not final or not needed:
        return f"{pending(needed)}; {as_of}"
    if final >= size:
        return f"final, {as_of}"
    return f"final up to entry {final - 1:,} of {size - 1:,}, {as_of}"


def pending(needed: int) -> str:
    """Why something is not final yet."""
    if not needed:
        return "pending: this run asks for no witnesses, so nothing becomes final"
    who = f"{plural(needed, 'account')} and a quorum of the electors"
    return f"pending: final once {who} have cosigned it, and then the record of that"
