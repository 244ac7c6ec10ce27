"""Where text comes from: files found, checked, sampled and split, always in the same order.

Everything is read in bounded pieces: a source may be larger than memory. Files are named by their
POSIX path relative to their source and sorted by it; files with equal content are used once, and
belong to the contributor of the source that comes first. A linked folder is followed once. Whatever
is not used is counted, with the reason.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from artel.coordinator.text_files import (
    MAX_LINE_BYTES,
    NO_LINES,
    NOT_UTF8,
    PIECE_BYTES,
    READ,
    NotText,
    format_of,
    not_utf8,
    pieces_of,
    shown,
)
from artel.ledger.entries.words import plural
from artel.protocol.errors import UsageError
from artel.protocol.run_config import StdlibSource, TextSource

SAME_TEXT = "the same text as another file"
PIPE = "a pipe, a socket or a device"
MAX_ENDING = 16
MAX_REASONS = 8
"""Reasons for leaving files out that are said one by one."""
_STDLIB_SKIP = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Text:
    """Bytes ``start .. stop`` of a file's content; mostly all of it.

    ``source`` is the number of the source that it is from.
    """

    path: Path
    digest: str
    start: int
    stop: int
    source: int = 0

    @property
    def size(self) -> int:
        return self.stop - self.start


class Skipped:
    """What is not used of a source: how many files and bytes on the disk, by reason."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def add(self, reason: str, size: int = 0) -> None:
        """One more file, of ``size`` bytes."""
        self.files[reason] += 1
        self.bytes[reason] += size

    def update(self, other: Skipped) -> None:
        """Add all that another source does not use."""
        self.files.update(other.files)
        self.bytes.update(other.bytes)

    def lost_bytes(self) -> int:
        """Bytes that nobody trains on; what another file holds too is not lost."""
        return sum(self.bytes.values()) - self.bytes[SAME_TEXT]

    def words(self) -> str:
        """The reasons with their numbers, those with the most bytes first."""
        ordered = sorted(self.files, key=lambda one: (-self.bytes[one], -self.files[one], one))
        said = [
            f"{one}: {self.files[one]:,}"
            + (f" ({self.bytes[one]:,} bytes)" if self.bytes[one] else "")
            for one in ordered[:MAX_REASONS]
        ]
        if more := ordered[MAX_REASONS:]:
            said.append(
                f"for {len(more):,} other reasons: {sum(self.files[one] for one in more):,}"
            )
        return "; ".join(said)


@dataclass(frozen=True)
class Inventory:
    """What the sources hold, and how many files were left out and why."""

    parts: tuple[Text, ...]
    documents: int
    linked: int
    """Linked folders that were followed."""
    skipped: Skipped
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(part.size for part in self.parts)

    def words(self) -> dict[str, str]:
        """What is used, and what is not, as a sentence each."""
        linked = f"; {plural(self.linked, 'linked folder')} followed" if self.linked else ""
        used = {
            "text": f"{plural(len(self.parts), 'file')}, {self.size:,} bytes, "
            f"{plural(self.documents, 'document')}{linked}"
        }
        return used | ({"not used": self.skipped.words()} if self.skipped.files else {})


def take_inventory(
    sources: Sequence[StdlibSource | TextSource],
    base: Path,
    on_file: Callable[[float], None] = lambda fraction: None,
) -> Inventory:
    """Find and check every file of the sources.

    :param base: folder that relative paths start from
    :param on_file: called with the fraction of files read so far
    :raises UsageError: naming the file (and line), when one cannot be used, or the source of which
        nothing can
    :raises ResourceError: when this machine lacks the library that reads a file
    """
    left_out = [Skipped() for _ in sources]
    found = [_files(*pair, base) for pair in zip(sources, left_out, strict=True)]
    total = sum(len(paths) for paths, _ in found)
    parts: list[Text] = []
    seen: set[str] = set()
    warnings: list[str] = []
    done = documents = 0
    for number, (source, skipped, (paths, _)) in enumerate(
        zip(sources, left_out, found, strict=True)
    ):
        used = 0  # bytes on the disk
        for path in paths:
            on_file(done / total)
            done += 1
            size = path.stat().st_size
            try:
                part, count = _inspect(path)
            except NotText as error:
                if error.reason != _may_be_skipped(source, base):
                    raise
                skipped.add(error.reason, size)
                continue
            if not count:
                skipped.add("empty", size)
            elif part.digest in seen:
                skipped.add(SAME_TEXT, size)
            else:
                seen.add(part.digest)
                parts.append(replace(part, source=number))
                used, documents = used + size, documents + count
        warnings += _judge(source, used, skipped)
    everything = Skipped()
    for skipped in left_out:
        everything.update(skipped)
    return Inventory(
        tuple(parts), documents, sum(linked for _, linked in found), everything, tuple(warnings)
    )


def _may_be_skipped(source: StdlibSource | TextSource, base: Path) -> str:
    """The one reason for which a file of this source is no error."""
    if isinstance(source, StdlibSource):
        return NOT_UTF8
    return "" if (base / source.path).is_file() else NO_LINES


def _judge(source: StdlibSource | TextSource, used: int, skipped: Skipped) -> list[str]:
    """Warnings about a source of which little is used: so many bytes.

    :raises UsageError: when nothing of it is
    """
    name = shown(Path(source.path)) if isinstance(source, TextSource) else source.kind
    why = f" (not used: {skipped.words()})" if skipped.files else ""
    if not used:
        raise UsageError(
            f"the data source {name} holds no text to train on{why}", f"what is read: {READ}"
        )
    lost = skipped.lost_bytes()
    if lost <= used:
        return []
    return [f"of {name} only {used:,} of {used + lost:,} bytes are used{why}"]


def sample(parts: Sequence[Text], max_bytes: int) -> tuple[Text, ...]:
    """Parts with together at most ``max_bytes`` bytes (0: all of them), in the same order.

    Files are drawn in the order of their content's hash, which is as good as by chance and the same
    everywhere; the last one is cut at a line end.
    """
    if not max_bytes or sum(part.size for part in parts) <= max_bytes:
        return tuple(parts)
    kept: dict[Path, Text] = {}
    left = max_bytes
    for part in sorted(parts, key=lambda part: part.digest):
        if part.size > left:
            cut = _line_end(part, part.start + left)
            kept[part.path] = replace(part, stop=min(cut, part.stop))
            break
        kept[part.path] = part
        left -= part.size
    return tuple(kept[part.path] for part in parts if part.path in kept)


def split(parts: Sequence[Text], fraction: float) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
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
                f"{shown(part.path)} cannot be split for validation: no line end is near its end",
                "use more than one file, or a file with several lines",
            )
        return (replace(part, stop=cut),), (replace(part, start=cut),)
    target = fraction * sum(part.size for part in parts)
    held: list[Text] = []
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


def pieces(part: Text) -> Iterator[tuple[str, bool]]:
    """The text of a part in pieces, each with whether it ends a document.

    :raises UsageError: when the file changed since it was checked
    """
    left = part.size
    try:
        for size, text, ends in _decoded(part.path, part.start, part.stop):
            left -= size
            for start in range(0, len(text), PIECE_BYTES):
                stop = start + PIECE_BYTES
                yield text[start:stop], ends and stop >= len(text)
    except OSError as error:
        raise UsageError(f"cannot read {shown(part.path)}: {error.strerror}") from None
    except UsageError:
        left = -1
    if left:
        raise UsageError(f"{shown(part.path)} changed while it was read", "start again")


def _decoded(
    path: Path, start: int = 0, stop: int | None = None, tell: Callable[[bytes], object] = len
) -> Iterator[tuple[int, str, bool]]:
    """Bytes ``start .. stop`` of a file's content: size and text of each piece, and whether it ends
    a document.

    :param tell: called with the bytes, without a byte-order mark
    :raises NotText: when it is something else than its name says
    """
    form = format_of(path)
    lines = form is not None and form.lines
    decoder = codecs.getincrementaldecoder("utf-8")()
    number, at, raw = 1, start, b""
    try:
        for raw in pieces_of(path, start):
            raw = raw if stop is None else raw[: stop - at]
            plain = raw if at else raw.removeprefix(codecs.BOM_UTF8)
            at += len(raw)
            tell(plain)
            if lines:
                yield len(raw), _document(plain, f"{shown(path)}:{number}"), True
            else:
                yield len(raw), decoder.decode(plain, final=at == stop), at == stop
            if at == stop:
                return
            number += 1 if lines else raw.count(b"\n")
        raw = b""
        decoder.decode(raw, final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(path, number + raw[: error.start].count(b"\n")) from None


def _files(
    source: StdlibSource | TextSource, skipped: Skipped, base: Path
) -> tuple[list[Path], int]:
    """Files of a source in order, and how many linked folders were followed."""
    if isinstance(source, StdlibSource):
        # By definition the .py files; anything else in that folder is no text of the run.
        root = Path(sysconfig.get_path("stdlib"))
        found, linked = _walk(root, Skipped(), _STDLIB_SKIP, follow=False)
        return [path for path in found if path.suffix == ".py"], linked
    root = base / source.path
    name = shown(Path(source.path))
    if not root.exists():
        raise UsageError(f"the data source {name} does not exist", f"looked for {root.absolute()}")
    if root.is_file():
        if format_of(root) is None:
            raise UsageError(f"the data source {name} is none of {READ}", "rename or convert it")
        return [root], 0
    paths, linked = _walk(root, skipped, frozenset(), follow=True)
    for path in paths:
        if format_of(path) is None:
            ending = shown(Path(path.suffix.lower()))[:MAX_ENDING]
            reason = f"an ending that is not read, {ending}" if path.suffix else "no ending"
            skipped.add(reason, path.stat().st_size)
    return [path for path in paths if format_of(path) is not None], linked


def _walk(
    root: Path, skipped: Skipped, skip: frozenset[str], *, follow: bool
) -> tuple[list[Path], int]:
    """Regular files below ``root``, sorted by relative POSIX path; linked folders followed.

    Linked folders come last in the walk, in the order of their paths: what they lead to is found
    where it really is, when that is below ``root`` too. None is followed that holds ``root``.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"cannot read the folder {shown(Path(error.filename))}: {error.strerror}",
            "check its permissions",
        )

    top = Path(os.path.realpath(root))
    found: list[tuple[PurePosixPath, Path]] = []
    seen: set[str] = set()
    starts, linked = [root], 0
    while starts:
        start = starts.pop(0)
        links: list[Path] = []
        for folder, folders, names in os.walk(start, onerror=refuse):
            real = os.path.realpath(folder)
            if real in seen or (start is not root and top.is_relative_to(real)):
                skipped.add("a linked folder that is read already")
                folders.clear()
                continue
            seen.add(real)
            linked += start is not root and Path(folder) == start
            folders[:] = [name for name in folders if name not in skip]
            links += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
            for path in (Path(folder, name) for name in names):
                try:
                    if path.is_file():
                        found.append((PurePosixPath(path.relative_to(root).as_posix()), path))
                    else:
                        skipped.add(PIPE if path.exists() else "a link that leads nowhere")
                except OSError as error:  # a folder that may be listed but not entered
                    refuse(error)
        starts = sorted([*starts, *links]) if follow else []
    return [path for _, path in sorted(found)], linked


def _inspect(path: Path) -> tuple[Text, int]:
    """Read a file once: its digest and size, and its documents; whether it is sound text.

    :raises NotText: when it is something else than its name says
    """
    form, digest = format_of(path), hashlib.sha256()
    size = documents = 0
    try:
        for count, text, ends in _decoded(path, tell=digest.update):
            size += count
            documents += bool(text) if ends else bool(text) > documents
    except OSError as error:
        raise UsageError(
            f"cannot read {shown(path)}: {error.strerror}", "check its permissions, or move it away"
        ) from None
    except BadLine as error:
        # Many a .json file is no text but a setting; .jsonl says what it is.
        if form is not None and form.ending == ".json" and not documents:
            raise NotText(error.message, error.hint, NO_LINES) from None
        raise
    return Text(path, digest.hexdigest(), 0, size), documents


class BadLine(UsageError):
    """A line that is no document."""


def _document(raw: bytes, where: str) -> str:
    """The text of one line of a .jsonl file; empty for a blank line."""
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine(f"{where} is longer than {MAX_LINE_BYTES >> 20} MiB")
    if not raw.strip():
        return ""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadLine(f"{where} is not valid JSON", "each line is one JSON object") from None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise BadLine(f'{where} has no field "text" with a text in it')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadLine(f"{where} holds half a surrogate pair, which is no text") from None
    return text


def _line_end(part: Text, position: int) -> int:
    """First line start at or behind ``position``; the part's end when there is none."""
    position = max(part.start, position - 1)
    for piece in pieces_of(part.path, position):
        if end := piece.find(b"\n") + 1:
            return min(position + end, part.stop)
        position += len(piece)
        if position >= part.stop:
            break
    return part.stop
