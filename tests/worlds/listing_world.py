"""Listings of a public run, true ones and such as somebody else signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artel.protocol.identity import Identity
from artel.protocol.listing import ListingBody, ListingRecord, listed
from artel.protocol.manifest import Manifest, run_id, sign
from manifest_world import COORDINATOR, ORGANISER, config, manifest

NOW = 1_800_000_000
STRANGER = Identity.from_seed(b"s" * 32)
WAY = f"/ip4/192.0.2.1/tcp/4200/p2p/{COORDINATOR.peer_id}"


def public_manifest(name: str = "tiny", **run: object) -> Manifest:
    written = config()
    section = written.run.model_copy(update={"name": name, "public": True} | run)
    return manifest(config=written.model_copy(update={"run": section}))


def record(
    of: Manifest | None = None, by: Identity | None = COORDINATOR, **changes: Any
) -> ListingRecord:
    """A listing; ``by`` None: a stranger's."""
    envelope = sign(of or public_manifest(), ORGANISER)
    body = {
        "run": run_id(envelope.payload),
        "time": NOW,
        "term": 0,
        "round": 7,
        "total": 60,
        "members": 3,
        "loss": 4.25,
        "addresses": (WAY,),
        "http": "",
    }
    return listed(by or STRANGER, envelope.encode(), ListingBody.model_validate(body | changes))


def served_runs(folder: Path, *records: ListingRecord) -> Path:
    """What a coordinator serves, as static files."""
    (folder / "api/v1").mkdir(parents=True)
    rows = [{"name": "a lie", "listing": one.model_dump(mode="json")} for one in records]
    (folder / "api/v1/runs").write_text(json.dumps({"runs": rows}))
    (folder / "bootstrap").write_text(f"{WAY}\nhttp://127.0.0.1:9/elsewhere\n")
    return folder
