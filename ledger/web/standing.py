"""How much of a ledger is final, and who says so, for the foot of every page.

What makes a tree head final is in :mod:`ledger.finality`; here it is only put beside the number of
entries that a page speaks of.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger import finality, labels, note
from ledger.accounts import FoldState
from ledger.checkpoint import Checkpoint
from ledger.cosignature import add_lines
from ledger.heads import HeadStore
from ledger.reading import LedgerReader
from protocol.errors import ArtelError


@dataclass(frozen=True)
class Standing:
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
    known: int
    """Accounts that could cosign, because they have a node."""
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

    @property
    def trust(self) -> str:
        """What the witnesses are worth."""
        return labels.Trust(self.wanted, self.known).label


def standing(
    store: LedgerReader, heads: HeadStore | None, state: FoldState, size: int | None = None
) -> Standing:
    """How the ledger stands by this fold; blocks for a moment.

    :param size: entries that are looked at, when they are fewer than the fold has
    """
    rules = state.rules
    signed = finality.newest_final(heads, state) if heads is not None else ""
    final = max(state.final, size_of(signed))
    newest = signed or (heads.newest(1) if heads is not None else "")
    accounts = finality.seats(note.parse(newest), state) if newest else state.cosigners
    shown = state.size if size is None else size
    return Standing(
        size=shown,
        held=store.size,
        final=min(final, shown),
        wanted=rules.witnesses if rules is not None else 0,
        witnesses=tuple(sorted(accounts)),
        head=size_of(signed),
        known=len(set(state.nodes.values())),
        convicted=tuple(state.convicted),
    )


def final_note(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> str:
    """The newest final tree head as a note with all known cosignatures; "" when there is none."""
    found = finality.newest_final(heads, state) if heads is not None else ""
    return _merged(store.note_at(size_of(found)), found) if found else ""


def newest_note(store: LedgerReader, heads: HeadStore | None) -> str:
    """The newest tree head with all known cosignatures; "" for an empty ledger."""
    signed = store.latest_note
    known = heads.note(size_of(signed)) if heads is not None and signed else ""
    return _merged(signed, known)


def size_of(signed: str) -> int:
    """Entries that a note covers; 0 for none."""
    return Checkpoint.parse(note.parse(signed).text).size if signed else 0


def _merged(signed: str, other: str) -> str:
    """The lines of both under one text; the first where they have different texts."""
    if not signed or not other:
        return signed or other
    first, second = note.parse(signed), note.parse(other)
    if first.text != second.text:
        return signed
    try:
        return add_lines(first, second.signatures).encode()
    except ArtelError:  # more lines than a note may have
        return signed
