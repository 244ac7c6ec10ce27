"""The page of one entry: what it says, who signed it, what it did, and how to check all that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Entry, Genesis
from artel.ledger.entries.state import Credit, LeftOut, Outcome
from artel.ledger.entries.story import summary
from artel.ledger.fold.explain import Explanation
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, tile_at
from artel.ledger.web.context import Context
from artel.ledger.web.index import INVALIDATED, VESTED, Credited
from artel.protocol.errors import UsageError
from artel.protocol.identity import public_of
from artel.protocol.merkle import leaf_hash


@dataclass(frozen=True)
class Signer:
    """A key that signed, and what it stands for: words, with the node or account that they name."""

    key: str
    roles: tuple[tuple[str, str, str], ...]


def entry_page(page: Context, index: int, explained: Explanation | None = None) -> dict[str, Any]:
    """The entry at ``index``.

    :param explained: its arithmetic, where that is known
    :raises UsageError: when there is none
    """
    if index >= page.index.size:
        raise UsageError(
            f"there is no entry {index:,}", f"the newest one is {page.index.size - 1:,}"
        )
    leaf = page.store.leaf(index)
    entry = entries.decode(leaf)
    about, outcome = page.index.summary(index), outcome_of(page, index)
    settled = page.index.settled_by(index)
    return {
        "entry": entry,
        "about": about,
        "says": summary(entry.body, outcome),
        "granted": page.index.granted_by(index),
        "moved": [
            (words, [credit for credit in settled if credit.status == status])
            for status, words in ((VESTED, "It makes vest"), (INVALIDATED, "It takes away"))
        ],
        "earned": _earned(page, index, entry.body),
        "facts": explained.facts if explained is not None else (),
        "fields": _fields(entry.body),
        "json": _json,
        "signers": list(_signers(page, entry)),
        "leaf": {"hash": leaf_hash(leaf).hex(), "size": len(leaf)},
        "place": index % TILE_WIDTH,
        "bundle": tile_at(ENTRIES, index // TILE_WIDTH, page.standing.size).path,
        "tile": tile_at(0, index // TILE_WIDTH, page.standing.size).path,
    }


def outcome_of(page: Context, index: int) -> Outcome:
    """What the fold said when it came to this entry."""
    reason = page.index.summary(index).reason
    granted = tuple(_credit(c) for c in page.index.granted_by(index))
    settled = page.index.settled_by(index)
    status = "ignored" if reason else "credited" if granted else "recorded"
    return Outcome(
        status,
        reason,
        granted,
        tuple(_credit(c) for c in settled if c.status == VESTED),
        tuple(_credit(c) for c in settled if c.status == INVALIDATED),
        tuple(LeftOut(r.round, 0, r.node, "", r.reason) for r in page.index.left_out_by(index)),
    )


def _credit(c: Credited) -> Credit:
    return Credit(c.number, "", c.kind, c.account, c.node, c.round, c.units, c.rate, c.source)


def _earned(page: Context, index: int, body: object) -> list[Credited] | None:
    """What a contribution has given so far; None for other entries."""
    if not isinstance(body, entries.Contribution):
        return None
    agreed = page.index.agreed(body.round + 1)
    granted = page.index.granted_by(agreed) if agreed is not None else []
    return [credit for credit in granted if credit.source == index]


def _fields(body: Genesis | entries.Body) -> dict[str, Any]:
    """What the body says, by name, without what other parts of the page show."""
    if isinstance(body, Genesis):
        return {"manifest": body.manifest}
    fields = {k: v for k, v in body.to_dict().items() if k not in ("kind", "run")}
    if isinstance(body, entries.RoundOpened):
        fields["members"] = list(zip(body.members, fields.pop("steps"), strict=True))
    return fields


def _json(value: object) -> list[str]:
    # Line by line: a line break is the one character without print that is meant.
    return json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True).split("\n")


def _signers(page: Context, entry: Entry) -> Iterator[Signer]:
    body, state = entry.body, page.state
    named = getattr(body, "node", None)  # or else all that are known may have signed
    peers = {named} if isinstance(named, str) else set(state.nodes)
    nodes = {public_of(peer).hex(): peer for peer in peers}
    arbiters = state.rules.arbiters if state.rules is not None else ()
    for key in sorted(entry.signers):
        roles = []
        if key == state.organiser:
            roles.append(("the organiser", "", ""))
        if key in state.coordinators:
            roles.append(("the coordinator", "", ""))
        if key in nodes:
            roles.append(("node", nodes[key], state.account_of(nodes[key])))
        if key in state.keys:
            roles.append(("account", "", state.keys[key]))
        elif key in state.accounts:
            roles.append(("a former key of account", "", key))
        if key in arbiters and isinstance(body, entries.Ruling):
            roles.append(("an arbiter", "", ""))
        yield Signer(key, tuple(roles))
