"""What every page needs: the history as of one entry, the foot, and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.words import short_key
from artel.ledger.fold.dates import Dates
from artel.ledger.fold.history import History
from artel.ledger.store import finality
from artel.ledger.store.finality import Finality
from artel.ledger.store.reader import LedgerReader
from artel.ledger.tlog.checkpoint import verifier_keys


@dataclass(frozen=True)
class Context:
    """Made for one page; ``page`` in the templates.

    :param visited: how the reader reaches this server, without a slash at the end; "" where they
        call it by a name that is not its own
    """

    store: LedgerReader
    history: History
    finality: Finality
    visited: str
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def state(self) -> FoldState:
        return self.history.state

    @property
    def url(self) -> str:
        """This server, as the commands on a page name it."""
        return self.visited or "http://HOST:PORT"

    @property
    def name(self) -> str:
        """The run's name."""
        return self.store.genesis.name or short_key(self.state.run)

    @property
    def vkeys(self) -> list[str]:
        """Verifier keys of the log in its present term."""
        term = self.state.term
        return [each.encode() for each in verifier_keys(self.store.origin, [term.leader])]

    @property
    def newest_round(self) -> int:
        """The round that is under way or comes next; the last one of a finished run."""
        last = self.state.founded.total - 1 if self.state.rules is not None else 0
        return min(self.state.round, last)

    @cached_property
    def standing(self) -> dict[str, Any]:
        """How much is final, and who says so; for the foot of every page."""
        return self.finality.facts(self.state)

    @cached_property
    def dates(self) -> Dates:
        """By when entries were there."""
        return Dates(self.history)

    @property
    def trust(self) -> str:
        """What the witnesses are worth."""
        return finality.trust(self.state).label

    @property
    def led(self) -> str:
        """Who adds entries now, and since when."""
        term = self.state.term
        since = f" since entry {term.begins:,}" if term.number else ""
        chosen = "" if term.leader in self.state.coordinators else ", which a node started"
        return f"term {term.number}, led by coordinator {short_key(term.leader)}{chosen}{since}"

    def is_final(self, index: int) -> bool:
        """Whether the entry at ``index`` is."""
        return index < int(self.standing["final"])

    def alias(self, account: str) -> str:
        """The name that an account chose, or ""."""
        return self.aliases.get(account, ("", ""))[0]

    def find(self, entry: str) -> int | None:
        """The index of the entry with this id, when it is in this ledger."""
        index = self.store.index_of(entry)
        return index if index is not None and index < self.history.size else None
