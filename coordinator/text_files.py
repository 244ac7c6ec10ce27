"""What a file of text holds, whatever it is written in: one stream of UTF-8 text or of JSON lines.

Plain files are read as they are, without their byte-order mark; ``.gz`` and ``.zst`` are unpacked,
pages lose their markup, and the rows of a table become JSON lines. Everything is read in bounded
pieces, except a page, which is bounded as a whole.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from artel.ledger.entries.words import printable
from artel.protocol.errors import ResourceError, UsageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXTS = (".txt", ".md", ".py", ".rst")
LINES = (".jsonl", ".json")
PAGES = (".html", ".htm")
TABLES = (".parquet",)
PACKED = (".gz", ".zst")
ENDINGS = (*TEXTS, *LINES, *PAGES, *TABLES)
READ = f"{', '.join(ENDINGS)}, and these (less {TABLES[0]}) as {' or '.join(PACKED)}"
"""What is read, in words."""

PIECE_BYTES = 1 << 20
"""Text is read, unpacked and tokenised in pieces of at most this size."""
MAX_LINE_BYTES = 64 << 20
"""Longest line of JSON (one document)."""
MAX_PAGE_BYTES = 16 << 20
"""Longest page."""
FREE_UNPACKED_BYTES, MAX_EXPANSION = 256 << 20, 100
"""A packed file may become this large, or this many times its size; text shrinks 3 to 20 times."""
NOT_UTF8, NO_LINES = "not UTF-8", 'a .json file without lines of {"text": …}'
_ROWS = 256
"""Rows of a table that are read at a time."""


@dataclass(frozen=True)
class Format:
    """How a file is read: the ending of its content, and of its packing ("" without one)."""

    ending: str
    packing: str = ""

    @property
    def lines(self) -> bool:
        """Whether the content is one JSON document a line, and not one text."""
        return self.ending in LINES or self.ending in TABLES


def format_of(path: Path) -> Format | None:
    """The format that a file's name stands for, in any case; None when it is not read."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    packing = endings.pop() if endings and endings[-1] in PACKED else ""
    ending = endings[-1] if endings else ""
    readable = ENDINGS if not packing else (*TEXTS, *LINES, *PAGES)
    return Format(ending, packing) if ending in readable else None


def shown(path: Path) -> str:
    """A path on one line of a terminal, whatever bytes its name has."""
    return printable(str(path).encode("utf-8", "replace").decode())


class NotText(UsageError):
    """A file that may well be something else; ``reason`` says it of all files of its kind."""

    def __init__(self, message: str, hint: str, reason: str) -> None:
        super().__init__(message, hint)
        self.reason = reason


def not_utf8(path: Path, line: int) -> NotText:
    """What is said of text in another encoding; ``line`` counts from 1."""
    message = f"{shown(path)}:{line} is not UTF-8 text"
    return NotText(message, "convert the file, or move it away", NOT_UTF8)


def pieces_of(path: Path, start: int = 0) -> Iterator[bytes]:
    """The content of a file from byte ``start`` of the content on, in pieces.

    A piece is a line where each is a document (at most one byte longer than it may be), otherwise
    at most 1 MiB, or a whole page.

    :raises UsageError: when it is damaged, unpacks to too much, or is not what its name says
    :raises ResourceError: when this machine lacks the library that reads it
    :raises OSError: when it cannot be read
    """
    form = format_of(path) or Format(".txt")
    limit = max(FREE_UNPACKED_BYTES, MAX_EXPANSION * path.stat().st_size)
    size = start
    try:
        for piece in _rows(path, start) if form.ending in TABLES else _read(path, form, start):
            size += len(piece)
            if size > limit:
                raise UsageError(
                    f"{shown(path)} unpacks to more than {limit >> 20:,} MiB",
                    "unpack it yourself if that is meant, or move it away",
                )
            yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{shown(path)} is damaged: {why[:100]}", "fetch it again, or move it away")


def _read(path: Path, form: Format, start: int) -> Iterator[bytes]:
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".zst": zstd.open}
    with openers.get(form.packing, open)(path, "rb") as file:
        if form.ending in PAGES:
            yield _page(file.read(MAX_PAGE_BYTES + 1), path)[start:]
            return
        file.seek(start)
        read, most = (file.readline, MAX_LINE_BYTES + 1) if form.lines else (file.read, PIECE_BYTES)
        while piece := read(most):
            yield piece


def _page(data: bytes, path: Path) -> bytes:
    if len(data) > MAX_PAGE_BYTES:
        raise UsageError(
            f"{shown(path)} is a page of more than {MAX_PAGE_BYTES >> 20} MiB",
            "convert it to .txt, or move it away",
        )
    try:
        page = _Page()
        page.feed(data.decode("utf-8-sig"))
        page.close()
    except UnicodeDecodeError as error:
        raise not_utf8(path, 1 + data[: error.start].count(b"\n")) from None
    return page.text().encode()


_INLINE = (
    "a abbr b bdi bdo cite code data del dfn em font i ins kbd label mark q s samp small span "
    "strong sub sup time tt u var wbr"
)
INLINE, HIDDEN = frozenset(_INLINE.split()), frozenset({"script", "style", "template"})
"""Tags that do not end a line, and those whose content no reader sees."""


class _Page(HTMLParser):
    """The text of a page: blocks on lines of their own, space as a browser shows it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._line: list[str] = []
        self._space = False  # before the next word of the line
        self._hidden = ""
        self._depth = 0
        self._kept = 0  # depth of <pre>

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in HIDDEN and self._hidden in ("", tag):
            self._hidden = tag
            self._depth += 1
        elif not self._hidden:
            self._kept += tag == "pre"
            if tag not in INLINE:
                self._end_line()

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._depth -= tag == self._hidden
            self._hidden = self._hidden if self._depth else ""
        elif tag not in INLINE:
            self._end_line()
            self._kept -= tag == "pre" and self._kept > 0

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._kept:
            first, *others = data.split("\n")
            self._line.append(first)
            for line in others:
                self._lines.append("".join(self._line))
                self._line = [line]
            return
        words = data.split()
        if self._line and words and (self._space or data[0].isspace()):
            self._line.append(" ")
        self._line.append(" ".join(words))
        self._space = data[-1:].isspace() or (self._space and not words)

    def _end_line(self) -> None:
        if line := "".join(self._line).rstrip():
            self._lines.append(line)
        self._line, self._space = [], False

    def text(self) -> str:
        """All of it so far."""
        self._end_line()
        return "".join(f"{line}\n" for line in self._lines)


def _rows(path: Path, start: int) -> Iterator[bytes]:
    """The column "text" of a table as JSON lines."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ResourceError(
            f"{shown(path)} can be read only with pyarrow, which is not installed here",
            f"{sys.executable} -m pip install pyarrow",
        ) from None
    try:
        with parquet.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names:
                raise UsageError(f'{shown(path)} has no column "text"')
            for batch in table.iter_batches(_ROWS, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    line = json.dumps({"text": text}, default=str).encode() + b"\n"
                    if len(line) > start:
                        yield line[start:]
                    start = max(0, start - len(line))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
