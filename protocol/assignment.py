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

**Rounds.** A round takes the next ``members × H × batch`` positions from the cursor; the member of
rank r (peer ids ascending) gets the r-th equal part. A round never straddles two epochs, or the
second permutation could hand out a window that the first one already gave in this round: a round
that does not fit into the rest of its epoch starts at the next one (:func:`round_start`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import CheckFailed, UsageError
from protocol.manifest import Manifest, RunConfig

FEISTEL_ROUNDS = 8
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
    data = manifest.config.data
    return Split(
        manifest.data.train.tokens,
        data.shard_tokens,
        data.seq_len,
        data.span_windows,
    )


def validation_split(manifest: Manifest) -> Split:
    """The shape of a run's validation split; windows are drawn one by one."""
    data = manifest.config.data
    return Split(manifest.data.validation.tokens, data.shard_tokens, data.seq_len, 1)


def windows_per_member(config: RunConfig) -> int:
    """Windows that every member of a round trains on: H × batch."""
    return config.rounds.inner_steps * config.optimizer.batch_size


def assigned_tokens(config: RunConfig) -> int:
    """Tokens that every member of a round trains on: H × batch × seq_len. The unit of credit."""
    return windows_per_member(config) * config.data.seq_len


def require_capacity(split: Split, config: RunConfig) -> None:
    """Check that an epoch holds at least one round with the most members allowed.

    :raises UsageError: when it does not, since windows would repeat within a round
    """
    rounds, batch = config.rounds, config.optimizer.batch_size
    needed = rounds.max_nodes * windows_per_member(config)
    if needed > split.windows:
        raise UsageError(
            f"the data holds {split.windows:,} windows of {split.seq_len} tokens, but a round of "
            f"{rounds.max_nodes} nodes × {rounds.inner_steps} steps × {batch} sequences takes "
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


def next_cursor(split: Split, cursor: int, members: int, config: RunConfig) -> int:
    """Cursor behind a round of ``members`` members that began at ``cursor``."""
    windows = members * windows_per_member(config)
    return round_start(split, cursor, windows) + windows


def epoch_of(split: Split, cursor: int) -> int:
    """Epoch (from 0) that a position lies in."""
    return cursor // split.windows


def assign(
    seed: int,
    split: Split,
    cursor: int,
    members: Sequence[str],
    node: str,
    *,
    inner_steps: int,
    batch_size: int,
) -> list[WindowRef]:
    """The windows of ``node`` in a round, in training order.

    Inner step h trains on ``result[h * batch_size : (h + 1) * batch_size]``. The windows of one
    step lie ``inner_steps`` positions apart, so that a batch mixes texts instead of reading one.

    :param members: peer ids of the round, ascending
    :returns: ``inner_steps * batch_size`` windows; no other member of the round has any of them
    :raises CheckFailed: when ``node`` is no member or ``members`` is not ascending
    :raises UsageError: when the round takes more windows than an epoch holds
    """
    if list(members) != sorted(set(members)):
        raise CheckFailed("the members of a round must be ascending and distinct")
    if node not in members:
        raise CheckFailed(f"{node} is not a member of the round")
    count = inner_steps * batch_size
    first = round_start(split, cursor, count * len(members)) + members.index(node) * count
    mine = windows_at(seed, split, first, count)
    return [mine[b * inner_steps + h] for h in range(inner_steps) for b in range(batch_size)]


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
