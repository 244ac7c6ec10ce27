"""The terms of a run: what work is worth, when an entry is final, what members' words weigh, and
who leads when its coordinator is gone.

Sections of :mod:`protocol.run_config`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from artel.protocol.schema import MAX_EXACT, Conflict, Digest, Section, one_line

MAX_NODES = 1024
"""Members of a round: the ledger lists them in documents of at most 1 MiB."""


class Rates(Section):
    """Credit for one unit of each kind of work, in whole numbers."""

    compute: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """For a token that was assigned, trained on and accepted."""
    data: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """For a token of contributed text, when it is first trained on."""
    audit: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """For a token that an auditor drawn by lot trained again."""
    witness: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """For a ledger entry that a contributing account replayed and cosigned."""


class OwnershipSection(Section):
    """How work turns into shares of the model. Fixed for the whole run."""

    statement: Annotated[str, Field(max_length=300), AfterValidator(one_line)] = (
        "Shares follow the credit that each account earned with work that the run accepted."
    )
    """What a share stands for, in words."""
    rates: Rates = Rates()
    """Credit per unit of work."""
    vesting_rounds: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Rounds until pending credit vests; it can be disputed as long as it is pending."""
    closing_s: Annotated[float, Field(ge=0, le=2_592_000)] = 60.0
    """Seconds after the last round until what is still pending vests."""
    arbiters: Annotated[tuple[Digest, ...], Field(max_length=8)] = ()
    """Keys (64 hex digits) that rule on disputes; none: the organiser."""
    arbiter_quorum: Annotated[int, Field(ge=1, le=8)] = 1
    """Arbiters that have to sign a ruling."""
    transfers: bool = False
    """Whether vested credit may be given to another account."""

    @model_validator(mode="after")
    def _can_rule(self) -> OwnershipSection:
        if self.arbiter_quorum > max(1, len(set(self.arbiters))):
            raise Conflict(
                f"[ownership] arbiter_quorum = {self.arbiter_quorum} is more than there are "
                "arbiters",
                "lower it, or name more arbiters",
            )
        return self


class LedgerSection(Section):
    """When an entry of the ledger counts as final."""

    witnesses: Annotated[int, Field(ge=0, le=24)] = 1
    """Accounts whose nodes must cosign a tree head, a quorum of the electors among them, so that it
    is certified; 0: none is, and no entry is ever final."""


class CoordinationSection(Section):
    """Who leads when the coordinator is gone."""

    standbys: Annotated[tuple[Digest, ...], Field(max_length=7)] = ()
    """Keys (64 hex digits) of the coordinators that may lead after the first, in order; none: \
members elect one of themselves."""
    handover_s: Annotated[float, Field(ge=1, le=604_800)] = 120.0
    """Seconds that the coordinator may be silent before electors end its term and the next one \
leads; twice as many for each term in a row in which no state was agreed."""

    @model_validator(mode="after")
    def _each_once(self) -> CoordinationSection:
        for key in self.standbys:
            if self.standbys.count(key) > 1:
                raise Conflict(
                    f"[coordination] standbys names {key[:12]}... twice", "name each key once"
                )
        return self


Pattern = Annotated[str, Field(pattern=r"^[ -~]{0,64}$")]


class ToleranceSection(Section):
    """How far apart honest work on machines of two classes is, and work that was not done."""

    one: Pattern
    """A hardware class, part by part between slashes; * is any part."""
    other: Pattern = ""
    """The other one; empty: the same class to the letter."""
    steps: Annotated[int, Field(ge=0, le=MAX_EXACT)] = 0
    """Holds for contributions up to so many inner steps from the beginning of their span, for \
machines that differ drift apart; 0: for all."""
    accept: Annotated[float, Field(ge=0, le=10)]
    """Relative error up to which a contribution was honestly made."""
    reject: Annotated[float, Field(ge=0, le=10)]
    """Relative error from which it was not, 10 for never; in between nobody can tell."""

    @model_validator(mode="after")
    def _apart(self) -> ToleranceSection:
        if self.reject <= self.accept:
            raise Conflict(
                f"[trust] tolerances: reject = {self.reject:g} is not above accept = "
                f"{self.accept:g}",
                "leave room between honest work and work that was not done",
            )
        return self


_CPU = "*/*/*/*/*"
_FP32 = "*/*/fp32/*/*"
TOLERANCES = (
    ToleranceSection(one=_CPU, accept=1e-5, reject=0.1),
    ToleranceSection(one=_FP32, other=_FP32, steps=30, accept=0.02, reject=0.25),
    ToleranceSection(one=_FP32, other=_FP32, accept=0.02, reject=10),
)
"""By what ``docs/results/replay.md`` measured. CUDA devices were not measured."""


class TrustSection(Section):
    """What members' words weigh, and how their work is checked."""

    standing_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Rounds for which vested credit of compute and audits counts as its account's standing."""
    admission: Literal["open", "list"] = "open"
    """Who may register an account: "open": anybody; "list": who is listed in admitted, and whom \
the organiser lets in later with `artel ledger admit KEY`."""
    admitted: Annotated[tuple[Digest, ...], Field(max_length=32)] = ()
    """Keys of accounts (64 hex digits) that may register with admission = "list"."""
    founders: Annotated[int, Field(ge=1, le=MAX_NODES)] = 4
    """Accounts that must have standing before the run rests on its members; until then it rests \
on the coordinator."""
    audit_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Part of all steps that is repeated, about, once nodes are known (0 to 1); 0: nothing is."""
    audit_rounds: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Rounds in which an auditor has to say what it found."""
    newcomer_rounds: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Each round of a node is audited by itself until so many of them were found right."""
    tolerances: Annotated[tuple[ToleranceSection, ...], Field(max_length=16)] = TOLERANCES
    """What a replay says, by the classes of the two machines; the first that fits counts, and
    between classes without one nobody can tell."""

    @model_validator(mode="after")
    def _means_a_list(self) -> TrustSection:
        if self.admitted and self.admission == "open":
            raise Conflict(
                "[trust] admitted lists accounts, but admission = 'open' lets everybody in",
                "write admission = 'list', or remove admitted",
            )
        return self
