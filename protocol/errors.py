"""The one error base: a sentence for a person, a hint that names the fix, and an exit code.

Exit codes of every ``artel`` command: 0 it holds, 1 a check or the work failed, 2 the input is
wrong (usage, manifest, invite, file), 3 a peer or service cannot be reached, 4 this machine lacks
something (port, disk, memory, lock), 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_RESOURCE = 4
EXIT_INTERRUPTED = 130


class ArtelError(Exception):
    """Base of everything that Artel raises on purpose.

    :param message: what is wrong, one sentence, no trailing newline
    :param hint: what the person can do about it; empty when nothing helps
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def diagnostics(self) -> str:
        """The message and the hint as one printable text."""
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class CheckFailed(ArtelError):
    """Something was checked and does not hold (signature, root, hash, fold)."""


class UsageError(ArtelError):
    """What a person wrote is wrong: arguments, manifest, invite, key file."""

    exit_code = EXIT_USAGE


class DecodeError(ArtelError):
    """Bytes from outside do not parse. The only error that a decoder may raise."""

    exit_code = EXIT_USAGE


class Unreachable(ArtelError):
    """A peer or a service did not answer in time."""

    exit_code = EXIT_UNREACHABLE


class ResourceError(ArtelError):
    """This machine lacks something: a free port, disk space, memory, the lock of a home."""

    exit_code = EXIT_RESOURCE


class Unfit(ResourceError):
    """This machine, or what its owner gives of it, is not enough for a run; nothing was begun."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "did you mean …?" for the nearest known word, or an empty text."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""
