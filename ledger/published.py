"""The checkpoint file beside the database: what a home has said in public."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ledger.checkpoint import parse_checkpoint
from ledger.note import MAX_NOTE_BYTES
from protocol.errors import DecodeError


def term_of(origin: str, run: str) -> int | None:
    """The term in an origin line of this run; None when it is the origin of something else."""
    match = re.fullmatch(r"artel/([0-9a-f]{64})/term/(0|[1-9][0-9]{0,8})", origin, re.ASCII)
    return int(match[2]) if match is not None and match[1] == run else None


def read_checkpoint_file(path: Path) -> str:
    """The note in the file; empty when there is none."""
    try:
        return path.read_bytes()[: MAX_NOTE_BYTES + 1].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def published_error(published: str, path: Path, note_at: Callable[[int], str], size: int) -> str:
    """What is wrong between the published note (of file ``path``) and the database, or "".

    :param note_at: gives the note that the database holds for a size, "" for none
    :param size: number of entries in the database
    """
    if not published:
        return ""
    try:
        head = parse_checkpoint(published)
    except DecodeError as error:
        return f"{path} is damaged: {error.message}"
    if head.size > size:
        return f"{path} covers {head.size} entries, the database holds {size}: entries are lost"
    if published != note_at(head.size):
        return f"{path} is not the checkpoint that the database holds for size {head.size}"
    return ""
