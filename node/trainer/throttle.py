"""What the trainer's process may take of the machine, changed while it works.

Memory counts at once. Of processors the process is held to fewer at once; the number of threads,
by which results differ in their last bits and which is part of the hardware class, changes between
two commands of the main lane, and the process is let go again.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artel.node.trainer.inner import Inner


@dataclass(frozen=True)
class Allowance:
    """What the owner gives: threads; bytes of memory; part of the GPU's memory. None: no limit."""

    threads: int
    memory: int | None = None
    gpu_memory: float | None = None


@dataclass
class Throttle:
    """Holds its own process to a share; :meth:`take` is the reader thread's, :meth:`apply` the main
    lane's. ``_share`` passes from one to the other, whole."""

    _share: Allowance | None = None
    _threads: int = field(default_factory=lambda: int(os.environ.get("OMP_NUM_THREADS", "0")))
    """Of torch, now; 0: as many as it likes."""
    _allowed: set[int] = field(default_factory=lambda: os.sched_getaffinity(0))
    _hard: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_DATA)[1])

    def take(self, share: Allowance) -> None:
        """Obey from now on."""
        self._bound(share)
        few = self._allowed
        if share.threads < min(self._threads or len(few), len(few)):
            # Others on this machine may be held to some, too: not all to the same ones.
            few = set(random.sample(sorted(few), share.threads))
        self._hold(few)
        self._share = share

    def apply(self, inner: Inner | None) -> None:
        """What can be changed between two commands only; called by the thread that computes."""
        share, self._share = self._share, None
        if share is None:
            return
        import torch

        self._bound(share)  # a benchmark may have put the one before back
        if share.threads != torch.get_num_threads():
            torch.set_num_threads(share.threads)
        self._threads = share.threads
        self._hold(self._allowed)
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(share.gpu_memory or 1.0)
        if inner is not None:
            inner.measure_hardware()

    def _bound(self, share: Allowance) -> None:
        soft = self._hard if share.memory is None else share.memory
        if self._hard != resource.RLIM_INFINITY and soft != resource.RLIM_INFINITY:
            soft = min(soft, self._hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, self._hard))

    @staticmethod
    def _hold(processors: set[int]) -> None:
        """All threads of this process, those that they start included."""
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), processors)
