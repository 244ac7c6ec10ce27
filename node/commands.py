"""``artel node``: start a node, look at it, and take the trained model along."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from artel.node.owner_commands import (
    DEFAULT_HOME,
    NodeHome,
    change,
    doctor,
    finish,
    install_service,
    leave,
    logs,
    pause,
    resume,
)
from artel.node.settings import CORES
from artel.node.taking_part import NodeOptions, take_part
from artel.protocol import commandline
from artel.protocol import options as types
from artel.protocol.commandline import AsJson, Folder, Verbose, fields, show, value
from artel.protocol.errors import EXIT_OK
from artel.protocol.invite import PREFIX
from artel.protocol.paths import expanded

MAX_SAMPLE_TOKENS = 100_000
MAX_TEMPERATURE = 10
MAX_SEED = 2**63 - 1
"""The largest that torch takes."""
ONE_WAY = "by nobody: it opens all connections itself, and the coordinator passes its work on"
ALONE = "it does not answer, this node keeps trying"

app = commandline.group(
    "node",
    "Take part in a run.",
    {
        0: "done",
        1: "failed",
        2: "wrong input (the invite, a key file)",
        3: "nobody answers",
        4: "this machine lacks something (memory, disk, a port, the home is in use)",
        130: "left at once: a second Ctrl-C, or one before the node had joined",
    },
)

app.command(pause)
app.command(resume)
app.command(finish)
app.command(leave)
app.command(change, name="set")
app.command(logs)
app.command(doctor)
app.command(install_service)


# --- start ---------------------------------------------------------------------------------------


@app.command
def start(
    *, home: NodeHome = DEFAULT_HOME, join: str | None = None, node: NodeOptions = NodeOptions()
) -> int:
    """Join a run and train until it is finished.

    The invite is the line that the organiser published. Press Ctrl-C once to finish the round under
    way and leave with its credit, twice to leave at once; SIGTERM and a terminal that closes do the
    same. Start again with the same command: the node goes on where it was, with the limits that
    were said last; artel node set changes them while it runs.

    example: artel node start --join artel1.eyJwZWVycyI6…

    :param join: the invite, or the name or id of a public run; needed the first time in a home
    """
    if join is not None and PREFIX not in join:
        from artel.node.finding import listing_of

        join = listing_of(join, node.bootstrap).invite.encode()
    return take_part(expanded(home), join, node)


# --- the others ----------------------------------------------------------------------------------


@app.command
def status(
    *, home: NodeHome = DEFAULT_HOME, as_json: AsJson = False, verbose: Verbose = False
) -> int:
    """Show what the node of a home is doing: round, step, loss, speed, bytes, credit.

    example: artel node status --json
    """
    from artel.node.status import read

    now = read(expanded(home))
    return show(now, [] if as_json else [fields(_status(now))], as_json=as_json)


def _status(now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    step = f", step {now['step']}/{now['steps']}" if now["phase"] == "training" else ""
    loss = "unknown yet" if now["loss"] is None else f"{now['loss']:.3f} nats per token"
    seconds = "  ".join(f"{name} {value:.2f}" for name, value in now["seconds"].items())
    used = now["computing"]
    yield "run", f"{now['name']} ({now['run'][:12]}…)"
    yield "node", now["node"]
    yield "account", f"{now['account'][:16]}…"
    yield "doing", f"{now['phase']}{step} ({now['resting'] or now['reason']})"
    yield "limits", now["limits"]
    yield "round", f"{now['state_round']} of {now['rounds_total']} agreed"
    yield "loss", loss
    yield "speed", f"{now['tokens_per_second']:,.0f} tokens/s"
    yield "computing", "unknown yet" if used is None else f"{100 * used:.1f} % of the last round"
    yield "up", _traffic(now["up_by_kind"])
    yield "down", _traffic(now["down_by_kind"])
    yield "served", _peers(now["served"])
    yield "fetched", _peers(now["fetched"])
    yield (
        "credit",
        (
            f"{now['vested']:,} vested, {now['pending']:,} pending, {now['awaiting']:,} "
            f"awaiting agreement ({100 * now['share']:.1f} % of the model, with pending)"
        ),
    )
    yield "rejected", ", ".join(f"{n} × {why}" for why, n in now["rejected"].items()) or "none"
    held = f"{now['ledger_size']:,} entries, {now['cosigned_size']:,} of them cosigned"
    yield "ledger", f"{held}, {now['final_size']:,} final"
    yield "reached", "directly" if now["reachable"] else ONE_WAY
    yield "page", now["page"]
    yield (
        "memory",
        (
            f"daemon {now['memory_daemon'] / 1e6:.0f} MB, "
            f"trainer {now['memory_trainer'] / 1e6:.0f} MB"
        ),
    )
    yield "last round", f"{seconds} (seconds)" if seconds else "none yet"
    if now["coordinator_lost"] or now["waiting"]:
        waits = now["waiting"] or ALONE
        # One that has sealed the term, and is answered, waits alone: others make entries final.
        final = "nothing becomes final here, " if now["coordinator_lost"] else ""
        yield "coordinator", f"{waits}; {final}what is assigned is trained meanwhile"
    if now["last_error"]:
        yield "last error", now["last_error"]


def _traffic(by_kind: dict[str, int]) -> str:
    total = sum(by_kind.values())
    parts = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in sorted(by_kind.items()))
    return f"{total / 1e6:.2f} MB ({parts})" if parts else "0 MB"


def _peers(by_peer: dict[str, int]) -> str:
    """Who gave or got most; the others are summed up."""
    ranked = sorted(by_peer.items(), key=lambda item: -item[1])
    parts = [f"…{peer[-8:]} {size / 1e6:.2f} MB" for peer, size in ranked[:4]]
    if len(ranked) > 4:
        parts.append(f"{len(ranked) - 4} more {sum(s for _, s in ranked[4:]) / 1e6:.2f} MB")
    return ", ".join(parts) or "nobody yet"


@app.command
def measure(
    folder: Folder,
    /,
    *,
    record: bool = False,
    threads: Annotated[int, value(types.whole(0, CORES), "N")] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Measure how far apart two machines come with the same work; for [trust] tolerances.

    On one machine record some short spans of training, take the folder to the other one, and
    measure there. What is printed is the relative error of each kind of work.

    example: artel node measure --record spans

    :param folder: of the recorded spans
    :param record: train and write them, instead of repeating them
    :param threads: for training, at most the cores of this machine; 0 takes all
    """
    from artel.node import measuring

    folder = expanded(folder)
    if record:
        hardware = asyncio.run(measuring.recorded(folder, threads or CORES))
        return show(
            {"hardware": hardware, "folder": str(folder)},
            (f"recorded on {hardware}", f"on another machine: artel node measure {folder.name}"),
            as_json=as_json,
        )
    found = asyncio.run(measuring.measured(folder, threads or CORES))
    lines = [f"made on {found[0].made_on}, repeated on {found[0].repeated_on}"]
    return show(
        [asdict(one) for one in found],
        (*lines, fields((one.kind, measuring.words(one)) for one in found)),
        as_json=as_json,
    )


@app.command
def export(
    out: Folder,
    /,
    *,
    home: NodeHome = DEFAULT_HOME,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> int:
    """Write the newest state as a Hugging Face folder that transformers loads with from_pretrained.

    example: artel node export my-model

    :param out: the folder
    """
    from artel.node import pretrained
    from artel.node.newest import newest

    with newest(expanded(home)) as found:
        pretrained.export(found, out)
    return show(
        {"out": str(out), "state": found.root},
        (
            f"wrote state {found.root[:12]}… to {out}",
            f'load it with: AutoModelForCausalLM.from_pretrained("{out}")',
        ),
        as_json=as_json,
    )


@app.command
def sample(
    *,
    home: NodeHome = DEFAULT_HOME,
    prompt: Annotated[str, value(types.text, "TEXT")] = "def ",
    tokens: Annotated[int, value(types.whole(1, MAX_SAMPLE_TOKENS), "N")] = 100,
    temperature: Annotated[float, value(types.number(0, MAX_TEMPERATURE), "T")] = 0.8,
    seed: Annotated[int, value(types.whole(0, MAX_SEED), "N")] = 0,
    verbose: Verbose = False,
) -> int:
    """Let the newest state continue a text.

    example: artel node sample --prompt "def main(" --tokens 100

    :param prompt: the text
    :param tokens: how many to add
    :param temperature: 0 takes the likeliest, at most 10
    :param seed: another one gives another text
    """
    from artel.node import pretrained
    from artel.node.newest import newest

    with newest(expanded(home)) as found:
        text = pretrained.sample(
            found, prompt, max_tokens=tokens, temperature=temperature, seed=seed
        )
    sys.stdout.write(text + "\n")
    return EXIT_OK
