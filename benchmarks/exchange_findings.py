"""What :mod:`benchmarks.exchange` found: samples by cell, rows for programs, tables for people."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.exchange_peers import Sample
from benchmarks.exchange_worker import layout

DTYPES = {
    "ours int4": "int4, 4.06 bits",
    "ours sparse64": "sparse k=64",
    "ours sparse128": "sparse k=128",
    "ours fp16": "fp16",
    "hivemind fp16": "fp16",
    "hivemind 8bit": "uniform 8 bit",
    "torchft tensors": "fp32",
    "torchft buckets": "fp32",
}
"""What travels, by system and variant."""

TARGET_LOOPBACK, TARGET_LINKS = 0.5, 0.1


@dataclass(frozen=True)
class Cell:
    """One table: a model, a number of peers, a network."""

    size: str
    peers: int
    mbit: tuple[float, float] | None = None

    @property
    def parameters(self) -> int:
        return layout(self.size).parameters

    @property
    def name(self) -> str:
        where = "loopback" if self.mbit is None else f"{self.mbit[0]:g}/{self.mbit[1]:g} Mbit/s"
        return f"{self.size}, {self.peers} peers, {where}"


@dataclass
class Series:
    """All syncs of one system in one cell. The first of each start is cold, and stands apart."""

    cold: list[Sample] = field(default_factory=list)
    warm: list[Sample] = field(default_factory=list)
    failed: str = ""

    @property
    def whole(self) -> list[Sample]:
        return [sample for sample in self.warm if sample.complete]

    def median(self, of: str) -> float:
        return float(statistics.median(getattr(sample, of) for sample in self.whole))

    def phase(self, name: str) -> float:
        return statistics.median(sample.phases.get(name, 0.0) for sample in self.whole)

    def costs(self) -> dict[str, Any]:
        """Everything about the system that is not its time, and the phases of that."""
        seconds = [sample.seconds for sample in self.whole]
        return {
            "min": min(seconds),
            "max": max(seconds),
            "cold": statistics.median(sample.seconds for sample in self.cold)
            if self.cold
            else None,
            "bytes_up_per_peer": round(self.median("up")),
            "bytes_down_per_peer": round(self.median("down")),
            "bytes_down_at_streams": round(self.median("streams")),
            "cpu_seconds_per_peer": self.median("cpu"),
            "peak_memory_per_peer": self.median("memory"),
            "phases": {name: self.phase(name) for name in self.whole[0].phases},
            "syncs": len(self.warm),
            "complete": len(self.whole),
        }


Table = dict[str, Series]
"""By name of the system and variant."""


@dataclass
class Findings:
    """All that was measured."""

    cells: dict[Cell, Table] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    isolated: bool = False
    load: float = 0.0
    extra: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the parts that are not cells."""


def rows(found: Findings) -> list[dict[str, Any]]:
    """Ratios of time, ours / theirs, with everything that belongs to both; lower is better."""
    result = []
    for cell, table in found.cells.items():
        for ours, theirs, part in _pairs(table):
            series, other = table[ours], table[theirs]
            seconds = other.phase(part) if part else other.median("seconds")
            what = f"{theirs}, {part} alone" if part else theirs
            result.append(
                {
                    "name": f"{cell.name}: {ours} against {what}",
                    "ours": series.median("seconds"),
                    "baseline": seconds,
                    "unit": "s",
                    "ratio": series.median("seconds") / seconds,
                    "baseline_is": what,
                    "ours_dtype": DTYPES[ours],
                    "baseline_dtype": DTYPES[theirs],
                    "bytes_ratio": series.median("up") / other.median("up"),
                    "ours_costs": series.costs(),
                    "baseline_costs": other.costs(),
                    "size": cell.size,
                    "parameters": cell.parameters,
                    "peers": cell.peers,
                    "mbit": cell.mbit,
                    **_context(found),
                }
            )
    return result + [{**row, **_context(found)} for row in found.extra]


def tables(found: Findings) -> str:
    """The result for people."""
    blocks = [_block(cell, table) for cell, table in found.cells.items()]
    blocks += [
        f"{row['name']}: {_amount(row['ours'], row['unit'])}  ({row['baseline_is']}: "
        f"{_amount(row['baseline'], row['unit'])}; {row['ratio']:.2f})"
        + (f"\n    {row['remark']}" if "remark" in row else "")
        for row in found.extra
    ]
    blocks += [f"skipped: {line}" for line in found.skipped]
    blocks.append("\n".join(_targets(found)))
    where = "in network namespaces" if found.isolated else "on the machine's own loopback"
    blocks.append(
        f"{machine()}; load before the start {found.load:.1f}. One thread for each peer; "
        f"peers {where}.\n"
        "Seconds are medians (least to most) from the common start until the last peer is done. MB "
        "up, CPU seconds and peak\nresident MB are of one peer with all its processes (pages that "
        "processes share count in each). cold: the first sync.\nOurs ends with the new state and "
        "its root, torchft with the outer step done, hivemind with an average and nothing more."
    )
    return "\n\n".join(block for block in blocks if block)


def machine() -> str:
    """Processor, cores, kernel."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} processors, Linux {platform.release().split('-')[0]}"


def _pairs(table: Table) -> Iterable[tuple[str, str, str]]:
    """What is compared with what: every variant of ours with every baseline that worked."""
    for ours, series in table.items():
        for theirs, other in table.items():
            compared = ours.startswith("ours") and not theirs.startswith("ours")
            if compared and series.whole and other.whole:
                yield ours, theirs, ""
                if theirs.startswith("hivemind"):
                    yield ours, theirs, "all-reduce"


def _block(cell: Cell, table: Table) -> str:
    baselines = [name for name, s in table.items() if not name.startswith("ours") and s.whole]
    head = f"{'':16} {'dtype':15} {'seconds':>24} {'cold':>7} {'MB up':>8} {'CPU s':>7} {'MB':>6}"
    head += "".join(f" {'/ ' + name.replace('hivemind', 'hm'):>17}" for name in baselines)
    lines = [f"{cell.name} ({cell.parameters:,} parameters)", head]
    for name, series in table.items():
        if not series.whole:
            lines.append(f"{name:16} {DTYPES[name]:15} {series.failed or 'no sync was complete'}")
            continue
        costs, seconds = series.costs(), series.median("seconds")
        spread = f"{seconds:.3f} ({costs['min']:.3f} to {costs['max']:.3f})"
        cold = f"{costs['cold']:.2f}" if costs["cold"] else ""
        line = f"{name:16} {DTYPES[name]:15} {spread:>24} {cold:>7} "
        line += f"{costs['bytes_up_per_peer'] / 1e6:8.3f} {costs['cpu_seconds_per_peer']:7.3f} "
        line += f"{costs['peak_memory_per_peer'] / 1e6:6.0f}"
        if name.startswith("ours"):
            line += "".join(f" {seconds / table[b].median('seconds'):17.2f}" for b in baselines)
        if costs["complete"] != costs["syncs"]:
            line += f"  only {costs['complete']} of {costs['syncs']} syncs were complete"
        lines.append(line)
    for name, series in table.items():
        if series.whole:
            parts = ", ".join(f"{p} {1e3 * s:.0f}" for p, s in series.costs()["phases"].items())
            lines.append(f"    {name}, ms: {parts}")
    return "\n".join(lines)


def _targets(found: Findings) -> list[str]:
    """The project's targets for 9M parameters and 2 peers, and whether they hold."""
    lines = []
    for cell, table in found.cells.items():
        if cell.size != "9M" or cell.peers != 2:
            continue
        limit = TARGET_LOOPBACK if cell.mbit is None else TARGET_LINKS
        wanted = ("hivemind", "torchft") if cell.mbit is None else ("hivemind fp16",)
        for ours, theirs, part in _pairs(table):
            if theirs.startswith(wanted) and not part:
                ratio = table[ours].median("seconds") / table[theirs].median("seconds")
                verdict = "holds" if ratio <= limit else "MISSED"
                lines.append(f"target {limit:.1f}  {ratio:.2f}  {verdict:6} {ours} / {theirs}")
    return lines


def _amount(value: float, unit: str) -> str:
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:.3f} {unit}"


def _context(found: Findings) -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "machine": machine(),
        "load_before": round(found.load, 2),
        "own_namespaces": found.isolated,
    }
