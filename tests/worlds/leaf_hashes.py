"""A tree in memory, from all its leaf hashes: what the product's trees are held against."""

from __future__ import annotations

from collections.abc import Sequence

from artel.ledger.tlog.proof import HashReader
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


def consistency(tree: HashReader, old: int, new: int) -> list[bytes]:
    """The proof that the tree of ``new`` leaves begins with that of ``old``, which witnesses ask
    for (RFC 6962, section 2.1.2); empty when ``old`` is 0 or ``new``."""
    return _subproof(tree, 0, new, old) if old else []


def _subproof(tree: HashReader, start: int, end: int, old: int) -> list[bytes]:
    if end == old:
        return [_over(tree, start, end)] if start else []
    middle = _middle(start, end)
    if old <= middle:
        return [*_subproof(tree, start, middle, old), _over(tree, middle, end)]
    return [*_subproof(tree, middle, end, old), _over(tree, start, middle)]


def _over(tree: HashReader, start: int, end: int) -> bytes:
    level = (end - start).bit_length() - 1
    if end - start == 1 << level:
        return tree.subtree(level, start >> level)
    middle = _middle(start, end)
    return node_hash(_over(tree, start, middle), _over(tree, middle, end))


def _middle(start: int, end: int) -> int:
    """Where RFC 6962 splits a tree: at the largest power of two below the count."""
    return start + (1 << (end - start - 1).bit_length() - 1)
