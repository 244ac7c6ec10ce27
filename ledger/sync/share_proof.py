"""One account's share without the history: a signed state's credit root, and the pages below it.

What it rests on: the coordinator signed the tree head and the state, the nodes that computed the
state signed its credit root (they refuse another than that of their own fold), and witnesses
cosigned the head. What it does not show: that the fold counted this entry, that most of the
accepted nodes signed it, and that there is no newer one. Whoever replays the ledger knows that.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from artel.ledger.entries.credit_map import CreditMap, Credits, look_up
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.state_agreed import StateAgreed
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.reader import LedgerReader
from artel.ledger.sync import offline
from artel.ledger.sync.offline import Proven
from artel.ledger.sync.source import CREDIT_PATH, NotFound, TileSource, page_path
from artel.ledger.tlog.note import decode_base64, encode_base64
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, DecodeError


@dataclass(frozen=True)
class AgreedCredits:
    """A state that was agreed on, proven to be an entry of a signed tree."""

    body: StateAgreed
    proven: Proven
    leaf: bytes

    @property
    def nodes(self) -> int:
        """How many nodes signed it."""
        genesis, entry = self.proven.genesis, self.proven.entry
        assert genesis is not None
        assert entry is not None
        return len(entry.signers - set(genesis.coordinators))


@dataclass(frozen=True)
class ProvenShare:
    """What an account had when the round before the state was closed."""

    agreed: AgreedCredits
    credits: Credits | None
    """None: there is no such account."""
    total: Credits
    """Of all accounts."""


def prove_share(source: TileSource, account: str, run: str = "") -> ProvenShare:
    """What an account has by the newest state that a source shows.

    :param account: its name, 64 hex digits
    :param run: run id that it must be of; "" takes the source's word
    :raises CheckFailed: what is shown does not hold
    :raises NotFound: no state is agreed yet, or the source serves no credit
    :raises Unreachable: the source does not answer
    """
    agreed = read_agreed(source.get(CREDIT_PATH), run)
    try:
        found = look_up(agreed.body.credits, account, lambda name: source.get(page_path(name)))
    except NotFound:  # another state was agreed on meanwhile
        agreed = read_agreed(source.get(CREDIT_PATH), run)
        found = look_up(agreed.body.credits, account, lambda name: source.get(page_path(name)))
    return ProvenShare(agreed, found.credits, found.total)


def read_agreed(data: bytes, run: str = "") -> AgreedCredits:
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
    if entry is None or genesis is None or not isinstance(entry.body, StateAgreed):
        raise CheckFailed(f"{CREDIT_PATH} does not show an agreed state of a run")
    by_coordinator = entry.signers and set(entry.envelope.signers) & set(genesis.coordinators)
    if entry.body.run != genesis.run or not by_coordinator:
        raise CheckFailed(f"the state in {CREDIT_PATH} is not signed by the run's coordinator")
    return AgreedCredits(entry.body, proven, leaf)


class CreditFiles:
    """What a home serves of it: the newest agreed state, and the pages of the newest maps."""

    def __init__(
        self, store: LedgerReader, heads: HeadStore | None, state: Callable[[], FoldState]
    ) -> None:
        self._store, self._heads, self._state = store, heads, state
        self._maps: deque[CreditMap] = deque(maxlen=2)  # for readers who are at the one before

    def get(self, path: str) -> bytes:
        """The content at a path.

        :raises NotFound: there is nothing
        """
        state = self._state()
        if not state.agreed:
            raise NotFound("no state is agreed yet: nobody has credit")
        if state.agreed_credits not in self._maps:
            self._maps.append(state.agreed_credits)
        if path == CREDIT_PATH:
            return self._newest(state)
        for known in tuple(self._maps):
            page = known.pages.get(path.rpartition("/")[2])
            if page is not None:
                return page.data
        raise NotFound(f"there is no {path[:100]} here")

    def _newest(self, state: FoldState) -> bytes:
        store = self._store
        notes = (*finality.kept_notes(self._heads, state), store.latest_note)
        standing = finality.of_notes(notes, store, state)
        proof = offline.prove(store, standing, state.agreed).encode()
        leaf = store.leaf(state.agreed)
        document = leaf.document.decode() if isinstance(leaf, Leaf) else ""
        shown = {"document": document, "entry": encode_base64(leaf), "proof": proof}
        return json.dumps(shown).encode()
