"""Who trains on what: pure functions of the run's seed, the split's shape and the round's members.

**Windows.** Window *i* of a shard is tokens ``[i·L, i·L + L]``, ``L`` = seq_len: L + 1 tokens, of
which the first L are inputs and the last L are targets. Neighbours share one token, so every token
is a target once. A shard of T tokens holds ``floor((T - 1) / L)`` windows; none crosses a shard.

**Spans.** G = span_windows consecutive windows are one span and stay together, so that a member
touches few shards. A shard holds ``floor(windows / G)`` spans; the rest of it, less than one span,
is not trained on. Spans are numbered through the shards in order.

**Order.** The stream of windows is infinite: *position* p lies in epoch ``e = floor(p / W)`` (W
windows in all spans), and within it in the span ``π_e(floor((p mod W) / G))`` at window ``p mod G``
of it. ``π_e`` is a keyed permutation of the n spans that needs no memory::

    key    = SHA-256("artel/epoch/v1\\0" ‖ u64be seed ‖ u64be epoch)
    b      = max(1, ceil(bitlength(n - 1) / 2))             half-width: the domain is 2^(2b) >= n
    F(r,x) = u64be(SHA-256(key ‖ u8 r ‖ u64be x)[0:8]) mod 2^b
    one walk: (left, right) = (x >> b, x mod 2^b); for r = 0..7:
              (left, right) = (right, left XOR F(r, right)); x = left·2^b + right
    π_e(x): walk from x until the result is below n

A balanced Feistel network (Luby and Rackoff 1988) with cycle walking (Black and Rogaway 2002);
eight rounds because small domains mix badly with four.

**Steps.** A member of a round is assigned h inner steps: H = rounds.inner_steps, unless rounds are
time-boxed (rounds.box_s > 0); then h lies between ``ceil(H / 4)`` and ``4 H``. The last ``tail(h)``
of them are trained while the round's exchange is under way and count in the next contribution, the
``head(h)`` before them in this one; with τ = exchange.overlap_steps::

    tail(h) = 0                                             τ = 0, or the round is the last one
                                                            of the run or of a span
    tail(h) = min(h - 1, max(1, floor(τ h / H + 1/2)))      otherwise
    head(h) = h - tail(h)

(Overlap as in Streaming DiLoCo, arXiv 2501.18512.) A contribution may stop early in its head, but
not below ``max(1, ceil(head(h) / 4))`` steps.

**Rounds.** A round takes the next ``sum of h × batch`` positions from the cursor; the member of
rank r (peer ids ascending) gets the stretch behind those of the ranks before it, ``h × batch`` of
them. A round never straddles two epochs, or the second permutation could hand out a window that the
first one already gave in this round: a round that does not fit into the rest of its epoch starts at
the next one (:func:`round_start`).

**Spans of rounds.** With R = rounds.span > 0, everybody's training begins anew in the rounds that R
divides: weights are the agreed state, and nothing else is carried over. In between, a member goes
on only from its own contribution to the round before, with all of that round's tail, if that one
counted; otherwise it begins a span of its own. So a contribution follows from public data: the
states, assignments and contributions of the rounds from the beginning of its span on.

**Slices.** In a sharded round, with the accepted members ascending, slice j is combined by number
``(j + round) mod accepted`` of them and checked by the next one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.run_config import BOX_FACTOR

if TYPE_CHECKING:
    from artel.protocol.manifest import Manifest
    from artel.protocol.run_config import DataSection, ExchangeSection, RunConfig

FEISTEL_ROUNDS = 8
GATHER_MEMBERS = 8
"""Up to this many members everybody fetches everything, unless the manifest says otherwise."""
MAX_SLICES, FEW_SLICES = 1024, 64
"""Of a sharded round, however many members it has; and where a coordinator takes each contribution,
all slices of it one by one."""
Topology = Literal["gather", "sharded"]
_EPOCH = b"artel/epoch/v1\0"


@dataclass(frozen=True, order=True)
class WindowRef:
    """A window: tokens ``offset .. offset + seq_len`` (inclusive) of shard ``shard``."""

    shard: int
    offset: int


@dataclass(frozen=True)
class Split:
    """The shape of a split: all that assignment needs to know of the data."""

    tokens: int
    shard_tokens: int
    seq_len: int
    span_windows: int

    @classmethod
    def of(cls, data: DataSection, tokens: int) -> Split:
        """That of so many tokens to train on."""
        return cls(tokens, data.shard_tokens, data.seq_len, data.span_windows)

    @property
    def shards(self) -> int:
        return -(-self.tokens // self.shard_tokens)

    @property
    def spans(self) -> int:
        """Spans in the split (n)."""
        last = self.tokens - (self.shards - 1) * self.shard_tokens
        return (self.shards - 1) * self._spans_of(self.shard_tokens) + self._spans_of(last)

    @property
    def windows(self) -> int:
        """Windows in an epoch (W)."""
        return self.spans * self.span_windows

    def window(self, span: int, number: int) -> WindowRef:
        """Window ``number`` of a span."""
        shard, local = divmod(span, self._spans_of(self.shard_tokens) or 1)
        if shard >= self.shards:  # only when the full shards hold no span at all
            raise CheckFailed(f"span {span} lies outside the split")
        return WindowRef(shard, (local * self.span_windows + number) * self.seq_len)

    def _spans_of(self, tokens: int) -> int:
        return max(0, tokens - 1) // self.seq_len // self.span_windows


def train_split(manifest: Manifest) -> Split:
    """The shape of a run's training split."""
    return Split.of(manifest.config.data, manifest.data.train.tokens)


def validation_split(manifest: Manifest) -> Split:
    """The shape of a run's validation split; windows are drawn one by one."""
    return replace(Split.of(manifest.config.data, manifest.data.validation.tokens), span_windows=1)


@dataclass(frozen=True)
class Work:
    """The numbers of a manifest that say how much a round asks of its members.

    The formulas are in the module's text.
    """

    total: int
    """Rounds of the run."""
    inner_steps: int
    """H."""
    overlap_steps: int
    """τ."""
    boxed: bool
    """Rounds are time-boxed: members are assigned different numbers of steps."""
    batch_size: int
    seq_len: int
    topology: str
    """auto, gather or sharded."""
    span: int = 0
    """Rounds of a span of rounds; 0: there are none."""

    @classmethod
    def of(cls, config: RunConfig) -> Work:
        """What a run's configuration says."""
        rounds = config.rounds
        return cls(
            total=rounds.total,
            inner_steps=rounds.inner_steps,
            overlap_steps=config.exchange.overlap_steps,
            boxed=rounds.box_s > 0,
            batch_size=config.optimizer.batch_size,
            seq_len=config.data.seq_len,
            topology=config.exchange.topology,
            span=rounds.span,
        )

    def amended(self, total: int) -> Work:
        """That of a run of so many rounds."""
        return self if total == self.total else replace(self, total=total)

    @property
    def least(self) -> int:
        """Fewest steps that a member can be assigned."""
        return -(-self.inner_steps // BOX_FACTOR) if self.boxed else self.inner_steps

    @property
    def lightest(self) -> int:
        """Fewest steps of a member that owes an audit."""
        return -(-self.least // 4)

    @property
    def most(self) -> int:
        """Most steps that a member can be assigned."""
        return self.inner_steps * BOX_FACTOR if self.boxed else self.inner_steps

    def tail(self, round: int, h: int) -> int:
        """Of ``h`` assigned steps, those that count in the next round."""
        last = round >= self.total - 1 or self.begins(round + 1)
        if not self.overlap_steps or last:
            return 0
        rounded = (2 * self.overlap_steps * h + self.inner_steps) // (2 * self.inner_steps)
        return min(h - 1, max(1, rounded))

    def head(self, round: int, h: int) -> int:
        """Of ``h`` assigned steps, those that count in this round."""
        return h - self.tail(round, h)

    def least_head(self, round: int, h: int) -> int:
        """Fewest steps of the head that a contribution can be made of."""
        return max(1, -(-self.head(round, h) // 4))

    def begins(self, round: int) -> bool:
        """Whether a span of everybody begins with ``round``."""
        return self.span > 0 and round % self.span == 0

    def goes_on(self, round: int, before: int | None) -> int | None:
        """The round in which the span began that a member can go on with in ``round``, if any.

        :param before: where the span of its contribution to the round before began; None when it
            had none that counts
        """
        return None if self.begins(round) else before

    def spans(self, round: int, span: int, tail: int, before: int | None, left: int) -> bool:
        """Whether a contribution to ``round``, with ``tail`` steps of the round before, can be of
        the span that began in round ``span``; without spans that number is 0.

        :param before: as in :meth:`goes_on`
        :param left: the steps of the round before that may count in this one
        """
        if not self.span:
            return span == 0
        if span == round:
            return tail == 0
        return span == self.goes_on(round, before) and tail == left

    def windows(self, steps: int) -> int:
        """Windows that so many steps (of one member or of all) train on."""
        return steps * self.batch_size

    def tokens(self, steps: int) -> int:
        """Tokens that so many steps train on: steps × batch × seq_len. The unit of credit."""
        return self.windows(steps) * self.seq_len

    def topology_of(self, members: int) -> Topology:
        """How a round of so many members exchanges its contributions."""
        if self.topology == "auto":
            return "sharded" if members > GATHER_MEMBERS else "gather"
        return "sharded" if self.topology == "sharded" else "gather"


def aggregator(accepted: Sequence[str], round: int, slice: int) -> str:
    """The member that combines a slice for all: ``accepted[(slice + round) mod len(accepted)]``.

    :param accepted: peer ids of the accepted members, ascending
    :raises CheckFailed: when nobody is accepted, or ``accepted`` is not ascending
    """
    _require_ascending(accepted)
    if not accepted:
        raise CheckFailed("a round with nobody accepted has no slices")
    return accepted[(slice + round) % len(accepted)]


def checker(accepted: Sequence[str], round: int, slice: int) -> str | None:
    """The member that recomputes a slice before it signs a state: the one behind its aggregator.

    None when only one member is accepted.

    :raises CheckFailed: as in :func:`aggregator`
    """
    return aggregator(accepted, round, slice + 1) if len(accepted) > 1 else None


def slices_of(exchange: ExchangeSection, members: int) -> int:
    """How many slices a sharded round is to have: one for each member, as far as it may."""
    return min(members, MAX_SLICES if exchange.holders else FEW_SLICES)


def combined_by(accepted: Sequence[str], round: int, slices: int, peer: str) -> range:
    """The slices of ``slices`` whose :func:`aggregator` an accepted member is."""
    return range((accepted.index(peer) - round) % len(accepted), slices, len(accepted))


def checked_by(accepted: Sequence[str], round: int, slices: int, peer: str) -> range:
    """The slices whose :func:`checker` an accepted member is."""
    return combined_by(accepted, round + 1, slices if len(accepted) > 1 else 0, peer)


def holders(committed: Sequence[str], round: int, number: int, count: int) -> list[str]:
    """The members that are given a slice of every contribution before anybody is accepted: its
    aggregator and those behind it, if all that have committed are accepted.

    :param committed: peer ids of the members that have committed, ascending
    :param number: of the slice; the index of a contribution goes to those of its maker's rank
    :param count: how many there are to be; all, where fewer have committed
    :raises CheckFailed: ``committed`` is not ascending
    """
    _require_ascending(committed)
    first = number + round
    return [committed[(first + i) % len(committed)] for i in range(min(count, len(committed)))]


def held_by(committed: Sequence[str], round: int, count: int, peer: str) -> set[int]:
    """Of which numbers a member is one of the :func:`holders`, modulo the number of members."""
    place, members = committed.index(peer) - round, len(committed)
    return {(place - i) % members for i in range(min(count, members))}


def require_capacity(split: Split, config: RunConfig) -> None:
    """Check that an epoch holds at least one round with the most members and steps allowed.

    :raises UsageError: when it does not, since windows would repeat within a round
    """
    rounds, batch = config.rounds, config.optimizer.batch_size
    work = Work.of(config)
    needed = rounds.max_nodes * work.windows(work.most)
    if needed > split.windows:
        boxed = f" (a fast one in rounds of box_s = {rounds.box_s:g})" if work.boxed else ""
        raise UsageError(
            f"the data holds {split.windows:,} windows of {split.seq_len} tokens, but a round of "
            f"{rounds.max_nodes} nodes × {work.most} steps{boxed} × {batch} sequences takes "
            f"{needed:,}",
            "use more text, or lower rounds.max_nodes, rounds.inner_steps, batch_size or seq_len",
        )


def round_start(split: Split, cursor: int, windows: int) -> int:
    """First position of a round that takes ``windows`` windows, at or behind ``cursor``.

    It is the cursor itself, or the start of the next epoch when the round does not fit before it.

    :raises UsageError: when the round takes more windows than an epoch holds
    """
    if windows > split.windows:
        raise UsageError(
            f"a round takes {windows:,} windows, an epoch of the data holds {split.windows:,}",
            "use more text, or fewer nodes, inner steps or sequences",
        )
    position = cursor % split.windows
    return cursor if position + windows <= split.windows else cursor + split.windows - position


def next_cursor(split: Split, cursor: int, steps: int, config: RunConfig) -> int:
    """Cursor behind a round that began at ``cursor``.

    :param steps: of all its members together
    """
    windows = Work.of(config).windows(steps)
    return round_start(split, cursor, windows) + windows


def assign(
    seed: int,
    split: Split,
    cursor: int,
    members: Sequence[str],
    steps: Sequence[int],
    node: str,
    *,
    batch_size: int,
) -> list[WindowRef]:
    """The windows of ``node`` in a round, in training order.

    Inner step i trains on ``result[i * batch_size : (i + 1) * batch_size]``; the head's windows
    come first, the tail's last. The windows of one step lie as many positions apart as the node
    has steps, so that a batch mixes texts instead of reading one.

    :param members: peer ids of the round, ascending
    :param steps: the inner steps of each, in the same order
    :returns: ``steps of the node * batch_size`` windows; no other member of the round has any
    :raises CheckFailed: when ``node`` is no member, ``members`` is not ascending, or ``steps`` does
        not fit it
    :raises UsageError: when the round takes more windows than an epoch holds
    """
    _require_ascending(members)
    if node not in members:
        raise CheckFailed(f"{node} is not a member of the round")
    if len(steps) != len(members) or min(steps) < 1:
        raise CheckFailed("every member of a round needs a number of steps, at least one")
    rank = members.index(node)
    mine = steps[rank]
    start = round_start(split, cursor, sum(steps) * batch_size)
    stretch = windows_at(seed, split, start + sum(steps[:rank]) * batch_size, mine * batch_size)
    return [stretch[b * mine + i] for i in range(mine) for b in range(batch_size)]


def windows_at(seed: int, split: Split, position: int, count: int) -> list[WindowRef]:
    """``count`` windows of the infinite stream, from ``position`` on."""
    found: list[WindowRef] = []
    while len(found) < count:
        epoch, within = divmod(position + len(found), split.windows)
        slot, first = divmod(within, split.span_windows)
        span = permuted(_epoch_key(seed, epoch), split.spans, slot)
        last = min(split.span_windows, first + count - len(found))
        found.extend(split.window(span, number) for number in range(first, last))
    return found


def evaluation_windows(split: Split, count: int) -> list[WindowRef]:
    """At most ``count`` windows of a validation split, evenly spaced, the same for everybody."""
    count = min(count, split.windows)
    return [
        split.window(*divmod(number * split.windows // count, split.span_windows))
        for number in range(count)
    ]


def shards_needed(windows: Iterable[WindowRef]) -> tuple[int, ...]:
    """Numbers of the shards that hold these windows, ascending."""
    return tuple(sorted({window.shard for window in windows}))


def permuted(key: bytes, size: int, index: int) -> int:
    """``π(index)``: a keyed permutation of ``range(size)``, see the module's text."""
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half) - 1
    while True:  # the walk follows a cycle that holds ``index`` itself, so it ends
        left, right = index >> half, index & mask
        for number in range(FEISTEL_ROUNDS):
            digest = hashlib.sha256(key + struct.pack(">BQ", number, right)).digest()
            left, right = right, left ^ (int.from_bytes(digest[:8], "big") & mask)
        index = left << half | right
        if index < size:
            return index


def _epoch_key(seed: int, epoch: int) -> bytes:
    return hashlib.sha256(_EPOCH + struct.pack(">QQ", seed, epoch)).digest()


def _require_ascending(members: Sequence[str]) -> None:
    if any(one >= other for one, other in pairwise(members)):
        raise CheckFailed("the members of a round must be ascending and distinct")
