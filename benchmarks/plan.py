"""What ``artel plan`` computes, beside what others published and what was measured here.

Each row is computed from what somebody who types the command knows: the number of parameters, the
tokens, the machine. The shape of the model is the command's guess, as there. Two constants were
chosen by rows: ``READING`` and ``START_S`` of :mod:`artel.protocol.needs`, by the six speeds. A
utilisation of 0.4 is assumed where none is said. ``bound`` is how far off a row may be, as a part
of what was published.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artel.protocol import needs
from artel.protocol.assignment import GATHER_MEMBERS
from artel.protocol.errors import EXIT_FAILED, EXIT_OK
from artel.protocol.needs import ACCELERATORS, Method, Precision
from benchmarks.options import require_folder

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.plan
  python -m benchmarks.plan --quick                # the same: it takes no time
  python -m benchmarks.plan --json plan.json

--json FILE writes one object per row, with baseline = what was published or measured.
"""
MEASURED = Path(__file__).resolve().parent.parent / "docs" / "results" / "utilisation.json"
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One number, ours and theirs."""

    part: str
    name: str
    ours: float
    theirs: float
    unit: str
    source: str
    bound: float

    @property
    def error(self) -> float:
        """Ours over theirs, less 1."""
        return self.ours / self.theirs - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= self.bound


def operations() -> Iterator[Row]:
    """Of whole trainings."""
    for name, parameters, tokens, theirs, unit, per, source in (
        (
            "GPT-3",
            174.6e9,
            300e9,
            3640,
            "petaflop/s-days",
            86_400e15,
            "arXiv 2005.14165, table D.1",
        ),
        ("Llama 3.1 405B", 405e9, 15.6e12, 38, "10^24", 1e24, "arXiv 2407.21783"),
    ):
        ours = needs.training_flops(int(parameters)) * tokens / per
        yield Row("operations", name, ours, theirs, unit, source, 0.01)


def hours() -> Iterator[Row]:
    """Accelerator-hours of whole trainings."""
    llama2, llama3 = "arXiv 2307.09288, table 2", "model card of Llama 3.1"
    for name, gpu, parameters, active, tokens, context, theirs, source, bound in (
        ("Llama 2 7B", "a100", 6.74e9, 0, 2e12, 4096, 184_320, llama2, 0.2),
        ("Llama 2 13B", "a100", 13.0e9, 0, 2e12, 4096, 368_640, llama2, 0.2),
        ("Llama 2 70B", "a100", 69.0e9, 0, 2e12, 4096, 1_720_320, llama2, 0.2),
        ("Llama 3.1 8B", "h100", 8.03e9, 0, 15e12, 8192, 1.46e6, llama3, 0.6),
        ("Llama 3.1 70B", "h100", 70.6e9, 0, 15e12, 8192, 7.0e6, llama3, 0.35),
        ("Llama 3.1 405B", "h100", 405e9, 0, 15.6e12, 8192, 30.84e6, llama3, 0.15),
        ("BLOOM 176B", "a100", 176e9, 0, 366e9, 2048, 1_082_990, "arXiv 2211.05100", 0.25),
        ("GPT-3 in Megatron-LM", "a100", 174.6e9, 0, 300e9, 2048, 34 * 24 * 1024,
         "arXiv 2104.04473: 34 days of 1,024", 0.2),
        ("DeepSeek-V3, 37B of 671B", "h100", 671e9, 37e9, 14.8e12, 4096, 2.664e6,
         "arXiv 2412.19437, H800", 0.15),
    ):  # fmt: skip
        shape = needs.llama_shape(int(parameters), int(active) or None)
        per_token = needs.training_flops(int(active or parameters), shape, context)
        rate = ACCELERATORS[gpu].flops * needs.UTILISATION * 3600
        yield Row("hours", name, per_token * tokens / rate, theirs, "h", source, bound)
    shape = needs.llama_shape(10_000_000_000)
    flops = needs.training_flops(10_000_000_000, shape, 8192) * 100 * 128 * 8192
    ours = flops / (8 * ACCELERATORS["h100"].flops * 0.433) / 60
    source = "arXiv 2412.01152, at its 43.3 %"
    yield Row("hours", "INTELLECT-1, 100 steps of a node", ours, 38, "min", source, 0.2)


def training_memory() -> Iterator[Row]:
    """Of fine-tuning and training, in GB."""
    factory: dict[Method, tuple[str, tuple[int, ...]]] = {
        "mixed": ("16 bits, fp32 beside them", (120, 240, 600, 1200)),
        "bf16": ("pure bf16", (60, 120, 300, 600)),
        "lora": ("LoRA", (16, 32, 64, 160)),
        "qlora8": ("QLoRA of 8 bits", (10, 20, 40, 80)),
        "qlora4": ("QLoRA of 4 bits", (6, 12, 24, 48)),
    }
    rows: list[tuple[Method, str, float, float, int, str, float]] = [
        (method, f"{size}B, {words}", size, theirs, 2048, "LLaMA-Factory, README", 0.6)
        for method, (words, published) in factory.items()
        for size, theirs in zip((7, 14, 30, 70), published, strict=True)
    ]
    blog = "Hugging Face, blog on Llama 3.1"
    rows += [
        ("bf16", "8B, all parameters", 8.03, 60, 2048, blog, 0.25),
        ("bf16", "70B, all parameters", 70.6, 300, 2048, blog, 1.0),
        ("bf16", "405B, all parameters", 405, 3250, 2048, blog, 0.1),
        ("lora", "405B, LoRA", 405, 950, 2048, blog, 0.15),
        ("qlora4", "405B, QLoRA", 405, 250, 2048, blog, 0.25),
        ("qlora4", "65B, QLoRA, measured", 65.2, 45.0, 512, "arXiv 2305.14314", 0.25),
        ("mixed", "65B, 16 bits", 65.2, 780, 512, "arXiv 2305.14314: more than", 0.4),
    ]
    for method, name, size, theirs, tokens, source, bound in rows:
        parameters = int(size * 1e9)
        held = needs.method_bytes(method, parameters, needs.llama_shape(parameters), tokens)
        yield Row("training memory", name, held / 1e9, theirs, "GB", source, bound)


def answering_memory() -> Iterator[Row]:
    """Weights and caches."""
    qwen: dict[Precision, tuple[float, ...]] = {
        "fp16": (14.38, 28.08, 61.58, 136.20),
        "int8": (8.42, 16.11, 33.56, 72.61),
        "int4": (5.52, 9.94, 18.94, 39.91),
    }
    sizes = (7.62, 14.77, 32.76, 72.71)
    for precision, published in qwen.items():
        for size, theirs in zip(sizes, published, strict=True):
            parameters = int(size * 1e9)
            shape = needs.llama_shape(parameters)
            held = needs.weight_bytes(precision, parameters, shape)
            held += needs.cache_bytes(shape, 2049)
            name = f"Qwen2.5 {size:g}B, {precision}, measured"
            source = "Qwen2.5, speed benchmark"
            yield Row("answering", name, held / GIB, theirs, "GiB", source, 0.25)
    blog = "Hugging Face, blog on Llama 3.1"
    rows: list[tuple[str, float, float, Precision, float, str, float]] = [
        ("Llama 2 7B, fp32", 7, 0, "fp32", 28, "Hugging Face, forum", 0.05),
        ("13B, fp32", 13, 0, "fp32", 52, "nouraabdelhafez.com, 2024", 0.05),
        ("Llama 3.1 8B, int4", 8.03, 0, "int4", 4, blog, 0.6),
        ("Llama 3.1 70B, int4", 70.6, 0, "int4", 35, blog, 0.25),
        ("Llama 3.1 405B, fp16", 405, 0, "fp16", 810, blog, 0.01),
        ("Llama 3.1 405B, int4", 405, 0, "int4", 203, blog, 0.15),
        ("Mixtral 8x7B, fp16", 46.7, 12.9, "fp16", 93.4, "canitrun.dev", 0.01),
        ("DeepSeek-V4-Flash-0731, 304B, 4 and 8 bits", 304, 13, "int4", 167,
         "simonwillison.net, 2026-07-31", 0.1),
    ]  # fmt: skip
    for name, size, active, precision, theirs, source, bound in rows:
        shape = needs.llama_shape(int(size * 1e9), int(active * 1e9) or None)
        held = needs.weight_bytes(precision, int(size * 1e9), shape)
        yield Row("answering", name, held / 1e9, theirs, "GB", source, bound)
    for size, theirs in ((8.03, 15.62), (70.6, 39.06), (405, 123.05)):
        cache = needs.cache_bytes(needs.llama_shape(int(size * 1e9)), 128_000)
        name = f"{size:g}B, cache of 128,000 tokens"
        yield Row("answering", name, cache / GIB, theirs, "GiB", blog, 0.5)


def speeds() -> Iterator[Row]:
    """Tokens a second of one sequence on an A100."""
    rows: tuple[tuple[float, Precision, float], ...] = (
        (7.62, "fp16", 84.28),
        (14.77, "fp16", 46.30),
        (32.76, "fp16", 22.13),
        (7.62, "int4", 154.05),
        (14.77, "int4", 98.02),
        (32.76, "int4", 55.83),
    )
    for size, precision, theirs in rows:
        parameters = int(size * 1e9)
        read = needs.weight_bytes(precision, parameters, needs.llama_shape(parameters))
        ours = 1 / needs.answer_s(read, ACCELERATORS["a100"])
        name = f"Qwen2.5 {size:g}B, {precision}, vLLM, measured"
        yield Row("speed", name, ours, theirs, "tokens/s", "Qwen2.5, speed benchmark", 0.2)


def rounds() -> Iterator[Row]:
    """Bytes and computing of our own rounds, measured and in virtual time."""
    for row in json.loads(MEASURED.read_text()):
        if row["name"] == "forecast" and row["parameters"] == 10**9:
            parameters, train_s = 10**9, row["step_s"] * row["inner_steps"]
        elif row["name"].startswith("computing"):
            parameters = 8_787_200
            train_s = row["round_s"] * row["computing"]
        else:
            continue
        codec, members = row["codec"], row["nodes"]
        payload = round(parameters * needs.BITS[codec] / 8)
        move = needs.gathered if members <= GATHER_MEMBERS else needs.sharded
        tail = row["overlap_steps"] / row["inner_steps"]
        times = needs.round_times(
            parameters, move(payload, members), members, train_s, tail,
            row["up_mbit"] * 1e6, row["down_mbit"] * 1e6,
        )  # fmt: skip
        kind = "measured" if "payload" in row else "in virtual time"
        name = (
            f"{parameters / 1e6:.4g}M, {codec}, {row['down_mbit']:.0f}/{row['up_mbit']:.0f} Mbit/s"
            f"{', overlap' if tail else ''}, {kind}"
        )
        source, theirs = "docs/results/utilisation.md", 100 * row["computing"]
        yield Row("computing", name, 100 * times.computing, theirs, "%", source, 0.2)
        if "payload" in row and not tail:
            name = f"{parameters / 1e6:.4g}M, {codec}, contribution"
            theirs = row["payload"] / 1e3
            yield Row("computing", name, payload / 1e3, theirs, "kB", source, 0.02)


def every_row() -> list[Row]:
    """All rows, part by part."""
    parts = (operations, hours, training_memory, answering_memory, speeds, rounds)
    return [row for part in parts for row in part()]


def table(rows: Sequence[Row], part: str) -> str:
    """One part as Markdown."""
    lines = ["| what | ours | theirs | unit | error | source |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row.part == part:
            ours, theirs = f"{row.ours:,.4g}", f"{row.theirs:,.4g}"
            if row.theirs >= 1000:
                ours, theirs = f"{row.ours:,.0f}", f"{row.theirs:,.0f}"
            lines.append(
                f"| {row.name} | {ours} | {theirs} | {row.unit} | {row.error:+.1%} | {row.source} |"
            )
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """How far off each part is, as Markdown."""
    lines = ["| part | rows | median of the errors' sizes | largest |", "|---|---|---|---|"]
    for part in dict.fromkeys(row.part for row in rows):
        found = [row for row in rows if row.part == part]
        sizes = [abs(row.error) for row in found]
        worst = max(found, key=lambda row: abs(row.error))
        lines.append(
            f"| {part} | {len(found)} | {statistics.median(sizes):.1%} | {worst.error:+.1%}: "
            f"{worst.name} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every row; 1 when one is further off than its bound."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=(__doc__ or "").splitlines()[0],
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="no difference")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    require_folder(parser, options.json)
    rows = every_row()
    for part in dict.fromkeys(row.part for row in rows):
        print(f"## {part.capitalize()}\n\n{table(rows, part)}\n")
    print(summary(rows))
    bad = [row for row in rows if not row.holds]
    for row in bad:
        print(f"further off than its bound of {row.bound:.0%}: {row.name}", file=sys.stderr)
    if options.json:
        written = [
            {
                "name": f"{row.part}: {row.name}",
                "ours": row.ours,
                "baseline": row.theirs,
                "baseline_is": row.source,
                "unit": row.unit,
                "ratio": row.ours / row.theirs,
                "bound": row.bound,
                "holds": row.holds,
            }
            for row in rows
        ]
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    return EXIT_FAILED if bad else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
