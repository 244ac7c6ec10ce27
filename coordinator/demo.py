"""``artel demo``: a whole run on this machine, from the text to the shares, and a check of it all.

A coordinator and nodes run as separate processes that talk over real sockets; nothing is
simulated. At the end everything is checked again from the files that they leave behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from artel.protocol import commandline, files
from artel.protocol.commandline import AsJson, Folder, value
from artel.protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, UsageError
from artel.protocol.options import check_port_free, whole
from artel.protocol.run_config import Codec, Topology

DEFAULT_OUT = Path("demo-run")
RUN_FILE = "RUN.toml"

INNER_STEPS, BATCH_SIZE, SEQ_LEN = 40, 4, 128
BYTES_PER_TOKEN = 3
"""Of Python text with a vocabulary of 1024; decides how much text is taken."""
MIN_TEXT_BYTES = 4_000_000
ABOUT = "A small Llama learns Python from the sources of the interpreter that runs it."

app = commandline.group(
    "demo",
    None,
    {
        0: "everything holds",
        1: "a check failed",
        2: "wrong input",
        4: "this machine lacks something",
        130: "interrupted",
    },
)


@app.default
def demo(
    *,
    nodes: Annotated[int, value(whole(1, 16), "N")] = 3,
    rounds: Annotated[int, value(whole(1, 1000), "N")] = 12,
    inner_steps: Annotated[int, value(whole(1, 1000), "H")] = INNER_STEPS,
    codec: Codec = "int4",
    topology: Topology = "auto",
    overlap: Annotated[int, value(whole(0, 500), "STEPS")] = 0,
    fragments: Annotated[int, value(whole(1, 16), "P")] = 1,
    out: Folder | None = None,
    port: Annotated[int, value(whole(0, 65535), "PORT")] = 0,
    as_json: AsJson = False,
) -> int:
    """Train a small language model with a coordinator and several nodes on this machine.

    The result is checked. Takes about four minutes on two cores.

    example: artel demo --nodes 3 --rounds 6 --json

    example: artel demo --codec sparse --overlap 8

    example: artel demo --nodes 8 --topology sharded --rounds 4 --inner-steps 12

    :param nodes: how many
    :param rounds: how many
    :param inner_steps: training steps of each node in a round
    :param codec: how pseudo-gradients are packed
    :param topology: who fetches what
    :param overlap: inner steps trained while the exchange is under way; at 0 nodes wait for it
    :param fragments: parts of the model that take turns in being exchanged
    :param out: an empty or new folder for everything; otherwise demo-run, or demo-run-2 and so on
        when that is taken
    :param port: of the page on 127.0.0.1; 0 is a free one
    :param as_json: print one JSON object; progress goes to stderr
    """
    text = run_text(
        nodes,
        rounds,
        inner_steps,
        codec=codec,
        topology=topology,
        overlap_steps=overlap,
        fragments=fragments,
    )
    from artel.protocol.run_file import parse_config

    parse_config(text.encode(), "the demo's run")  # options that contradict each other end here
    check_port_free(f"/ip4/127.0.0.1/tcp/{port}", "--port")
    folder = _fresh_folder(out)
    run_file = folder / RUN_FILE
    with files.told(run_file):
        run_file.write_text(text, encoding="utf-8")

    import asyncio

    from artel.coordinator.demo_check import Demo
    from artel.coordinator.demo_run import run
    from artel.coordinator.demo_view import DemoView, summary

    shown = sys.stderr if as_json else sys.stdout
    in_terminal = shown.isatty()
    try:
        with DemoView(shown) as view:
            facts = asyncio.run(run(Demo(folder, run_file, nodes, rounds, port), view))
    except (KeyboardInterrupt, asyncio.CancelledError, OSError) as error:
        # Writing to a terminal fails a moment before its closing is told.
        if isinstance(error, OSError) and not (in_terminal and not shown.isatty()):
            raise
        print(f"interrupted; everything is stopped, {folder} holds what there is", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(json.dumps(facts, indent=2) if as_json else summary(facts))
    for problem in facts["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_OK if facts["ok"] else EXIT_FAILED


def run_text(nodes: int, rounds: int, inner_steps: int = INNER_STEPS, **exchange: Any) -> str:
    """The run file of the demo; ``exchange``: what differs in its table of that name."""
    from artel.protocol import run_config as run
    from artel.protocol import terms
    from artel.protocol.manifest_template import SIZES, template

    steps = rounds * inner_steps
    tokens = steps * nodes * BATCH_SIZE * SEQ_LEN
    tiny = SIZES["tiny"]
    changed = {
        "run": run.RunSection(name="demo", description=ABOUT, seed=1),
        "data": run.DataSection(
            sources=tiny.data.sources,
            max_bytes=max(MIN_TEXT_BYTES, BYTES_PER_TOKEN * tokens),
            seq_len=SEQ_LEN,
            validation_windows=48,
        ),
        "optimizer": run.OptimizerSection(
            lr=0.004, batch_size=BATCH_SIZE, warmup_steps=min(30, steps // 8)
        ),
        "rounds": run.RoundsSection(
            total=rounds,
            inner_steps=inner_steps,
            min_nodes=nodes,
            deadline_s=600.0,
            grace_s=30.0,
            mirror_every=4,
            span=max(4, rounds // 2),
        ),
        "exchange": run.ExchangeSection(**exchange),
        "ownership": terms.OwnershipSection(closing_s=0.0),
        # Any two majorities have a witness in common.
        "ledger": terms.LedgerSection(witnesses=nodes // 2 + 1),
    }
    return template(RUN_FILE, tiny.model_copy(update=changed))


def _fresh_folder(wanted: Path | None) -> Path:
    """An empty folder: the wanted one, or the first default that is free.

    :raises UsageError: the wanted folder has something in it
    """
    folder = wanted if wanted is not None else DEFAULT_OUT
    number = 1
    while wanted is None and folder.exists():
        number += 1
        folder = DEFAULT_OUT.with_name(f"{DEFAULT_OUT.name}-{number}")
    files.require_empty(folder)  # a demo never writes over another one
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot use {folder}: {error.strerror}", "choose another --out") from None
    return folder.resolve()
