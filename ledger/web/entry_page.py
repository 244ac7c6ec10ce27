"""The page of one entry: what it says, who signed it, what it did, and how to check all that."""

from __future__ import annotations

import json
import re
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Entry, Genesis, reasons
from artel.ledger.entries.state import Credit, LeftOut, Outcome
from artel.ledger.entries.story import summary
from artel.ledger.entries.words import plural
from artel.ledger.fold.explain import Explanation
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, tile_at
from artel.ledger.web import markup
from artel.ledger.web.context import Context, below, mono
from artel.ledger.web.credit_table import credit_table
from artel.ledger.web.index import INVALIDATED, VESTED, Credited
from artel.ledger.web.markup import entry_link, round_link, section, text
from artel.protocol.identity import public_of
from artel.protocol.merkle import leaf_hash

MAX_ITEMS = 200
"""Lines of one list in a body; an entry of 8 KiB has fewer."""


def entry_page(page: Context, index: int, explained: Explanation | None = None) -> str:
    """HTML of the entry at ``index``.

    :param explained: its arithmetic, where that is known
    :raises UsageError: when there is none
    """
    leaf = page.store.leaf(below(index, page.index.size))
    entry = entries.decode(leaf)
    title = f"Entry {index:,}"
    sections = [
        _header(page, index, entry),
        section("What it did", _outcome(page, index, entry) + _arithmetic(page, explained)),
        section("What it says", _body(page, entry)),
        section("Who signed it", _signers(page, entry)),
        section("Where it is", _place(page, index, entry, leaf)),
        section("Verify it yourself", verify_box(page, index)),
    ]
    return page.page(f"{title}: {entries.title(entry.kind)}", "".join(sections))


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


def _credit(credit: Credited) -> Credit:
    return Credit(
        credit.number,
        "",
        credit.kind,
        credit.account,
        credit.node,
        credit.round,
        credit.units,
        credit.rate,
        credit.source,
    )


def _header(page: Context, index: int, entry: Entry) -> str:
    before = entry_link(index - 1, f"← {index - 1:,}") if index else ""
    after = entry_link(index + 1, f"{index + 1:,} →") if index + 1 < page.index.size else ""
    said = text(summary(entry.body, outcome_of(page, index)))
    round = page.index.summary(index).round
    where = f" in round {round_link(round)}" if round >= 0 else ""
    title = entries.title(entry.kind)
    return (
        f'<header><div class="top"><h1>Entry {index:,}</h1>{page.final(index)}'
        f'<span class="aside">{before} {after}</span></div>'
        f"<p><strong>{title}</strong>{where}: {said}</p></header>\n"
    )


def _outcome(page: Context, index: int, entry: Entry) -> str:
    reason = page.index.summary(index).reason
    if reason:
        why = f"{text(reasons.explain(reason))} (<code>{text(reason)}</code>)"
        return f'<p><span class="warn">Nothing: it is ignored.</span> Why: {why}.</p>\n'
    granted, settled = page.index.granted_by(index), page.index.settled_by(index)
    parts = []
    if granted:
        total = sum(credit.amount for credit in granted)
        sums = " + ".join(f"{c.units:,} × {c.rate:,}" for c in granted[:8])
        more = " + …" if len(granted) > 8 else ""
        parts.append(f"<p>It grants credit: {sums}{more} = <strong>{total:,}</strong>.</p>\n")
        parts.append(credit_table(page, granted))
    for status, words in ((VESTED, "It makes vest"), (INVALIDATED, "It takes away")):
        # What it grants and makes vest at once stands in the table above.
        these = [c for c in settled if c.status == status]
        if these:
            total = sum(credit.amount for credit in these)
            parts.append(f"<p>{words} <strong>{total:,}</strong>.</p>\n")
            if not {c.number for c in these} <= {c.number for c in granted}:
                parts.append(credit_table(page, these))
    if isinstance(entry.body, entries.Contribution):
        parts.append(_fate(page, index, entry.body))
    return "".join(parts) or "<p>It is recorded; it moves no credit.</p>\n"


def _arithmetic(page: Context, explained: Explanation | None) -> str:
    """Each sentence of the explanation; the entries that it rests on are links."""
    if explained is None or not explained.facts:
        return ""

    def linked(found: re.Match[str]) -> str:
        index = int(found[1])
        return f"entry {entry_link(index, found[1])}" if index < page.index.size else found[0]

    lines = (re.sub(r"entry ([0-9]{1,15})\b", linked, text(fact.text)) for fact in explained.facts)
    items = "".join(f"<li>{line}</li>\n" for line in lines)
    return f"<p>Step by step, with the numbers of the manifest:</p>\n<ul>{items}</ul>\n"


def _fate(page: Context, index: int, body: entries.Contribution) -> str:
    """What has become of a contribution by now."""
    agreed = page.index.agreed(body.round + 1)
    granted = page.index.granted_by(agreed) if agreed is not None else []
    mine = [credit for credit in granted if credit.source == index]
    if mine:
        return "<p>It was accepted, and gave this credit:</p>\n" + credit_table(page, mine)
    return f"<p>It gave no credit so far; see round {round_link(body.round)}.</p>\n"


# --- what it says ---------------------------------------------------------------------------------


def _body(page: Context, entry: Entry) -> str:
    body = entry.body
    if isinstance(body, Genesis):
        return _json(body.manifest)
    rows = [
        (name.replace("_", " "), _value(page, body, name, value))
        for name, value in body.to_dict().items()
        if name not in ("kind", "run", "steps")  # each member's are shown beside it
    ]
    return markup.facts(rows)


def _value(page: Context, body: object, name: str, value: Any) -> str:
    """A field of a body, with a link to whatever it names."""
    match name, value:
        case "account" | "to", str():
            return page.account(value)
        case "node", str():
            return page.node(value)
        case "key", str():
            return page.key(value)
        case "contribution" | "entry", str():
            return page.entry(value)
        case "round", int() if isinstance(body, entries.StateAgreed):
            return f"{value:,} (made by round {round_link(value - 1)})"
        case "round", int() if isinstance(body, entries.RunClosed):
            return f"{value:,}"
        case "round", int():
            return round_link(value)
        case "size", int() if isinstance(body, entries.Witnessed):
            return f"{value:,} (up to entry {entry_link(value - 1)})"
        case "reason", str():
            said = reasons.explain(value)
            return text(value) + (f" ({text(said)})" if said != value else "")
        case "members", list() if isinstance(body, entries.RoundOpened):
            steps = zip(body.members, body.steps, strict=True)
            return _lines([f"{page.node(peer)}, {plural(h, 'step')}" for peer, h in steps])
        case "wrong", list():
            return ", ".join(f"slice {number}" for number in value) or "none"
        case "up" | "down", int():
            return f"{value:,} bytes, by its own account"
        case "accepted" | "rejected" | "cosignatures", list():
            return _lines([_item(page, body, item) for item in value])
        case "commitments", dict():
            return _lines([f"{page.node(peer)} {_hex(digest)}" for peer, digest in value.items()])
        case "evidence", dict():
            return _json(value)
        case _, str():
            return _hex(value) if value else "–"
        case _, bool():
            return text(value)
        case _, int():
            return f"{value:,}"
    return _json(value)


def _item(page: Context, body: object, item: dict[str, Any]) -> str:
    return ", ".join(
        _value(page, body, name, value)
        if name in ("node", "entry")
        else f"{text(name)} {_value(page, body, name, value)}"
        for name, value in item.items()
    )


def _lines(items: list[str]) -> str:
    more = f"<br>and {len(items) - MAX_ITEMS:,} more" if len(items) > MAX_ITEMS else ""
    return ("<br>".join(items[:MAX_ITEMS]) + more) or "none"


def _hex(value: str) -> str:
    return f'<span class="mono wrap">{text(value)}</span>'


def _json(value: Any) -> str:
    words = json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True)
    # Line by line: a line break is the one character without print that is meant.
    return "<pre>" + "\n".join(text(line) for line in words.split("\n")) + "</pre>\n"


# --- who, where, and how to check -----------------------------------------------------------------


def _signers(page: Context, entry: Entry) -> str:
    if not entry.signers:
        return '<p class="warn">A signature does not verify, so nobody counts as a signer.</p>\n'
    nodes = {public_of(peer).hex(): peer for peer in _nodes_of(page, entry)}
    rows = [(mono(key), _roles(page, entry, key, nodes)) for key in sorted(entry.signers)]
    columns: tuple[markup.Column, ...] = (("key", True), ("who that is", True))
    return markup.table(columns, rows)


def _nodes_of(page: Context, entry: Entry) -> set[str]:
    """Nodes that may have signed: those that the entry names, or else all that are known."""
    body = entry.body
    named = getattr(body, "node", None)
    return {named} if isinstance(named, str) else set(page.state.nodes)


def _roles(page: Context, entry: Entry, key: str, nodes: dict[str, str]) -> str:
    state, roles = page.state, []
    if key == state.organiser:
        roles.append("the organiser")
    if key in state.coordinators:
        roles.append("the coordinator")
    if key in nodes:
        peer = nodes[key]
        roles.append(f"node {page.node(peer)} of account {page.account(state.account_of(peer))}")
    if key in state.keys:
        roles.append(f"account {page.account(state.keys[key])}")
    elif key in state.accounts:
        roles.append(f"account {page.account(key)}, whose key it was then")
    if state.rules is not None and key in state.rules.arbiters and "ruling" in entry.kind:
        roles.append("an arbiter")
    return " and ".join(roles) or "a key that speaks for nobody now"


def _place(page: Context, index: int, entry: Entry, leaf: bytes) -> str:
    standing = page.standing
    final = (
        f"yes, as of checkpoint {standing.final:,}"
        if standing.is_final(index)
        else text(f"not yet: {standing.label}")
    )
    return markup.facts(
        (
            ("index", f"{index:,} of {page.index.size:,} entries"),
            ("final", final),
            ("entry id", _hex(entry.id)),
            ("leaf hash", _hex(leaf_hash(leaf).hex())),
            ("bytes", f'{len(leaf):,} (<a href="/ledger/leaf/{index}">the leaf as it is</a>)'),
            ("proof", f'<a href="/ledger/proof/{index}">entry-{index}.tlog-proof</a>'),
        )
    )


def verify_box(page: Context, index: int) -> str:
    """The exact commands with which a reader who trusts nobody checks this entry."""
    url = page.url or "http://HOST:PORT"
    size = page.standing.size
    bundle = tile_at(ENTRIES, index // TILE_WIDTH, size)
    name = f"entry-{index}"
    policy = f" --policy {page.standing.wanted}" if index < page.standing.head else ""
    ours = [
        f"artel ledger prove {index} --from {url}",
        f"artel ledger verify {name}.tlog-proof {name}.json{policy}",
        f"artel ledger explain {index} --from {url}",
    ]
    for vkey in page.vkeys:
        ours.append(f"artel ledger audit {url}/ledger --vkey '{vkey}' --full")
    plain = [
        f"curl -s {url}/ledger/checkpoint",
        f"curl -s {url}/ledger/leaf/{index} | sha256sum",
        f"curl -s {url}/ledger/{bundle.path} -o bundle",
        f"curl -s {url}/ledger/{tile_at(0, index // TILE_WIDTH, size).path} -o tile",
    ]
    return (
        "<p>With Artel, from this server or any node, then offline:</p>"
        f"<pre>{text_lines(ours)}</pre>\n"
        "<p>With any tool that knows the "
        "C2SP formats (tlog-tiles, tlog-checkpoint, tlog-proof), or by hand: the second command "
        f"prints the entry id, and the leaf is number {index % TILE_WIDTH} (from 0) in the bundle, "
        "its hash number "
        f"{index % TILE_WIDTH} of 32 bytes in the tile.</p>"
        f"<pre>{text_lines(plain)}</pre>\n"
        + markup.soft(
            "The proof says that the entry is in the log that the coordinator signed. That the "
            "entry counts, and for how much, follows from all entries before it: the audit "
            "computes it again. Add "
            "<code>--run</code> with the run id from your invite, so that nothing rests on what "
            "this server says, and run "
            f"<code>artel ledger compare {text(url)} OTHER-NODE</code> to see whether others are "
            "shown the same log."
        )
    )


def text_lines(lines: list[str]) -> str:
    """Lines of ours with foreign parts, as the inside of a ``pre``."""
    return "\n".join(text(line) for line in lines)


def short_title(page: Context, index: int) -> str:
    """``12 Contribution``, as a link."""
    kind = page.index.summary(index).kind
    return f"{entry_link(index)} {entries.title(kind)}"
