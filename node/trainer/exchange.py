"""What a node gives to a round and what it makes of the closed round: files in, files out.

numpy on the CPU only, whatever device trains, so that every node gets the same bits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from node.trainer.channel import TrainerError
from protocol import pseudogradient
from protocol.aggregate import Contribution, aggregate
from protocol.codec import codec
from protocol.errors import ArtelError, CheckFailed, ResourceError
from protocol.manifest import Manifest
from protocol.outer import outer_step
from protocol.state import Layout, State, Vector, write_state

CACHE_BYTES = 512 << 20
"""Decoded contributions kept between the two passes of the aggregation; beyond it, each is decoded
twice and at most one is in memory."""


@dataclass(frozen=True)
class Listed:
    """A contribution of a closed round: the bytes of its blob lie at ``blob``."""

    node: str
    blob: Path
    weight: int


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


def write_contribution(
    manifest: Manifest, layout: Layout, base: State, root: str, after: Vector, path: Path
) -> int:
    """Encode base minus ``after`` (N,) into a blob file, whole or not at all; returns its size.

    :param root: state root of ``base``
    :raises TrainerError: ``diverged``, ``disk_full``, ``disk``
    """
    gradient = np.subtract(base.params, after)
    try:
        blob = pseudogradient.pack(
            layout,
            gradient,
            round=base.round,
            base=root,
            codec=codec(manifest.config.exchange.codec),
        )
    except CheckFailed as error:
        raise TrainerError("diverged", error.message, error.hint) from None
    unfinished = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(blob)
            file.flush()
            # The bytes must be on the disk before the name is, or a power cut leaves a short file.
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise disk_error(error, path, len(blob)) from None
    return len(blob)


def apply_round(
    manifest: Manifest,
    layout: Layout,
    base: State,
    root: str,
    listed: Sequence[Listed],
    path: Path,
    phases: Phases,
) -> tuple[State, str]:
    """Aggregate the listed contributions, take the outer step and write the new state.

    :param root: state root of ``base``
    :param path: the new state's file, written whole or not at all
    :returns: the new state and its root
    :raises TrainerError: ``bad_blob`` with the node, ``diverged``, ``disk_full``, ``disk``,
        ``failed``
    """
    _require_gradual_underflow()
    outer = manifest.config.exchange.outer
    load = _loader(manifest, layout, base, root, len(listed), phases)
    contributions = [Contribution(c.node, c.weight, load(c)) for c in listed]
    with phases.measured("aggregate"):
        update = aggregate(layout, contributions)
    # Decoding happens inside the aggregation, but is told apart.
    phases.seconds["aggregate"] -= phases.seconds.setdefault("decode", 0.0)
    del load, contributions  # and with them the decoded vectors
    try:
        with phases.measured("outer"):
            params, momentum = outer_step(
                base.params,
                base.momentum,
                update,
                lr=outer.lr,
                mu=outer.momentum,
                nesterov=outer.nesterov,
            )
    except CheckFailed as error:
        raise TrainerError("diverged", error.message, error.hint) from None
    state = State(base.round + 1, base.layout_digest, params, momentum)
    with phases.measured("write"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return state, write_state(path, state)
        except OSError as error:
            raise disk_error(error, path, 0) from None
        except ResourceError as error:
            raise _with_code(error) from None


def disk_error(error: OSError, path: Path, size: int) -> TrainerError:
    """A write that failed, as a person wants to hear it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainerError(
            "disk_full",
            f"the disk is full: cannot write {path}",
            f"free at least {max(1, size // 10**6)} MB there",
        )
    return TrainerError(
        "disk", f"cannot write {path}: {error.strerror}", "check the home directory"
    )


def _loader(
    manifest: Manifest, layout: Layout, base: State, root: str, count: int, phases: Phases
) -> Callable[[Listed], Callable[[], Vector]]:
    """How to decode a listed contribution when the aggregation asks for it."""
    run_codec = codec(manifest.config.exchange.codec)
    limit = pseudogradient.max_blob_bytes(layout, run_codec)
    cache: dict[str, Vector] | None = {} if 4 * layout.parameters * count <= CACHE_BYTES else None

    def decode(listed: Listed) -> Vector:
        try:
            with listed.blob.open("rb") as file:
                blob = file.read(limit + 1)
            return pseudogradient.decode(blob, layout, round=base.round, base=root, codec=run_codec)
        except (OSError, ArtelError) as error:
            reason = error.message if isinstance(error, ArtelError) else error.strerror
            raise TrainerError(
                "bad_blob",
                f"the contribution of {listed.node} does not count: {reason}",
                "delete the blob; it is fetched again",
                listed.node,
            ) from None

    def lazily(listed: Listed) -> Callable[[], Vector]:
        def vector() -> Vector:
            with phases.measured("decode"):
                if cache is None:
                    return decode(listed)
                if listed.node not in cache:
                    cache[listed.node] = decode(listed)
                return cache[listed.node]

        return vector

    return lazily


def _with_code(error: ResourceError) -> TrainerError:
    cause = error.__context__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return TrainerError("disk_full" if full else "disk", error.message, error.hint)


def _require_gradual_underflow() -> None:
    """Refuse to compute in a process whose processor rounds denormal numbers to zero.

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
