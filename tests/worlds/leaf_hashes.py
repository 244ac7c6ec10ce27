"""A tree in memory, from all its leaf hashes: what the product's trees are held against."""

from __future__ import annotations

from collections.abc import Sequence

from artel.protocol.errors import UsageError
from artel.protocol.merkle import node_hash


class LeafHashes:
    """A tree in memory, over leaf hashes in order; it may grow on the right."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self.hashes = hashes
        self._nodes: dict[tuple[int, int], bytes] = {}

    def subtree(self, level: int, index: int) -> bytes:
        if level < 0 or index < 0 or (index + 1) << level > len(self.hashes):
            raise UsageError(f"subtree {index} of 2^{level} leaves is outside the tree")
        if level == 0:
            return self.hashes[index]
        known = self._nodes.get((level, index))
        if known is None:
            left = self.subtree(level - 1, 2 * index)
            known = node_hash(left, self.subtree(level - 1, 2 * index + 1))
            self._nodes[level, index] = known
        return known
