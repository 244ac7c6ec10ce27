"""The content store of a home: files named by their content id, under a disk quota.

Contribution blobs, data shards and model states all live here. What is pinned stays; the rest is a
cache, and the least recently used files go first when the quota is reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from artel.protocol import content, files, merkle
from artel.protocol.errors import ResourceError
from artel.protocol.events import emit
from artel.protocol.messages import Kind
from artel.protocol.units import readable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("artel.transfer")

_MAX_LABELS = 16_384
_CONTENT_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PART = re.compile(r"[0-9a-f]{64}\.part", re.ASCII)
_CUT_OFF = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}\.put", re.ASCII)
"""Names that :meth:`BlobStore.unfinished` has given."""


class Partial(Protocol):
    """An unfinished download, as it is served to others who fetch the same content."""

    size: int
    hashes: list[bytes]
    here: NDArray[np.bool_]  # one flag per chunk

    def bits(self) -> bytes: ...
    def lead(self) -> int: ...


class BlobStore:
    """Files under ``root``, each named by its content id.

    Safe to call from several threads of one process; one process owns a home.

    :param root: the directory, made when missing
    :param quota_bytes: limit for the sum of all files but those of downloads under way; None for
        no limit
    """

    def __init__(self, root: Path, quota_bytes: int | None = None) -> None:
        self.root = root
        self.quota_bytes = quota_bytes
        self.downloads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Held by the one download of each content; used by :mod:`protocol.net.delivery` alone."""
        self.partials: dict[str, Partial] = {}
        """Downloads under way: what they have is served to others already; for the event loop."""
        self._labels: dict[str, Kind] = {}  # the newest last
        self._lock = threading.Lock()
        self._pinned: set[str] = set()  # guarded by _lock
        self._hashes: dict[str, list[bytes]] = {}  # chunk hashes of files served lately; _lock
        with files.told(root):
            root.mkdir(parents=True, exist_ok=True)
        for entry in list(os.scandir(root)):
            if _CUT_OFF.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        found = {e.name: e.stat().st_size for e in os.scandir(root) if e.is_file()}
        self._sizes = {n: size for n, size in found.items() if _CONTENT_ID.fullmatch(n)}  # _lock
        self._parts = {n: size for n, size in found.items() if _PART.fullmatch(n)}
        """Partial files, by name, of downloads that are not under way; guarded by _lock."""

    @property
    def used(self) -> int:
        """Bytes of all files but those of downloads under way."""
        with self._lock:
            return sum(self._sizes.values())

    def has(self, blob: str) -> bool:
        return blob in self._sizes

    def path(self, blob: str) -> Path | None:
        """Where the content lies, or None; counts as a use of it."""
        if blob not in self._sizes:
            return None
        path = self.root / blob
        try:
            os.utime(path)
        except FileNotFoundError:
            self._forget(blob)
            return None
        return path

    def put(self, data: bytes) -> str:
        """Store bytes; returns their content id.

        :raises ResourceError: the disk is full, or the quota cannot hold the bytes
        """
        hashes = content.chunk_hashes(data)
        blob = merkle.root(hashes).hex()
        if not self.has(blob):
            part = self.unfinished(blob)
            try:
                with files.told(self.root):
                    with files.creating(part) as file:
                        file.write(data)
                    self.adopt(blob, part, hashes)
            finally:
                part.unlink(missing_ok=True)
        return blob

    def put_file(self, path: Path) -> str:
        """Move a finished file into the store; returns its content id."""
        hashes = content.file_chunk_hashes(path)
        blob = merkle.root(hashes).hex()
        if self.has(blob):
            path.unlink()
        else:
            self.adopt(blob, path, hashes)
        return blob

    def partial(self, blob: str) -> Path:
        """Where an unfinished download of ``blob`` is kept; it survives a restart."""
        return self.root / f"{blob}.part"

    def resume(self, blob: str) -> Path:
        """A download of ``blob`` begins, where an earlier one may have got to; its file stays."""
        path = self.partial(blob)
        with self._lock:
            self._parts.pop(path.name, None)
        return path

    def interrupt(self, blob: str) -> None:
        """A download is over without its end: what it has counts, and is the first to go."""
        path = self.partial(blob)
        with contextlib.suppress(FileNotFoundError), self._lock:
            self._parts[path.name] = path.stat().st_size

    def unfinished(self, blob: str) -> Path:
        """A new name for bytes on their way in that are not resumed when that fails."""
        return self.root / f"{blob}.{os.urandom(4).hex()}.put"

    def adopt(self, blob: str, path: Path, hashes: list[bytes] | None = None) -> None:
        """Take a file whose content is known to match ``blob``.

        :param hashes: of its chunks, where they are known: they need not be computed to serve it
        :raises ResourceError: the quota cannot hold it even after eviction
        """
        size = path.stat().st_size
        with self._lock:
            self._make_room(size - self._sizes.get(blob, 0))
            os.replace(path, self.root / blob)
            self._sizes[blob] = size
        if hashes is not None:
            self._keep_hashes(blob, hashes)

    def label(self, kind: Kind, *blobs: str) -> None:
        """Say what content is, so that the bytes of serving it are counted as that."""
        for blob in blobs:
            self._labels.pop(blob, None)
            self._labels[blob] = kind
        while len(self._labels) > _MAX_LABELS:
            self._labels.pop(next(iter(self._labels)))

    def kind_of(self, blob: str) -> Kind:
        """What :meth:`label` said about this content."""
        return self._labels.get(blob, "other")

    def chunk_hashes(self, blob: str) -> list[bytes] | None:
        """Leaf hashes of stored content, or None when it is not here."""
        path = self.path(blob)
        if path is None:
            return None
        with self._lock:
            cached = self._hashes.get(blob)
        if cached is None:
            cached = self._hashed(blob, path)
            if cached is not None:
                self._keep_hashes(blob, cached)
        return cached

    def sound(self, blob: str) -> Path | None:
        """As :meth:`path`, once all bytes were read and held against the id: what a disk has
        changed is removed, so that it is fetched again. For a thread; about 1 GB/s.

        :raises OSError: it cannot be read for another reason than a bad disk
        """
        path = self.path(blob)
        return None if path is None or self._hashed(blob, path) is None else path

    def _hashed(self, blob: str, path: Path) -> list[bytes] | None:
        """Leaf hashes of stored content; None where it is gone, or was damaged and is removed."""
        try:
            file = path.stat().st_ino
            try:
                hashes = content.file_chunk_hashes(path)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                hashes = []
            if hashes and merkle.root(hashes).hex() == blob:
                return hashes
            if path.stat().st_ino == file:  # else another one was adopted meanwhile
                self._forget(blob)  # a pin stays, for the one that is fetched
                path.unlink()
        except FileNotFoundError:  # deleted in this moment
            return None
        emit(log, "content.damaged", logging.WARNING, content=blob[:12], kind=self.kind_of(blob))
        return None

    def knows_hashes(self, blob: str) -> bool:
        """Whether :meth:`chunk_hashes` needs no work."""
        return blob in self._hashes

    def pin(self, *blobs: str) -> None:
        """Keep this content until it is deleted or unpinned."""
        with self._lock:
            self._pinned.update(blobs)

    def unpin(self, *blobs: str) -> None:
        """Make this content an ordinary cache entry again."""
        with self._lock:
            self._pinned.difference_update(blobs)

    def delete(self, blob: str) -> None:
        """Remove content, pinned or not."""
        self.unpin(blob)
        self._forget(blob)
        (self.root / blob).unlink(missing_ok=True)

    def drop(self, blob: str) -> None:
        """Remove content unless it is pinned."""
        with self._lock:
            pinned = blob in self._pinned
        if not pinned:
            self.delete(blob)

    def size_of(self, blob: str) -> int | None:
        """Bytes of stored content, or None."""
        return self._sizes.get(blob)

    def _keep_hashes(self, blob: str, hashes: list[bytes]) -> None:
        with self._lock:
            while len(self._hashes) >= 64:
                self._hashes.pop(next(iter(self._hashes)))
            self._hashes[blob] = hashes

    def _forget(self, blob: str) -> None:
        with self._lock:
            self._sizes.pop(blob, None)
            self._hashes.pop(blob, None)

    def limit(self, quota_bytes: int) -> None:
        """Another quota from now on; what is too much for it goes.

        :raises ResourceError: what is pinned is more than that
        """
        with self._lock:
            before, self.quota_bytes = self.quota_bytes, quota_bytes
            try:
                self._make_room(0)
            except ResourceError:
                self.quota_bytes = before
                raise

    def _make_room(self, size: int) -> None:
        """Evict until ``size`` more bytes fit the quota; the caller holds the lock."""
        if self.quota_bytes is None:
            return
        excess = sum(self._sizes.values()) + sum(self._parts.values()) + size - self.quota_bytes
        if excess <= 0:
            return
        loose = [blob for blob in self._sizes if blob not in self._pinned]
        spare = sum(self._parts.values()) + sum(self._sizes[blob] for blob in loose)
        if excess > spare:
            raise ResourceError(
                f"the disk quota of {readable(self.quota_bytes)} is too small for this run",
                f"{readable(excess - spare)} more are needed: raise --quota",
            )
        for name in [*self._by_use(self._parts), *self._by_use(loose)]:
            (self.root / name).unlink(missing_ok=True)
            excess -= self._parts.pop(name, 0) or self._sizes.pop(name, 0)
            self._hashes.pop(name, None)
            if excess <= 0:
                return

    def _by_use(self, names: Iterable[str]) -> list[str]:
        """The least recently used first."""
        return sorted(names, key=lambda name: _last_use(self.root / name))


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
