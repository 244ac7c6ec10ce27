"""What a node gives to a round, as files.

numpy and compiled loops on the CPU only, whatever device trains, so that every node gets the same
bits. Everything here concerns one **part** of the model: the fragment that a round exchanges, or a
slice of it (:mod:`protocol.exchange.parts`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from artel.node.trainer import writing
from artel.node.trainer.channel import coded
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import codec, next_state, parts, pseudogradient
from artel.protocol.exchange.codec import Sparse
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import Part
from artel.protocol.exchange.pseudogradient import Header, IndexItem
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, Vector


@dataclass
class Phases:
    """Seconds spent per phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Add the time of a block to phase ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def feedback(manifest: Manifest, layout: Layout, device: str) -> Feedback | None:
    """The error feedback of a run with a sparse codec, empty; it encodes on ``device``."""
    exchange = manifest.config.exchange
    run_codec = codec.of(exchange, device)
    if isinstance(run_codec, Sparse):
        return Feedback(run_codec, layout, decay=exchange.error_feedback)
    return None


def warm_up(manifest: Manifest, device: str) -> None:
    """Use every compiled loop of the run once, on next to nothing.

    Compiling them takes seconds the first time on a machine, loading them some tenths afterwards;
    the first round should not wait for that.
    """
    settings = manifest.config.exchange
    layout = Layout.of([("chunked", (2 * parts.CHUNK,)), ("small", (64,))])
    vector = np.linspace(-1.0, 1.0, layout.parameters, dtype=np.float32)
    encode(manifest, [parts.whole(layout)], vector, feedback(manifest, layout, device))
    next_state.warm_up(settings)


def encode(
    manifest: Manifest, pieces: Sequence[Part], gradient: Vector, kept: Feedback | None
) -> list[bytes]:
    """Payloads of a pseudo-gradient, one for each of the pieces that it consists of in order.

    :param gradient: of the round's fragment, shape (N,)
    :param kept: the error feedback, which changes unless this fails
    :raises TrainerError: ``diverged``
    """
    vectors = [gradient[stretch] for stretch in parts.stretches(pieces)]
    with coded("diverged", CheckFailed):
        if kept is not None:
            return kept.encode(pieces, vectors)
        run_codec = codec.of(manifest.config.exchange)
        return [
            run_codec.encode(piece.layout, vector)
            for piece, vector in zip(pieces, vectors, strict=True)
        ]


@dataclass(frozen=True)
class Written:
    """The files of a contribution: one blob, or an index and a blob for each slice."""

    blob: Path
    parts: tuple[Path, ...]
    size: int
    """Bytes of all of them."""
    payload: str
    """What its numbers are known by."""


def write_contribution(
    manifest: Manifest,
    pieces: Sequence[Part],
    payloads: Sequence[bytes],
    *,
    round: int,
    base: str,
    sharded: bool,
    out: Path,
) -> Written:
    """Write what :func:`encode` has made.

    :param base: root of the state that the pseudo-gradient is relative to
    :raises TrainerError: ``disk_full``, ``disk``
    """
    header = Header(round, base, codec.of(manifest.config.exchange))
    blobs = [
        header.wrap(piece.layout, payload) for piece, payload in zip(pieces, payloads, strict=True)
    ]
    path = out / f"contribution-{round}.blob"
    if not sharded:
        (blob,) = blobs
        writing.write(path, [blob])
        return Written(path, (), len(blob), pseudogradient.payload_digest(payloads[0]))
    listed = [IndexItem.of(blob) for blob in blobs]
    index = pseudogradient.pack_index(round, base, listed)
    slices = tuple(out / f"contribution-{round}-{number}.blob" for number in range(len(blobs)))
    for slice_path, blob in zip(slices, blobs, strict=True):
        writing.write(slice_path, [blob])
    writing.write(path, [index])
    size = len(index) + sum(map(len, blobs))
    known_by = pseudogradient.joined_digest([piece.payload for piece in listed])
    return Written(path, slices, size, known_by)
