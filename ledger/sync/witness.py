"""A witness: cosigns a log's checkpoints as long as each begins with the one before.

Spec: https://c2sp.org/tlog-witness@v1.0.0, but for the proof: a node holds the whole tree. A
witness remembers one tree head for each log and never goes back or sideways.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, cosign
from artel.ledger.tlog.note import SignatureLine, VerifierKey
from artel.ledger.tlog.proof import begins_with
from artel.protocol.errors import CheckFailed
from artel.protocol.identity import Identity
from artel.protocol.merkle import EMPTY_ROOT, HashReader

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore


class Witness:
    """Cosigns for the logs that ``keys_of`` knows.

    :param keys_of: gives the keys that are trusted for an origin; none for a log that is not
        witnessed here, or not any more
    :param heads: belongs to this witness key alone; to lose it is to forget what was cosigned
    :param name: cosigner name; an identity has one, as the spec forbids one key for several
    :param clock: POSIX seconds
    """

    def __init__(
        self,
        heads: HeadStore,
        identity: Identity,
        name: str,
        keys_of: Callable[[str], Sequence[VerifierKey]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = CosignerKey(name, identity.public)
        self._heads = heads
        self._identity = identity
        self._keys_of = keys_of
        self._clock = clock

    def cosign(self, signed: str | bytes, reader: HashReader) -> SignatureLine:
        """Cosign a checkpoint of a log whose whole tree is at hand.

        :param reader: this node's own copy, every entry of which it has verified
        :raises DecodeError: when the note is malformed
        :raises CheckFailed: when the log or its key is not known here, the root is not the one of
            this copy, or the tree does not extend what this node has cosigned before
        """
        checkpoint = parse_checkpoint(signed)
        keys = self._keys_of(checkpoint.origin)
        if not keys:
            raise CheckFailed(f"{checkpoint.origin[:120]!r} is not a log that is witnessed here")
        text = note.open_note(signed, keys).text
        size, root = self._heads.witnessed(checkpoint.origin) or (0, EMPTY_ROOT)
        if checkpoint.size < size:
            raise CheckFailed(f"a tree of {size} entries was cosigned before this one")
        if not begins_with(reader, size, root):
            raise CheckFailed(
                f"the copy here does not begin with the tree of {size} entries that was cosigned",
                "keep this home as it is: the log has shown two histories",
            )
        if not begins_with(reader, checkpoint.size, checkpoint.root):
            raise CheckFailed(
                f"the checkpoint's root is not that of the {checkpoint.size} entries here",
                "keep this home as it is: the log has shown two histories",
            )
        if not self._heads.advance(checkpoint.origin, size, checkpoint.size, checkpoint.root):
            raise CheckFailed(
                "another checkpoint was cosigned in the meantime, or its term is sealed",
                "try again",
            )
        return cosign(self._identity, self.key.name, text, int(self._clock()))
