"""Audits: which work is repeated, by whom, and what follows from their verdicts.

Only where the manifest has spans of rounds (``rounds.span``, R) and ``trust.audit_rate`` (p) above
0. A contribution follows from public data from the beginning of its span on, so an **audit**
repeats the first rounds of a span of one node, up to one of them, and judges all of those at once:

- ``newcomer``: each round of a new node is a span of its own, and always repeated; it is new until
  audits have found ``trust.newcomer_rounds`` of them right;
- ``first``: of a span that a known node begins, with n rounds before R divides one again, the first
  round is repeated at once, with probability ``f = min(1, 9/10 p n, 2 n / (n + 38))``;
- ``prefix``: when a span is over, its first k >= 2 rounds are, or more of them, with probability
  ``min(1, c / k)`` (:mod:`ledger.entries.odds`), c = 2 when the run
  ends with it, after which nothing is found. Nobody knows how many while it lasts.

Auditors are drawn by lot from the nodes of other accounts whose work the newest state holds, by
standing; a node repeats one thing at a time. Nodes of the class of machine that the work names come
first, where that class is common. Of what a new node did, or a known one at the beginning of a
span, nothing is paid when they cannot tell: a class that nobody has would hide anything. What one
rejects more repeat, until most of fifteen say the same, or most of those whom the lot could ask
where these are fewer, two at least. The others are not paid, and their accounts lose their standing
and audit nothing for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from artel.ledger.entries import lot, reasons
from artel.ledger.entries.credit import bar, found_right, invalidate
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.odds import MILLION, chances, prefix
from artel.ledger.entries.records import Attempt, Audit, Credit, Draw, Loss
from artel.ledger.entries.rules import LedgerRules

NEWCOMER, FIRST, PREFIX = "newcomer", "first", "prefix"
ACCEPT, REJECT, INCONCLUSIVE, LAPSED = "accept", "reject", "inconclusive", "lapsed"
CONVICTED, CLEARED, UNDECIDED = "convicted", "cleared", "undecided"
UNCHECKED = "unchecked"
ENOUGH = 3
"""Auditors who cannot tell before nobody else is asked."""
PANEL = 15
"""Auditors of what one of them rejects, where as many other accounts are: of colluders with a fifth
of the standing eight of fifteen are drawn in one of 240 panels, four of seven in one of 30."""
MOST_DRAWS = 2 * PANEL
"""Auditors of one audit, those included who did not answer or could not tell."""
LONGEST_PAUSE = 64
"""Rounds after which auditors are asked again at the latest about a node of which they could not
tell: at once, after one, three, seven. Else two nodes of a class of their own keep six busy."""
PATIENCE = 6
"""An audit is given up after as many times what one auditor has."""
Drawn = tuple[str, str, str, str, int, int]
"""Contribution, auditor, the node that it audits, why, first and last round."""


# --- the rule -------------------------------------------------------------------------------------


def planned(state: FoldState, first: int) -> int:
    """The rounds that a span which began in this round can have."""
    work = state.work
    return min(work.span - first % work.span, work.total - first)


def vests_from(state: FoldState, node: str, round: int) -> int:
    """Number of the first state with which this work can vest: what of it is repeated is known, and
    none of a span is settled before the lot falls on its beginning."""
    if not state.founded.audits or new(state, node):
        return round + 1
    return min(round + state.work.span - round % state.work.span, state.work.total)


def new(state: FoldState, node: str) -> bool:
    """Whether each round of the node is audited, before it is counted."""
    return state.cleared.get(node, 0) < state.founded.trust.newcomer_rounds


def window(state: FoldState, steps: int) -> int:
    """Rounds in which an auditor has to repeat so many steps."""
    work = state.work
    return state.founded.trust.audit_rounds + -(-steps // max(1, work.least - work.lightest))


def rounds_kept(rules: LedgerRules) -> int:
    """Rounds of which nodes and coordinators keep states and contributions, for auditors."""
    return rules.work.span + PATIENCE * rules.trust.audit_rounds if rules.audits else 0


def under_way(state: FoldState) -> set[tuple[str, int]]:
    """Node and round of each contribution that an audit is about. Whoever keeps contributions keeps
    these, however old they are: of what is gone nobody can be convicted."""
    return {
        (audit.node, round)
        for audit in state.audits.values()
        for round in range(audit.first, audit.last + 1)
    }


def steps_now(state: FoldState, node: str) -> int:
    """Of the steps that a node has to repeat, those for which it is assigned fewer of its own in
    the round that comes."""
    owed = state.owed_by(node) if node in state.lighter else None
    if owed is None:
        return 0
    _, audit = owed
    draw = audit.draw_of(node)
    assert draw is not None
    each = state.work.least - state.work.lightest
    done = each * (state.round - (draw.due - window(state, audit.steps)))
    return max(0, min(each, audit.steps - done))


def renew(state: FoldState, attempt: Attempt) -> None:
    """Who names another class of machine than before is new: it could hide false work behind one of
    which nobody can tell, and have it found right by what it does as itself again."""
    for node in attempt.moved_by:
        if state.hardware.get(node, attempt.shown[node].hardware) != attempt.shown[node].hardware:
            state.cleared.pop(node, None)


# --- drawing --------------------------------------------------------------------------------------


def begin(
    state: FoldState, attempt: Attempt, before: Mapping[str, int]
) -> tuple[dict[str, Any], Loss]:
    """A state was agreed on, and the lot is its own: end what took too long, draw what is repeated
    and who does it.

    :param attempt: by which the state came about
    :param before: node to where its span began before that round
    :returns: what an explanation has to know, and credit that was taken away
    """
    if not state.founded.audits:
        return {}, Loss()
    state.present = attempt.moved_by
    ended, lost = _end_late(state)
    found = dict([*_firsts(state, attempt), *_prefixes(state, attempt, before)])
    others = {state.account_of(node) for node in state.present}
    for source, audit in list(found.items()):
        if not others - {audit.account}:  # everybody is of one account, and nobody can be asked
            _cleared(state, source, found.pop(source), ())
    for source in lot.order(state.lot, "audits", dict.fromkeys(found, 1)):
        state.audits[source] = found[source]
    notes = {"ended": ended, "drawn": assign(state)}
    awaited = (draw for audit in state.audits.values() for draw in audit.awaited)
    state.lighter = sorted({draw.node for draw in awaited if not draw.commitment})
    return {name: said for name, said in notes.items() if said}, lost


def _firsts(state: FoldState, attempt: Attempt) -> Iterator[tuple[str, Audit]]:
    """Rounds of this attempt that begin a span and are repeated."""
    for node in attempt.accepted:
        shown = attempt.shown[node]
        if shown.span != attempt.round or shown.entry not in state.pending:
            continue
        why = NEWCOMER if new(state, node) else FIRST
        f, _ = chances(state.founded.audits, planned(state, shown.span))
        if why == NEWCOMER or lot.chance(state.lot, f"first/{node}", f, MILLION):
            credits = [state.pending[shown.entry].credit]
            yield shown.entry, _audit(state, why, credits)


def _prefixes(
    state: FoldState, attempt: Attempt, before: Mapping[str, int]
) -> Iterator[tuple[str, Audit]]:
    """Spans that are over with this round, as far as they are repeated."""
    over = {}
    for node, first in before.items():
        shown = attempt.shown.get(node) if node in attempt.accepted else None
        goes_on = shown is not None and shown.span == first
        if goes_on and state.work.goes_on(attempt.round + 1, first) is not None:
            continue
        rounds = attempt.round - first + goes_on
        # Whoever cheats in its last span has nothing to lose by audits of later ones.
        at_the_end = state.round >= state.work.total
        c = 2 * MILLION if at_the_end else chances(state.founded.audits, planned(state, first))[1]
        length = prefix(state.lot, f"prefix/{node}", c, rounds)
        if length:
            over[node] = range(first, first + length)
    if not over:
        return
    made: dict[str, list[Credit]] = {}
    for item in state.pending.values():
        credit = item.credit
        if credit.kind == "compute" and credit.round in over.get(credit.node, ()):
            made.setdefault(credit.node, []).append(credit)
    for node, credits in made.items():
        # What an auditor begins with has to be what the node began with.
        if credits[0].round == over[node].start:
            yield credits[-1].source, _audit(state, PREFIX, credits)


def _audit(state: FoldState, why: str, credits: list[Credit]) -> Audit:
    """:param credits: for the work that is repeated, oldest first"""
    tokens = sum(credit.units for credit in credits)
    first, last = credits[0], credits[-1]
    steps = tokens // state.work.tokens(1)
    rounds, hardware = (first.round, last.round), state.hardware.get(last.node, "")
    return Audit(last.node, last.account, why, *rounds, steps, tokens, state.round, hardware)


def _widened(state: FoldState, audit: Audit) -> Audit:
    """With as large a panel as one of those present now can be, if somebody rejected it. It never
    shrinks: fewer come now and then, and these may know of each other."""
    if not doubts(audit):
        return audit
    asked = {audit.account, *(draw.account for draw in audit.draws)}
    others = {state.account_of(node) for node in _able(state)} - asked
    heard = sum(draw.verdict not in (LAPSED, INCONCLUSIVE) for draw in audit.draws)
    return replace(audit, panel=max(audit.panel, min(PANEL, heard + len(others))))


def assign(state: FoldState) -> list[Drawn]:
    """Draw auditors for what still wants some, by the newest lot.

    What somebody rejected comes first, then what somebody was asked about, then newcomers; of the
    others only as many are begun as a quarter of those who are there.

    :returns: who was drawn for what
    """
    for source, audit in state.audits.items():
        state.audits[source] = _widened(state, audit)
    free, drawn = _free(state), list[Drawn]()
    common, room = _common(state), -(-len(state.present) // 4)
    for source, audit in sorted(state.audits.items(), key=lambda item: _rank(item[1])):
        bounded = not audit.draws and audit.why != NEWCOMER
        for _ in range(_wanted(audit) if room or not bounded else 0):
            asked = {audit.account, *(draw.account for draw in audit.draws)}
            able = [node for node in free if state.account_of(node) not in asked]
            if not able:
                break
            like = audit.hardware if audit.hardware in common else None
            node = next((node for node in able if state.hardware.get(node) == like), able[0])
            free.remove(node)
            draw = Draw(node, state.account_of(node), state.round + window(state, audit.steps))
            audit = state.audits[source] = replace(audit, draws=(*audit.draws, draw))
            drawn.append((source, node, audit.node, audit.why, audit.first, audit.last))
            room -= bounded
    return drawn


def _rank(audit: Audit) -> int:
    """Between two panels each other audit waits: they are few, and what they convict sends no more
    work that others have to repeat."""
    return 0 if doubts(audit) else 1 if audit.draws else 2 if audit.why == NEWCOMER else 3


def _free(state: FoldState) -> list[str]:
    """Nodes that can audit something now, in the order of the lot."""
    if all(not _wanted(audit) for audit in state.audits.values()):
        return []
    owing = {draw.node for audit in state.audits.values() for draw in audit.awaited}
    weights = state.weights(node for node in _able(state) if node not in owing)
    return list(lot.order(state.lot, "auditors", weights))


def _able(state: FoldState) -> list[str]:
    """Nodes that could be drawn now if they owed nothing."""
    found = []
    for node in state.present:
        account = state.account_of(node)
        weighs = state.rests_on == "coordinator" or account in state.standings()
        struck = state.struck.get(account, 0) > state.round
        if weighs and not struck and not state.accounts[account].barred:
            found.append(node)
    return found


def _common(state: FoldState) -> set[str]:
    """Classes of machines of which more than a quarter of those who are there is, by standing where
    the run rests on it: fewer, who know of each other, could name one that nobody else has and so
    draw themselves."""
    weights = dict.fromkeys(state.present, 1)
    if state.rests_on == "members":
        weights = state.weights(state.present)
    parts = Counter[str]()
    for node, weight in weights.items():
        parts[state.hardware.get(node, "")] += weight
    return {hardware for hardware, part in parts.items() if 4 * part > parts.total()}


def _wanted(audit: Audit) -> int:
    """How many auditors are missing."""
    said = Counter(draw.verdict for draw in audit.draws)
    ahead, enough = said[ACCEPT], 1 + said[INCONCLUSIVE]
    if said[REJECT]:  # no more are asked than can decide it if they say what most have said
        ahead, enough = max(said[ACCEPT], said[REJECT]), _most(audit)
    missing = enough - ahead - said[""]
    return max(0, min(missing, MOST_DRAWS - len(audit.draws)))


def _most(audit: Audit) -> int:
    """Verdicts that decide a panel."""
    return max(2, audit.panel // 2 + 1)


# --- verdicts -------------------------------------------------------------------------------------


def audit_source(contribution: str, node: str) -> str:
    """Names the credit for a verdict."""
    return f"audit/{contribution}/{node}"


def result(audit: Audit) -> str:
    """What the verdicts come to; "" while more of them are awaited."""
    said = Counter(draw.verdict for draw in audit.draws)
    if said[""]:
        return ""
    if said[REJECT] >= _most(audit):
        return CONVICTED
    if said[ACCEPT] >= (_most(audit) if said[REJECT] else 1 + said[INCONCLUSIVE]):
        return CLEARED
    nobody_can = said[INCONCLUSIVE] >= ENOUGH and not said[REJECT]
    given_up = len(audit.draws) == MOST_DRAWS or nobody_can
    return given_up_as(audit) if given_up else ""


def given_up_as(audit: Audit) -> str:
    """What an audit comes to that nobody goes on with. Who is silent lets work pass unpunished, as
    if it had not been drawn; who cannot tell does not, but for the later rounds of a span, whose
    first one somebody could tell."""
    said = Counter(draw.verdict for draw in audit.draws)
    untold = audit.why != PREFIX and said[INCONCLUSIVE] > said[ACCEPT]
    return UNCHECKED if untold else UNDECIDED


def doubts(audit: Audit) -> bool:
    """Whether an auditor has rejected it."""
    return any(draw.verdict == REJECT for draw in audit.draws)


def settle(state: FoldState, source: str) -> tuple[dict[str, Any], Loss]:
    """Draw what follows from the verdicts on a contribution.

    :returns: what an explanation has to know, and credit that was taken away
    """
    audit = state.audits[source] = _widened(state, state.audits[source])
    found = result(audit)
    lost = _end(state, source, found) if found else Loss()
    # After the last round no other lot comes.
    drawn = assign(state) if state.round >= state.work.total else []
    return {"result": found, "drawn": drawn}, lost


def _end(state: FoldState, source: str, found: str) -> Loss:
    """Whoever said the opposite is not paid for it, and its account has no standing and audits
    nothing for a while."""
    audit = state.audits.pop(source)
    wrong = {CONVICTED: ACCEPT, CLEARED: REJECT}.get(found)
    lost = Loss()
    for draw in audit.draws:
        if wrong and draw.verdict == wrong:
            state.struck[draw.account] = state.round + state.founded.trust.standing_rounds
            state.standing.forfeit(draw.account)
            if (pay := audit_source(source, draw.node)) in state.pending:
                lost += Loss((invalidate(state, pay),))
    if found == CONVICTED:
        lost += convict(state, audit.account)
    elif found == CLEARED:
        right = (draw.account for draw in audit.draws if draw.verdict == ACCEPT)
        _cleared(state, source, audit, right)
    elif found == UNCHECKED:
        lost += _unchecked(state, audit)
    return lost


def _cleared(state: FoldState, source: str, audit: Audit, auditors: Iterable[str]) -> None:
    """One round more of a new node is known to be right. Of one that is new no more nobody begins
    to repeat what it did meanwhile.

    :param auditors: accounts that found it right
    """
    found_right(state, source, audit, auditors)
    state.untold.pop(audit.node, None)
    if audit.why != NEWCOMER:
        return
    state.cleared[audit.node] = state.cleared.get(audit.node, 0) + 1
    if not new(state, audit.node):
        for source, other in list(state.audits.items()):
            same = (other.node, other.hardware) == (audit.node, audit.hardware)
            if same and other.why == NEWCOMER and not other.draws:
                del state.audits[source]


def _unchecked(state: FoldState, audit: Audit) -> Loss:
    """Nobody could tell: it is not paid, nor what a known node did since then, which is new
    again."""
    made = [item.credit for item in state.pending_of(audit.account)]
    made = [one for one in made if (one.kind, one.node) == ("compute", audit.node)]
    times = state.untold.get(audit.node, (0, 0))[0] + 1
    pause = min(LONGEST_PAUSE, 1 << min(times - 1, 16)) - 1
    state.untold[audit.node] = times, state.round + pause
    if audit.why == FIRST:
        state.cleared.pop(audit.node, None)
        gone = [one.source for one in made if one.round >= audit.first]
    else:
        gone = [one.source for one in made if one.round == audit.first]
    return Loss(tuple(invalidate(state, source) for source in gone))


def going_on_unchecked(state: FoldState, attempt: Attempt) -> list[tuple[str, str]]:
    """(node, reason) of whoever still went on with a span when it had become new again, and of
    whom auditors are not asked about for now."""
    if not state.founded.audits:
        return []
    return [
        (node, reasons.UNCHECKED)
        for node in attempt.accepted
        if (attempt.shown[node].span != attempt.round and new(state, node))
        or state.untold.get(node, (0, 0))[1] > attempt.round
    ]


def convict(state: FoldState, account: str) -> Loss:
    """Bar an account; nothing of it is audited any more, and it audits nothing."""
    for source, audit in list(state.audits.items()):
        if audit.account == account:
            del state.audits[source]
        elif any(draw.account == account for draw in audit.awaited):
            state.audits[source] = _lapsed(audit, lambda draw: draw.account == account)
    return bar(state, account)


def _end_late(state: FoldState) -> tuple[list[tuple[str, str]], Loss]:
    """Let go of auditors who did not answer in time, and of audits that came to nothing.

    :returns: contributions whose audits end so, and their results; what was taken away
    """
    ended, lost = list[tuple[str, str]](), Loss()
    for source in list(state.audits):
        if (audit := state.audits.get(source)) is None:
            continue  # its account was convicted a moment ago
        # Whoever has committed shows it once the others have; that takes a round more.
        late = _lapsed(audit, lambda d: d.due + bool(d.commitment) <= state.round)
        state.audits[source] = late
        over = audit.since + PATIENCE * window(state, audit.steps) <= state.round
        if found := result(late) or (given_up_as(late) if over and not late.awaited else ""):
            lost += _end(state, source, found)
            ended.append((source, found))
    return ended, lost


def _lapsed(audit: Audit, late: Callable[[Draw], bool]) -> Audit:
    draws = (
        replace(draw, verdict=LAPSED) if not draw.verdict and late(draw) else draw
        for draw in audit.draws
    )
    return replace(audit, draws=tuple(draws))
