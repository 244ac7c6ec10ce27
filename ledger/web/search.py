"""What somebody may mean who types a word: accounts, nodes, entries, rounds, hashes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from artel.ledger import entries
from artel.ledger.entries.words import short_key
from artel.ledger.web.context import Context
from artel.protocol.identity import short_peer

MOST = 50
MAX_LETTERS = 200
SHORTEST = 8
"""Digits of a key or hash by which it is looked for."""

_NUMBER = re.compile(r"(?:(round|entry|state)\s*)?#?([0-9]{1,15})", re.IGNORECASE)


@dataclass(frozen=True)
class Hit:
    """A page, and what is to be found there."""

    url: str
    what: str


def hits(page: Context, word: str) -> list[Hit]:
    """The pages that a word may mean, each once, at most :data:`MOST`."""
    found = {hit.url: hit for hit in islice(_hits(page, word), 4 * MOST)}
    return list(found.values())[:MOST]


def _hits(page: Context, word: str) -> Iterator[Hit]:
    word = word.strip()[:MAX_LETTERS]
    if not word:
        return
    if number := _NUMBER.fullmatch(word):
        yield from _numbered(page, (number[1] or "").lower(), int(number[2]))
    yield from _named(page, word.casefold())
    if len(word) >= SHORTEST:
        yield from _nodes(page, word.removeprefix("…"))
        digits = word.lower()
        if set(digits) <= set("0123456789abcdef") and len(digits) <= 64:
            yield from _hashed(page, digits)


def _numbered(page: Context, kind: str, number: int) -> Iterator[Hit]:
    if kind in ("", "round") and number <= page.newest_round:
        yield Hit(f"/round/{number}", f"round {number:,}")
    if kind == "state" and 0 < number <= page.state.round:
        yield Hit(f"/round/{number - 1}", f"state {number:,}, which round {number - 1:,} made")
    if kind in ("", "entry") and number < page.history.size:
        yield _entry(page, number)


def _named(page: Context, word: str) -> Iterator[Hit]:
    """Accounts that chose a name or a team with these letters."""
    for account, (alias, team) in sorted(page.aliases.items()):
        if account in page.state.accounts and (word in alias.casefold() or word in team.casefold()):
            said = f"account {alias or short_key(account)}" + (f", team {team}" if team else "")
            yield Hit(f"/account/{account}", said)


def _nodes(page: Context, word: str) -> Iterator[Hit]:
    """Nodes whose peer id begins or ends like that: pages show both ends."""
    for peer in sorted(page.state.nodes):
        if peer.startswith(word) or peer.endswith(word):
            owner = page.state.account_of(peer)
            said = f"node {short_peer(peer)} of account {short_key(owner)}"
            yield Hit(f"/account/{owner}#{peer}", said)


def _hashed(page: Context, digits: str) -> Iterator[Hit]:
    """Keys of accounts, ids of entries and states, and contents of contributions."""
    for account in sorted(page.state.accounts_like(digits)):
        yield Hit(f"/account/{account}", f"account {short_key(account)}")
    for index in page.store.find(digits, MOST):
        if index < page.history.size:
            yield _entry(page, index)
    for number, root in enumerate(page.state.states):
        if number and root.startswith(digits):
            yield Hit(f"/round/{number - 1}", f"state {number:,}, which round {number - 1:,} made")


def _entry(page: Context, index: int) -> Hit:
    kind = entries.title(page.history.did(index).kind)
    return Hit(f"/entry/{index}", f"entry {index:,}: {kind}")
