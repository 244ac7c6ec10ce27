"""What :mod:`benchmarks.overhead` measures: the plan, what was found, rows and a table of it."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from artel.coordinator.local_run import Program

# Limits that Artel sets itself.
HELP_S, FIRST_STEP_S, DAEMON_MB, NOT_TRAINING_S = 0.3, 20.0, 400.0, 1.5

RUN = """\
[run]
name = "overhead"
seed = 1

[model]
type = "llama"
[model.config]
hidden_size = 128
intermediate_size = 384
num_hidden_layers = 5
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = 256
tie_word_embeddings = true

[tokenizer]
kind = "bytes"

[data]
sources = [{{kind = "stdlib"}}]
max_bytes = 1500000
seq_len = {seq_len}
validation_windows = 32

[optimizer]
batch_size = {batch_size}
warmup_steps = 20

[rounds]
total = 1000
inner_steps = {inner_steps}
min_nodes = 1
max_nodes = {nodes}

[exchange]
codec = "{codec}"
"""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    nodes: int
    rounds: int
    inner_steps: int
    alone: int  # nodes whose start is measured
    batch_size: int
    seq_len: int
    codec: str

    def run_text(self) -> str:
        """The run file."""
        return RUN.format(
            nodes=self.nodes,
            inner_steps=self.inner_steps,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            codec=self.codec,
        )


@dataclass(frozen=True)
class Start:
    """How a node came to its first inner step: seconds in all, and by phase, in order."""

    seconds: float
    phases: dict[str, float]
    cpu: dict[str, float]
    """Processor seconds until then, of the daemon and of its trainer."""


@dataclass(frozen=True)
class Round:
    """One measured round, in seconds. ``phases`` are those of the member that trained longest."""

    number: int
    whole: float
    train: float
    phases: dict[str, float]

    @property
    def not_training(self) -> float:
        return self.whole - self.train

    @property
    def rest(self) -> float:
        return self.not_training - sum(self.phases.values())


@dataclass
class Observed:
    """What was seen of the processes while they ran."""

    peak: Counter[str] = field(default_factory=Counter)
    """Bytes by kind of process, the largest of its kind."""
    together: Counter[str] = field(default_factory=Counter)
    """Bytes of a daemon and its network daemon, the largest of its kind."""
    seconds: dict[int, dict[str, dict[str, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """By round and peer id: what the node booked."""
    traffic: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    """By peer id and round: bytes so far when it was first seen training, as "up control" ..."""
    _booked: dict[str, dict[str, float]] = field(default_factory=dict)

    def weigh(self, member: Program) -> None:
        """Note the memory of one member's daemon, and of its network daemon."""
        kind = "coordinator" if member.name == "the coordinator" else "node daemon"
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(member.process.pid)
            own = peak_resident(process)
            self.peak[kind] = max(self.peak[kind], own)
            for child in process.children():
                if child.name().startswith("p2pd"):
                    network = peak_resident(child)
                    name = f"network daemon of a {kind.split()[0]}"
                    self.peak[name] = max(self.peak[name], network)
                    self.together[kind] = max(self.together[kind], own + network)

    def note(self, node: dict[str, Any]) -> None:
        """Take what matters from a node's own status."""
        name, booked = node["node"], node["seconds"]
        if booked and booked != self._booked.get(name):
            # Booked when the node has signed the new state, well before it computes another one.
            self._booked[name] = booked
            self.seconds[node["state_round"] - 1][name] = booked
        if node["phase"] == "training":
            so_far = {
                f"{way} {kind}": count
                for way in ("up", "down")
                for kind, count in node[f"{way}_by_kind"].items()
            }
            self.traffic.setdefault((name, node["round"]), so_far)


@dataclass
class Findings:
    """All that was measured."""

    plan: Plan
    help_seconds: list[float]
    starts: list[Start] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)
    rounds: list[Round] = field(default_factory=list)
    coordinator: dict[str, float] = field(default_factory=dict)
    """Median seconds of the measured rounds in each phase, as the coordinator sees it."""
    traffic: dict[str, float] = field(default_factory=dict)
    """Bytes of a node in a round, mean, as "up control" and so on."""
    parameters: int = 0
    payload: int = 0
    entries: int = 0
    verify_seconds: float = 0.0
    signatures_seconds: float = 0.0
    verified: bool = False
    load: float = 0.0
    """Load average of the last minute, before anything was started."""
    others: float = 0.0
    """Part of all processors that went to processes which are not ours in the measured rounds."""


def peak_resident(process: psutil.Process) -> int:
    """Most bytes that a process ever had in memory; what it has now where nobody keeps count."""
    path = Path(f"/proc/{process.pid}/status")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def rows(result: Findings) -> list[dict[str, Any]]:
    """The result for programs; ratio = ours / baseline, lower is better."""
    plan = result.plan
    context = {
        "nodes": plan.nodes,
        "rounds": len(result.rounds),
        "inner_steps": plan.inner_steps,
        "parameters": result.parameters,
        "codec": plan.codec,
        "cpus": os.cpu_count(),
        "load_before": round(result.load, 2),
        "cpu_of_others": round(result.others, 3),
    }

    def row(name: str, ours: float, baseline: float, unit: str, **more: Any) -> dict[str, Any]:
        ratio = ours / baseline
        return {
            "name": name,
            "ours": ours,
            "baseline": baseline,
            "unit": unit,
            "ratio": ratio,
            **more,
            **context,
        }

    def limited(name: str, ours: float, limit: float, unit: str, **more: Any) -> dict[str, Any]:
        return row(name, ours, limit, unit, baseline_is="limit", holds=ours <= limit, **more)

    waits = [r.not_training for r in result.rounds]
    starts = [start.seconds for start in result.starts]
    found = [
        limited(
            "artel --help",
            statistics.median(result.help_seconds),
            HELP_S,
            "s",
            **spread(result.help_seconds),
        ),
        limited(
            "artel node start to the first inner step",
            statistics.median(starts),
            FIRST_STEP_S,
            "s",
            phases=medians([start.phases for start in result.starts]),
            processor_seconds=medians([start.cpu for start in result.starts]),
            **spread(starts),
        ),
        limited(
            "time of a round that is not training",
            statistics.median(waits),
            NOT_TRAINING_S,
            "s",
            phases=medians([r.phases for r in result.rounds])
            | medians([{"rest": r.rest} for r in result.rounds]),
            coordinator=result.coordinator,
            round_seconds=statistics.median(r.whole for r in result.rounds),
            train_seconds=statistics.median(r.train for r in result.rounds),
            **spread(waits),
        ),
    ]
    observed = result.observed
    for kind in ("node daemon", "coordinator"):
        found.append(limited(f"memory of the {kind}", observed.peak[kind] / 1e6, DAEMON_MB, "MB"))
        both = observed.together[kind] / 1e6
        alone = "limit of the daemon alone"
        found.append(
            row(
                f"memory of the {kind} and its network daemon",
                both,
                DAEMON_MB,
                "MB",
                baseline_is=alone,
            )
        )
    model = 4.0 * result.parameters
    fp32 = "the model in fp32"
    found.append(
        row("contribution of a node", float(result.payload), model, "bytes", baseline_is=fp32)
    )
    for way in ("up", "down"):
        parts = {k.split()[1]: v for k, v in result.traffic.items() if k.startswith(way + " ")}
        found.append(
            row(
                f"bytes {way} of a node in a round",
                sum(parts.values()),
                model,
                "bytes",
                baseline_is=fp32,
                kinds=parts,
            )
        )
    found.append(
        row(
            "check of the ledger",
            result.verify_seconds,
            result.signatures_seconds,
            "s",
            baseline_is="its signatures alone",
            entries=result.entries,
            verified=result.verified,
        )
    )
    return found


def medians(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians by name; a name that is missing counts as 0."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: statistics.median(part.get(name, 0.0) for part in parts) for name in names}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "max": max(values)}


def table(result: Findings, found: Sequence[dict[str, Any]]) -> str:
    """The result for people."""
    lines = [f"{'':48} {'measured':>10} {'limit':>10}  {'ratio':>5}"]
    for row in found:
        limited = row["baseline_is"] == "limit"
        mark = "" if not limited else "  holds" if row["holds"] else "  OVER"
        if "min" in row and row["min"] != row["max"]:
            mark += f"  ({_amount(row['min'], row['unit'])} to {_amount(row['max'], row['unit'])})"
        if not limited:
            mark += f"  of {_amount(row['baseline'], row['unit'])}: {row['baseline_is']}"
        limit = _amount(row["baseline"], row["unit"]) if limited else ""
        ours = _amount(row["ours"], row["unit"])
        lines.append(f"{row['name']:48} {ours:>10} {limit:>10}  {row['ratio']:5.2f}{mark}")
        for name in ("phases", "kinds"):
            lines += [
                f"    {part:44} {_amount(value, row['unit']):>10}"
                for part, value in row.get(name, {}).items()
            ]
        if "processor_seconds" in row:
            used = ", ".join(f"{name} {s:.1f} s" for name, s in row["processor_seconds"].items())
            lines.append(f"    processor time until then: {used}")
        if "coordinator" in row:
            seen = ", ".join(f"{name} {s:.2f}" for name, s in row["coordinator"].items())
            lines.append(f"    at the coordinator: {seen}")
            lines.append(
                f"    a round takes {row['round_seconds']:.2f} s, "
                f"{row['train_seconds']:.2f} s of them inner steps"
            )
    plan = result.plan
    networks = {k: v for k, v in sorted(result.observed.peak.items()) if "network" in k}
    lines += [
        "",
        ", ".join(f"{name}: {size / 1e6:.0f} MB" for name, size in networks.items()),
        f"{result.parameters:,} parameters, codec {plan.codec}, {plan.nodes} nodes, "
        f"{len(result.rounds)} rounds of {plan.inner_steps} inner steps, {result.entries} ledger "
        f"entries ({'verified' if result.verified else 'NOT VERIFIED'})",
        f"{os.cpu_count()} processors; load before the start {result.load:.1f}; other processes "
        f"took {100 * result.others:.0f} % of all processor time in the measured rounds",
    ]
    return "\n".join(lines)


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.3f} MB" if value >= 1e5 else f"{value / 1e3:.2f} kB"
    return f"{value:.3f} s" if unit == "s" else f"{value:.0f} {unit}"
