"""The page of one round: who took part, who counts and with what weight, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from artel.ledger import entries
from artel.ledger.entries import (
    Aggregate,
    Entry,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    SliceWrong,
    StateAgreed,
    reasons,
)
from artel.ledger.entries.words import plural
from artel.ledger.web import markup
from artel.ledger.web.context import Context, mono
from artel.ledger.web.credit_table import state_of
from artel.ledger.web.entry_page import short_title
from artel.ledger.web.index import Credited
from artel.ledger.web.markup import entry_link, pill, section, soft, text
from artel.protocol.errors import UsageError
from artel.protocol.identity import public_of

MAX_ENTRIES = 400
"""Entries of a round that its page reads; a round that is tried again and again has more."""
MAX_ATTEMPTS = 8


@dataclass
class _Attempt:
    """What the ledger says of one attempt: (index, entry) of each step."""

    number: int
    opened: tuple[int, RoundOpened] | None = None
    committed: tuple[int, RoundCommitted] | None = None
    closed: list[tuple[int, RoundClosed]] = field(default_factory=list)
    shown: dict[str, tuple[int, Entry]] = field(default_factory=dict)
    """Node to its contribution."""
    slices: dict[int, tuple[int, Aggregate]] = field(default_factory=dict)
    accused: dict[int, list[tuple[int, SliceWrong]]] = field(default_factory=dict)
    agreed: tuple[int, StateAgreed] | None = None

    def combined_wrongly(self, peer: str) -> list[int]:
        """Slices of this node that were found wrong."""
        wrong = self.agreed[1].wrong if self.agreed is not None else ()
        return [n for n in wrong if n in self.slices and self.slices[n][1].node == peer]


def round_page(page: Context, number: int) -> str:
    """HTML of a round.

    :raises UsageError: when it has not begun
    """
    indices = page.index.of_round(number)
    newest = page.newest_round
    if not indices and number != newest:
        raise UsageError(f"round {number:,} has not begun", f"the newest one is round {newest:,}")
    attempts, agreed = _read(page, indices)
    parts = [_header(page, number, indices, agreed), _cards(page, number, attempts, agreed)]
    for attempt in list(reversed(attempts))[:MAX_ATTEMPTS]:
        title = "Members" if len(attempts) == 1 else f"Attempt {attempt.number + 1}"
        parts.append(section(title, _members(page, number, attempt)))
        if attempt.slices:
            parts.append(section("Slices", _slices(page, attempt)))
    if agreed is not None:
        parts.append(section("Agreed state", _agreed(page, *agreed)))
    parts.append(section("Its entries", _entries(page, number, indices)))
    return page.page(f"Round {number:,}", "".join(parts))


def _read(page: Context, indices: Sequence[int]) -> tuple[list[_Attempt], tuple[int, Entry] | None]:
    """The newest entries of the round, those that count, by attempt."""
    attempts: dict[int, _Attempt] = {}
    agreed = None
    for index in indices[-MAX_ENTRIES:]:
        if page.index.summary(index).reason:
            continue
        entry = entries.decode(page.store.leaf(index))
        match entry.body:
            case RoundOpened() as body:
                attempts[body.attempt] = _Attempt(body.attempt, opened=(index, body))
            case RoundCommitted() as body:
                attempts.setdefault(body.attempt, _Attempt(body.attempt)).committed = index, body
            case entries.Contribution() as body:
                attempt = attempts.setdefault(body.attempt, _Attempt(body.attempt))
                attempt.shown[body.node] = index, entry
            case RoundClosed() as body:
                attempts.setdefault(body.attempt, _Attempt(body.attempt)).closed.append(
                    (index, body)
                )
            case Aggregate() as body:
                attempt = attempts.setdefault(body.attempt, _Attempt(body.attempt))
                attempt.slices[body.slice] = index, body
            case SliceWrong() as body:
                attempt = attempts.setdefault(body.attempt, _Attempt(body.attempt))
                attempt.accused.setdefault(body.slice, []).append((index, body))
            case StateAgreed() as body:
                agreed = index, entry
                if attempts:
                    attempts[max(attempts)].agreed = index, body
    return [attempts[number] for number in sorted(attempts)], agreed


def _header(
    page: Context, number: int, indices: Sequence[int], agreed: tuple[int, Entry] | None
) -> str:
    before = markup.round_link(number - 1, f"← {number - 1:,}") if number else ""
    after = markup.round_link(number + 1, f"{number + 1:,} →") if number < page.newest_round else ""
    if agreed is not None:
        said = pill("agreed") + " " + page.final(agreed[0])
    else:
        said = pill("under way" if indices else "comes next", "wait")
    return (
        f'<header><div class="top"><h1>Round {number:,}</h1>{said}'
        f'<span class="aside">{before} {after}</span></div></header>\n'
    )


def _cards(
    page: Context, number: int, attempts: list[_Attempt], agreed: tuple[int, Entry] | None
) -> str:
    newest = attempts[-1] if attempts else _Attempt(0)
    members = len(newest.opened[1].members) if newest.opened else 0
    steps = sum(newest.opened[1].steps) if newest.opened else 0
    accepted = _accepted(newest)
    granted = page.index.granted_by(agreed[0]) if agreed is not None else []
    total = sum(credit.amount for credit in granted)
    rate = page.state.rules.rates["compute"] if page.state.rules is not None else 0
    work = sum(item.weight for item in accepted.values())
    return markup.cards(
        (
            ("members", f"{members:,}", f"attempt {newest.number + 1:,}"),
            ("steps", f"{steps:,}", "assigned to all of them"),
            ("shown", f"{len(newest.shown):,}", "contributions"),
            ("accepted", f"{len(accepted):,}", f"{work:,} tokens × {rate:,} each"),
            (
                "credit",
                entry_link(agreed[0], f"{total:,}") if agreed is not None else "–",
                "granted when the state was agreed" if agreed is not None else "no state yet",
            ),
        )
    )


def _accepted(attempt: _Attempt) -> dict[str, entries.Accepted]:
    # Closed a second time, nobody is left: the nodes did not agree on a state.
    return {item.node: item for item in attempt.closed[-1][1].accepted} if attempt.closed else {}


def _members(page: Context, number: int, attempt: _Attempt) -> str:
    if attempt.opened is None:
        return '<p class="soft">its opening is not among the newest entries of the round</p>\n'
    index, opened = attempt.opened
    credits = _credits(page, number)
    columns = (
        *(("node", True), ("account", True), ("outcome", True), ("steps", False)),
        *(("made", False), ("weight", False), ("contribution", True)),
        *(("bytes up", False), ("bytes down", False), ("commitment", True)),
    )
    rows = [
        _member(page, attempt, peer, assigned, credits)
        for peer, assigned in zip(opened.members, opened.steps, strict=True)
    ]
    steps = [f"opened by {entry_link(index)}"]
    if attempt.committed is not None:
        steps.append(f"commitments closed by {entry_link(attempt.committed[0])}")
    steps += [f"closed by {entry_link(where)}" for where, _ in attempt.closed]
    if len(attempt.closed) > 1:
        steps.append("the second time with nobody: no majority agreed on a state")
    start = f"from state {mono(opened.base)}, data from window {opened.cursor:,}"
    made = (
        "made: steps of the round before + steps of this round; bytes as the nodes say, since "
        "their contribution before"
    )
    return markup.table(columns, rows) + soft(f"{', '.join(steps)}; {start}") + soft(made)


def _member(
    page: Context, attempt: _Attempt, peer: str, assigned: int, credits: dict[int, Credited]
) -> tuple[str, ...]:
    committed = attempt.committed[1].commitments.get(peer) if attempt.committed else None
    shown = attempt.shown.get(peer)
    credit = credits.get(shown[0]) if shown else None
    account = credit.account if credit is not None else page.state.account_of(peer)
    item = _accepted(attempt).get(peer)
    work = made = up = down = "–"
    if shown is not None and isinstance(shown[1].body, entries.Contribution):
        body = shown[1].body
        work = f"{entry_link(shown[0])} {mono(body.blob)}, {body.size:,} bytes"
        made, up, down = f"{body.tail:,} + {body.head:,}", f"{body.up:,}", f"{body.down:,}"
    return (
        page.node(peer),
        page.account(account) if account else "–",
        f'<span class="wide">{_fate(page, attempt, peer, item is not None, credit)}</span>',
        f"{assigned:,}",
        made,
        f"{item.weight:,}" if item is not None else "–",
        work,
        up,
        down,
        mono(committed) if committed else "–",
    )


def _fate(
    page: Context, attempt: _Attempt, peer: str, accepted: bool, credit: Credited | None
) -> str:
    if credit is not None:
        return f"{credit.amount:,} credit {state_of(page, credit)}"
    if accepted and attempt.agreed is not None:
        wrong = ", ".join(map(str, attempt.combined_wrongly(peer)))
        why = f"combined slice {wrong} wrongly" if wrong else "its account is barred"
        return f'accepted, <span class="warn">earns nothing</span>: {why}'
    if accepted:
        return "accepted, waits for the agreed state"
    for index, closed in attempt.closed:
        for item in closed.rejected:
            if item.node == peer:
                why = (
                    f'<span title="{text(item.reason)}">{text(reasons.explain(item.reason))}</span>'
                )
                return f'<span class="warn">left out</span> by {entry_link(index)}: {why}'
    if len(attempt.closed) > 1:
        return f'<span class="warn">{text(reasons.explain(reasons.NOT_AGREED))}</span>'
    return "left out" if attempt.closed else "under way"


def _slices(page: Context, attempt: _Attempt) -> str:
    """Who combined what, who contradicted, and what was agreed on."""
    rows = []
    for number, (index, body) in sorted(attempt.slices.items()):
        accusers = ", ".join(
            f"{page.node(claim.node)} {entry_link(where)}, which got {mono(claim.blob)}"
            for where, claim in attempt.accused.get(number, [])
        )
        wrong = attempt.agreed is not None and number in attempt.agreed[1].wrong
        said = "recorded"
        if accusers:
            said = f"called wrong by {accusers}"
            if attempt.agreed is not None:
                said += f"; found {pill('wrong', 'bad') if wrong else 'right'}"
        rows.append(
            (
                f"{number}",
                page.node(body.node),
                f"{entry_link(index)} {mono(body.blob)}, {body.size:,} bytes",
                f'<span class="wide">{said}</span>',
            )
        )
    columns = (("slice", False), ("combined by", True), ("result", True), ("outcome", True))
    missing = max(body.slices for _, body in attempt.slices.values()) - len(rows)
    remark = soft(f"{plural(missing, 'slice')} recorded by nobody") if missing > 0 else ""
    return markup.table(columns, rows) + remark


def _credits(page: Context, number: int) -> dict[int, Credited]:
    """Compute credit of the round, by the contribution's index."""
    agreed = page.index.agreed(number + 1)
    granted = page.index.granted_by(agreed) if agreed is not None else []
    return {credit.source: credit for credit in granted if credit.kind == "compute"}


def _agreed(page: Context, index: int, entry: Entry) -> str:
    body = entry.body
    assert isinstance(body, StateAgreed)
    peers = {public_of(peer).hex(): peer for peer in page.state.nodes}
    names = [
        page.node(peers[key])
        if key in peers
        else ("the coordinator" if key in page.state.coordinators else mono(key))
        for key in sorted(entry.signers)
    ]
    data = [c for c in page.index.granted_by(index) if c.kind == "data"]
    rows = [
        ("state", f"{body.round:,}"),
        ("root", f'<span class="mono wrap">{text(body.root)}</span>'),
        ("entry", entry_link(index)),
        ("signed by", ", ".join(names)),
    ]
    if body.wrong:
        rows.append(("wrong slices", ", ".join(map(str, body.wrong))))
    if data:
        paid = (f"{page.account(c.account)} {c.units:,} × {c.rate:,} = {c.amount:,}" for c in data)
        rows.append(("for its text", "<br>".join(paid)))
    return markup.facts(rows)


def _entries(page: Context, number: int, indices: Sequence[int]) -> str:
    if not indices:
        return '<p class="soft">none yet</p>\n'
    items = "".join(f"<li>{short_title(page, index)}</li>\n" for index in indices[-MAX_ENTRIES:])
    older = len(indices) - MAX_ENTRIES
    more = f'; the <a href="/entries?round={number}">{older:,} older ones too</a>'
    link = f'as a <a href="/entries?round={number}">table</a>'
    return f'<ul class="columns">{items}</ul>\n' + soft(link + (more if older > 0 else ""))
