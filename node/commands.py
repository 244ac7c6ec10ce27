"""``artel node``: start a node, and look at it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

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
from artel.protocol.invite import PREFIX
from artel.protocol.paths import expanded

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
    from artel.node.overview import words
    from artel.node.status import read

    now = read(expanded(home))
    return show(now, [] if as_json else [fields(words(now))], as_json=as_json)


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
