"""Compiled loops: the one way in which this project uses numba.

A kernel is a plain function over arrays and numbers, compiled by LLVM at its first call and kept in
numba's cache on the disk: beside the code, else in the user's cache, else in a private folder for
temporary files. Never ``fastmath`` and never ``parallel``: every operation is an IEEE operation in
the order of the program, so a kernel gives the same bits on every machine. It runs without the
interpreter's lock.

Importing numba takes about 0.4 s, so modules with kernels are imported where they are used, never
at the start of a command.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile a loop over arrays."""
    try:
        return _compiled(function, kept=_has_home())
    except RuntimeError:  # neither the code's folder nor the user's can be written
        return _compiled(function, kept=_private_cache())


def _compiled(function: F, *, kept: bool) -> F:
    return cast(F, numba.njit(cache=kept, nogil=True, error_model="numpy")(function))


@cache
def _has_home() -> bool:
    """Whether numba may choose; without a home directory it would make a folder named ``~``."""
    known = os.environ.get("NUMBA_CACHE_DIR") or os.path.expanduser("~") != "~"
    return bool(known) or _private_cache()


@cache
def _private_cache() -> bool:
    """Send numba's cache to a folder for temporary files that only this user can write.

    What lies in it is run: a folder that somebody else made is not used.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"artel-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if ours and not status.st_mode & 0o022:
            tempfile.TemporaryFile(dir=folder).close()
            os.environ["NUMBA_CACHE_DIR"] = str(folder)  # numba looks at it again, and children do
            numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
            return True
    except OSError:
        pass
    print(
        "no folder can be written for compiled code: it is compiled anew each time, which takes "
        "some seconds (NUMBA_CACHE_DIR names a folder)",
        file=sys.stderr,
    )
    return False
