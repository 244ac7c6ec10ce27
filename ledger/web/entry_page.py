"""The page of one entry: what it says, who signed it, what it did, and how to check all that."""

from __future__ import annotations

import json
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Genesis
from artel.ledger.entries.documents import document_of
from artel.ledger.entries.words import signers
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import CREDIT_STATES
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, tile_at
from artel.ledger.web.context import Context
from artel.protocol.merkle import leaf_hash

_, VESTED, INVALIDATED = CREDIT_STATES


def entry_page(page: Context, index: int) -> dict[str, Any]:
    """The entry at ``index``.

    :raises UsageError: when there is none
    """
    history = page.history
    about, leaf = history.did(index), page.store.leaf(index)
    entry, explained = entries.decode(leaf), explain(history, index)
    if about.status != "ignored":
        entry.checked(True)  # by the fold
    moved = history.moved_by(index)
    earned = history.earned_by(index) if about.kind == "contribution" else None
    return {
        "entry": entry,
        "about": about,
        "says": explained.summary,
        "granted": [trail for trail in moved if trail.granted == index],
        "moved": [
            (words, [trail for trail in moved if (trail.settled, trail.status) == (index, status)])
            for words, status in (("It makes vest", VESTED), ("It takes away", INVALIDATED))
        ],
        "earned": [earned] if earned is not None else [],
        "facts": explained.facts if about.status != "ignored" else (),
        "fields": _fields(entry.body),
        "json": _json,
        "signers": signers(entry, page.state),
        "leaf": {"hash": leaf_hash(leaf).hex(), "size": len(leaf)},
        "document": document_of(leaf),
        "place": index % TILE_WIDTH,
        "bundle": tile_at(ENTRIES, index // TILE_WIDTH, page.standing.size).path,
        "tile": tile_at(0, index // TILE_WIDTH, page.standing.size).path,
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
