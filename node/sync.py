"""State sync: bring the agreed model state to this node, from whoever has it.

The state root to fetch comes from the ledger, where a majority of contributors signed it; every
chunk is checked against it, so it does not matter who gives the bytes.

A node that holds an older agreed state can instead repeat the rounds that it has missed, from
their contributions: a *delta*, worth it when these take fewer bytes than the state. Its outcome is
checked against the same root.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from artel.ledger.entries import audits
from artel.node import holders
from artel.node.closed_rounds import ClosedRound
from artel.node.session import Session
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import SetState
from artel.protocol.errors import CheckFailed
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.net import delivery
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.delivery import Wanted

log = logging.getLogger("artel.node")

KEEP_STATES = 2
"""The present state and the one before it, for the case that a round is rolled back."""
KEEP_LONGER = 4
"""States before those that are kept where the quota has room for them, at least: by the time that
most have measured a state from which training diverges, two or three came of it."""


class States:
    """The model states in this node's store; knows which one is current.

    ``round`` and ``root`` name the current state; -1 and "" before there is one.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._blobs = session, session.blobs
        self._held: list[str] = []  # roots in the store, newest last
        self._spared = set[str]()  # roots of states that stay, however old they are
        self._fetching = ""  # root of the state that was last asked of others
        self.round = -1
        self.root = ""

    @property
    def path(self) -> Path:
        """File of the current state."""
        path = self._blobs.path(self.root)
        if path is None:
            raise CheckFailed(
                "the current state has vanished from the disk", "it is fetched again at a restart"
            )
        return path

    async def obtain(
        self, root: str, others: list[str], progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """The file of the state with this root: from the store, or fetched.

        :param others: peers that may have it, to be asked after the nodes that the DHT knows; the
            coordinator comes last
        :raises Unreachable: nobody can give it
        """
        path = self._blobs.path(root)
        if path is None:
            if self._fetching not in ("", root):  # nobody needs it any more
                self._blobs.resume(self._fetching).unlink(missing_ok=True)
            self._fetching = root
            found = await holders.records(self._session.host, self._session.run)
            # A node holds the state before the one that it names, too.
            asked = holders.ranked(found, root, others, lambda record: record.state == root)
            emit(log, "state.fetching", root=root[:12], holders=len(asked))
            wanted = Wanted(root, asked, self._session.state_bytes, "state")
            path = await delivery.fetch(self._session.host, self._blobs, wanted, progress)
        return path

    async def switch(self, path: Path, round: int, root: str) -> None:
        """Make a state the current one, in the trainer and in the books; must not be interrupted,
        or they would speak of different states."""
        try:
            await self._session.trainer.do(SetState(path, root))
        except TrainerError as error:
            if error.code == "bad_state":  # torn by a power cut: the next try fetches it
                self._blobs.delete(root)
            raise
        self.become(round, root)

    def become(self, round: int, root: str) -> None:
        """Make a state in the store the current one; older ones than the last are deleted."""
        self.round, self.root = round, root
        self._blobs.label("state", root)
        if root in self._held:
            self._held.remove(root)
        self._held.append(root)
        self._blobs.pin(root)
        old = [held for held in self._held if held not in self._spared]
        self._blobs.unpin(*old[:-KEEP_STATES])
        for gone in old[: -KEEP_STATES - self._longer]:
            self._held.remove(gone)
            self._blobs.delete(gone)

    def spare(self, root: str) -> None:
        """Keep a state: one that came of it is called wrong, and the run may go back to it."""
        self._spared.add(root)

    def spare_none(self) -> None:
        """Nothing is called wrong any more: old states go again with the next one."""
        self._spared.clear()

    @property
    def _longer(self) -> int:
        """States that are kept longer where the quota has room for them: for auditors, too."""
        rules = self._session.replica.state.rules
        return max(KEEP_LONGER, audits.rounds_kept(rules) if rules is not None else 0)

    def found_on_disk(self, roots: list[str]) -> None:
        """After a start: take note of states of this run that lie in the store already."""
        for root in roots:
            if self._blobs.has(root) and root not in self._held:
                self._held.append(root)
        self._blobs.pin(*self._held[-KEEP_STATES:])

    def newest_held(self, agreed: list[str]) -> int:
        """Number of the newest of these states that lies in the store; -1 when none does."""
        held = (number for number, root in enumerate(agreed) if self._blobs.has(root))
        return max(held, default=-1)


def delta_bytes(missed: Iterable[ClosedRound], blobs: BlobStore) -> int:
    """Bytes to fetch in order to repeat these rounds; what is in the store already is free."""
    total = 0
    for closed in missed:
        if closed.aggregates:
            total += len(closed.shown) * pseudogradient.index_bytes(len(closed.aggregates))
            total += sum(
                made.size for made in closed.aggregates.values() if not blobs.has(made.blob)
            )
            # A slice in doubt is computed again from all that was sent for it.
            each = sum(body.size for body in closed.shown.values()) // len(closed.aggregates)
            total += each * len(closed.accused)
        else:
            total += sum(body.size for body in closed.shown.values() if not blobs.has(body.blob))
    return total
