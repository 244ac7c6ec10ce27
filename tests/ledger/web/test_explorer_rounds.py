"""Sharded rounds in the explorer: steps, bytes, slices, and who combined one wrongly."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artel.ledger.entries import reasons
from artel.ledger.fold.replay import replay
from artel.ledger.web.index import LedgerIndex
from explorer_world import Shown, sharded_world, shown


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Shown]:
    async with shown(tmp_path, made=sharded_world) as found:
        yield found


def plain(page: str) -> str:
    """The text of a page, with single spaces."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def row(page: str, name: str) -> str:
    """The text of the first line of a table that contains ``name``."""
    return next(plain(line) for line in re.findall("<tr>.*?</tr>", page, re.S) if name in line)


async def test_a_round_shows_steps_and_bytes_of_every_node(ledger: Shown) -> None:
    page = await ledger.get("/round/1")
    said = plain(page)
    assert "steps 16 assigned to all of them" in said
    for member in ledger.world.members:
        line = row(page, f">…{member.peer_id[-8:]}<")
        # Assigned, made of the round before and of this one, weight, bytes of the blob, up, down.
        assert re.search(r" 4 1 \+ 3 128 [0-9]+ [0-9a-f]{12} ?, 1,000 bytes 2,000 3,000 ", line)
    assert "bytes as the nodes say" in said


async def test_a_round_shows_its_slices_and_the_guilty(ledger: Shown) -> None:
    world = ledger.world
    guilty, accuser = world.aggregator(1, 2), world.aggregator(1, 3)
    page = await ledger.get("/round/1")
    said = plain(page)
    assert "wrong slices 2" in said
    assert f"…{guilty.peer_id[-8:]}" in page
    found = re.search(
        r"called wrong by …(\S{8}) ([0-9]+) , which got ([0-9a-f]{12}) ?; found wrong", said
    )
    assert found is not None
    assert found[1] == accuser.peer_id[-8:]
    line = row(page, f">…{guilty.peer_id[-8:]}<")
    assert "earns nothing : combined slice 2 wrongly" in line
    assert said.count(" recorded ") >= 3
    assert "found right" in plain(await ledger.get("/round/2"))
    under_way = plain(await ledger.get("/round/3"))
    assert "2 slices recorded by nobody" in under_way
    assert "waits for the agreed state" in under_way


async def test_entries_of_slices_have_pages(ledger: Shown) -> None:
    index = LedgerIndex(ledger.store)
    index.follow()
    recorded, accused = index.of_kind("aggregate"), index.of_kind("slice_wrong")
    assert (len(recorded), len(accused)) == (14, 3)
    assert [index.summary(number).round for number in accused] == [1, 2, 2]
    page = plain(await ledger.get(f"/entry/{recorded[6]}"))
    assert "Slice combined" in page
    assert "found wrong by those who signed" in page
    assert "Slice called wrong" in plain(await ledger.get(f"/entry/{accused[0]}"))
    opened = plain(await ledger.get(f"/entry/{index.of_kind('round_opened')[0]}"))
    assert opened.count(", 4 steps") == 4
    shown_at = index.of_kind("contribution")[0]
    assert "up 2,000 bytes, by its own account" in plain(await ledger.get(f"/entry/{shown_at}"))
    agreed = plain(await ledger.get(f"/entry/{index.of_kind('state_agreed')[1]}"))
    assert "made without the wrong slice 2" in agreed
    assert "1 contribution denied credit" in agreed
    listing = plain(await ledger.get("/entries?kind=slice_wrong"))
    assert listing.count("says that slice") == 3


async def test_the_index_counts_what_the_fold_counts(ledger: Shown) -> None:
    index = LedgerIndex(ledger.store)
    index.follow()
    state = replay(ledger.store.leaves())
    assert index.state == state
    tally: Counter[tuple[str, str]] = Counter()
    for account in state.accounts:
        for number in index.rejections_of(account):
            item = index.rejection(number)
            tally[item.node, item.reason] += 1
    expected = {
        (node, reason): count
        for node, counts in state.rejected.items()
        for reason, count in counts.items()
    }
    assert tally == expected
    assert sorted(reason for _, reason in expected) == [
        *(reasons.FALSE_ACCUSATION, reasons.FALSE_ACCUSATION, reasons.WRONG_SLICE)
    ]
    page = plain(
        await ledger.get(f"/account/{state.account_of(ledger.world.aggregator(1, 2).peer_id)}")
    )
    assert reasons.REJECTIONS[reasons.WRONG_SLICE] in page


async def test_every_link_of_a_round_leads_somewhere(ledger: Shown) -> None:
    for number in range(4):
        page = await ledger.get(f"/round/{number}")
        for link in set(re.findall(r'href="(/[^"#]+)', page)):
            await ledger.bytes(html.unescape(link))
