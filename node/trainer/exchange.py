"""What a node gives to a round and what it makes of the closed round: files in, files out.

numpy and compiled loops on the CPU only, whatever device trains, so that every node gets the same
bits. Everything here concerns one **part** of the model: the fragment that a round exchanges, or a
slice of it (:mod:`protocol.exchange.parts`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from artel.node.trainer import writing
from artel.node.trainer.agreed import Base
from artel.node.trainer.channel import TrainerError, coded
from artel.node.trainer.orders import Counted
from artel.protocol import content
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.exchange import aggregate_slice, codec, outer, parts, pseudogradient
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements, Sparse
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import Part
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, State, Vector

CACHE_BYTES = 512 << 20
"""Decoded contributions kept between the passes of the aggregation; beyond it, each is decoded for
each pass and at most one is in memory."""


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
    kept, whole = feedback(manifest, layout, device), parts.whole(layout)
    (payload,) = encode(manifest, [whole], vector, kept)
    run_codec = codec.of(settings)
    values = run_codec.decode(layout, payload)
    update = aggregate_slice.combine(
        layout, [Weighted(name, 1, values) for name in ("a", "b")], settings
    )
    momentum = vector if settings.outer.momentum else None
    outer.outer_step(
        vector,
        momentum,
        update,
        lr=settings.outer.lr,
        mu=settings.outer.momentum,
        nesterov=settings.outer.nesterov,
    )


# --- giving ---


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
        return Written(path, (), len(blob))
    index = pseudogradient.pack_index(
        round, base, [(content.content_id(blob), len(blob)) for blob in blobs]
    )
    slices = tuple(out / f"contribution-{round}-{number}.blob" for number in range(len(blobs)))
    for slice_path, blob in zip(slices, blobs, strict=True):
        writing.write(slice_path, [blob])
    writing.write(path, [index])
    return Written(path, slices, len(index) + sum(map(len, blobs)))


# --- taking ---


def combine(
    manifest: Manifest, part: Part, base: Base, listed: Sequence[Counted], phases: Phases
) -> Vector:
    """The update of a part, (N,), from all contributions to it.

    :raises TrainerError: ``bad_blob`` with the node
    :raises CheckFailed: the list itself is impossible
    """
    _require_gradual_underflow()
    exchange = manifest.config.exchange
    load = _loader(manifest, part, base, len(listed), phases)
    contributions = [Weighted(c.node, c.weight, load(c)) for c in listed]
    with phases.measured("aggregate"):
        update = aggregate_slice.combine(part.layout, contributions, exchange)
    # Decoding happens inside the aggregation, but is told apart.
    phases.seconds["aggregate"] -= phases.seconds.setdefault("decode", 0.0)
    return update


def write_slice(manifest: Manifest, piece: Part, base: Base, update: Vector, path: Path) -> None:
    """Write the update of a slice for everybody.

    Without error feedback: whoever does it gets the same bytes.

    :raises TrainerError: ``disk_full``, ``disk``
    """
    run_codec = codec.of(manifest.config.exchange)
    header = Header(base.state.round, base.root, run_codec, pseudogradient.SLICE_MAGIC)
    writing.write(path, [header.pack(piece.layout, update)])


def read_slices(
    manifest: Manifest, pieces: Sequence[Part], base: Base, blobs: Sequence[Path], phases: Phases
) -> tuple[Vector, list[Elements] | None]:
    """The update of a fragment from the blobs of its slices in order; the entries if it is sparse.

    :raises TrainerError: ``bad_blob``
    """
    _require_gradual_underflow()
    if len(blobs) != len(pieces):
        raise TrainerError(
            "bad_request", f"the round has {len(pieces)} slices, {len(blobs)} were given"
        )
    update = np.zeros(sum(piece.parameters for piece in pieces), np.float32)
    entries: list[Elements] = []
    with phases.measured("decode"):
        for number, (piece, stretch, path) in enumerate(
            zip(pieces, parts.stretches(pieces), blobs, strict=True)
        ):
            with _usable(f"slice {number}"):
                values = _load(manifest, piece, base, path, pseudogradient.SLICE_MAGIC)
            if isinstance(values, Elements):
                update[stretch][values.positions] = values.values
                entries.append(values)
            else:
                update[stretch] = values
    return update, entries or None


def step(
    manifest: Manifest, part: Part, base: Base, update: Vector, path: Path, phases: Phases
) -> Base:
    """Take the outer step of a part and write the new state.

    :param path: the new state's file, written whole or not at all
    :raises TrainerError: ``diverged``, ``disk_full``, ``disk``
    """
    settings = manifest.config.exchange.outer
    old = base.state
    lr = outer.learning_rate(manifest.config.exchange, manifest.config.rounds.total, old.round)
    with phases.measured("outer"), coded("diverged", CheckFailed):
        params, momentum = outer.outer_step(
            part.take(old.params),
            None if old.momentum is None else part.take(old.momentum),
            update,
            lr=lr,
            mu=settings.momentum,
            nesterov=settings.nesterov,
        )
        params = _in_place(part, params, old.params)
        if momentum is not None and old.momentum is not None:
            momentum = _in_place(part, momentum, old.momentum)
    state = State(old.round + 1, old.layout_digest, params, momentum)
    with phases.measured("write"):
        return Base(state, writing.write_agreed(path, state))


def _in_place(part: Part, new: Vector, old: Vector) -> Vector:
    """``old`` with the part replaced, as a vector of its own."""
    if len(new) == len(old):
        return new
    full = old.copy()
    part.put(new, full)
    return full


# --- reading blobs ---


@contextlib.contextmanager
def _usable(what: str, node: str = "") -> Iterator[None]:
    """:raises TrainerError: ``bad_blob``: the file of ``what`` cannot be read, or does not count"""
    try:
        yield
    except (OSError, ArtelError) as error:
        why = error.message if isinstance(error, ArtelError) else error.strerror
        hint = "delete the blob; it is fetched again"
        raise TrainerError("bad_blob", f"{what} does not count: {why}", hint, node) from None


def _load(
    manifest: Manifest, part: Part, base: Base, path: Path, magic: bytes
) -> Vector | Elements:
    run_codec = codec.of(manifest.config.exchange)
    with path.open("rb") as file:
        blob = file.read(pseudogradient.max_blob_bytes(part.layout, run_codec) + 1)
    return Header(base.state.round, base.root, run_codec, magic).load(blob, part.layout)


def _loader(
    manifest: Manifest, part: Part, base: Base, count: int, phases: Phases
) -> Callable[[Counted], Callable[[], Vector | Elements]]:
    """How to decode a listed contribution when the aggregation asks for it."""
    sparse = codec.of(manifest.config.exchange).sparse
    keep = sparse or 4 * part.parameters * count <= CACHE_BYTES
    cache: dict[str, Vector | Elements] = {}

    def lazily(listed: Counted) -> Callable[[], Vector | Elements]:
        def vector() -> Vector | Elements:
            if listed.node in cache:
                return cache[listed.node]
            whose = _usable(f"the contribution of {listed.node}", listed.node)
            with phases.measured("decode"), whose:
                values = _load(manifest, part, base, listed.blob, pseudogradient.MAGIC)
            if keep:
                cache[listed.node] = values
            return values

        return vector

    return lazily


def _require_gradual_underflow() -> None:
    """Refuse to compute in a thread whose processor rounds denormal numbers to zero.

    Libraries built with -ffast-math switch that on for the thread that loads them, and then a state
    would differ from everybody else's in its smallest numbers.
    """
    tiny = np.full(8, 1e-38, np.float32)
    if not (tiny * np.float32(0.125) > 0).all():
        raise TrainerError(
            "failed",
            "this process rounds denormal numbers to zero, so its state would differ",
            "a library switched that on; use the versions of constraints.txt",
        )
