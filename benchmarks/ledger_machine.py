"""What the machine can do at best, for the ledger benchmark: signatures, decoding, hashing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from artel.ledger import entries
from artel.protocol import dsse
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed
from artel.protocol.identity import verify
from artel.protocol.merkle import leaf_hash
from benchmarks.ledger_entries import Run


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Let this process use the first ``count`` of its processors only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def verify_us(envelopes: Sequence[Envelope], threads: int = 1) -> float:
    """Microseconds for each of these raw signature checks, shared by so many threads."""
    ready = []
    for envelope in envelopes:
        signer, signature = envelope.signatures[0]
        message = dsse.pae(envelope.payload_type, envelope.payload)
        ready.append((bytes.fromhex(signer), signature, message))

    def check(part: Sequence[tuple[bytes, bytes, bytes]]) -> int:
        return sum(verify(*one) for one in part)

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        good = sum(pool.map(check, [ready[at::threads] for at in range(threads)]))
        seconds = time.perf_counter() - began
    if good != len(ready):
        raise CheckFailed("a signature does not verify")
    return 1e6 * seconds / len(ready)


def sign_us(run: Run) -> float:
    """Microseconds of one signature."""
    began = time.perf_counter()
    for number in range(300):
        run.coordinator.sign(number.to_bytes(400, "big"))
    return 1e6 * (time.perf_counter() - began) / 300


def decode_us(envelopes: Sequence[Envelope]) -> float:
    """Microseconds of decoding one entry, signatures apart."""
    leaves = [envelope.encode() for envelope in envelopes]
    began = time.perf_counter()
    for leaf in leaves:
        entries.decode(leaf)
    return 1e6 * (time.perf_counter() - began) / len(leaves)


def hash_us() -> float:
    """Microseconds of hashing a leaf of 500 bytes once for its id and once for the tree."""
    leaf = bytes(500)
    began = time.perf_counter()
    for _ in range(20_000):
        leaf_hash(leaf)
        leaf_hash(leaf)
    return 1e6 * (time.perf_counter() - began) / 20_000


class Processors:
    """How much of this machine's processors others use, from the making of this object on."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), _busy(), time.process_time()

    def others(self) -> float:
        """Part (0 to 1) of all processor time that went to other processes."""
        span = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        ours = time.process_time() - self._ours
        return max(0.0, _busy() - self._busy - ours) / span


def _busy() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields]
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
