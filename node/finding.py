"""``artel runs``: the public runs, as the network's directory has them."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence

from artel.protocol import commandline, listing
from artel.protocol.commandline import AsJson, Bootstrap, Table, show
from artel.protocol.errors import ResourceError, Unreachable, UsageError, suggestion
from artel.protocol.listing import Listing
from artel.protocol.net import doors
from artel.protocol.offer import disk_bytes, memory_bytes
from artel.protocol.units import readable

LEAST_ID = 8
"""Digits of a run id that name a run."""

app = commandline.group(
    "runs",
    None,
    {
        0: "done",
        2: "no address of the network is known, or one is wrong",
        3: "nobody answers",
        4: "addresses of peers need the node's extra",
    },
)


@app.default
def runs(*, bootstrap: Bootstrap = (), as_json: AsJson = False) -> int:
    """List the public runs: what is trained, by whom, how far it is, what it asks and gives.

    Each run is signed by its organiser, and its numbers by its coordinator. Anybody can list a run:
    look at who trains in it.

    example: artel runs --bootstrap http://HOST:8080
    """
    found = public(bootstrap)
    lines: list[str | Table] = ["no public run is listed"]
    if found:
        heads = "name", "run", "model", "members", "round", "loss", "needs", "earns", "licences"
        lines = [Table([[*_row(one)] for one in found], heads), "", "take part: artel join NAME"]
    return show([listing.facts(one) | _needs(one) for one in found], lines, as_json=as_json)


def _needs(one: Listing) -> dict[str, int]:
    manifest = one.manifest
    return {
        "memory_bytes": memory_bytes(manifest, manifest.model.parameters),
        "disk_bytes": disk_bytes(manifest),
        "credit_per_token": manifest.config.ownership.rates.compute,
    }


def _row(one: Listing) -> Iterator[str]:
    config, now, needs = one.manifest.config, one.now, _needs(one)
    yield one.name
    yield one.run[:12]
    yield f"{config.model.type}, {one.manifest.model.parameters / 1e6:,.1f}M"
    yield f"{now.members:,} of {config.rounds.max_nodes:,}"
    yield f"{now.round:,} of {now.total:,}"
    yield "-" if now.loss is None else f"{now.loss:.3f}"
    yield f"{readable(needs['memory_bytes'])} memory, {readable(needs['disk_bytes'])} disk"
    yield f"{needs['credit_per_token']:,} a token"
    licences = config.run.model_licence or "not said", config.run.data_licence or "not said"
    yield " / data ".join(licences)


# --- finding --------------------------------------------------------------------------------------


def public(bootstrap: Sequence[str]) -> list[Listing]:
    """The public runs that the doors, and the DHT behind them, know of.

    :param bootstrap: doors (:mod:`protocol.net.doors`); none: those of this machine
    :raises UsageError: no door is known
    :raises Unreachable: no door is open
    :raises ResourceError: there are only libp2p addresses, and the extra for these is missing
    """
    named = doors.require_doors(bootstrap)
    found = doors.opened(named)
    reached = found.answered
    # Web doors have looked themselves; peers are asked where they are named, or nobody else knew.
    if found.peers and (not found.records or any(door.startswith("/") for door in named)):
        if importlib.util.find_spec("hivemind") is not None:
            records, met = asyncio.run(_look(list(found.peers)))
            found.records += records
            reached = reached or met
        elif not found.records:
            raise ResourceError(
                "libp2p addresses need hivemind, which is not installed",
                "name a web address instead: --bootstrap http://HOST:PORT; or pip install "
                "'artel-network[node]'",
            )
    if not found.records and not reached:
        reasons = [error.message for error in found.errors] or ["no peer answers"]
        raise Unreachable(
            f"no door to the network of public runs is open: {'; '.join(reasons)}"[:400],
            "check the connection, or name another one: --bootstrap http://HOST:PORT",
        )
    return listing.newest(found.records, time.time())


async def _look(peers: Sequence[str]) -> tuple[list[listing.ListingRecord], bool]:
    """What the DHT has, and whether one of these peers answered."""
    print("asking the network …", file=sys.stderr)
    async with doors.visiting(peers) as host:
        return await doors.public_runs(host), bool(await host.connected())


def listing_of(word: str, bootstrap: Sequence[str]) -> Listing:
    """The public run of a name, or of an id or its first digits.

    :raises UsageError: there is none, or more than one
    :raises ArtelError: as :func:`public`
    """
    return chosen(word.strip().lower(), public(bootstrap))


def chosen(word: str, found: Sequence[Listing]) -> Listing:
    """Of these the one that is meant.

    :raises UsageError: there is none, or more than one
    """
    by_id = [one for one in found if len(word) >= LEAST_ID and one.run.startswith(word)]
    meant = by_id or [one for one in found if one.name == word]
    if len(meant) == 1:
        return meant[0]
    if meant:
        ids = ", ".join(f"{one.run[:12]} ({one.now.members:,} members)" for one in meant)
        raise UsageError(
            f"{len(meant)} public runs are called {word[:64]!r}: {ids}",
            "ask the organiser which one is theirs, and write its id",
        )
    near = suggestion(word, [one.name for one in found])
    raise UsageError(
        f"no public run has the name or the id {word[:64]!r}",
        near or "see artel runs; an invite starts with artel1.",
    )
