"""A run that went back, in the explorer: each page says what was undone, and by which entry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from explorer_world import Shown, shown, undone_world
from page_world import read


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Shown]:
    async with shown(tmp_path, made=undone_world) as found:
        yield found


async def test_rounds_say_whether_the_run_went_back_behind_them(ledger: Shown) -> None:
    (back,) = ledger.history.chosen(kind="rolled_back")
    redone = read(await ledger.get("/round/2")).section("agreed")
    undone = read(await ledger.get("/round/3")).section("agreed")
    assert "gone back behind" not in redone.facts()
    assert undone.facts()["gone back behind"].links == [f"/entry/{back.index}"]
    assert f"/entry/{back.index}" in await ledger.get("/round/2")


async def test_each_entry_of_it_has_a_page(ledger: Shown) -> None:
    for kind, count in (("state_wrong", 1), ("jury_answer", 3), ("rolled_back", 1)):
        found = ledger.history.chosen(kind=kind)
        assert len(found) == count
        for did in found:
            assert "/round/2" in await ledger.get(f"/entry/{did.index}")


async def test_an_account_shows_what_was_taken_and_what_stayed(ledger: Shown) -> None:
    liar, honest = ledger.world.owners[0], ledger.world.owners[5]
    assert (
        ledger.fold.state.accounts[liar.key].vested < ledger.fold.state.accounts[honest.key].vested
    )
    for owner in (liar, honest):
        assert "taken away" in await ledger.get(f"/account/{owner.key}")
