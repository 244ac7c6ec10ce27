"""What a home has said in public: the checkpoint file, and the tree heads in ``heads.sqlite3``.

A ledger that is older than that was put back from a backup, or lost its end. Who goes on from it
signs a second history.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.entries.records import signers_in
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from artel.ledger.tlog.note import MAX_NOTE_BYTES
from artel.protocol.errors import CheckFailed, DecodeError, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries.records import Term
    from artel.ledger.store.heads import HeadStore

DATABASE_NAME = "ledger.sqlite3"
CHECKPOINT_NAME = "checkpoint"


class LostEntries(CheckFailed):
    """The ledger of a home does not hold all that the home has signed or seen signed."""

    def __init__(self, message: str, home: Path, run: str = "") -> None:
        command = f"artel ledger restore --from TARGET --home {shlex.quote(str(home))}"
        super().__init__(
            message,
            "nothing was signed; a start takes the ledger back by itself from members that it can "
            "reach, or do it from whoever has more of it (a member's page or address, a mirror) in "
            "the place of TARGET:\n"
            f"    {command}{f' --run {run}' if run else ''}",
        )


def require_file(home: Path) -> Path:
    """The ledger's file in a home.

    :raises UsageError: when there is none
    :raises LostEntries: when there was one
    """
    path, copied = home / DATABASE_NAME, home / CHECKPOINT_NAME
    if path.is_file():
        return path
    from artel.ledger.store.keyfiles import NODE_KEY

    if not copied.is_file():
        raise UsageError(
            f"there is no ledger in {home}",
            "give the home directory of a node or a coordinator: --home DIR",
        )
    if (home / NODE_KEY).exists():
        raise ledger_gone(path)
    raise UsageError(
        f"{home} is a copy of a log, and no home",
        f"check it with: artel ledger audit {shlex.quote(str(home))} --run ID --full",
    )


def ledger_gone(path: Path, run: str = "") -> LostEntries:
    """The error of a home that has published something, and whose ledger is gone."""
    return LostEntries(
        f"the ledger {path} is gone or empty; its file {CHECKPOINT_NAME} is still here",
        path.parent,
        run,
    )


def term_of(origin: str, run: str) -> int | None:
    """The term in an origin line of this run; None when it is the origin of something else."""
    match = re.fullmatch(r"artel/([0-9a-f]{64})/term/(0|[1-9][0-9]{0,8})", origin, re.ASCII)
    return int(match[2]) if match is not None and match[1] == run else None


def run_of(origin: str) -> str:
    """The run id in an origin line; "" when it is no run's."""
    parts = origin.split("/")
    run = parts[1] if len(parts) == 4 else ""
    return run if run and term_of(origin, run) is not None else ""


def read_checkpoint_file(path: Path) -> str:
    """The note in the file; empty when there is none."""
    try:
        return path.read_bytes()[: MAX_NOTE_BYTES + 1].decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def published_error(
    published: str,
    path: Path,
    note_at: Callable[[int], str],
    size: int,
    terms: Sequence[Term] = (),
) -> str:
    """What is wrong between the published note (of file ``path``) and the database, or "".

    :param note_at: gives the note that the database holds for a size, "" for none
    :param size: number of entries in the database
    :param terms: of the database; a note that was given up with its term is behind, as after a
        crash
    """
    if not published:
        return ""
    try:
        head = parse_checkpoint(published)
    except DecodeError as error:
        return f"{path} is damaged: {error.message}"
    if given_up(head, terms):
        return ""
    if head.size > size:
        return f"{path} covers {head.size} entries, the database holds {size}: entries are lost"
    if published != note_at(head.size):
        return f"{path} is not the checkpoint that the database holds for size {head.size}"
    return ""


# --- the tree heads that a home keeps -------------------------------------------------------------


def kept_of(head: Checkpoint, terms: Iterable[Term]) -> int:
    """How many of the entries that a head covers were not given up when its term ended: a later
    term goes on behind them."""
    own = term_of(head.origin, run_of(head.origin))
    ends = [term.begins for term in terms if own is not None and term.number > own]
    return min([head.size, *ends])


def given_up(head: Checkpoint, terms: Iterable[Term]) -> bool:
    """Whether a head covers what was given up when its term ended."""
    return kept_of(head, terms) < head.size


def counts(note: str, terms: Sequence[Term]) -> bool:
    """Whether a note that was kept of a run says something: its term's leader has signed it, and
    what it covers was not given up.

    Of a term after those that are known here, only the note tells; it was verified when it was
    kept.
    """
    head = parse_checkpoint(note)
    term = term_of(head.origin, run_of(head.origin))
    if term is not None and (not terms or term > terms[-1].number):
        return True
    try:
        open_checkpoint(note, head.origin, signers_in(term, terms))
    except (CheckFailed, DecodeError):
        return False
    return not given_up(head, terms)


def known_heads(heads: HeadStore, run: str, terms: Sequence[Term] = ()) -> list[Checkpoint]:
    """Every head of this run that the home signed, cosigned or saw cosigned; the largest first.

    :param terms: by which the notes that are kept are looked at again (:func:`counts`); heads that
        were given up are left out
    """
    found = {head for head in heads.witnessed_heads() if term_of(head.origin, run) is not None}
    for text in heads.newest_first(0):
        head = parse_checkpoint(text)
        if term_of(head.origin, run) is not None and counts(text, terms):
            found.add(Checkpoint(head.origin, head.size, head.root))
    return sorted(
        (head for head in found if not given_up(head, terms)), key=lambda head: -head.size
    )


def heads_error(heads: Iterable[Checkpoint], size: int, root_at: Callable[[int], bytes]) -> str:
    """What a tree of ``size`` entries lacks of these heads, or ""."""
    for head in sorted(heads, key=lambda head: -head.size):
        if head.size > size:
            return (
                f"it holds {size} entries, and this home has signed or seen a signed tree head of "
                f"{head.size}: it is older, or its end is lost"
            )
        if root_at(head.size) != head.root:
            return (
                f"it is not the one whose tree head of {head.size} entries this home has signed or "
                "seen signed: these are two histories"
            )
    return ""
