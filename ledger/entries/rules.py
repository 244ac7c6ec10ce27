"""The constants of a manifest by which credit is counted; see ``docs/manifest.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from artel.protocol.amending import PAUSED, TOTAL
from artel.protocol.assignment import Work
from artel.protocol.terms import MAX_NODES, OwnershipSection, TrustSection


@dataclass(frozen=True)
class DataUse:
    """What is needed to say whose text a round trains on."""

    seed: int
    tokens: int
    shard_tokens: int
    seq_len: int
    span_windows: int
    contributed: tuple[tuple[str, int], ...]  # (account or "", tokens), from the first token on


@dataclass(frozen=True)
class LedgerRules:
    """What the ledger's rules read of the manifest."""

    total: int
    work: Work  # what a round asks of its members
    ownership: OwnershipSection
    witnesses: int
    arbiters: frozenset[str]
    trust: TrustSection
    min_nodes: int = 1
    """Members that a round needs."""
    max_nodes: int = MAX_NODES
    """Most members of a round."""
    data: DataUse | None = None
    paused: bool = False
    """No round is opened."""

    def amended(self, changes: Mapping[str, str]) -> LedgerRules:
        """The rules with these changes (:mod:`protocol.amending`), which are within bounds."""
        total = int(changes.get(TOTAL, self.total))
        return replace(
            self,
            total=total,
            work=self.work.amended(total),
            min_nodes=int(changes.get("rounds.min_nodes", self.min_nodes)),
            max_nodes=int(changes.get("rounds.max_nodes", self.max_nodes)),
            paused=changes.get(PAUSED, "true" if self.paused else "") == "true",
        )

    @cached_property
    def audits(self) -> int:
        """About so much of all steps is repeated, in millionths; 0: nothing is, or can be."""
        return round(1_000_000 * self.trust.audit_rate) if self.work.span else 0

    @cached_property
    def rates(self) -> dict[str, int]:
        """Credit per unit, by kind of work."""
        return self.ownership.rates.model_dump()
