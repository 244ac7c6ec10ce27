"""SQLite's write-ahead log, read without SQLite.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. A process that was killed in
the middle of an append leaves a ``-wal`` file behind. SQLite would recover from it by writing;
a check must not write, and wants to see the bytes that recovery would skip.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
_VERSION = 3007000


@dataclass(frozen=True)
class Log:
    """The committed part of a write-ahead log."""

    page_bytes: int
    frames: tuple[tuple[int, bytes], ...]  # (page number from 1, content), in order
    commits: int
    """Transactions that the frames belong to."""
    database_pages: int
    """Size of the database after the last of them."""

    def pages(self) -> dict[int, bytes]:
        """The newest content of each page."""
        return dict(self.frames)


def read(data: bytes) -> Log | None:
    """The committed transactions of a log; None when it holds none (or is torn from the start).

    As in SQLite, everything from the first frame on whose running checksum fails is not there.
    """
    if len(data) < HEADER_BYTES:
        return None
    magic, version, page_bytes = struct.unpack(">III", data[:12])
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or version != _VERSION:
        return None
    if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
        return None
    order = ">" if magic == _MAGIC_BIG else "<"
    salts = data[16:24]
    running = _checksum(data[:24], (0, 0), order)
    if running != struct.unpack(">II", data[24:32]):
        return None
    frames: list[tuple[int, bytes]] = []
    committed = commits = database_pages = 0
    step = FRAME_HEADER_BYTES + page_bytes
    for start in range(HEADER_BYTES, len(data) - step + 1, step):
        header = data[start : start + FRAME_HEADER_BYTES]
        page = data[start + FRAME_HEADER_BYTES : start + step]
        running = _checksum(page, _checksum(header[:8], running, order), order)
        if header[8:16] != salts or running != struct.unpack(">II", header[16:24]):
            break
        number, size_after = struct.unpack(">II", header[:8])
        if number == 0:
            break
        frames.append((number, page))
        if size_after:  # the last frame of a transaction
            committed, commits, database_pages = len(frames), commits + 1, size_after
    if not commits:
        return None
    return Log(page_bytes, tuple(frames[:committed]), commits, database_pages)


def _checksum(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
