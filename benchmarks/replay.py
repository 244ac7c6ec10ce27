"""What does a replay see? Honest work between machines that differ, and work that was not done.

Honest: a process of one class trains short spans of a small Llama (:mod:`node.measuring`, which
``artel node measure`` runs too), processes of every class repeat them. A class is made by what the
libraries read when they are imported: threads, kernels that are kept from newer instructions, and
bf16, which on processors without it is computed in software here.

Cheats: one node, whose contribution to one round of its span is not what its assignment asks for;
an honest one repeats it.

Fingerprints: those of machines that differ, and guesses at them (:mod:`benchmarks.replay_guesses`),
of whole rounds, which an auditor shows, and of the first steps of a span, which a newcomer repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artel.node import measuring
from artel.node.measuring import KINDS, Apart
from artel.node.trainer import machine
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import (
    Answer,
    Apply,
    BeginReplay,
    Command,
    Counted,
    GoOn,
    Load,
    Loaded,
    RunOn,
    SpanRound,
    Train,
)
from artel.node.trainer.training import Training, open_training
from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.fingerprints import LEAST_APART, TRIAL_APART, Rows, rows_in
from artel.protocol.identity import Identity
from artel.protocol.state import Vector
from artel.protocol.terms import TOLERANCES
from artel.protocol.tolerances import tolerance_of
from benchmarks.options import require_folder
from benchmarks.replay_guesses import Guesser, beside

GENERIC = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
CLASSES: dict[str, tuple[dict[str, str], int, bool]] = {
    "native, 1 thread": ({}, 1, False),
    "native, 2 threads": ({}, 2, False),
    "native, 4 threads": ({}, 4, False),
    "AVX2, 2 threads": (AVX2, 2, False),
    "generic, 1 thread": (GENERIC, 1, False),
    "native, 1 thread, bf16": ({}, 1, True),
    "AVX2, 2 threads, bf16": (AVX2, 2, True),
}
"""Environment, threads, bf16."""
MAKERS = ("native, 1 thread", "native, 1 thread, bf16")
"""Classes whose spans all repeat."""
CHEATS = (
    "half the steps",
    "half of each batch",
    "windows of another",
    "zeros",
    "noise of equal norm",
    "own of the round before",
    "copy of another",
)
CHEATED = (0, 2)
"""Rounds in which a cheat is tried: the first of a span, and one inside."""
SAME, WORK = 1e-5, 0.3
"""Targets: honest work on machines alike is nearer, cheats on half of the steps or more further."""


def quiet(*_: Any) -> None:
    pass


class Here:
    """A trainer in this process, which keeps the fingerprints of what it repeats."""

    def __init__(self, folder: Path) -> None:
        self.training: Training | None = None
        self.shown: list[Rows] = []
        self._out = folder / "shown.bin"

    async def do(self, command: Command[Answer], /) -> Answer:
        return self._do(command)  # type: ignore[no-any-return]

    def _do(self, command: Command[Any]) -> Any:
        if isinstance(command, Load):
            self.training = open_training(command.manifest, command.state, "cpu")
            inner = self.training.inner
            return Loaded("cpu", self.training.agreed.now().root, inner.hardware)
        training = self.training
        assert training is not None
        match command:
            case Train():
                return training.train(command, quiet, quiet)
            case RunOn():
                return training.run_on(command, quiet, quiet)
            case Apply():
                return training.merging.apply(command)
            case BeginReplay():
                return training.begin_replay(replace(command, out=self._out))
            case GoOn():
                done = training.go_on(command, quiet)
                self.shown.append(rows_in(self._out.read_bytes()))
                return done
        raise TrainerError("bad_request", command.name())


# --- machines ---


def machines(folder: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of how far apart honest machines are."""
    rows = []
    for maker in MAKERS:
        where = folder / maker.replace(", ", "-").replace(" ", "-")
        _process(maker, "--record", str(where), *kinds)
        for other in CLASSES:
            for one in json.loads(_process(other, "--measure", str(where), *kinds)):
                row = _row(
                    f"{one['kind']}: {maker} / {other}", one["error"], _accepted(one), "tolerance"
                )
                rows.append(row | {"maker": maker, "repeated": other} | one)
                print(f"{row['name']}: {one['error']:.2e}", file=sys.stderr, flush=True)
    return rows


def _accepted(one: dict[str, Any]) -> float:
    """The default tolerance for a pair of classes."""
    found = tolerance_of(TOLERANCES, one["made_on"], one["repeated_on"], 0)
    return found.accept if found is not None else 0.0


def _row(name: str, ours: float, baseline: float, what: str) -> dict[str, Any]:
    row = {"name": name, "ours": ours, "baseline": baseline, "baseline_is": what}
    return row | {"unit": "relative error", "ratio": ours / baseline if baseline else None}


def _process(name: str, *words: str) -> str:
    """A run of this script as a machine of a class."""
    environment, threads, bf16 = CLASSES[name]
    more = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "MKL_DYNAMIC": "0"}
    command = [sys.executable, "-m", "benchmarks.replay", *(["--bf16"] if bf16 else []), *words]
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command, env=os.environ | environment | more | waiting, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


def one_machine(options: argparse.Namespace) -> None:
    """What a process of a class does."""
    machine.computes_bf16 = lambda device: options.bf16
    if options.record is not None:
        asyncio.run(measuring.record(Here(options.record), options.record, options.parts))
        return
    here = Here(options.measure)
    found: list[Apart] = asyncio.run(measuring.measure(here, options.measure))
    pairs = zip(found, here.shown, strict=True)
    print(
        json.dumps(
            [asdict(one) | beside(_where(options.measure, one.kind), rows) for one, rows in pairs]
        )
    )


def _where(folder: Path, kind: str) -> Path:
    return folder / kind.replace(" ", "-")


# --- guesses ---


def guesses(folder: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of how near somebody comes who has not made the steps, with dense codecs."""
    torch.set_num_threads(1)
    machine.computes_bf16 = lambda device: False
    rows = []
    for kind in (kind for kind in kinds if "sparse" not in kind):
        asyncio.run(measuring.record(Here(folder), folder, [kind]))
        guesser = Guesser(_where(folder, kind))
        for name, rounds in guesser.rounds().items():
            row = _row(f"{kind}: {name}", min(rounds), LEAST_APART, "accepted, at least")
            rows.append(row | {"kind": kind, "guess": name, "shown": rounds})
        for name, error in guesser.trial().items():
            row = _row(f"{kind}, a trial: {name}", error, TRIAL_APART, "accepted")
            rows.append(row | {"kind": kind, "guess": name, "trial": error})
        print(f"{kind}: guessed", file=sys.stderr, flush=True)
    return rows


# --- cheats ---


def cheats(folder: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of what an auditor sees of each cheat, and of honest work."""
    torch.set_num_threads(1)
    machine.computes_bf16 = lambda device: False
    rows = []
    for kind in kinds:
        asyncio.run(measuring.record(Here(folder), folder, [kind]))
        where = _where(folder, kind)
        told = measuring.read_span(where)
        for number in CHEATED:
            for name, rounds in _cheated(where, told.replay, number):
                auditor = open_training(where / "manifest.json", where / "state-0.bin", "cpu")
                auditor.begin_replay(replace(told.replay, rounds=rounds))
                seen = auditor.go_on(GoOn(1 << 20), quiet).compared[-1]
                title = f"{kind}: {name}, round {number}"
                least = SAME if name == "honest" else WORK
                row = _row(title, seen.error, least, "at most" if name == "honest" else "at least")
                more = {"kind": kind, "cheat": name, "round": number, "overlap": seen.overlap}
                rows.append(row | more)
                print(f"{title}: {seen.error:.3g}", file=sys.stderr, flush=True)
    return rows


def _cheated(where: Path, told: BeginReplay, number: int) -> Iterator[tuple[str, list[SpanRound]]]:
    """The rounds up to ``number``, the last one's blob as each cheat has it."""
    rounds = list(told.rounds[: number + 1])
    one, node = rounds[-1], told.node
    stranger = Identity.from_seed(b"\2" * 32).peer_id
    before = len(one.windows)
    other = [(path, (at + 7 * 64 * before) % 20_000) for path, at in one.windows]
    half = [w for i, w in enumerate(one.windows) if i % measuring.BATCH < measuring.BATCH // 2]
    doubled = [w for w in half for _ in range(2)]
    honest = _made(where, told, number, node, one.windows, one.head)
    norm = float(np.linalg.norm(_numbers(honest[0], honest[1])))
    size = honest[0].layout.parameters
    noise = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    noise *= np.float32(norm / np.linalg.norm(noise))
    payloads: dict[str, Callable[[], bytes | None]] = {
        "honest": lambda: honest[1],
        "half the steps": lambda: _made(where, told, number, node, one.windows, one.head // 2)[1],
        "half of each batch": lambda: _made(where, told, number, node, doubled, one.head)[1],
        "windows of another": lambda: _made(where, told, number, node, other, one.head)[1],
        "zeros": lambda: _encoded(honest[0], np.zeros(size, np.float32)),
        "noise of equal norm": lambda: _encoded(honest[0], noise),
        "own of the round before": lambda: _payload(rounds[-2].blobs[0]) if number else None,
        "copy of another": lambda: _made(where, told, number, stranger, other, one.head)[1],
    }
    run_codec = codecs.of(honest[0].manifest.config.exchange)
    for name, payload in payloads.items():
        if (data := payload()) is None:
            continue
        path = where / f"{name.replace(' ', '-')}-{number}.blob"
        path.write_bytes(Header(one.round, one.base, run_codec).wrap(honest[0].layout, data))
        yield name, [*rounds[:-1], replace(one, blobs=[path])]


def _made(
    where: Path, told: BeginReplay, number: int, node: str, windows: Sequence[Any], steps: int
) -> tuple[Training, bytes]:
    """The payload of round ``number``, of an honest span until then, by ``steps`` of its steps."""
    training = open_training(where / "manifest.json", where / "state-0.bin", "cpu")
    for one in told.rounds[:number]:
        order = _order(where, told, one, one.windows)
        made = training.train(order, quiet, quiet)
        if one.tail:
            tail = RunOn(one.round, told.node, one.tail_windows, one.steps)
            training.run_on(tail, quiet, quiet)
        counted = [Counted(told.node, made.blob, made.tokens)]
        training.merging.apply(Apply(one.round, counted, where / "cheat"))
    one = told.rounds[number]
    base, _ = training._begin(_order(where, told, one, windows))
    training.begin_head(one.round, node, [])
    trained = training.steps(windows, one.round, range(one.head), one.steps, {})
    for _ in range(steps):
        next(trained)
    return training, training.send(one.round, node, base, 0).payloads[0]


def _order(where: Path, told: BeginReplay, one: SpanRound, windows: Sequence[Any]) -> Train:
    settings: dict[str, Any] = {"steps": one.steps, "tail": one.tail, "span": 0}
    return Train(one.round, told.node, windows, where / "cheat", **settings)


def _encoded(training: Training, vector: Vector) -> bytes:
    return codecs.of(training.manifest.config.exchange).encode(training.layout, vector)


def _numbers(training: Training, payload: bytes) -> Vector:
    values = codecs.of(training.manifest.config.exchange).decode(training.layout, payload)
    return getattr(values, "values", values)  # type: ignore[no-any-return]


def _payload(blob: Path) -> bytes:
    return blob.read_bytes()[96:]


# --- tables ---


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """For people: errors of machines and of cheats, fingerprints of both, a column a kind."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    pair = ("maker", "repeated")
    made = (
        ("Errors", _table(rows, kinds, pair, "rounds")),
        ("Errors of cheats", _table(rows, kinds, ("cheat", "round"), "ours")),
        ("Fingerprints, of each round", _table(rows, kinds, pair, "shown")),
        ("Guesses at them", _table(rows, kinds, ("guess",), "shown")),
        ("Fingerprints of the first steps", _table(rows, kinds, pair, "trial")),
        ("Guesses at them", _table(rows, kinds, ("guess",), "trial")),
    )
    return "\n\n".join(f"{title}\n\n{table}" for title, table in made if table)


def _table(
    rows: Sequence[dict[str, Any]], kinds: Sequence[str], keys: Sequence[str], what: str
) -> str:
    """What rows have of ``what``; a line for all that have the same ``keys``; "": none have it."""
    lines = [f"| {' | '.join([*keys, *kinds])} |", "|---" * (len(keys) + len(kinds)) + "|"]
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if what in row and keys[0] in row:
            line = found.setdefault(tuple(str(row[key]) for key in keys), {})
            line[row["kind"]] = _cell(row, what)
    for key, cells in found.items():
        lines.append(f"| {' | '.join([*key, *(cells.get(kind, '–') for kind in kinds)])} |")
    return "\n".join(lines) if found else ""


def _cell(row: dict[str, Any], what: str) -> str:
    numbers = row[what] if isinstance(row[what], Sequence) else [row[what]]
    text = ", ".join(f"{number:.2g}" for number in numbers) if any(numbers) else "0"
    overlap = row.get("overlap") if what in ("ours", "rounds") else None
    return text if overlap is None else f"{text} ({100 * overlap:.1f} %)"


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n"
        "  python -m benchmarks.replay --quick\n"
        "  python -m benchmarks.replay --kinds 'adamw int4,muon sparse' --json replay.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="LIST", help="of work")
    parser.add_argument("--only", choices=("machines", "cheats", "guesses"), help="one part")
    parser.add_argument("--quick", action="store_true", help="one kind, without machines")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.record is not None or options.measure is not None:
        one_machine(options)
        return 0
    require_folder(parser, options.json)
    kinds = ["adamw int4"] if options.quick else options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"unknown kinds {unknown}; there are {', '.join(KINDS)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "cheats"):
            rows += cheats(Path(folder) / "cheats", kinds)
        if options.only in (None, "guesses"):
            rows += guesses(Path(folder) / "guesses", kinds)
        if options.only == "machines" or (options.only is None and not options.quick):
            rows += machines(Path(folder), kinds)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
