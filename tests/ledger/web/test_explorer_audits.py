"""Audits in the explorer: what happened to an account is said on its page, with the entries."""

from __future__ import annotations

from pathlib import Path

from artel.ledger.store.store import LedgerStore
from artel.protocol.identity import short_peer
from audit_world import Run, honest
from explorer_world import Shown, shown
from ledger_world import World
from page_world import Node, read

CHEAT = 2


def audited_world(store: LedgerStore | None = None) -> World:
    """Six rounds, in which one account is convicted; some audits are under way."""
    run = Run().play(6, honest(liars=[CHEAT]))
    run.feed(*run.world.round(6))
    if store is not None:
        store.append([entry.envelope.encode() for entry in run.log], run.world.sign)
    return run.world


async def audits(ledger: Shown, number: int) -> list[dict[str, Node]]:
    name = ledger.world.owners[number].key
    return read(await ledger.get(f"/account/{name}")).section("audits").rows()


async def test_an_account_page_says_who_repeated_its_work_and_what_came_of_it(
    tmp_path: Path,
) -> None:
    async with shown(tmp_path, made=audited_world) as ledger:
        page = await ledger.get(f"/account/{ledger.world.owners[CHEAT].key}")
        assert "convicted of fraud" in page
        rows = await audits(ledger, CHEAT)
        own = [row for row in rows if "this account" in row["work of"].text]
        rejects = [row for row in own if row["verdict"].text == "reject"]
        assert len(rejects) >= 2
        assert {row["differs"].text for row in rejects} == {"by 70 %"}
        assert "drawn by lot, repeated its work of round" in page
        assert any(row["so far"].text == "convicted" for row in rejects)
        for row in rejects:
            (link,) = row["entry"].links
            told = await ledger.get(link)
            assert "once more from public data" in told
        honest_rows = await audits(ledger, 0)
        own = [row for row in honest_rows if "this account" in row["work of"].text]
        assert {row["verdict"].text for row in own} <= {"accept", "being repeated"}
        cheats = short_peer(ledger.world.members[CHEAT].peer_id)
        assert all(cheats not in row["work of"].text for row in own)
