"""The page of one entry: what it says, who signed it, what it did, and how to check all that."""

from __future__ import annotations

import json
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Genesis
from artel.ledger.entries.documents import document_of
from artel.ledger.entries.words import signers
from artel.ledger.fold.explain import explain
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, tile_at
from artel.ledger.web.context import Context
from artel.protocol.merkle import leaf_hash


def entry_page(page: Context, index: int) -> dict[str, Any]:
    """The entry at ``index``.

    :raises UsageError: when there is none
    """
    history, found = page.history, explain(page.history, index)
    about, entry, leaf = found.did, found.entry, found.leaf
    earned = history.earned_by(index) if about.kind == "contribution" else None
    return {
        "entry": entry,
        "about": about,
        "says": found.summary,
        "granted": found.granted,
        "moved": [
            ("It makes vest", found.settled("vested")),
            ("It takes away", found.settled("invalidated")),
        ],
        "earned": [earned] if earned is not None else [],
        "facts": found.facts if about.status != "ignored" else (),
        "fields": _fields(entry.body),
        "json": _json,
        "signers": signers(entry, page.state),
        "leaf": {"hash": leaf_hash(leaf).hex(), "size": len(leaf)},
        "document": document_of(leaf),
        "place": index % TILE_WIDTH,
        "bundle": tile_at(ENTRIES, index // TILE_WIDTH, history.size).path,
        "tile": tile_at(0, index // TILE_WIDTH, history.size).path,
    }


def _fields(body: Genesis | entries.Body) -> dict[str, Any]:
    """What the body says, by name, without what other parts of the page show."""
    if isinstance(body, Genesis):
        return {"manifest": body.manifest}
    fields = {k: v for k, v in body.to_dict().items() if k not in ("kind", "run", "signatures")}
    if isinstance(body, entries.RoundOpened):
        fields["members"] = list(zip(body.members, fields.pop("steps"), strict=True))
    return fields


def _json(value: object) -> list[str]:
    # Line by line: a line break is the one character without print that is meant.
    return json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True).split("\n")
