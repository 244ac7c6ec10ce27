"""How much of the time do machines compute? Measured on limited links, forecast for larger runs.

**Measured.** A coordinator and nodes, as real processes, each in a network namespace of its own
whose link is limited in both directions (:mod:`benchmarks.links`), train a Llama of about 9M
parameters. Each row is a run of its own with another codec or overlap; rows alternate when there
are several repetitions. "Computing" is the part of its trainer's time that a node spends in inner
steps, from one round to the next: the rest is encoding, merging a new state, and waiting for one.
Bytes are those of the kernel at each node's interface, with all that the protocols below add.

**Forecast** and **bytes of a topology** are computed (:mod:`benchmarks.utilisation_forecast`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.protocol import tether
from artel.protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from artel.protocol.needs import BITS
from benchmarks.links import Links, refusal
from benchmarks.options import empty_folder, require_folder
from benchmarks.utilisation_crowds import CHURN, crowds, crowds_table
from benchmarks.utilisation_forecast import (
    BATCH_TOKENS,
    SIZES,
    bytes_by_nodes,
    bytes_table,
    forecast_table,
    forecasts,
)

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.utilisation                        # about 10 minutes; needs root
  python -m benchmarks.utilisation --quick                # what is computed alone: a second
  python -m benchmarks.utilisation --rows sparse-overlap,int4 --rounds 6 --json utilisation.json
"""

RUN = """\
[run]
name = "utilisation"
seed = 3

[model]
type = "llama"

[model.config]
hidden_size = 256
intermediate_size = 768
num_hidden_layers = 10
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = 256
tie_word_embeddings = true

[tokenizer]
kind = "bpe"
vocab_size = 1024

[data]
sources = [{{ kind = "stdlib" }}]
max_bytes = 6000000
seq_len = 128
validation_windows = 1

[optimizer]
lr = 0.002
batch_size = 4
warmup_steps = 10

[rounds]
total = {rounds}
inner_steps = {steps}
min_nodes = {nodes}
max_nodes = {nodes}
mirror_every = 0
deadline_s = 600

[exchange]
codec = "{codec}"
overlap_steps = {overlap}

[ownership]
closing_s = 0
"""


@dataclass(frozen=True)
class Row:
    """A run to measure; ``overlap`` is the part of the inner steps that is the tail."""

    codec: str
    overlap: float

    @property
    def name(self) -> str:
        return f"{self.codec}{', overlap' if self.overlap else ''}"


ROWS = {
    "int4": Row("int4", 0.0),
    "int4-overlap": Row("int4", 0.5),
    "sparse": Row("sparse", 0.0),
    "sparse-overlap": Row("sparse", 0.5),
}

READY_S = 240.0
STALL_S = 180.0
POLL_S = 0.5


# --- measured -------------------------------------------------------------------------------------


def measure(
    row: Row, options: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """One run on limited links.

    :raises RuntimeError: a process ended, or nothing moved for a while
    """
    folder.mkdir()
    run_file = folder / "RUN.toml"
    run_file.write_text(
        RUN.format(
            rounds=options.rounds + 2,  # the first has no tail before it, the last none behind it
            steps=options.steps,
            nodes=options.nodes,
            codec=row.codec,
            overlap=round(row.overlap * options.steps),
        )
    )
    with Links(options.nodes + 1, options.down, options.up) as links:
        home = folder / "coordinator"
        coordinator = links.run(
            0,
            tether.command(
                *("coordinator", "start", str(run_file), "--home", str(home), "--json"),
                *("--release-every", "0"),
                *("--http", "127.0.0.1:0", "--listen", f"/ip4/{links.address(0)}/tcp/4200"),
            ),
            stdout=subprocess.PIPE,
            stderr=(folder / "coordinator.log").open("wb"),
            env=tether.environment(),
        )
        assert coordinator.stdout is not None
        line = coordinator.stdout.readline()
        if not line:
            raise RuntimeError(f"the coordinator ended; see {folder / 'coordinator.log'}")
        invite = json.loads(line)["invite"]
        nodes = [
            links.run(
                number,
                tether.command(
                    *("node", "start", "--join", invite, "--home", str(folder / f"node-{number}")),
                    *("--listen", f"/ip4/{links.address(number)}/tcp/0", "--threads", "1"),
                ),
                stdout=(folder / f"node-{number}.log").open("wb"),
                stderr=subprocess.STDOUT,
                env=tether.environment(),
            )
            for number in range(1, options.nodes + 1)
        ]
        seen = _follow(home / "metrics.jsonl", options.rounds, [coordinator, *nodes], links, say)
    return _result(row, options, home / "metrics.jsonl", seen)


def _follow(
    path: Path,
    rounds: int,
    processes: Sequence[subprocess.Popen[Any]],
    links: Links,
    say: Callable[[str], None],
) -> list[tuple[float, int, int]]:
    """Wait for the rounds; returns time and mean bytes (up, down) of a node after each."""
    seen: list[tuple[float, int, int]] = []
    moved = time.monotonic()
    while len(seen) < rounds + 1:
        time.sleep(POLL_S)
        done = len(_ended(path))
        if done > len(seen):
            counts = [links.bytes(number) for number in range(1, len(processes))]
            up = sum(wire.up for wire in counts) // len(counts)
            down = sum(wire.down for wire in counts) // len(counts)
            seen.append((time.monotonic(), up, down))
            moved = time.monotonic()
            say(f"  round {done} of {rounds + 2}")
        for process in processes:
            if process.poll() not in (None, 0):
                raise RuntimeError(f"{' '.join(process.args[-8:])} ended: {process.returncode}")
        if time.monotonic() - moved > (STALL_S if seen else READY_S):
            raise RuntimeError("nothing moves any more")
    return seen


def _ended(path: Path) -> list[dict[str, Any]]:
    """The rounds whose state is agreed, with the numbers of each member; the last line counts."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(True)
    rows = (json.loads(line) for line in lines if line.endswith("\n"))
    return [row for row in {row["round"]: row for row in rows}.values() if row["ended"]]


def _result(
    row: Row, options: argparse.Namespace, path: Path, seen: list[tuple[float, int, int]]
) -> dict[str, Any]:
    rounds = _ended(path)[1 : options.rounds + 1]
    members = [r["by_member"] for r in rounds]
    shares = [share for each in members for share in each["computing"].values()]
    spans = [later[0] - sooner[0] for sooner, later in itertools.pairwise(seen)]
    streams = [sum(kinds["up"].values()) for each in members for kinds in each["traffic"].values()]
    return {
        "name": f"computing, {row.name}",
        "computing": statistics.median(shares),
        "min": min(shares),
        "max": max(shares),
        "round_s": statistics.median(spans),
        "wire_up": (seen[-1][1] - seen[0][1]) / (len(seen) - 1),
        "wire_down": (seen[-1][2] - seen[0][2]) / (len(seen) - 1),
        "streams_up": statistics.mean(streams),
        "payload": statistics.mean(r["blob_bytes"] / max(1, r["accepted"]) for r in rounds),
        "codec": row.codec,
        "overlap_steps": round(row.overlap * options.steps),
        "inner_steps": options.steps,
        "nodes": options.nodes,
        "down_mbit": options.down,
        "up_mbit": options.up,
        "rounds": len(rounds),
    }


# --- what it looks like ---------------------------------------------------------------------------


def measured_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'run':24} {'computing':>10} {'min':>7} {'round':>8} {'payload':>10} {'up / round':>11} "
        f"{'down / round':>13}"
    ]
    lines += [
        f"{row['name'].removeprefix('computing, '):24} {100 * row['computing']:8.1f} % "
        f"{100 * row['min']:5.1f} % {row['round_s']:6.2f} s {row['payload'] / 1e6:7.3f} MB "
        f"{row['wire_up'] / 1e6:8.3f} MB {row['wire_down'] / 1e6:10.3f} MB"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    result: list[dict[str, Any]] = []
    failed = False
    if "measured" in options.only:
        why = refusal()
        if why is not None:
            print(f"measured: skipped, {why}")
        else:
            print(
                f"{options.nodes} nodes and a coordinator, each at {options.down:g}/{options.up:g} "
                f"Mbit/s, {options.steps} inner steps a round, {options.rounds} rounds counted"
            )
            failed = not _measure_all(options, result)
            print(measured_table(_medians(result)))
    if "forecast" in options.only:
        rows = list(forecasts(options))
        result += rows
        print(
            f"\nforecast: {options.peers} nodes, {options.inner} inner steps of "
            f"{BATCH_TOKENS:,} tokens at {options.tflops:g} Tflop/s, half of them overlapped"
        )
        print(forecast_table(rows))
    if "bytes" in options.only:
        rows = list(bytes_by_nodes())
        result += rows
        print("\npayloads of a node in a round (1B parameters, sparse; computed)")
        print(bytes_table(rows))
    if "crowds" in options.only:
        rows = list(crowds(options, SIZES[1], BITS["sparse"]))
        result += rows
        print(
            f"\ncrowds: 1B parameters, sparse, {options.inner} inner steps, half of them "
            f"overlapped, 100/20 Mbit/s, {100 * CHURN:.0f} % go and come in a round"
        )
        print(crowds_table(rows))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return EXIT_FAILED if failed else EXIT_OK


def _measure_all(options: argparse.Namespace, result: list[dict[str, Any]]) -> bool:
    with contextlib.ExitStack() as stack:
        folder = options.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="artel-")))
        for repetition in range(options.repeat):
            for key in options.rows:
                print(f"{ROWS[key].name} ({repetition + 1} of {options.repeat})", flush=True)
                try:
                    row = measure(
                        ROWS[key],
                        options,
                        folder / f"{key}-{repetition}",
                        lambda line: print(line, flush=True),
                    )
                except (RuntimeError, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    return False
                result.append(row | {"row": key, "load": os.getloadavg()[0]})
    return True


def _medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all repetitions of a run."""
    merged = []
    for key in dict.fromkeys(row["row"] for row in rows):
        mine = [row for row in rows if row["row"] == key]
        numbers = {
            name: statistics.median(row[name] for row in mine)
            for name in ("computing", "round_s", "payload", "wire_up", "wire_down")
        }
        merged.append(mine[0] | numbers | {"min": min(row["min"] for row in mine)})
    return merged


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.utilisation",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = ("measured", "forecast", "bytes", "crowds")
    parser.add_argument("--only", type=_listed(parts), default=list(parts), metavar="PART,...")
    parser.add_argument(
        "--quick", action="store_true", help="the same as --only forecast,bytes,crowds"
    )
    parser.add_argument("--rows", type=_listed(ROWS), default=list(ROWS), metavar="ROW,...")
    parser.add_argument("--nodes", type=int, default=2, help="measured (2)")
    parser.add_argument("--rounds", type=int, default=6, help="counted rounds of each run (6)")
    parser.add_argument("--steps", type=int, default=16, help="inner steps of a round (16)")
    parser.add_argument("--down", type=float, default=100.0, help="Mbit/s of each host (100)")
    parser.add_argument("--up", type=float, default=20.0, help="Mbit/s of each host (20)")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of all rows (1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder to leave it all in")
    parser.add_argument("--peers", type=int, default=16, help="nodes of the forecast (16)")
    parser.add_argument("--inner", type=int, default=30, help="inner steps of the forecast (30)")
    parser.add_argument(
        "--tflops", type=float, default=40.0, help="of each machine of the forecast (40)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    options = parser.parse_args(argv)
    counts = (options.nodes, options.rounds, options.steps, options.repeat, options.peers)
    if min(*counts, options.inner) < 1 or min(options.down, options.up, options.tflops) <= 0:
        parser.error("counts must be at least 1, rates above 0")
    require_folder(parser, options.json)
    options.keep = empty_folder(parser, options.keep)
    if options.quick:
        options.only = ["forecast", "bytes", "crowds"]
    return options


def _listed(known: Sequence[str] | dict[str, Row]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}; choose from {', '.join(known)}")
        return found

    return parse


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
