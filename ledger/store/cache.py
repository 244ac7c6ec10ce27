"""What a reader of ledgers keeps between two calls, so that the second one checks only what is new.

Everything here can be lost, and is then fetched and computed again. Nothing here is trusted for
what it says about a ledger: tiles are tied to a signed root whenever they are read, and a replayed
state is used only if the ledger at hand begins with the very entries that it was computed from. A
damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any

from artel import protocol
from artel.ledger import entries, fold
from artel.ledger.entries.state import FoldState
from artel.ledger.fold.journal import Journal
from artel.protocol import files
from artel.protocol.errors import UsageError
from artel.protocol.paths import expanded

_FORMAT = 1
MAX_JOURNALS = 8
"""Accounts whose journal is kept up to date; the one that was asked for longest ago goes first."""


def default_folder(run: str) -> Path:
    """Where readers keep what they know of a run: ``$XDG_CACHE_HOME/artel/ledger/RUN``."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or expanded(Path("~/.cache")))
    except UsageError:  # a container's user without a home: nothing is kept
        base = Path(os.devnull)
    return base / "artel" / "ledger" / run


@dataclass
class Replayed:
    """A fold over the first ``size`` entries, whose root is ``root``."""

    size: int = 0
    root: bytes = b""
    state: FoldState = field(default_factory=FoldState)
    unsigned: list[int] = field(default_factory=list)
    """Entries with a signature that does not verify; those of all others do."""
    journals: dict[str, Journal] = field(default_factory=dict)
    """By account."""


def load(path: Path) -> Replayed | None:
    """What :func:`save` wrote, if it is intact and by the same rules of counting."""
    try:
        body, _, checksum = path.read_bytes().rpartition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return None
        value: dict[str, Any] = json.loads(body)
        if (value["format"], value["rules"]) != (_FORMAT, _rules()):
            return None
        return Replayed(
            value["size"],
            bytes.fromhex(value["root"]),
            FoldState.decode(value["state"].encode()),
            value["unsigned"],
            {name: Journal.from_dict(item) for name, item in value["journals"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save(path: Path, replayed: Replayed) -> None:
    """Keep it, if there is room."""
    while len(replayed.journals) > MAX_JOURNALS:
        del replayed.journals[next(iter(replayed.journals))]
    value = {
        "format": _FORMAT,
        "rules": _rules(),
        "size": replayed.size,
        "root": replayed.root.hex(),
        "state": replayed.state.encode().decode(),
        "unsigned": replayed.unsigned,
        "journals": {name: journal.to_dict() for name, journal in replayed.journals.items()},
    }
    body = json.dumps(value, separators=(",", ":")).encode()
    write(path, body + b"\n" + hashlib.sha256(body).hexdigest().encode())


def write(path: Path, data: bytes) -> None:
    """Replace a file in one step; a full or read-only disk is no reason to fail."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(path, data, durable=False)


@once
def _rules() -> str:
    """Names the code that counts: a state of another version must not be continued."""
    packages = (protocol, entries, fold)
    paths = [path for p in packages for path in sorted(Path(p.__path__[0]).glob("*.py"))]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
