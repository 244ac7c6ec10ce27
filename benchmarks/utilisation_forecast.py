"""The computed part of the utilisation benchmark: larger models, other links, more nodes.

**Forecast.** The same state machine in virtual time (:mod:`benchmarks.virtual_time`) with the sizes
of 100M, 1B and 10B parameters at 20, 100 and 500 Mbit/s down and a fifth of it up, 16 nodes. An
inner step takes what ``--tflops`` says for 6 operations per parameter and token; codec speeds are
those of docs/results/codec.md on one core of the machine that wrote it.

**Bytes of a topology**: payloads that a node receives and sends in a round, by number of nodes,
with headers and lists of slices; the entries of the ledger about all nodes in a column of their
own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from artel.protocol.assignment import Work
from artel.protocol.needs import BITS, DECODE, ENCODE, STATE
from artel.protocol.round_state import RoundRules
from benchmarks.virtual_time import Load, Machine, forecast, traffic

CODECS = ("int4", "sparse")
LINKS = (20.0, 100.0, 500.0)
SIZES = (100_000_000, 1_000_000_000, 10_000_000_000)
BATCH_TOKENS = 65_536


def forecasts(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every size, line, codec, with and without overlap."""
    rules = RoundRules(10, 1, 10_000, 0.66, 1e6, 60.0, 1e6, 1e6, 1e9)
    for parameters in SIZES:
        step = 6 * parameters * BATCH_TOKENS / (options.tflops * 1e12)
        for mbit in LINKS:
            for codec in CODECS:
                for overlap in (0, options.inner // 2):
                    work = Work(10, options.inner, overlap, False, 1, BATCH_TOKENS, "auto")
                    load = Load(parameters, BITS[codec], ENCODE, DECODE, STATE)
                    machines = [Machine(step, mbit * 1e6, mbit * 2e5)] * options.peers
                    found = forecast(rules, work, load, machines, [options.inner] * options.peers)
                    yield {
                        "name": "forecast",
                        "parameters": parameters,
                        "down_mbit": mbit,
                        "up_mbit": mbit / 5,
                        "codec": codec,
                        "overlap_steps": overlap,
                        "inner_steps": options.inner,
                        "nodes": options.peers,
                        "step_s": step,
                        "round_s": found.round_s,
                        "computing": found.utilisation,
                        "up": found.up,
                        "down": found.down,
                    }


def bytes_by_nodes() -> Iterator[dict[str, Any]]:
    """Payloads per node and round in both topologies."""
    load = Load(SIZES[1], BITS["sparse"], ENCODE, DECODE, STATE)
    for nodes in (8, 16, 32, 100, 1000, 10_000):
        for topology in ("gather", "sharded"):
            work = Work(10, 30, 0, False, 1, BATCH_TOKENS, topology)
            moved = traffic(load, work, nodes, coordinator_serves=nodes <= 32)
            yield {
                "name": "bytes",
                "nodes": nodes,
                "topology": topology,
                "down_payloads": moved.down / load.payload,
                "up_payloads": moved.up / load.payload,
                "payload": load.payload,
                "ledger": moved.ledger,
            }


def forecast_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = [(codec, overlap) for codec in CODECS for overlap in (False, True)]
    head = f"{'model':>6} {'down/up Mbit/s':>15} {'round':>9}"
    head += "".join(f"{c + (' + overlap' if o else ''):>18}" for c, o in columns)
    lines = [head]
    for parameters in SIZES:
        for mbit in LINKS:
            mine = [r for r in rows if (r["parameters"], r["down_mbit"]) == (parameters, mbit)]
            cells = {(r["codec"], r["overlap_steps"] > 0): r["computing"] for r in mine}
            training = mine[0]["step_s"] * mine[0]["inner_steps"]
            lines.append(
                f"{_count(parameters):>6} {f'{mbit:g} / {mbit / 5:g}':>15} {training:7.0f} s"
                + "".join(f"{100 * cells[column]:16.1f} %" for column in columns)
            )
    return "\n".join(lines)


def bytes_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'nodes':>7} {'gather: down':>14} {'up':>9} {'sharded: down':>15} {'up':>7}"
        f" {'ledger':>11}"
    ]
    for nodes in sorted({row["nodes"] for row in rows}):
        cell = {row["topology"]: row for row in rows if row["nodes"] == nodes}
        lines.append(
            f"{nodes:7,} {cell['gather']['down_payloads']:14,.2f} "
            f"{cell['gather']['up_payloads']:9,.2f} {cell['sharded']['down_payloads']:15.2f} "
            f"{cell['sharded']['up_payloads']:7.2f} {cell['sharded']['ledger'] / 1e6:8.2f} MB"
        )
    return "\n".join(lines)


def _count(parameters: int) -> str:
    return f"{parameters // 10**9}B" if parameters >= 10**9 else f"{parameters // 10**6}M"
