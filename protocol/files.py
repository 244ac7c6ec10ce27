"""Writing files so that nobody else's are ever in the way, or go.

What is not finished lies under a name that nobody could have chosen before: it is drawn by lot and
made only when it is free. So no command has to remove anything that it did not make itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from artel.protocol.errors import ResourceError, UsageError
from artel.protocol.units import readable

_MARK = "artel-unfinished"
_OURS = re.compile(rf"\..*\.[0-9a-f]{{16}}\.{_MARK}", re.ASCII | re.DOTALL)
_OTHER_HOME = "give this program a folder of its own: --home DIR"
_LOOKED_AT = 1 << 20
_MOST_OF_NAME = 40
"""Characters of the final name; the whole one must stay below 255 bytes."""


def unfinished(path: Path) -> Path:
    """A name beside ``path`` for what shall take its place; nothing has it, and nothing will."""
    return path.with_name(f".{path.name[:_MOST_OF_NAME]}.{secrets.token_hex(8)}.{_MARK}")


@contextlib.contextmanager
def creating(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file, which is gone again when the block fails.

    :param durable: its bytes are on the disk when the block ends; its name need not be
    :param mode: of the file, less what the umask takes away
    :raises FileExistsError: there is something of this name
    :raises OSError: it cannot be written
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        try:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        except BaseException:
            discard(path)
            raise


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends; when it fails, nothing changes.

    What is there and no regular file (``/dev/stdout``, a pipe) stays, and is written to.

    :param durable: also after a power cut: the bytes are on the disk before the name is
    :param mode: as in :func:`creating`
    :raises OSError: it cannot be written
    """
    if _is_special(path):
        with path.open("wb") as special:
            yield special
        return
    new = unfinished(path)
    with creating(new, durable=durable, mode=mode) as file:
        yield file
    try:
        new.replace(path)
    except OSError:
        discard(new)
        raise
    if durable:
        sync_folder(path.parent)


def _is_special(path: Path) -> bool:
    """Whether something that is neither a regular file nor a folder has this name."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def write(path: Path, data: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file that holds all of ``data`` or, if that fails, what it held before.

    :raises OSError: it cannot be written
    """
    with replacing(path, durable=durable, mode=mode) as file:
        file.write(data)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(ResourceError):
    """There is no room left on a disk."""


@contextlib.contextmanager
def told(where: Path, size: int = 0) -> Iterator[None]:
    """What the system says of a disk, as an error for a person.

    :param where: the file or folder that the block writes
    :param size: bytes that it needs there, if that is known
    :raises ResourceError: in place of an OSError
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, where, size) from None


def disk_error(error: OSError, where: Path, size: int = 0) -> ResourceError:
    """The error for a person behind a failed write; the parameters are those of :func:`told`."""
    if error.errno in DISK_FULL:
        room = f"free at least {readable(size)} there" if size else "free some space"
        return DiskFull(
            f"the disk is full: cannot write {where}",
            f"{room}, then start again: nothing that was finished is lost",
        )
    return ResourceError(
        f"cannot write {where}: {error.strerror}", "check that folder, and the disk"
    )


def discard(path: Path) -> None:
    """Remove a file of ours that came to nothing; on a disk that has died, it stays."""
    with contextlib.suppress(OSError):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed programs left unfinished in a folder that no other program writes now."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that has something in it.

    :raises UsageError: it has, it is something else, or it cannot be looked at
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not empty", "name a folder that does not exist yet")
    except OSError as error:
        raise UsageError(f"cannot use {folder}: {error.strerror}", "name another folder") from None


def holds(key: str) -> Callable[[bytes], bool]:
    """Whether bytes are the JSON of an object that has ``key`` alone."""

    def check(data: bytes) -> bool:
        try:
            value = json.loads(data)
        except ValueError:
            return False
        return isinstance(value, dict) and set(value) == {key}

    return check


def require_ours(path: Path, is_ours: Callable[[bytes], bool]) -> None:
    """Refuse to write over a file of another program in what was given as a home.

    :param is_ours: whether a file with these bytes was written by this program
    :raises UsageError: it was not
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LOOKED_AT)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", _OTHER_HOME) from None
    if not is_ours(data):
        raise UsageError(f"{path} is there and was not made by this program", _OTHER_HOME)
