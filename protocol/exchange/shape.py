"""What the contributions of a round look like: how many blobs, of which layouts, how large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from artel.protocol import assignment
from artel.protocol.exchange import codec, parts, pseudogradient
from artel.protocol.exchange.codec import Codec
from artel.protocol.exchange.parts import Part
from artel.protocol.run_config import RunConfig
from artel.protocol.state import Layout


@dataclass(frozen=True)
class Shape:
    """The fragment that a round exchanges, and the slices of it.

    ``slices`` is empty in a ``gather`` round: a contribution is then one blob of the whole
    fragment. In a ``sharded`` one it is an index and a blob for each slice.
    """

    codec: Codec
    part: Part
    slices: tuple[Part, ...]

    @classmethod
    def of(cls, config: RunConfig, layout: Layout, round: int, members: int) -> Shape:
        """The shape of a round.

        :param members: of the attempt, at least one
        """
        part = parts.fragment(layout, config.exchange.fragments, round)
        sharded = assignment.Work.of(config).topology_of(members) == "sharded"
        count = assignment.slices_of(config.exchange, members)
        slices = tuple(parts.cut(part, count)) if sharded else ()
        return cls(codec.of(config.exchange), part, slices)

    @property
    def blobs(self) -> int:
        """How many blobs a contribution consists of."""
        return len(self.slices) + 1

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Most bytes of a contribution's, or of the aggregate's, blob for each slice."""
        return tuple(map(self._most, self.slices))

    @cached_property
    def largest(self) -> int:
        """Most bytes of one blob."""
        if not self.slices:
            return self._most(self.part)
        return max(self.index_bytes, *self.sizes)

    @property
    def total(self) -> int:
        """Most bytes of a whole contribution."""
        if not self.slices:
            return self._most(self.part)
        return self.index_bytes + sum(self.sizes)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index of a sharded contribution."""
        return pseudogradient.index_bytes(len(self.slices))

    def _most(self, part: Part) -> int:
        return pseudogradient.max_blob_bytes(part.layout, self.codec)


def largest_contribution(config: RunConfig, layout: Layout) -> int:
    """Most bytes of a contribution to any round of a run."""
    sizes = {1, min(assignment.GATHER_MEMBERS, config.rounds.max_nodes), config.rounds.max_nodes}
    fragments = range(config.exchange.fragments)
    return max(
        Shape.of(config, layout, number, members).total for number in fragments for members in sizes
    )
