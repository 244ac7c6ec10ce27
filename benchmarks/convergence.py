"""How much loss do rare, small exchanges cost? Every codec and outer step against DDP.

All rows of a table see the same number of tokens and start from the same weights. The DDP rows
average fp32 gradients at every step; the others take H inner steps in each of K simulated workers
and then go through the code that nodes run: error feedback, codec, contribution blob, aggregation,
outer step, and the merge that lets nodes train on while an exchange is under way. Method and
expected sizes: DiLoCo (arXiv 2311.08105) and its scaling laws (2503.09799), SparseLoCo (2508.15706)
and MuLoCo (2505.23725).

Every method gets its own inner learning rate, DDP too: a row without one runs at the plan's, and
the table compares with the best DDP row there is.

Data: the Python sources of the running interpreter, split by file. The workers draw their windows
from the same training text, each from its own stream (IID).

Training is chaotic: the rows with ``nudge`` differ by a millionth in their initial weights and by
nothing else, so their gap is noise, and gaps of that size between codecs mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from artel.protocol.model import transformers_config
from benchmarks.convergence_model import Corpus, fast_loss
from benchmarks.convergence_report import markdown, plots, published
from benchmarks.convergence_rows import CODECS, DDP, TABLES, Plan, Row, parse
from benchmarks.convergence_train import World, train_ddp, train_rounds

HELP = f"""\
rerun, from the root of the repository:
  python -m benchmarks.convergence --quick                              # about a minute
  python -m benchmarks.convergence --table small --json FILE            # 0.13M parameters, bytes
  python -m benchmarks.convergence --table bytes --json FILE            # 0.44M parameters, bytes
  python -m benchmarks.convergence --table bpe --json FILE              # 2.2M parameters, BPE
  python -m benchmarks.convergence --table spans --json FILE            # 1.0M parameters, BPE, long
  python -m benchmarks.convergence --rows ddp/lr=0.004,int4/H=10/mu=0.3 --json FILE

A row is CODEC[/OPTION=VALUE]..., CODEC one of {", ".join(CODECS)}; its options:
{{options}}
Rows that FILE already holds are not trained again, so an interrupted run goes on where it was.
"""


def train(world: World, row: Row, label: str, begun: float, share: tuple[float, float]) -> Any:
    """One row, with its progress on standard error.

    :param share: part of the whole run that is done before the row, and that the row is
    """
    config = world.plan.config(row, world.corpus.vocab_size)
    said = time.perf_counter()

    def tick(done: float) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said < 10:
            return
        said, fraction = now, share[0] + share[1] * done
        left = (now - begun) * (1 / fraction - 1)
        print(f"  {label}: {100 * done:.0f} %, about {left:.0f} s left", file=sys.stderr)

    outcome = (train_ddp if row.codec == DDP else train_rounds)(row, config, world, tick)
    return {"table": world.plan.name, "row": row.key, **dataclasses.asdict(outcome)}


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    plan: Plan = options.plan
    torch.set_num_threads(options.threads)
    done = _read(options.json)
    settings = {**dataclasses.asdict(plan), "precision": options.precision}
    have = {r["row"] for r in done if r["plan"] == settings}
    wanted = [row for row in options.rows if row.key not in have]

    corpus = Corpus(plan.vocab_size)
    model = transformers_config(plan.config(Row(DDP), corpus.vocab_size).model, corpus.vocab_size)
    bf16 = options.precision == "bf16"
    compiled = options.compiled and shutil.which("c++") is not None
    world = World(plan, corpus, fast_loss(model, bf16, compiled), bf16)
    print(
        f"table {plan.name}: {len(corpus.train) / 1e6:.1f}M training tokens of "
        f"{corpus.bytes_per_token:.2f} bytes in {corpus.files} files, about "
        f"{plan.tokens / 1e6:.2f}M tokens a row, {options.precision}; "
        f"{len(wanted)} rows to train, {len(options.rows) - len(wanted)} are there already",
        flush=True,
    )
    begun = time.perf_counter()
    for number, row in enumerate(wanted):
        share = (number / len(wanted), 1 / len(wanted))
        done.append({**train(world, row, row.key, begun, share), "plan": settings})
        print(f"{row.key}: validation loss {done[-1]['curve'][-1][1]:.4f}", flush=True)
        if options.json:  # after every row, so that an interrupted run keeps what it has
            options.json.write_text(json.dumps(published(done), indent=1) + "\n")

    mine = [r for r in published(done) if r["plan"] == settings]
    print("\n" + markdown(mine))
    if options.plots:
        for path in plots(mine, options.plots):
            print(f"wrote {path}")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    documented = [f"  {f.name:6} {f.metadata['help']}" for f in dataclasses.fields(Row)[1:]]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence",
        description="Validation loss at equal tokens: DDP against every codec and outer step.",
        epilog=HELP.format(options="\n".join(documented)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=sorted(TABLES), default="small", help="(default small)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, about a minute")
    parser.add_argument("--rows", help="comma-separated (default: those of the table)")
    parser.add_argument("--tokens", type=int, help="tokens of a row (default: the table's)")
    parser.add_argument("--batch", type=int, help="windows of an inner step (default: the table's)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows in FILE")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the curves into FOLDER")
    options = parser.parse_args(argv)
    table = TABLES["quick" if options.quick else options.table]
    options.plan, options.compiled = table.plan, table.compiled
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.batch is not None:
        if not 1 <= options.batch <= 1024:
            parser.error("--batch must be from 1 to 1024")
        options.plan = dataclasses.replace(options.plan, batch=options.batch)
    if options.tokens is not None:
        if options.tokens < 10_000:
            parser.error("--tokens must be at least 10000")
        options.plan = dataclasses.replace(options.plan, tokens=options.tokens)
    try:
        options.rows = [parse(text) for text in (options.rows or ",".join(table.rows)).split(",")]
        for row in options.rows:
            options.plan.config(row, options.plan.vocab_size or 257)
    except ValueError as error:  # pydantic's too
        parser.error(str(error))
    for path in (options.json, options.plots):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    return options


def _read(path: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run."""
    if path is None or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


if __name__ == "__main__":
    sys.exit(main())
