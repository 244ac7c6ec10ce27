"""The pages that list things: shares with their history, and entries; and the same as CSV."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from artel.ledger import entries
from artel.ledger.entries.state import KINDS_OF_WORK
from artel.ledger.entries.story import summary
from artel.ledger.fold.shares import SHARE_SCALE, shares
from artel.ledger.web import markup, plot
from artel.ledger.web.context import Context
from artel.ledger.web.entry_page import outcome_of
from artel.ledger.web.markup import bar, entry_link, percent, round_link, section, soft, text
from artel.protocol.errors import UsageError

MAX_ROWS = 500
PAGE_ENTRIES = 50
MAX_CSV_ROWS = 100_000


# --- shares ---------------------------------------------------------------------------------------


def shares_page(page: Context) -> str:
    """Who owns what now, and how that came about."""
    state = page.state
    now = shares(state)
    later = {share.account: share.share for share in shares(state, with_pending=True)}
    statement = state.rules.ownership.statement if state.rules is not None else ""
    head = (
        '<header><div class="top"><h1>Shares</h1></div>'
        f"<p>{text(statement)}</p></header>\n"
        + markup.cards(
            (
                ("vested", f"{state.total_vested:,}", "credit, by which the shares are counted"),
                ("pending", f"{state.total_pending:,}", "credit that can still be disputed"),
                ("accounts", f"{len(state.accounts):,}", f"{len(now):,} of them with a share"),
                ("final", f"{page.standing.final:,}", f"of {page.standing.size:,} entries"),
            )
        )
    )
    return page.page(
        "Shares",
        head
        + section("Now", _table(page, {s.account: s.share for s in now}, later))
        + section("Over time", _history(page))
        + section("Verify it yourself", _verify(page)),
    )


def _table(page: Context, now: dict[str, float], later: dict[str, float]) -> str:
    state = page.state
    names = sorted(later, key=lambda name: (-now.get(name, 0.0), -later[name], name))
    if not names:
        return '<p class="soft">nobody has credit yet: it comes with the first agreed state</p>\n'
    columns = (
        *(("account", True), ("share", True), ("vested", False), ("pending", False)),
        *(("with pending", False), ("taken away", False), ("left out", False)),
    )
    rows = []
    for name in names[:MAX_ROWS]:
        owner = state.accounts[name]
        link = f"/account/{name}"
        left_out = len(page.index.rejections_of(name))
        rows.append(
            (
                page.account(name),
                f"{bar(now.get(name, 0.0))}{percent(now.get(name, 0.0))}",
                f'<a href="{link}?state=vested#credit">{owner.vested:,}</a>',
                f'<a href="{link}?state=pending#credit">{owner.pending:,}</a>',
                percent(later[name]),
                f'<a href="{link}?state=invalidated#credit">{owner.invalidated:,}</a>'
                if owner.invalidated
                else "–",
                f'<a href="{link}#left-out">{left_out:,}</a>' if left_out else "–",
            )
        )
    more = f"the largest {MAX_ROWS} of {len(names):,} accounts; all in the table below. "
    download = '<a href="/shares.csv" download>shares.csv</a>'
    exact = "shares are whole multiples of 2<sup>−30</sup> and add up to exactly 1"
    return markup.table(columns, rows) + soft(
        (more if len(names) > MAX_ROWS else "") + f"{download}; {exact}"
    )


def _history(page: Context) -> str:
    shown = plot.history(page.index.moves(), page.state.round)
    if not shown.states:
        pending = f"{page.state.total_pending:,} are pending" if page.state.total_pending else ""
        return f'<p class="soft">no credit has vested yet{pending and ", " + pending}</p>\n'
    legend = "".join(
        f"<li>{plot.swatch(k)} {page.account(name) if name else 'all others'} "
        f"{percent(shown.parts[-1][k])}</li>"
        for k, name in enumerate(shown.names)
    )
    label = "parts of the vested credit by account, from state to state"
    return (
        f'<div class="card">{plot.draw(shown, label)}</div><ul class="legend">{legend}</ul>\n'
        + soft(
            "parts of the vested credit when each state was agreed on; numbers: "
            '<a href="/shares-by-round.csv" download>shares-by-round.csv</a>'
        )
    )


def _verify(page: Context) -> str:
    url = page.url or "http://HOST:PORT"
    commands = (
        f"artel ledger shares --from {url}",
        f"artel ledger audit {url}/ledger --vkey '{page.vkeys[0]}' --full",
        f"artel ledger compare {url} OTHER-NODE",
    )
    return f"<pre>{chr(10).join(text(line) for line in commands)}</pre>\n" + soft(
        "The first one reads every entry and counts for itself; it does not ask for shares."
    )


def shares_csv(page: Context) -> str:
    """Every account with its numbers; keys and numbers only, so that no cell can be a formula."""
    state = page.state
    now = {share.account: share.units for share in shares(state)}
    later = {share.account: share.units for share in shares(state, with_pending=True)}
    units = [f"units_{kind}" for kind in KINDS_OF_WORK]
    lines = [
        f"account,{','.join(units)},granted,vested,pending,invalidated,sent,received,"
        f"share_of_{SHARE_SCALE},share_with_pending_of_{SHARE_SCALE},as_of,final"
    ]
    standing = page.standing
    for name in sorted(state.accounts):
        owner = state.accounts[name]
        numbers = (
            *(owner.units.get(kind, 0) for kind in KINDS_OF_WORK),
            *(owner.granted, owner.vested, owner.pending, owner.invalidated),
            *(owner.sent, owner.received, now.get(name, 0), later.get(name, 0)),
            *(standing.size, standing.final),
        )
        lines.append(",".join((name, *map(str, numbers))))
    return "\n".join(lines) + "\n"


def history_csv(page: Context) -> str:
    """Vested credit whenever it changed, the newest changes when there are very many."""
    held: dict[str, int] = {}
    rows: dict[tuple[int, str], tuple[int, int]] = {}
    for state, account, amount in page.index.moves():
        held[account] = held.get(account, 0) + amount
        before, _ = rows.get((state, account), (0, 0))
        rows[state, account] = before + amount, held[account]
    lines = [
        f"{state},{account},{change},{total}"
        for (state, account), (change, total) in list(rows.items())[-MAX_CSV_ROWS:]
    ]
    return "\n".join(("state,account,change,vested", *lines)) + "\n"


# --- entries --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which entries: of a kind, of a round, below an index; newest first."""

    kind: str = ""
    round: int | None = None
    before: int | None = None

    def link(self, words: str, **changes: str | int | None) -> str:
        """To the same list with another filter."""
        chosen = {"kind": self.kind, "round": self.round} | changes
        query = "&amp;".join(f"{k}={v}" for k, v in chosen.items() if v not in ("", None))
        return f'<a href="/entries{"?" if query else ""}{query}">{words}</a>'


def entries_page(page: Context, wanted: Filter) -> str:
    """A list of entries, newest first.

    :raises UsageError: when the kind is none
    """
    if wanted.kind and wanted.kind not in entries.KINDS:
        raise UsageError(f"there are no entries of kind {wanted.kind[:40]!r}", "see /entries")
    indices, older = _chosen(page, wanted)
    rows = []
    for index in indices:
        item = page.index.summary(index)
        body = entries.decode(page.store.leaf(index)).body
        rows.append(
            (
                entry_link(index),
                entries.title(item.kind),
                round_link(item.round) if item.round >= 0 else "–",
                f'<span class="wide">{text(summary(body, outcome_of(page, index)))}</span>',
                "final" if page.standing.is_final(index) else "pending",
            )
        )
    columns = (
        *(("entry", False), ("kind", True), ("round", False), ("what it says", True)),
        ("", True),
    )
    listing = markup.table(columns, rows) if rows else '<p class="soft">none</p>\n'
    ways = [wanted.link("newest", before=None)] if wanted.before is not None else []
    if older:
        ways.append(wanted.link("older →", before=indices[-1]))
    return page.page(
        "Entries",
        '<header><div class="top"><h1>Entries</h1>'
        f'<span class="aside">{page.index.size:,} in all</span></div></header>\n'
        + _filters(page, wanted)
        + listing
        + f"<p>{' · '.join(ways)}</p>\n",
    )


def _chosen(page: Context, wanted: Filter) -> tuple[list[int], bool]:
    """Indices of one page, newest first, and whether there are older ones."""
    index = page.index
    pool: Sequence[int] = range(index.size)
    if wanted.round is not None:
        pool = index.of_round(wanted.round)
    elif wanted.kind:
        pool = index.of_kind(wanted.kind)
    if wanted.before is not None:
        pool = pool[: bisect_left(pool, wanted.before)]
    found: list[int] = []
    for place in reversed(pool):
        if wanted.kind and index.summary(place).kind != wanted.kind:
            continue
        if len(found) == PAGE_ENTRIES:
            return found, True
        found.append(place)
    return found, False


def _filters(page: Context, wanted: Filter) -> str:
    kinds = []
    for kind in ("", *entries.KINDS):
        number = len(page.index.of_kind(kind)) if kind else page.index.size
        if not number:
            continue
        words = f"{text(kind.replace('_', ' ')) or 'all'} {number:,}"
        if kind == wanted.kind:
            kinds.append(f"<strong>{words}</strong>")
        else:
            kinds.append(wanted.link(words, kind=kind, before=None))
    chosen = ""
    if wanted.round is not None:
        every = wanted.link("all rounds", round=None, before=None)
        chosen = f"<p>of round {round_link(wanted.round)} ({every})</p>\n"
    return f'<p class="small chips">{" ".join(kinds)}</p>\n{chosen}'
