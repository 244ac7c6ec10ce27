"""The page of one account: what it owns, from which entries, and what was left out and why."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from artel.ledger.entries import reasons
from artel.ledger.entries.state import KINDS_OF_WORK, Account
from artel.ledger.entries.words import short_key
from artel.ledger.fold.shares import shares
from artel.ledger.web import markup
from artel.ledger.web.context import Context, bidi, mono
from artel.ledger.web.credit_table import STATES, credit_table, units
from artel.ledger.web.entry_page import short_title
from artel.ledger.web.index import Credited
from artel.ledger.web.markup import entry_link, percent, pill, round_link, section, soft, text
from artel.protocol.errors import UsageError

PAGE_ROWS = 100
STATEMENTS = 50


@dataclass(frozen=True)
class Wanted:
    """Which part of the list of credit is shown: of a kind, in a state, from a number down."""

    kind: str = ""
    state: str = ""
    before: int | None = None

    def link(self, account: str, words: str, **changes: str | int) -> str:
        """To the same page with something else in the list."""
        chosen = {"kind": self.kind, "state": self.state} | changes
        query = "&amp;".join(f"{name}={value}" for name, value in chosen.items() if value != "")
        return f'<a href="/account/{account}{"?" if query else ""}{query}#credit">{words}</a>'


def account_page(page: Context, name: str, wanted: Wanted) -> str:
    """HTML of an account, named by its first key.

    :raises UsageError: when there is no such account
    """
    owner = page.state.accounts.get(name)
    if owner is None:
        raise UsageError(
            f"there is no account {short_key(name)}", "see /shares for those there are"
        )
    sections = [
        _header(page, name, owner),
        _cards(page, name, owner, wanted),
        section("By kind of work", _kinds(page, name, owner, wanted)),
        section("Who it is", _identity(page, name, owner)),
        f'<section id="credit"><h2>Credit</h2>\n{_credit(page, name, wanted)}</section>\n',
        section("Left out", _rejections(page, name)),
        section("Its statements", _statements(page, name)),
        section("Verify it yourself", _verify(page, name)),
    ]
    return page.page(f"Account {short_key(name)}", "".join(sections))


def _header(page: Context, name: str, owner: Account) -> str:
    alias, team = page.aliases.get(name, ("", ""))
    called = f"{bidi(alias)} " if alias else ""
    pills = pill("barred for proven fraud", "bad") if owner.barred else ""
    if not owner.registered:
        pills += pill("named by the manifest only", "wait")
    remark = f"team {bidi(team)}; " if team else ""
    chosen = "a name that the account chose and can take back, not part of the ledger"
    return (
        f'<header><div class="top"><h1>Account {called}{mono(name)}</h1>{pills}</div>'
        + (soft(f"{remark}{chosen}") if alias else "")
        + "</header>\n"
    )


def _cards(page: Context, name: str, owner: Account, wanted: Wanted) -> str:
    now = next((s.share for s in shares(page.state) if s.account == name), 0.0)
    later = next((s.share for s in shares(page.state, with_pending=True) if s.account == name), 0.0)
    awaiting = page.state.awaiting().get(name, 0)

    def amount(value: int, state: str) -> str:
        return wanted.link(name, f"{value:,}", state=state, kind="") if value else "0"

    rejected = len(page.index.rejections_of(name))
    left_out = f'<a href="#left-out">{rejected:,}</a>' if rejected else "0"
    items = [
        ("share now", percent(now), "of vested credit"),
        ("with pending", percent(later), "if all that is pending vests"),
        ("vested", amount(owner.vested, "vested"), "credit, for good"),
        ("pending", amount(owner.pending, "pending"), "credit that can still be disputed"),
        ("awaiting", f"{awaiting:,}", "accepted, state not agreed yet"),
        ("left out", left_out, "contributions, with reasons below"),
    ]
    if owner.invalidated:
        items.insert(5, ("taken away", amount(owner.invalidated, "invalidated"), "by rulings"))
    return markup.cards(items)


def _kinds(page: Context, name: str, owner: Account, wanted: Wanted) -> str:
    sums: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS_OF_WORK}
    for number in page.index.credits_of(name):
        credit = page.index.credit(number)
        sums[credit.kind][credit.status] += credit.amount
    rates = page.state.rules.rates if page.state.rules is not None else {}
    rows = []
    for kind in KINDS_OF_WORK:
        done = owner.units.get(kind, 0)
        if not done:
            continue
        total = sum(sums[kind].values())
        rows.append(
            (
                wanted.link(name, kind, kind=kind, state=""),
                units(kind, done),
                f"{rates.get(kind, 0):,}",
                f"{total:,}",
                *(f"{sums[kind][state]:,}" if sums[kind][state] else "–" for state in range(3)),
            )
        )
    if not rows:
        return '<p class="soft">nothing has been credited yet</p>\n'
    columns = (
        *(("kind", True), ("units", False), ("rate", False), ("granted", False)),
        *(("pending", False), ("vested", False), ("taken away", False)),
    )
    moved = (
        f" = {owner.vested:,} vested + {owner.pending:,} pending + {owner.invalidated:,} taken away"
        + (f" + {owner.sent:,} sent" if owner.sent else "")
        + (f" − {owner.received:,} received" if owner.received else "")
    )
    return markup.table(columns, rows) + soft(f"{owner.granted:,} granted{moved}")


def _identity(page: Context, name: str, owner: Account) -> str:
    state = page.state
    keys = mono(owner.key, owner.key) if owner.key != name else "the one that it is named by"
    nodes = sorted(peer for peer, account in state.nodes.items() if account == name)
    lines = []
    for peer in nodes:
        tokens = state.node_tokens.get(peer, 0)
        left = sum(state.rejected.get(peer, {}).values())
        lines.append(
            f'<span id="{text(peer)}" class="mono wrap">{text(peer)}</span> '
            f"{tokens:,} tokens credited, left out {markup.count(left, 'time')}"
        )
    return markup.facts(
        (
            ("name", f'<span class="mono wrap">{text(name)}</span>'),
            ("present key", f'<span class="wrap">{keys}</span>'),
            ("recovery key", "set" if owner.recovery else "none: a lost key is lost for good"),
            ("nodes", "<br>".join(lines) or "none"),
        )
    )


# --- lists ----------------------------------------------------------------------------------------


def _credit(page: Context, name: str, wanted: Wanted) -> str:
    numbers = page.index.credits_of(name)
    if not numbers:
        return '<p class="soft">none yet: credit comes when a round\'s state is agreed on</p>\n'
    shown, rest = _matching(page, numbers, wanted)
    states = [("", "all"), *((state, state) for state in STATES)]
    filters = " · ".join(
        f"<strong>{words}</strong>" if state == wanted.state else
        wanted.link(name, words, state=state)
        for state, words in states
    )  # fmt: skip
    kind = f" of {text(wanted.kind)} ({wanted.link(name, 'any kind', kind='')})"
    head = f'<p class="small">{filters}{kind if wanted.kind else ""}, newest first</p>\n'
    if not shown:
        return f'{head}<p class="soft">none</p>\n'
    more = ""
    if rest:
        more = f"<p>{wanted.link(name, 'older ones', before=shown[-1].number)}</p>\n"
    return head + credit_table(page, shown, owner=False) + more


def _matching(page: Context, numbers: Sequence[int], wanted: Wanted) -> tuple[list[Credited], bool]:
    """The newest that fit, and whether there are more."""
    if wanted.before is not None:
        numbers = numbers[: bisect_left(numbers, wanted.before)]
    shown: list[Credited] = []
    for number in reversed(numbers):
        credit = page.index.credit(number)
        if wanted.kind not in ("", credit.kind):
            continue
        if wanted.state and STATES[wanted.state] != credit.status:
            continue
        if len(shown) == PAGE_ROWS:
            return shown, True
        shown.append(credit)
    return shown, False


def _rejections(page: Context, name: str) -> str:
    numbers = page.index.rejections_of(name)
    if not numbers:
        return '<p id="left-out" class="soft">nothing was ever left out</p>\n'
    tally: Counter[str] = Counter()
    for number in numbers:
        tally[page.index.rejection(number).reason] += 1
    sums = "".join(
        f"<li>{times:,} × <code>{text(reason)}</code>: {text(reasons.explain(reason))}</li>"
        for reason, times in tally.most_common(20)
    )
    rows = []
    for number in reversed(numbers[-PAGE_ROWS:]):
        item = page.index.rejection(number)
        rows.append(
            (
                round_link(item.round),
                page.node(item.node),
                text(reasons.explain(item.reason)),
                entry_link(item.index),
            )
        )
    columns = (("round", False), ("node", True), ("why", True), ("entry", False))
    more = len(numbers) - PAGE_ROWS
    return (
        f'<ul id="left-out">{sums}</ul>\n'
        + markup.table(columns, rows)
        + (soft(f"and {more:,} older ones") if more > 0 else "")
    )


def _statements(page: Context, name: str) -> str:
    indices = page.index.statements_of(name)
    items = "".join(
        f"<li>{short_title(page, index)} {page.final(index)}</li>\n"
        for index in reversed(indices[-STATEMENTS:])
    )
    more = len(indices) - STATEMENTS
    return f"<ul>{items}</ul>\n" + (soft(f"and {more:,} older ones") if more > 0 else "")


def _verify(page: Context, name: str) -> str:
    url = page.url or "http://HOST:PORT"
    commands = (
        f"artel ledger shares --from {url}",
        f"artel ledger audit {url}/ledger --vkey '{page.vkeys[0]}' --full",
        "artel ledger me --home HOME",
    )
    return f"<pre>{chr(10).join(text(line) for line in commands)}</pre>\n" + soft(
        "The last one, in the home of one of its nodes, sets what the node claims beside "
        "what the ledger holds."
    )
