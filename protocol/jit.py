"""Compiled loops: the one way in which this project uses numba.

A kernel is a plain function over arrays and numbers, compiled by LLVM at its first call and kept in
numba's cache on the disk. Never ``fastmath`` and never ``parallel``: every operation is an IEEE
operation in the order of the program, so a kernel gives the same bits on every machine. It runs
without the interpreter's lock.

Importing numba takes about 0.4 s, so modules with kernels are imported where they are used, never
at the start of a command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile a loop over arrays."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
