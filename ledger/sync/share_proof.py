"""One account's share without the history: a signed credit root, and the pages below it.

An agreed state names the root, the closing of the run, or going back to a state. What it rests on:
the coordinator signed the tree head and the entry; of a state, the nodes that computed it signed
its credit root too (they refuse another than that of their own fold). What it does not show: that
these and the keys that cosigned the head are of nodes of the run, that the fold counted this entry,
that most of the accepted nodes signed it, and that there is no newer one; and of a later term, that
those who sealed the term before were its electors. Whoever replays the ledger knows that.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from artel.ledger.entries.credit_map import CreditMap, Credits, look_up
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.rolled_back import RolledBack
from artel.ledger.entries.kinds.run_closed import RunClosed
from artel.ledger.entries.kinds.state_agreed import StateAgreed
from artel.ledger.store.finality import Finality
from artel.ledger.store.reader import LedgerReader
from artel.ledger.sync import offline
from artel.ledger.sync.offline import Proven
from artel.ledger.sync.source import CREDIT_PATH, NotFound, TileSource, page_path
from artel.ledger.tlog.note import decode_base64, encode_base64
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, DecodeError


@dataclass(frozen=True)
class SignedRoot:
    """An entry that names a credit root, proven to be in a signed tree."""

    body: StateAgreed | RunClosed | RolledBack
    proven: Proven
    leaf: bytes

    @property
    def closing(self) -> int:
        """Which closing of the run names it; 0: a state does."""
        return self.body.closing if isinstance(self.body, RunClosed) else 0

    @property
    def round(self) -> int:
        """The newest round whose state the run had then; -1 when it went back to the first one."""
        named = self.body.state if isinstance(self.body, RolledBack) else self.body.round
        return named - 1

    @property
    def nodes(self) -> int:
        """How many nodes signed it; 0 of a closing and of going back: the coordinator's alone."""
        assert self.proven.entry is not None
        return len(self.proven.entry.signers - {self.proven.leader})


@dataclass(frozen=True)
class ProvenShare:
    """What an account had by a credit root."""

    root: SignedRoot
    credits: Credits | None
    """None: there is no such account."""
    total: Credits
    """Of all accounts."""


def prove_share(source: TileSource, account: str, run: str = "") -> ProvenShare:
    """What an account has by the newest credit root that a source shows.

    :param account: its name, 64 hex digits
    :param run: run id that it must be of; "" takes the source's word
    :raises CheckFailed: what is shown does not hold
    :raises NotFound: no state is agreed yet, or the source serves no credit
    :raises Unreachable: the source does not answer
    """
    root = read_root(source.get(CREDIT_PATH), run)
    try:
        found = look_up(root.body.credits, account, lambda name: source.get(page_path(name)))
    except NotFound:  # there is a newer one meanwhile
        root = read_root(source.get(CREDIT_PATH), run)
        found = look_up(root.body.credits, account, lambda name: source.get(page_path(name)))
    return ProvenShare(root, found.credits, found.total)


def read_root(data: bytes, run: str = "") -> SignedRoot:
    """Check what a source shows at :data:`CREDIT_PATH`.

    :raises CheckFailed: it does not hold
    """
    try:
        value = json.loads(data)
        bare, proof = decode_base64(value["entry"]), value["proof"].encode()
        leaf = Leaf(bare, value["document"].encode())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, DecodeError):
        raise CheckFailed(f"{CREDIT_PATH} is not a proof with its entry") from None
    proven = offline.verify(proof, leaf, run=run)
    entry, genesis = proven.entry, proven.genesis
    body = entry.body if entry is not None else None
    if (
        entry is None
        or genesis is None
        or not isinstance(body, StateAgreed | RunClosed | RolledBack)
    ):
        raise CheckFailed(f"{CREDIT_PATH} does not show an entry that names a credit root")
    by_leader = entry.signers and proven.leader in entry.envelope.signers
    if body.run != genesis.run or not by_leader:
        raise CheckFailed(f"the entry in {CREDIT_PATH} is not signed by the run's coordinator")
    found = SignedRoot(body, proven, leaf)
    if isinstance(body, StateAgreed) and not found.nodes:
        raise CheckFailed(f"the state in {CREDIT_PATH} is signed by no node")
    return found


class CreditFiles:
    """What a home serves of it: the newest credit root, and the pages of the newest maps."""

    def __init__(
        self,
        store: LedgerReader,
        state: Callable[[], FoldState],
        final: Callable[[FoldState], Finality],
    ) -> None:
        self._store, self._state, self._final = store, state, final
        self._maps: deque[CreditMap] = deque(maxlen=2)  # for readers who are at the one before

    def get(self, path: str) -> bytes:
        """The content at a path.

        :raises NotFound: there is nothing
        """
        state = self._state()
        if not state.rooted_by:
            raise NotFound("no state is agreed yet: nobody has credit")
        if state.rooted not in self._maps:
            self._maps.append(state.rooted)
        if path == CREDIT_PATH:
            return self._newest(state)
        for known in tuple(self._maps):
            page = known.pages.get(path.rpartition("/")[2])
            if page is not None:
                return page.data
        raise NotFound(f"there is no {path[:100]} here")

    def _newest(self, state: FoldState) -> bytes:
        store = self._store
        proof = offline.prove(store, self._final(state), state.rooted_by).encode()
        leaf = store.leaf(state.rooted_by)
        document = leaf.document.decode() if isinstance(leaf, Leaf) else ""
        shown = {"document": document, "entry": encode_base64(leaf), "proof": proof}
        return json.dumps(shown).encode()
