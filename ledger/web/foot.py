"""How much of a ledger is final, and who says so, for the foot of every page.

What is final is worked out in :mod:`ledger.store.finality`; here it is only put beside the number
of entries that a page speaks of.
"""

from __future__ import annotations

from dataclasses import dataclass

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold import labels
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.reader import LedgerReader


@dataclass(frozen=True)
class Foot:
    """What a page speaks of, and how much of it is final.

    ``held`` is how many entries this home has, ``size`` how many of them the page has looked at.
    Entries before ``final`` are final; ``witnesses`` are the accounts that say so (as many as
    ``wanted``, or more), or those that cosigned the newest head when nothing is final yet.
    """

    size: int
    held: int
    final: int
    wanted: int
    witnesses: tuple[str, ...]
    head: int
    """Entries under the newest final tree head whose cosignatures are kept here; the ledger itself
    may record a newer one."""
    policy: str
    """What ``artel ledger verify`` is told to see that a proof under that head is final."""
    trust: str
    """What the witnesses are worth."""
    convicted: tuple[str, ...]
    """Keys that provably signed two histories."""

    def is_final(self, index: int) -> bool:
        """Whether the entry at ``index`` is."""
        return index < self.final

    @property
    def label(self) -> str:
        """Final or pending, up to where, and as of which checkpoint."""
        said = labels.finality(self.final, self.size, self.wanted)
        if self.convicted:
            return f"{said}; somebody provably signed two histories, see the split_seen entries"
        return said


def foot(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> Foot:
    """How the ledger stands by this fold; blocks for a moment."""
    found = finality.of_heads(heads, state)
    return Foot(
        size=state.size,
        held=store.size,
        final=min(found.size, state.size),
        wanted=found.needed,
        # Without a single note the ledger itself says who cosigned what it records as final.
        witnesses=tuple(sorted(found.seats if found.cosigned else state.cosigners)),
        head=found.head,
        policy=" ".join(found.policy),
        trust=finality.trust(state).label,
        convicted=tuple(state.convicted),
    )
