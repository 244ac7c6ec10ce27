"""``artel demo``: a whole run on this machine, from the text to the shares, and a check of it all.

A coordinator and nodes run as separate processes that talk over real sockets; nothing is
simulated. At the end everything is checked again from the files that they leave behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from artel.protocol.arguments import Parser
from artel.protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ResourceError, UsageError
from artel.protocol.options import check_port_free, whole
from artel.protocol.run_config import Exchange

DEFAULT_NODES, MAX_NODES = 3, 16
DEFAULT_ROUNDS, MAX_ROUNDS = 12, 1000
DEFAULT_OUT = Path("demo-run")
RUN_FILE = "RUN.toml"

INNER_STEPS, BATCH_SIZE, SEQ_LEN = 40, 4, 128
BYTES_PER_TOKEN = 3
"""Of Python text with a vocabulary of 1024; decides how much text is taken."""
MIN_TEXT_BYTES = 4_000_000

_RUN = """\
# Written by `artel demo`: a small Llama that learns Python from the interpreter's own sources.
[run]
name = "demo"
description = "A small Llama learns Python from the sources of the interpreter that runs it."
seed = 1

[model]
type = "llama"

[model.config]
hidden_size = 128
intermediate_size = 384
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = 256
tie_word_embeddings = true

[tokenizer]
kind = "bpe"
vocab_size = 1024

[data]
sources = [{{ kind = "stdlib" }}]
max_bytes = {max_bytes}
seq_len = {seq_len}
validation_windows = 48

[optimizer]
lr = 0.004
batch_size = {batch_size}
warmup_steps = {warmup}

[rounds]
total = {rounds}
inner_steps = {inner_steps}
min_nodes = {nodes}
deadline_s = 600
grace_s = 30
mirror_every = 4

[exchange]
codec = "{codec}"
topology = "{topology}"
overlap_steps = {overlap}
fragments = {fragments}

[ownership]
closing_s = 0

[ledger]
witnesses = {witnesses}
"""

_EPILOG = """\
examples: artel demo --nodes 3 --rounds 6 --json
          artel demo --codec sparse --overlap 8
          artel demo --nodes 8 --topology sharded --rounds 4 --inner-steps 12

exit codes: 0 everything holds · 1 a check failed · 2 wrong input
            4 this machine lacks something · 130 interrupted"""


def main(argv: list[str]) -> int:
    """Run ``artel demo``; returns the exit code.

    :raises ArtelError: the demo cannot be run
    """
    arguments = _parser().parse_args(argv)
    text = run_text(
        arguments.nodes,
        arguments.rounds,
        arguments.inner_steps,
        codec=arguments.codec,
        topology=arguments.topology,
        overlap=arguments.overlap,
        fragments=arguments.fragments,
    )
    from artel.protocol.run_file import parse_config

    parse_config(text.encode(), "the demo's run")  # options that contradict each other end here
    check_port_free(f"/ip4/127.0.0.1/tcp/{arguments.port}", "--port")
    folder = _fresh_folder(arguments.out)
    run_file = folder / RUN_FILE
    try:
        run_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {run_file}: {error.strerror}") from None

    import asyncio

    from artel.coordinator.demo_check import Demo
    from artel.coordinator.demo_run import run
    from artel.coordinator.demo_view import LinesView, TableView, summary

    out = sys.stderr if arguments.json else sys.stdout
    in_terminal = out.isatty()
    view = TableView(out) if in_terminal else LinesView(out)
    demo = Demo(folder, run_file, arguments.nodes, arguments.rounds, arguments.port)
    try:
        with view:
            facts = asyncio.run(run(demo, view))
    except (KeyboardInterrupt, asyncio.CancelledError, OSError) as error:
        # Writing to a terminal fails a moment before its closing is told.
        if isinstance(error, OSError) and not (in_terminal and not out.isatty()):
            raise
        print(f"interrupted; everything is stopped, {folder} holds what there is", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(json.dumps(facts, indent=2) if arguments.json else summary(facts))
    for problem in facts["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_OK if facts["ok"] else EXIT_FAILED


def run_text(
    nodes: int,
    rounds: int,
    inner_steps: int = INNER_STEPS,
    *,
    codec: str = "int4",
    topology: str = "auto",
    overlap: int = 0,
    fragments: int = 1,
) -> str:
    """The run file of the demo."""
    steps = rounds * inner_steps
    tokens = steps * nodes * BATCH_SIZE * SEQ_LEN
    return _RUN.format(
        max_bytes=max(MIN_TEXT_BYTES, BYTES_PER_TOKEN * tokens),
        seq_len=SEQ_LEN,
        batch_size=BATCH_SIZE,
        warmup=min(30, steps // 8),
        rounds=rounds,
        inner_steps=inner_steps,
        nodes=nodes,
        codec=codec,
        topology=topology,
        overlap=overlap,
        fragments=fragments,
        witnesses=nodes // 2 + 1,  # any two majorities have a witness in common
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="artel demo",
        description="Train a small language model with a coordinator and several nodes on this\n"
        "machine, and check the result. Takes about four minutes on two cores.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--nodes",
        type=whole(1, MAX_NODES),
        default=DEFAULT_NODES,
        metavar="N",
        help=f"how many (default: {DEFAULT_NODES})",
    )
    parser.add_argument(
        "--rounds",
        type=whole(1, MAX_ROUNDS),
        default=DEFAULT_ROUNDS,
        metavar="N",
        help=f"how many (default: {DEFAULT_ROUNDS})",
    )
    parser.add_argument(
        "--inner-steps",
        type=whole(1, 1000),
        default=INNER_STEPS,
        metavar="H",
        help=f"training steps of each node in a round (default: {INNER_STEPS})",
    )
    parser.add_argument(
        "--codec",
        choices=get_args(Exchange.model_fields["codec"].annotation),
        default="int4",
        help="how pseudo-gradients are packed (default: int4)",
    )
    parser.add_argument(
        "--topology",
        choices=get_args(Exchange.model_fields["topology"].annotation),
        default="auto",
        help="who fetches what (default: auto)",
    )
    parser.add_argument(
        "--overlap",
        type=whole(0, 500),
        default=0,
        metavar="STEPS",
        help="inner steps trained while the exchange is under way (default: 0: nodes wait for it)",
    )
    parser.add_argument(
        "--fragments",
        type=whole(1, 16),
        default=1,
        metavar="P",
        help="parts of the model that take turns in being exchanged (default: 1)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"an empty or new folder for everything (default: {DEFAULT_OUT}, or {DEFAULT_OUT}-2 "
        "and so on when that is taken)",
    )
    parser.add_argument(
        "--port",
        type=whole(0, 65535),
        default=0,
        metavar="PORT",
        help="of the page on 127.0.0.1 (default: a free one)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; progress goes to stderr"
    )
    return parser


def _fresh_folder(wanted: Path | None) -> Path:
    """An empty folder: the wanted one, or the first default that is free.

    :raises UsageError: the wanted folder has something in it
    """
    folder = wanted if wanted is not None else DEFAULT_OUT
    number = 1
    while wanted is None and folder.exists():
        number += 1
        folder = DEFAULT_OUT.with_name(f"{DEFAULT_OUT.name}-{number}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder} is not empty",
                "a demo never writes over another one: choose a new --out DIR, or remove it",
            )
    except OSError as error:
        raise UsageError(f"cannot use {folder}: {error.strerror}", "choose another --out") from None
    return folder.resolve()
