"""``artel join``: what a run asks and gives, one question, and a node that takes part."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from artel.node.finding import listing_of
from artel.node.taking_part import NodeOptions, take_part
from artel.protocol import commandline
from artel.protocol.commandline import Folder, agreed, fields
from artel.protocol.errors import EXIT_OK
from artel.protocol.invite import PREFIX, Invite
from artel.protocol.listing import newest
from artel.protocol.manifest import Manifest
from artel.protocol.offer import PRIVACY, SpeedGuess, offer, offer_words
from artel.protocol.paths import expanded

PROBE_S = 0.3
PROBE_SIZE = 768
EFFICIENCY = (0.05, 0.6)
"""Of the speed of large products of matrices that training comes to: of small models, and of large
ones."""

app = commandline.group(
    "join",
    None,
    {
        0: "done, or not wanted",
        1: "failed",
        2: "wrong input: no such run, an invite, a key file",
        3: "nobody answers",
        4: "this machine lacks something (memory, disk, a port, the home is in use)",
        130: "left at once: a second Ctrl-C, or one before the node had joined",
    },
)


@app.default
def join(
    run: str,
    /,
    *,
    home: Folder | None = None,
    yes: bool = False,
    node: NodeOptions = NodeOptions(),
) -> int:
    """Show what a run asks of this machine and what it gives, and take part after one yes.

    Ctrl-C once finishes the round under way and leaves with its credit; the same command goes on.

    example: artel join NAME --bootstrap http://HOST:8080

    :param run: its name or id as artel runs shows it, or an invite
    :param home: the node's folder; otherwise ~/.local/share/artel/NAME-ID
    :param yes: do not ask
    """
    if PREFIX in run:
        invite = Invite.decode(run)
        manifest, members = asyncio.run(_asked(invite))
    else:
        found = listing_of(run, node.bootstrap)
        invite, manifest, members = found.invite, found.manifest, found.now.members
    folder = expanded(home) if home is not None else _folder(manifest, invite.run)
    for line in _sheet(manifest, invite.run, members, node, folder):
        print(line)
    if not yes and not agreed("\nTake part with this machine? [y/N] "):
        print("not joined")
        return EXIT_OK
    print(f"home {folder}; go on later with: artel node start --home {shlex.quote(str(folder))}")
    return take_part(folder, invite.encode(), node)


async def _asked(invite: Invite) -> tuple[Manifest, int | None]:
    """The manifest from the peers of an invite, and how many take part, where that is listed."""
    from artel.node.link import Link
    from artel.protocol.net import doors

    print("asking the peers of the invite …", file=sys.stderr)
    async with doors.visiting(invite.peers) as host:
        manifest, _ = await Link(host, invite).fetch_manifest()
        listed = newest(await doors.public_runs(host), time.time())
    return manifest, next((one.now.members for one in listed if one.run == invite.run), None)


def _folder(manifest: Manifest, run: str) -> Path:
    data = expanded(Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share"))
    return data / "artel" / f"{manifest.config.run.name}-{run[:8]}"


def _sheet(
    manifest: Manifest, run: str, members: int | None, node: NodeOptions, home: Path
) -> Iterator[str]:
    """What a person is told before they say yes."""
    config = manifest.config
    facts = offer(manifest, members, pace_of(manifest, node.device, node.limits.cores))
    yield f"{config.run.name}: {config.run.description or 'no description'}"
    rows = [
        ("run id", run),
        ("organiser", manifest.organiser),
        ("model", f"{config.model.type}, {manifest.model.parameters:,} parameters"),
        ("members", "not known" if members is None else f"{members:,}"),
        (
            "licences",
            f"model: {config.run.model_licence or 'not said'}; "
            f"data: {config.run.data_licence or 'not said'}",
        ),
        ("shares", config.ownership.statement),
        *offer_words(facts),
        ("home", str(home)),
    ]
    if config.trust.admission == "list":
        rows.append(("accounts", "only those that the organiser lets in"))
    yield str(fields(rows))
    yield ""
    yield from PRIVACY


def pace_of(manifest: Manifest, device: str, cores: int) -> SpeedGuess:
    """How fast this machine may train a run: six operations for each parameter and token, at a part
    of the speed of a product of matrices, which is measured in a moment."""
    import torch

    gpu = device != "cpu" and torch.cuda.is_available()
    torch.set_num_threads(cores)
    one = torch.rand(PROBE_SIZE, PROBE_SIZE, device="cuda" if gpu else "cpu")
    one @ one
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < PROBE_S:
        one @ one
        if gpu:
            torch.cuda.synchronize()
        count += 1
    rate = count * 2 * PROBE_SIZE**3 / (time.perf_counter() - began)
    slow, fast = (part * rate / (6 * manifest.model.parameters) for part in EFFICIENCY)
    return SpeedGuess(slow, fast, cores, gpu)
