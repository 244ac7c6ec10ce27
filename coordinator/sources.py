"""Where text comes from: files found, checked, sampled and split, always in the same order.

Everything is read in bounded pieces: a source may be larger than memory. Files are named by their
POSIX path relative to their source and sorted by it; files with equal content are used once, and
belong to the contributor of the source that comes first.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from protocol.errors import UsageError
from protocol.manifest import StdlibSource, TextSource

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
PIECE_BYTES = 1 << 20
"""Text is read and tokenised in pieces of at most this size."""
MAX_LINE_BYTES = 64 << 20
"""Longest line of a .jsonl file (one document)."""
_STDLIB_SKIP = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Part:
    """Bytes ``start .. stop`` of a text file; mostly all of it.

    ``contributor`` is the account that earns with this text; "" for nobody.
    """

    path: Path
    digest: str
    start: int
    stop: int
    contributor: str = ""

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def jsonl(self) -> bool:
        return self.path.suffix == ".jsonl"


@dataclass(frozen=True)
class Inventory:
    """What the sources hold, and how many files were left out and why."""

    parts: tuple[Part, ...]
    undecodable: int
    duplicates: int

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(part.size for part in self.parts)


def take_inventory(
    sources: Sequence[StdlibSource | TextSource],
    base: Path,
    on_file: Callable[[float], None] = lambda fraction: None,
) -> Inventory:
    """Find and check every file of the sources.

    :param base: folder that relative paths start from
    :param on_file: called with the fraction of files read so far
    :raises UsageError: naming the file (and line), when one cannot be used
    """
    found = [(source, *item) for source in sources for item in _files(source, base)]
    parts: list[Part] = []
    seen: set[str] = set()
    undecodable = duplicates = 0
    for number, (source, path, lenient) in enumerate(found):
        on_file(number / len(found))
        part = _inspect(path, lenient=lenient)
        if part is None:
            undecodable += 1
        elif part.digest in seen:
            duplicates += 1
        elif part.size:
            seen.add(part.digest)
            account = source.contributor if isinstance(source, TextSource) else ""
            parts.append(replace(part, contributor=account))
    if not parts:
        raise UsageError("the sources hold no text", "name a folder with .txt, .md or .py files")
    return Inventory(tuple(parts), undecodable, duplicates)


def estimated_bytes(sources: Sequence[StdlibSource | TextSource], base: Path) -> int:
    """Sum of the file sizes, without reading any of them.

    :raises UsageError: when a source is not there
    """
    return sum(path.stat().st_size for source in sources for path, _ in _files(source, base))


def sample(parts: Sequence[Part], max_bytes: int) -> tuple[Part, ...]:
    """Parts with together at most ``max_bytes`` bytes (0: all of them), in the same order.

    Files are drawn in the order of their content's hash, which is as good as by chance and the same
    everywhere; the last one is cut at a line end.
    """
    if not max_bytes or sum(part.size for part in parts) <= max_bytes:
        return tuple(parts)
    kept: dict[Path, Part] = {}
    left = max_bytes
    for part in sorted(parts, key=lambda part: part.digest):
        if part.size > left:
            cut = _line_end(part, part.start + left)
            kept[part.path] = replace(part, stop=min(cut, part.stop))
            break
        kept[part.path] = part
        left -= part.size
    return tuple(kept[part.path] for part in parts if part.path in kept)


def split(parts: Sequence[Part], fraction: float) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Train and validation parts; the two never share a file, unless there is only one.

    Files go to validation in the order of their content's hash until ``fraction`` of the bytes are
    reached; at least one file stays on either side. A single file is cut at a line end instead:
    its last part is the validation split.

    :raises UsageError: when a single file cannot be cut
    """
    if len(parts) == 1:
        (part,) = parts
        cut = _line_end(part, part.stop - max(1, int(part.size * fraction)))
        if not part.start < cut < part.stop:
            raise UsageError(
                f"{part.path} cannot be split for validation: it has no line end near its end",
                "use more than one file, or a file with several lines",
            )
        return (replace(part, stop=cut),), (replace(part, start=cut),)
    target = fraction * sum(part.size for part in parts)
    held: list[Part] = []
    taken = 0
    for part in sorted(parts, key=lambda part: part.digest):
        if taken + part.size <= target:
            held.append(part)
            taken += part.size
        elif held:
            break
    if not held:  # every file is larger than the target
        held = [min(parts, key=lambda part: (part.size, part.digest))]
    chosen = {part.path for part in held}
    return (
        tuple(part for part in parts if part.path not in chosen),
        tuple(part for part in parts if part.path in chosen),
    )


def pieces(part: Part) -> Iterator[tuple[str, bool]]:
    """The text of a part in pieces, each with whether it ends a document.

    :raises UsageError: when the file changed since it was checked
    """
    try:
        yield from _documents(part) if part.jsonl else _text_pieces(part)
    except OSError as error:
        raise UsageError(f"cannot read {part.path}: {error.strerror}") from None
    except (ValueError, KeyError):
        raise UsageError(f"{part.path} changed while it was read", "start again") from None


def _files(source: StdlibSource | TextSource, base: Path) -> Iterator[tuple[Path, bool]]:
    """Files of a source in order, each with whether an undecodable one is skipped."""
    if isinstance(source, StdlibSource):
        root = Path(sysconfig.get_path("stdlib"))
        for path in _walk(root, (".py",), _STDLIB_SKIP):
            yield path, True
        return
    root = base / source.path
    if not root.exists():
        raise UsageError(
            f"the data source {source.path} does not exist", f"looked for {root.absolute()}"
        )
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise UsageError(
                f"the data source {source.path} is none of {', '.join(SUFFIXES)}",
                "rename or convert it",
            )
        yield root, False
        return
    paths = _walk(root, SUFFIXES, frozenset())
    if not paths:
        raise UsageError(f"the folder {source.path} holds no {', '.join(SUFFIXES)} file")
    for path in paths:
        yield path, False


def _walk(root: Path, suffixes: tuple[str, ...], skip: frozenset[str]) -> list[Path]:
    """Regular files below ``root`` with one of the suffixes, sorted by relative POSIX path."""

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"cannot read the folder {error.filename}: {error.strerror}", "check its permissions"
        )

    found: list[tuple[PurePosixPath, Path]] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in skip]
        for name in names:
            path = Path(folder) / name
            if path.suffix in suffixes and path.is_file():
                found.append((PurePosixPath(path.relative_to(root).as_posix()), path))
    return [path for _, path in sorted(found)]


def _inspect(path: Path, *, lenient: bool) -> Part | None:
    """Read a file once: its digest and size, and whether it is sound text. None: not UTF-8."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = line = 0
    try:
        with path.open("rb") as file:
            if path.suffix == ".jsonl":
                while raw := file.readline(MAX_LINE_BYTES + 1):
                    line += 1
                    _document(raw, f"{path}:{line}")
                    digest.update(raw)
                    size += len(raw)
            else:
                while raw := file.read(PIECE_BYTES):
                    line_before = line
                    line += raw.count(b"\n")
                    digest.update(raw)
                    size += len(raw)
                    decoder.decode(raw)
                line_before = line
                decoder.decode(b"", final=True)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "check its permissions, or move it away"
        ) from None
    except UnicodeDecodeError as error:
        if lenient:
            return None
        bad = line_before + 1 + raw[: error.start].count(b"\n")
        raise UsageError(
            f"{path}:{bad} is not UTF-8 text", "convert the file, or move it away"
        ) from None
    return Part(path, digest.hexdigest(), 0, size)


def _document(raw: bytes, where: str) -> str:
    """The text of one line of a .jsonl file; empty for a blank line."""
    if len(raw) > MAX_LINE_BYTES:
        raise UsageError(f"{where} is longer than {MAX_LINE_BYTES >> 20} MiB")
    if not raw.strip():
        return ""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not valid JSON", "each line is one JSON object") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise UsageError(f'{where} has no field "text" with a text in it')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} holds half a surrogate pair, which is no text") from None
    return text


def _documents(part: Part) -> Iterator[tuple[str, bool]]:
    with part.path.open("rb") as file:
        file.seek(part.start)
        while file.tell() < part.stop:
            text = _document(file.readline(MAX_LINE_BYTES + 1), str(part.path))
            for start in range(0, len(text), PIECE_BYTES):
                stop = start + PIECE_BYTES
                yield text[start:stop], stop >= len(text)


def _text_pieces(part: Part) -> Iterator[tuple[str, bool]]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with part.path.open("rb") as file:
        file.seek(part.start)
        left = part.size
        while left:
            raw = file.read(min(PIECE_BYTES, left))
            if not raw:
                raise ValueError("the file became shorter")
            left -= len(raw)
            yield decoder.decode(raw, final=not left), not left


def _line_end(part: Part, position: int) -> int:
    """First line start at or behind ``position``; the part's end when there is none."""
    with part.path.open("rb") as file:
        file.seek(max(part.start, position - 1))
        while file.tell() < part.stop:
            if file.readline(PIECE_BYTES).endswith(b"\n"):
                return min(file.tell(), part.stop)
    return part.stop
