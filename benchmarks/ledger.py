"""How fast is the ledger: taking entries in, auditing it, making proofs, folding it?

Everything runs on this machine's disk and processors, through the code that a coordinator and an
auditor run. Measured are

- raw Ed25519 verification on one core and on two, on signatures of entries: the limit that the
  hardware and the cryptography library set. It stands beside each number that includes signature
  checks;
- **submit to durable**: submitters in one event loop append accounts with valid signatures through
  the Sequencer and wait until each is durable and covered by a signed tree head: decoding, the
  signature check, SQLite with ``synchronous=FULL``, reading back and hashing again, the signed
  checkpoint and the fold are in it, the network is not. Each run starts with an empty home;
- **full audit**: ``verify_home`` of such a home: every entry, signature, tile and checkpoint, and
  the fold;
- **inclusion proof** for random entries of a large ledger, from the store on disk; each proof is
  verified (outside the measured time). Opening that ledger is measured too;
- **fold** of as many entries: registrations and rounds of 8 members in which everything counts.
  The fold alone, over entries that are made, folded and dropped in chunks; decoding an entry and
  checking its signature are measured beside it, because a replay pays for all three.

"One core" means that the process may use one processor only (sched_setaffinity). The large ledgers
are made with signatures left out (see ``ledger_entries.py``); none is checked where they are used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from artel.coordinator.sequencer import Sequencer
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.shares import apply
from artel.ledger.store.store import DATABASE_NAME, MAX_BATCH, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, CheckFailed
from artel.protocol.merkle import inclusion, leaf_hash, verify_inclusion
from benchmarks.ledger_entries import PER_ROUND, Run
from benchmarks.ledger_machine import (
    Processors,
    decode_us,
    hash_us,
    on_cores,
    sign_us,
    verify_us,
)
from benchmarks.options import require_folder, telling

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.ledger                            # all of it, some minutes
  python -m benchmarks.ledger --quick                    # a minute, a ledger of 50,000 entries
  python -m benchmarks.ledger --only proof,fold --entries 200000 --json ledger.json

Numbers above their limit are marked, and are no error: the exit code is 0 when everything could be
measured. Measure on an idle machine; the last line says how idle it was. The temporary files (about
0.8 GB for a million entries) go where TMPDIR says: choose the disk that you want to know about.
"""

PARTS = ("submit", "audit", "proof", "fold")
SUBMIT_PER_S, AUDIT_PER_S, PROOF_MS, FOLD_S = 3000, 4000, 1.0, 20.0
FOLD_ENTRIES = 1_000_000
"""What the limit of the fold is for."""
PROOFS = 2000
CHUNK = 20_000

Row = dict[str, Any]
Say = Callable[[str], None]


class Bench:
    """One run of the benchmark; ``rows`` is what it found."""

    def __init__(self, options: argparse.Namespace, folder: Path, say: Say) -> None:
        self.options, self.folder, self.say = options, folder, say
        self.rows: list[Row] = []
        self.run = Run()
        say(f"making {options.submissions:,} signed entries")
        self.signed = self.run.accounts(options.submissions)
        self.verify_us = {cores: self._verify_us(cores) for cores in self._cores()}

    def _verify_us(self, cores: int) -> float:
        with on_cores(cores):
            return statistics.median(verify_us(self.signed[:1000], cores) for _ in range(7))

    def measure(self) -> None:
        """Measure what was asked for.

        :raises ArtelError: when something does not work
        """
        self._row(
            "Ed25519 verification, raw, one core",
            self.verify_us[1],
            statistics.median(sign_us(self.run) for _ in range(5)),
            "us",
            "signing one",
        )
        if 2 in self.verify_us:
            self._row("the same on 2 cores", self.verify_us[2], self.verify_us[1], "us", "one core")
        if "submit" in self.options.only:
            self._submit()
        if "audit" in self.options.only:
            self._audit()
        if "proof" in self.options.only:
            self._proof()
        if "fold" in self.options.only:
            self._fold()

    # --- taking in and auditing -------------------------------------------------------------------

    def _submit(self) -> None:
        interval = sys.getswitchinterval()  # a Sequencer shortens it, which would slow the audit
        for cores in self._cores():
            times = []
            for number in range(self.options.runs):
                self.say(f"submitting, {_on(cores)}, {number + 1} of {self.options.runs}")
                with on_cores(cores), tempfile.TemporaryDirectory(dir=self.folder) as home:
                    times.append(asyncio.run(self._submitted(Path(home))))
            self._rate(f"submit to durable, {_on(cores)}", times, SUBMIT_PER_S, cores)
        sys.setswitchinterval(interval)

    async def _submitted(self, home: Path) -> float:
        """Seconds until all signed entries are durable."""
        with LedgerStore.open(home / DATABASE_NAME, create=True) as store:
            sequencer = Sequencer(store, self.run.coordinator, self.run.run)
            await sequencer.append(self.run.genesis)
            rest = iter(self.signed)

            async def submit() -> None:
                for envelope in rest:
                    await sequencer.append(envelope)

            began = time.perf_counter()
            await asyncio.gather(*(submit() for _ in range(self.options.submitters)))
            seconds = time.perf_counter() - began
            if store.size != len(self.signed) + 1 or sequencer.state.size != store.size:
                raise CheckFailed("entries are missing or doubled")
        return seconds

    def _audit(self) -> None:
        home = self.folder / "audit"
        with LedgerStore.open(home / DATABASE_NAME, create=True) as store:
            store.append([self.run.genesis.encode()], self.run.sign)
            leaves = [envelope.encode() for envelope in self.signed]
            for start in range(0, len(leaves), MAX_BATCH):
                store.append(leaves[start : start + MAX_BATCH], self.run.sign)
        seconds: dict[int, float] = {}
        for cores in self._cores():
            times = []
            for number in range(self.options.runs):
                self.say(f"auditing, {_on(cores)}, {number + 1} of {self.options.runs}")
                with on_cores(cores):
                    began = time.perf_counter()
                    if not verify_home(home).verified:
                        raise CheckFailed("the ledger does not verify")
                    times.append(time.perf_counter() - began)
            seconds[cores] = statistics.median(times)
            self._rate(f"full audit, {_on(cores)}", times, AUDIT_PER_S * cores, cores)
        if len(seconds) == 2:
            one, two = (1e6 * value / len(self.signed) for value in seconds.values())
            self._row("a second core for the audit", two, one, "us", "one core")

    def _rate(self, name: str, times: Sequence[float], limit: float, cores: int) -> None:
        """A row in microseconds for an entry; ``limit`` is in entries per second."""
        each = [1e6 * seconds / len(self.signed) for seconds in times]
        ours = statistics.median(each)
        self._row(
            name,
            ours,
            1e6 / limit,
            "us",
            "limit",
            per_second=1e6 / ours,
            hardware_per_second=1e6 / self.verify_us[cores],
            hardware_percent=100 * self.verify_us[cores] / ours,
            spread=each,
        )

    # --- large ledgers ----------------------------------------------------------------------------

    def _proof(self) -> None:
        size, path = self.options.entries, self.folder / "proof" / DATABASE_NAME
        self.say(f"making a ledger of {size:,} entries (signatures left out)")
        with LedgerStore.open(path, create=True) as store:
            store.append([self.run.genesis.encode()], self.run.sign)
            leaves = self.run.leaves(size - 1)
            while batch := list(islice(leaves, MAX_BATCH)):
                store.append(batch, self.run.sign)
        self.say(f"opening it ({path.stat().st_size / 1e6:,.0f} MB)")
        with on_cores(1):
            began = time.perf_counter()
            store = LedgerStore.open(path)
            opening = time.perf_counter() - began
            with store:
                self.say(f"{PROOFS:,} proofs")
                times = list(self._proofs(store))
        milliseconds = statistics.median(times) * 1e3
        percentile = sorted(times)[len(times) * 99 // 100] * 1e3
        self._row(
            "inclusion proof", milliseconds, PROOF_MS, "ms", "limit", p99=percentile, entries=size
        )
        hashing = size * hash_us() / 1e6
        self._row("opening a ledger", opening, hashing, "s", "SHA-256 alone", entries=size)

    def _proofs(self, store: LedgerStore) -> Iterator[float]:
        rng = random.Random(1)
        root, size = store.root, store.size
        for _ in range(PROOFS):
            index = rng.randrange(size)
            began = time.perf_counter()
            proof = inclusion(store, index, size)
            yield time.perf_counter() - began
            verify_inclusion(leaf_hash(store.leaf(index)), index, size, proof, root)

    def _fold(self) -> None:
        size = self.options.entries
        self.say(f"folding {size:,} entries")
        state, seconds, made = FoldState(), 0.0, Run(rounds=size).long(size)
        with on_cores(1):
            while chunk := list(islice(made, CHUNK)):
                began = time.perf_counter()
                for entry in chunk:
                    apply(state, entry)
                seconds += time.perf_counter() - began
            decode = statistics.median(decode_us(self.signed[:1000]) for _ in range(5))
        if state.ignored or state.size != size:
            raise CheckFailed(f"entries did not count: {state.ignored}")
        self._row(
            "fold, signatures and decoding apart",
            seconds,
            FOLD_S * size / FOLD_ENTRIES,
            "s",
            "limit",
            entries=size,
            rounds=(size - 2001) // PER_ROUND,
            per_entry_us=1e6 * seconds / size,
        )
        self._row("decoding an entry", decode, self.verify_us[1], "us", "its signature check")

    # --- rows -------------------------------------------------------------------------------------

    def _cores(self) -> tuple[int, ...]:
        return (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,)

    def _row(
        self,
        name: str,
        ours: float,
        baseline: float,
        unit: str,
        baseline_is: str,
        spread: Sequence[float] = (),
        **more: Any,
    ) -> None:
        row: Row = {"name": name, "ours": ours, "baseline": baseline, "unit": unit}
        row |= {"ratio": ours / baseline, "baseline_is": baseline_is}
        if baseline_is == "limit":
            row["holds"] = ours <= baseline
        if len(spread) > 1:
            row |= {"min": min(spread), "max": max(spread)}
        self.rows.append(row | more)


def _on(cores: int) -> str:
    return "one core" if cores == 1 else f"{cores} cores"


def table(bench: Bench, others: float, load: float) -> str:
    """The result for people."""
    lines = [f"{'':40} {'measured':>12} {'limit':>12}  {'ratio':>5}"]
    for row in bench.rows:
        unit = row["unit"]
        limited = row["baseline_is"] == "limit"
        limit = f"{row['baseline']:.1f} {unit}" if limited else ""
        mark = ("  holds" if row["holds"] else "  OVER") if limited else ""
        if not limited:
            mark = f"  of {row['baseline']:.1f} {unit}: {row['baseline_is']}"
        if "min" in row:
            mark += f"  ({row['min']:.0f} to {row['max']:.0f})"
        ours = f"{row['ours']:.2f} {unit}"
        lines.append(f"{row['name']:40} {ours:>12} {limit:>12}  {row['ratio']:5.2f}{mark}")
        if "per_second" in row:
            lines.append(
                f"    {row['per_second']:,.0f} entries/s; signature checks alone would be"
                f" {row['hardware_per_second']:,.0f}/s ({row['hardware_percent']:.0f} % reached)"
            )
        if "per_entry_us" in row:
            lines.append(f"    {row['per_entry_us']:.1f} us for an entry, {row['rounds']:,} rounds")
    options = bench.options
    lines += [
        "",
        f"{options.submissions:,} signed entries from {options.submitters:,} submitters at once;"
        f" large ledgers of {options.entries:,} entries, their signatures left out",
        f"{os.cpu_count()} processors; load before the start {load:.1f}; other processes took"
        f" {100 * others:.0f} % of all processor time",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    load, processors = os.getloadavg()[0], Processors()
    say = telling()
    try:
        with tempfile.TemporaryDirectory(prefix="ledger-benchmark-") as folder:
            bench = Bench(options, Path(folder), say)
            bench.measure()
    except ArtelError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    others = processors.others()
    for row in bench.rows:
        row |= {"cpus": os.cpu_count(), "load_before": round(load, 2)}
        row["cpu_of_others"] = round(others, 3)
    print("\n" + table(bench, others, load))
    if options.json:
        options.json.write_text(json.dumps(bench.rows, indent=1) + "\n")
    return EXIT_OK


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger",
        description="How fast the ledger takes entries in, is audited, proves and is folded.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--entries", type=int, help="of large ledgers (10^6; quick 50,000)")
    parser.add_argument("--submissions", type=int, help="signed entries (20,000; quick 4,000)")
    parser.add_argument("--submitters", type=int, default=1000, help="at once (1,000)")
    parser.add_argument("--runs", type=int, help="whose median counts (5; quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    sizes = {"entries": (1_000_000, 50_000), "submissions": (20_000, 4_000), "runs": (5, 3)}
    for name, (full, quick) in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    options.only = [part.strip() for part in options.only.split(",")]
    if unknown := sorted(set(options.only) - set(PARTS)):
        parser.error(f"unknown parts {unknown}; there are {', '.join(PARTS)}")
    if options.entries < 5000 or options.submissions < 1000:
        parser.error("--entries must be at least 5000, --submissions at least 1000")
    if not 1 <= options.submitters <= 4096 or options.runs < 1:
        parser.error("--submitters must be from 1 to 4096, --runs at least 1")
    require_folder(parser, options.json)
    return options


if __name__ == "__main__":
    sys.exit(main())
