"""Key files of an account: made and replaced so that no crash can lose one.

A key file never changes: it appears complete and durable under its name, or not at all. The key
that takes over is ``account.key.next`` from before the ledger hears of it until it is known to be
in force; keys that it replaced stay as ``account.key.retired-1`` and so on.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from artel.ledger.entries import recovery_digest
from artel.ledger.store.database import storage_errors
from artel.protocol import files, identity
from artel.protocol.errors import ArtelError, ResourceError, UsageError
from artel.protocol.files import sync_folder
from artel.protocol.identity import Identity

ACCOUNT_KEY = "account.key"
ORGANISER_KEY = "organiser.key"
NODE_KEY = "node.key"
RECOVERY_KEY = "recovery.key"
RECOVERY_PUB = "recovery.pub"
"""The public half, 64 hex digits: all that has to stay for registering and rotating."""


_MARKS = {
    "node": (ACCOUNT_KEY, "manifest.json"),
    "coordinator": (ORGANISER_KEY, "run/manifest.json"),
}
"""Files that only homes of these programs have. Each has a node.key, of its own."""


def require_home_of(program: str, home: Path, instead: str = "") -> None:
    """Refuse a home of the other program: its key would then have two parts in a run, and what is
    asked of this one is not there.

    :param program: "node" or "coordinator"
    :param instead: what a person can do; otherwise the program gets a folder of its own
    :raises UsageError: it is one
    """
    for other, marks in _MARKS.items():
        if other != program and any((home / mark).exists() for mark in marks):
            raise UsageError(
                f"{home} is the home of a {other}, not of a {program}",
                instead or f"give the {program} a folder of its own: --home DIR",
            )


def status_of(program: str, home: Path) -> str:
    """The command that shows what the program of a home does."""
    return f"artel {program} status --home {shlex.quote(str(home))}"


# --- files ----------------------------------------------------------------------------------------


def create(path: Path) -> Identity:
    """Make a new key; the file is durable and readable by its owner alone.

    :raises UsageError: when the file exists
    """
    owner = Identity.from_seed(os.urandom(32))
    write(path, owner)
    return owner


def write(path: Path, owner: Identity) -> None:
    """Write a key file that must not exist yet.

    :raises UsageError: when it exists
    :raises ResourceError: when it cannot be written
    """
    write_new(path, owner.encode())


def write_new(path: Path, data: bytes) -> None:
    """Write a private file (mode 0600) that must not exist yet; durable when this returns.

    :raises UsageError: when it exists
    :raises ResourceError: when it cannot be written
    """
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = files.unfinished(path)
        with files.creating(new, mode=0o600) as file:
            file.write(data)
        try:
            # A link and not a rename: it fails when somebody else was faster.
            os.link(new, path)
        except FileExistsError:
            raise UsageError(
                f"{path} exists, and no key is ever overwritten",
                "move it to a safe place first, or name another file",
            ) from None
        finally:
            files.discard(new)
        sync_folder(path.parent)


@contextmanager
def locked(folder: Path, doing: str = "changing the keys in", mode: int = 0o700) -> Iterator[None]:
    """Keep two commands from doing the same thing to a folder, which is made if it is missing.

    :param mode: of a folder that is made

    :raises ResourceError: when another process is at it
    """
    with storage_errors(folder):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(
                f"another process is {doing} {folder}", "wait until it is done"
            ) from None
        yield
    finally:
        os.close(descriptor)


def recovery_of(home: Path) -> str:
    """What an account registers of its recovery key: the digest of ``recovery.pub``, or "".

    :raises UsageError: when the file is damaged
    """
    path = home / RECOVERY_PUB
    try:
        text = path.read_bytes()[:80].decode("ascii", "replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    with suppress(ValueError):
        if len(text) == 64 and len(public := bytes.fromhex(text)) == 32:
            return recovery_digest(public)
    raise UsageError(
        f"{path} does not hold a public key (64 hex digits)",
        "move it away, and make another recovery key: artel ledger key new --recovery",
    )


def create_recovery(home: Path) -> Identity:
    """Make ``recovery.key`` and ``recovery.pub``.

    :raises UsageError: when one of them exists
    """
    if (home / RECOVERY_PUB).exists():
        raise UsageError(
            f"{home / RECOVERY_PUB} exists: there is a recovery key already",
            "to replace it, move recovery.pub away, make a new one and run key rotate",
        )
    recovery = create(home / RECOVERY_KEY)
    write_new(home / RECOVERY_PUB, f"{recovery.key}\n".encode())
    return recovery


# --- taking over ----------------------------------------------------------------------------------


def next_file(path: Path) -> Path:
    """Where the key that is to replace the one at ``path`` waits."""
    return path.with_name(f"{path.name}.next")


@contextmanager
def replacing(path: Path) -> Iterator[Identity]:
    """The key that is in the place of the one at ``path`` when the block ends without an error.

    The block makes it known. Whatever is cut off, nothing is lost, and it can be done again: the
    key is on the disk, durably, before anybody hears of it, and the next time it is the same one,
    so that who had heard of it already knows it.

    :raises ResourceError: when the disk does not work
    """
    following = next_file(path)
    fresh = identity.load(following) if following.exists() else create(following)
    try:
        yield fresh
    except ArtelError as error:
        waiting = f"the new key waits in {following}: keep it"
        error.hint = f"{waiting}, and run this again. {error.hint}".strip()
        raise
    take_over(path)


def retired(path: Path) -> list[Path]:
    """Earlier keys of ``path``, the newest last."""
    found: dict[int, Path] = {}
    prefix = f"{path.name}.retired-"
    for file in path.parent.glob(f"{prefix}*"):
        number = file.name.removeprefix(prefix)
        if number.isascii() and number.isdigit() and len(number) < 7:
            found[int(number)] = file
    return [found[number] for number in sorted(found)]


def first(path: Path) -> Path:
    """The earliest key of ``path`` that is kept: by it the account is named, unless it is gone."""
    return [*retired(path), path][0]


def take_over(path: Path) -> None:
    """Put the next key in the place of the present one, which is kept as retired.

    To be called when the next key is known to be in force. May be cut off at any point and called
    again.

    :raises ResourceError: when the disk does not work
    """
    with storage_errors(path):
        if path.exists():
            _keep(path)
        os.replace(next_file(path), path)
        sync_folder(path.parent)


def _keep(path: Path) -> None:
    """Give the key at ``path`` a second name; after a crash it may have that already."""
    earlier = retired(path)
    if earlier and os.path.samefile(earlier[-1], path):
        return
    number = int(earlier[-1].name.rpartition("-")[2]) + 1 if earlier else 1
    os.link(path, path.with_name(f"{path.name}.retired-{number}"))
    # Durable before the present name is given to another key.
    sync_folder(path.parent)
