"""A ledger as its readers see it: the log, the fold over it, and how much of that is final.

:mod:`ledger.sync.client` makes one, of a home or of whoever holds the ledger elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.entries import entry_id
from artel.ledger.entries.evidence import SplitView, check
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.split_seen import signers_of
from artel.ledger.fold import history, labels
from artel.ledger.fold.history import History
from artel.ledger.store import finality
from artel.ledger.store.finality import Finality
from artel.ledger.store.published import kept_of
from artel.ledger.sync.source import Holder
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import time_of
from artel.protocol.errors import CheckFailed, DecodeError, Unreachable, UsageError

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore
    from artel.ledger.store.reader import LedgerReader
    from artel.protocol.dsse import Envelope

SUBMITTED_WAIT_S = 20.0
SUBMITTED_POLL_S = 0.5


@dataclass(frozen=True)
class Cosigner:
    """A node that cosigned a tree head at ``time`` (POSIX seconds) for its account."""

    account: str
    node: str
    time: int


@dataclass
class LedgerView:
    """One ledger as of one checkpoint. Make one with :mod:`ledger.sync.client`."""

    log: LedgerReader
    where: str
    """What a person wrote to get here."""
    holder: Holder | None = None
    home: Path | None = None
    notes: list[str] = field(default_factory=list)
    """Tree heads that a holder showed, not verified yet."""
    heads: HeadStore | None = None
    """The tree heads with cosignatures that a home keeps."""
    aliases: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Account to (alias, team), by what the holder says."""
    evidence: list[dict[str, Any]] = field(default_factory=list)
    """Of split views, as the holder has it; not verified, see :attr:`conflicts`."""
    trust: str = ""
    """What is taken on trust here, in words; "" when nothing is."""
    seen: int = 0
    """Size of a newer checkpoint that was read here before, if this one is behind it."""

    # --- the fold ---------------------------------------------------------------------------------

    @cached_property
    def history(self) -> History:
        """What happened in it; computed only where it is not stored with the ledger.

        :raises CheckFailed: when an entry does not decode, or the manifest is not its organiser's
        """
        found = history.read(self.log)
        if self.log.size and not found.state.run:
            raise CheckFailed("the manifest is not signed by its organiser")
        return found

    @property
    def state(self) -> FoldState:
        """The fold over all entries; raises as :attr:`history` does."""
        return self.history.state

    def as_of(self, size: int | None) -> FoldState:
        """The fold over the first ``size`` entries, or all; raises as :attr:`history` does.

        :raises UsageError: when there are fewer
        """
        if size is None or size == self.log.size:
            return self.state
        if size > self.log.size:
            raise UsageError(f"the ledger has {self.log.size} entries, not {size}")
        return history.read(self.log, size).state

    # --- final or pending -------------------------------------------------------------------------

    @cached_property
    def finality(self) -> Finality:
        """How much of this is final, by tree heads that are verified here.

        :raises CheckFailed: when one of them is not of this ledger
        """
        if not self.notes:
            return finality.of_home(self.log, self.heads, self.state)
        try:
            return finality.of_notes(self.notes, self.log, self.state)
        except DecodeError as error:
            raise CheckFailed(f"{self.where}: {error.message}") from None

    @property
    def certified_note(self) -> str:
        """The newest certified head, with the lines that were verified; "" when there is none."""
        return self.finality.certified

    @property
    def final_size(self) -> int:
        """Entries before this index are final."""
        return self.finality.size

    @property
    def needed(self) -> int:
        """Accounts that have to cosign a tree head; 0: nothing is ever final."""
        return finality.needed(self.state)

    def witnesses(self) -> list[Cosigner]:
        """Who cosigned the newest certified tree head, or else the newest that anybody cosigned."""
        found = self.finality
        text = found.certified or found.cosigned
        lines = finality.cosigners(note.parse(text), self.state.nodes) if text else {}
        return [
            Cosigner(account, node, time_of(lines[node]) or 0)
            for account, nodes in found.seats.items()
            for node in nodes
        ]

    @property
    def label(self) -> str:
        """What may honestly be said about the witnesses, in one line."""
        return self.trust_in_witnesses.label

    @property
    def trust_in_witnesses(self) -> labels.Trust:
        """How many witnesses there could be, and what they can and cannot do."""
        return finality.trust(self.state)

    @property
    def conflicts(self) -> list[dict[str, Any]]:
        """Evidence that a key of this run has signed two histories, each piece verified."""
        proven = []
        for item in self.evidence:
            try:
                split = SplitView.from_dict(item)
                check(split, signers_of(self.state, split))
            except (CheckFailed, DecodeError):
                continue
            proven.append(item)
        return proven

    # --- handing in -------------------------------------------------------------------------------

    def submit(self, envelope: Envelope) -> tuple[int, str]:
        """Hand in an entry; returns its index and a checkpoint that covers it.

        :raises Refused: when it is not taken
        :raises Unreachable: when nobody answers, or it does not appear in the ledger in time
        :raises UsageError: when nobody is known who could take it
        """
        leaf = envelope.encode()
        with self._taker() as holder:
            holder.send("submit", self.state.run, leaf)
            known = self.log.index_of(entry_id(leaf))
            if known is not None:
                return known, self.log.latest_note
            return self._awaited(holder, entry_id(leaf))

    def set_alias(self, envelope: Envelope) -> None:
        """Hand in a wish to be shown under a name; raises like :meth:`submit`."""
        with self._taker() as holder:
            holder.send("alias", self.state.run, envelope.encode())

    @contextmanager
    def _taker(self) -> Iterator[Holder]:
        if self.holder is not None:
            yield self.holder
            return
        from artel.ledger.sync.lightnode import PeerHolder
        from artel.protocol.invite import Invite

        try:
            invite = Invite.decode(((self.home or Path()) / "invite").read_text("utf-8"))
        except (OSError, UnicodeError):
            raise UsageError(
                f"{self.home} has no invite, so nobody is known who could take this",
                "add --from INVITE or --from http://HOST:PORT",
            ) from None
        if self.log.size and invite.run != self.state.run:
            raise UsageError("the invite in this home is of another run", "add --from INVITE")
        holder = PeerHolder(invite.peers)
        try:
            yield holder
        finally:
            holder.close()

    def _awaited(self, holder: Holder, entry: str) -> tuple[int, str]:
        """Wait until an entry that was handed in is in the ledger: a node passes it on."""
        from artel.ledger.sync.signed_tree import offered

        deadline = time.monotonic() + SUBMITTED_WAIT_S
        start = self.log.size
        while time.monotonic() < deadline:
            offer = offered(holder, run=self.state.run)
            size = kept_of(parse_checkpoint(self.log.latest_note), offer.head.terms)
            if offer.head.size >= size and offer.tree.root_at(size) != self.log.root_at(size):
                raise CheckFailed(
                    f"{offer.name} shows another history than a moment ago",
                    "see which: artel ledger compare URL OTHER-URL",
                )
            start = min(start, size)  # a term that begins meanwhile takes something back
            for index, leaf in enumerate(offer.tree.leaves(start), start):
                if entry_id(leaf) == entry:
                    return index, offer.head.note
            time.sleep(SUBMITTED_POLL_S)
        raise Unreachable(
            f"the peer passed it on, but it is not in the ledger after {SUBMITTED_WAIT_S:.0f} s",
            "look for it later with artel ledger log; to be sure, hand it in at the coordinator",
        )
