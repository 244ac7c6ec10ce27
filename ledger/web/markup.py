"""Pieces of HTML that the pages are made of, and their style.

No scripts, no forms, nothing from elsewhere. What a function here is given as ``cells``, ``body``
or ``html`` is HTML already; every value that is not ours goes through :func:`text` first. The
content security policy would not let anything run or load even if one were forgotten.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from artel.ledger.entries.words import printable, short_key, short_peer

STYLE = Path(__file__).with_name("explorer.css").read_text(encoding="utf-8")

Column = tuple[str, bool]
"""Title, and whether the cells are text (aligned left) or numbers."""


def text(value: object) -> str:
    """Any value as HTML text: escaped, and without characters that do not print.

    Marks that turn the direction of text around are among those that do not print.
    """
    return html.escape(printable(str(value)), quote=True)


def document(title: str, body: str, *, refresh_s: int = 0) -> str:
    """A whole page; ``title`` is plain text."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of a page under a title of ours."""
    return f"<section><h2>{title}</h2>\n{body}</section>\n"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways when the window is narrow."""
    kinds = [' class="text"' if is_text else "" for _, is_text in columns]
    head = "".join(
        f"<th{kind}>{title}</th>" for (title, _), kind in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>\n'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names of ours with their values, one below the other."""
    lines = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>\n" for name, value in rows)
    return f'<div class="scroll"><table class="facts">{lines}</table></div>\n'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """(label, value, note) side by side."""
    return (
        "<dl>"
        + "".join(
            f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>"
            for label, value, note in items
        )
        + "</dl>\n"
    )


def soft(html_text: str) -> str:
    """A remark."""
    return f'<p class="soft small">{html_text}</p>\n'


def pill(words: str, kind: str = "") -> str:
    """One or two words that say how something stands; ``kind`` is "", "wait" or "bad"."""
    return f'<span class="pill{f" {kind}" if kind else ""}">{text(words)}</span>'


def bar(share: float) -> str:
    """A share between 0 and 1 as a small bar."""
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8" rx="2"/>'
        f'<rect class="bar" width="{100 * share:.2f}" height="8" rx="2"/></svg>'
    )


def percent(share: float) -> str:
    """A share with enough digits to tell small ones apart."""
    return f"{100 * share:.3f} %"


def count(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- links ----------------------------------------------------------------------------------------


def entry_link(index: int, words: str = "") -> str:
    """To the page of an entry."""
    return f'<a href="/entry/{index}">{text(words or f"{index:,}")}</a>'


def round_link(round: int, words: str = "") -> str:
    """To the page of a round."""
    return f'<a href="/round/{round}">{text(words or f"{round:,}")}</a>'


def account_link(account: str, words: str = "") -> str:
    """To the page of an account; ``account`` is 64 hex digits, or else it is only shown."""
    return _mono(account, words or short_key(account), f"/account/{account}", is_hex(account))


def node_link(peer: str, account: str) -> str:
    """To a node's line on the page of its account."""
    return _mono(peer, short_peer(peer), f"/account/{account}#{peer}", is_hex(account))


def plain_name(full: str, short: str) -> str:
    """A short name that shows the full one when the pointer rests on it."""
    return _mono(full, short, "", False)


def _mono(full: str, short: str, target: str, known: bool) -> str:
    tag, href = ("a", f' href="{text(target)}"') if known else ("span", "")
    return f'<{tag} class="mono" title="{text(full)}"{href}>{text(short)}</{tag}>'


def is_hex(value: str) -> bool:
    """Whether it is 64 lower-case hex digits."""
    return len(value) == 64 and set(value) <= set("0123456789abcdef")
