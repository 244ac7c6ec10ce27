"""Token windows, read from memory-mapped shard files.

A shard file is raw little-endian tokens (:mod:`protocol.shards`); the daemon has checked its
content id. A window is ``seq_len + 1`` tokens: the first ``seq_len`` are inputs, the last
``seq_len`` are targets. The files must stay in place while a command that names them runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Window
from artel.protocol.manifest import Manifest

Batch = npt.NDArray[np.int64]
"""Windows of one inner step, shape (batch, seq_len + 1)."""


class Windows:
    """An ordered list of windows over shard files.

    :param windows: in training order
    :raises TrainerError: ``bad_data`` when a file is missing or too short
    """

    def __init__(self, manifest: Manifest, windows: Sequence[Window]) -> None:
        self._length = manifest.config.data.seq_len + 1
        self._vocab_size = manifest.tokenizer.vocab_size
        self._windows = windows
        dtype = {"uint16": "<u2", "uint32": "<u4"}[manifest.data.dtype]
        self._shards = {path: _open(path, dtype) for path in {path for path, _ in windows}}
        for path, offset in windows:
            if not 0 <= offset <= len(self._shards[path]) - self._length:
                raise TrainerError(
                    "bad_data",
                    f"shard {path.name[:16]} has no window at token {offset}",
                    "delete the shard; it is fetched again",
                )

    def __len__(self) -> int:
        return len(self._windows)

    def batches(self, size: int) -> Iterator[Batch]:
        """The windows in order, ``size`` at a time; the last batch holds what is left."""
        for start in range(0, len(self._windows), size):
            rows = [
                self._shards[path][offset : offset + self._length]
                for path, offset in self._windows[start : start + size]
            ]
            batch: Batch = np.stack(rows).astype(np.int64)
            if int(batch.max()) >= self._vocab_size:  # would fault inside the embedding
                raise TrainerError("bad_data", "a shard holds a token outside the vocabulary")
            yield batch


def synthetic(manifest: Manifest, steps: int) -> Iterator[Batch]:
    """Random windows of the run's shape, the same ones every time: for measuring speed."""
    config = manifest.config
    source = np.random.default_rng(0)
    shape = (config.optimizer.batch_size, config.data.seq_len + 1)
    for _ in range(steps):
        yield source.integers(0, manifest.tokenizer.vocab_size, shape, np.int64)


def _open(path: Path, dtype: str) -> npt.NDArray[np.unsignedinteger]:
    try:
        return np.memmap(path, dtype, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file, or half a token
        raise TrainerError(
            "bad_data",
            f"cannot read shard {path.name[:16]}: {error}",
            "delete the shard; it is fetched again",
        ) from None
