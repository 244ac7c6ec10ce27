"""``artel ledger me``: what a person's work counts for, claim and ledger side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from artel.ledger.cli.meant import AccountName, account_of, peer_of
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol.commandline import Count, Table
from artel.protocol.errors import CheckFailed

if TYPE_CHECKING:
    from artel.ledger.entries.fold_state import FoldState
    from artel.ledger.fold.claims import Claim, Stand
    from artel.ledger.sync.client import LedgerView


AUDITS_SHOWN = 10
"""Newest verdicts that are shown."""

# --- me -------------------------------------------------------------------------------------------


def me(
    *,
    account: AccountName = None,
    limit: Count = 10,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """What your work counts for, and what is missing.

    example: artel ledger me --home node-1

    :param account: another account: its key, or 8 or more digits of it
    :param limit: list the last N contributions, 0 for all
    """
    from artel.ledger.fold import claims as own
    from artel.ledger.store.keyfiles import require_home_of

    home, named = ledger.folder, bool(account)
    if not named:
        require_home_of("node", home, "name the home of a node, or an account: --account KEY")
    with ledger.opened() as view:
        if not view.log.size:
            raise CheckFailed("the ledger is still empty", "the coordinator has not begun it yet")
        account = account_of(view, home, account)
        claims: list[Claim] = [] if named else own.read(home)
        peer = "" if named else peer_of(home)
        if not account and not claims:
            raise CheckFailed(
                f"as of checkpoint {view.log.size:,}, the account of {home} is not in this ledger",
                "it is registered when the node first joins: artel node start --join INVITE",
            )
        found = _stands(view, account, peer, claims, all_nodes=named)
        facts = _facts(view, account, found, bool(claims))
        return ledger.show(facts, _me(view, facts, found, limit))


def _stands(
    view: LedgerView, account: str, peer: str, claims: Sequence[Claim], *, all_nodes: bool
) -> list[Stand]:
    """The claims of this home; without any, the account's contributions as the ledger has them."""
    from artel.ledger.fold.claims import Claim, stands

    work = view.history.work_of(account)
    if claims:
        return stands(claims, peer, view.state, work)
    found: list[Stand] = []
    for entry, shown in work.shown.items():
        if all_nodes or not peer or shown.node == peer:
            claim = Claim(shown.round, shown.attempt, entry, "", shown.tokens, 0)
            found += stands([claim], shown.node, view.state, work)
    return found


def _facts(view: LedgerView, account: str, found: Sequence[Stand], claimed: bool) -> dict[str, Any]:
    from artel.ledger.entries.records import Account
    from artel.ledger.fold import claims
    from artel.ledger.fold.holdings import holding
    from artel.ledger.fold.work_audits import audits_of

    state = view.state
    owner = state.accounts.get(account, Account(""))
    tally = claims.sums(found)
    return holding(state, account, view.aliases).facts() | {
        "run": state.run,
        "as_of": view.log.size,
        "final_size": view.final_size,
        "label": view.label,
        "key": owner.key,
        "nodes": state.nodes_of(account),
        "barred": owner.barred,
        "standing_of_all": sum(state.standings().values()),
        "has_claims": claimed,
        "from_home": view.holder is None,
        "claimed": len(found) if claimed else None,
        "in_ledger": sum(stand.index is not None for stand in found),
        "steps": {status: asdict(item) for status, item in tally.items()},
        "rejected": claims.rejections(found),
        "work": view.history.done_by(account),
        "vesting": _vesting(state, account),
        "audits": [asdict(one) for one in audits_of(view.history, account, AUDITS_SHOWN)],
        "contributions": [_contribution(stand) for stand in found],
    }


def _contribution(stand: Stand) -> dict[str, Any]:
    claim = stand.claim
    return {
        "round": claim.round,
        "attempt": claim.attempt,
        "id": claim.entry,
        "index": stand.index,
        "tokens": claim.tokens,
        "time": claim.time,
        "status": stand.status,
        "credit": stand.amount,
        "reason": stand.reason,
        "detail": stand.detail,
    }


def _vesting(state: FoldState, account: str) -> dict[str, int]:
    """Number of a state to the credit that can vest from then on; disputed credit left out."""
    due: Counter[str] = Counter()
    for item in state.pending_of(account):
        if not item.disputed_by:
            due[str(item.due)] += item.credit.amount
    return dict(sorted(due.items(), key=lambda pair: int(pair[0])))


# --- for people -----------------------------------------------------------------------------------


def _me(
    view: LedgerView, facts: dict[str, Any], found: Sequence[Stand], limit: int
) -> Iterator[str | Table]:
    from artel.ledger.entries import words as text
    from artel.ledger.fold.work_audits import conviction
    from artel.protocol.identity import short_peer

    account = facts["account"]
    if account:
        alias = f' "{text.printable(facts["alias"])}"' if facts["alias"] else ""
        replaced = (
            f", present key {text.short_key(facts['key'])}" if facts["key"] != account else ""
        )
        yield f"account  {text.short_key(account)}{alias}{replaced}"
        shown = ", ".join(map(short_peer, facts["nodes"])) or "none"
        yield f"nodes    {shown}"
        if facts["barred"]:
            yield "         convicted of fraud"
            yield f"         {conviction(view.history, account)}"
    else:
        yield "account  not in this ledger: it is registered when the node first joins the run"
    yield f"as of    checkpoint {facts['as_of']:,} of run {text.short_key(facts['run'])}\n"
    yield _steps(facts)
    yield ""
    yield from _account(facts)
    if facts["audits"]:
        yield ""
        yield _audited(facts)
    if found:
        yield ""
        yield from _contributions(found, limit, view.final_size)
    yield f"\n{view.finality.label(facts['as_of'])}"


def _steps(facts: dict[str, Any]) -> Table:
    """Claimed, accepted, pending, vested, rejected side by side."""
    from artel.ledger.entries import reasons

    steps: dict[str, dict[str, int]] = facts["steps"]
    names = ("awaiting", "pending", "vested", "invalidated")
    rows = []

    def row(label: str, parts: Sequence[str], note: str = "", credit: bool = True) -> None:
        number, tokens, amount = (
            sum(steps[part][field] for part in parts) for field in ("count", "tokens", "amount")
        )
        rows.append([label, f"{number:,}", f"{tokens:,}", f"{amount:,}" if credit else "", note])

    if facts["has_claims"]:
        row("claimed by this node", list(steps), credit=False)
    row("in the ledger", [name for name in steps if name != "missing"], credit=False)
    row("accepted", names)
    row("  awaiting agreement", ["awaiting"], credit=False)
    row("  pending", ["pending"], _next(facts))
    row("  vested", ["vested"])
    if steps["invalidated"]["count"]:
        row("  taken away", ["invalidated"])
    if steps["recorded"]["count"]:
        row("not decided yet", ["recorded"], credit=False)
    why = ", ".join(
        f"{number} {code}: {reasons.explain(code)}" for code, number in facts["rejected"].items()
    )
    row("rejected", ["rejected"], why, credit=False)
    if steps["void"]["count"]:
        row(
            "attempt repeated", ["void"], "the attempt failed for all; nothing counts", credit=False
        )
    if facts["has_claims"]:
        row("missing", ["missing"], _missing(facts), credit=False)
    return Table(rows, ["contributions", "count", "tokens", "credit", ""], right=(1, 2, 3))


def _missing(facts: dict[str, Any]) -> str:
    """What to do about claims that are not in the ledger."""
    from artel.ledger.fold.claims import NOT_YET

    details = {item["detail"] for item in facts["contributions"] if item["status"] == "missing"}
    if details == {NOT_YET} and facts["from_home"]:
        return "ask the coordinator, whose copy is newer: add --from INVITE"
    return "; ".join(sorted(details))


def _audited(facts: dict[str, Any]) -> Table:
    """What auditors found, in a volunteer's words."""
    from artel.ledger.entries.story import rounds_named
    from artel.ledger.entries.words import differs
    from artel.protocol.identity import short_peer

    rows = []
    for item in facts["audits"]:
        nodes = ", ".join(map(short_peer, item["auditors"])) or "nobody has time yet"
        own = item["node"] in facts["nodes"]
        whose = "own work" if own else f"work of {short_peer(item['node'])}"
        what = "being repeated"
        if item["index"] is not None:
            what = f"{item['verdict']}, differs {differs(item['error'])} (entry {item['index']})"
        rows.append(
            [f"{whose}, {rounds_named(item['first'], item['last'])}", nodes, what, item["result"]]
        )
    return Table(rows, ["audits", "by", "", ""])


def _next(facts: dict[str, Any]) -> str:
    if not facts["vesting"]:
        return ""
    number, amount = next(iter(facts["vesting"].items()))
    return f"next: {amount:,} vest when state {number} is agreed"


def _account(facts: dict[str, Any]) -> Iterator[str | Table]:
    """All work of the account, by kind, and what it comes to."""
    from artel.ledger.entries.words import units

    rows = [
        [kind, units(work["units"], kind), f"x {work['rate']:,}", "=", f"{work['credit']:,}"]
        for kind, work in facts["work"].items()
    ]
    if rows:
        yield Table(rows, ["all work", "", "", "", "credit"], right=(1, 4))
    parts = [f"{facts['vested']:,} vested", f"{facts['pending']:,} pending"]
    parts += [f"{facts[name]:,} {name}" for name in ("sent", "received") if facts[name]]
    if facts["invalidated"]:
        parts.append(f"{facts['invalidated']:,} taken away")
    yield f"credit   {', '.join(parts)}"
    yield (
        f"share    {100 * facts['share']:.3f} % now, "
        f"{100 * facts['share_with_pending']:.3f} % with all that is pending"
    )
    part = facts["standing"] / (facts["standing_of_all"] or 1)
    yield f"standing {facts['standing']:,}, {100 * part:.1f} % of that of all accounts"


def _contributions(found: Sequence[Stand], limit: int, final: int) -> Iterator[str | Table]:

    shown = found[-limit:] if limit else found
    rows = []
    for stand in shown:
        claim, index = stand.claim, stand.index
        number = str(claim.round) + (f".{claim.attempt}" if claim.attempt else "")
        detail = f"{stand.reason}: {stand.detail}" if stand.reason else stand.detail
        status = stand.status + (f", {detail}" if detail else "")
        if index is not None and index >= final:
            status += " *"
        entry = "-" if index is None else str(index)
        rows.append([number, entry, f"{claim.tokens:,}", f"{stand.amount:,}", status])
    yield Table(rows, ["round", "entry", "tokens", "credit", "status"], right=(0, 1, 2, 3))
    if any(row[-1].endswith(" *") for row in rows):
        yield "* this entry is not final yet"
    if len(shown) < len(found):
        yield f"the last {len(shown)} of {len(found):,}; --limit 0 shows all"
