"""One piece of content on its way: which chunks are here, which are asked for, where they lie."""

from __future__ import annotations

import os
import random

import numpy as np
from numpy.typing import NDArray

from artel.protocol import content, files, merkle
from artel.protocol.errors import DecodeError
from artel.protocol.net.blobs import BlobStore
from artel.protocol.telling import Tell

Mask = NDArray[np.bool_]
"""One flag per chunk."""
Counts = NDArray[np.int32]
"""One count per chunk."""


class Download:
    """A partial file and the chunks of it that verified.

    :meth:`resume` and :meth:`write` may run in threads; the rest is for the event loop.

    :param size: what a holder said; true up to the length of the last chunk, see :meth:`arrived`
    :param hashes: leaf hashes that belong to the content id
    :param most: the most bytes that this content may have
    """

    def __init__(
        self,
        store: BlobStore,
        blob: str,
        size: int,
        hashes: list[bytes],
        most: int,
        progress: Tell | None = None,
    ) -> None:
        self.blob, self.size, self.hashes = blob, size, hashes
        self.path = store.resume(blob)
        self.here: Mask = np.zeros(len(hashes), dtype=np.bool_)
        self.asked = np.zeros(len(hashes), dtype=np.uint8)
        """How many holders are being asked for each chunk."""
        self._store, self._most, self._progress = store, most, progress
        self._bytes = 0
        with files.told(store.root):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.is_new = os.fstat(self._file).st_size == 0

    @property
    def complete(self) -> bool:
        return bool(self.here.all())

    def resume(self) -> None:
        """Keep the chunks of an earlier try that verify."""
        with files.told(self._store.root):
            for index, digest in enumerate(self.hashes):
                start = index * content.CHUNK_BYTES
                piece = os.pread(self._file, self.chunk_bytes(index), start)
                if merkle.leaf_hash(piece) == digest:
                    self.here[index] = True
                    self._bytes += len(piece)

    def chunk_bytes(self, index: int) -> int:
        """Length of a chunk."""
        return min(content.CHUNK_BYTES, self.size - index * content.CHUNK_BYTES)

    def free_run(self, held: Mask | None, most: int, others: Counts) -> range:
        """Neighbouring chunks that nobody is asked for, from one of the rarest on, by chance.

        By chance, so that those who fetch the same soon have something for each other.

        :param held: the chunks that a holder has; None for all
        :param others: how many others are known to have each chunk
        """
        free = ~self.here & (self.asked == 0)
        if held is not None:
            free &= held
        numbers = np.flatnonzero(free)
        if not len(numbers):
            return range(0)
        rare = np.flatnonzero(others[numbers] == others[numbers].min())
        run = numbers[int(rare[random.randrange(len(rare))]) :][:most]
        steps = np.flatnonzero(np.diff(run) != 1)
        length = int(steps[0]) + 1 if len(steps) else len(run)
        return range(int(run[0]), int(run[0]) + length)

    def write(self, index: int, piece: bytes | memoryview) -> None:
        """Check a chunk and put it into its place.

        :raises DecodeError: it is not that chunk
        :raises ResourceError: the disk is full
        """
        if merkle.leaf_hash(piece) != self.hashes[index]:
            raise DecodeError(f"chunk {index} does not match its hash")
        start = index * content.CHUNK_BYTES
        with files.told(self._store.root):
            written = 0
            while written < len(piece):
                written += os.pwrite(self._file, piece[written:], start + written)

    def arrived(self, index: int, length: int) -> bool:
        """Take note of a chunk that was written; False when it was here already.

        The last chunk tells the true size: a hash covers it, and the index only says it.

        :raises DecodeError: the content is larger than it may be
        """
        if self.here[index]:
            return False
        if index == len(self.hashes) - 1:
            self.size = index * content.CHUNK_BYTES + length
            if self.size > self._most:
                raise DecodeError(f"content of {self.size} bytes, at most {self._most} expected")
        self.here[index] = True
        self._bytes += length
        if self._progress:
            self._progress(self._bytes, self.size)
        return True

    def bits(self) -> bytes:
        """The chunks that are here, bit i mod 8 of byte i div 8 for chunk i."""
        return np.packbits(self.here, bitorder="little").tobytes()

    def lead(self) -> int:
        """How many of the first chunks are here without a gap."""
        gaps = np.flatnonzero(~self.here)
        return int(gaps[0]) if len(gaps) else len(self.here)

    def finish(self) -> None:
        """Move the complete file into the store."""
        with files.told(self._store.root):
            os.ftruncate(self._file, self.size)
        self._store.adopt(self.blob, self.path, self.hashes)
        self._release()

    def close(self) -> None:
        """Leave the file, if it is not finished, for a later try."""
        if self._file >= 0:
            self._release()
            self._store.interrupt(self.blob)

    def _release(self) -> None:
        os.close(self._file)
        self._file = -1
