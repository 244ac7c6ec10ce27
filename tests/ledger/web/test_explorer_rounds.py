"""Sharded rounds in the explorer: steps, bytes, slices, and who combined one wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artel.ledger.entries import reasons
from artel.protocol.identity import short_peer
from explorer_world import Shown, sharded_world, shown
from log_world import replay
from page_world import Node, numbers, read


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Shown]:
    async with shown(tmp_path, made=sharded_world) as found:
        yield found


async def rows(ledger: Shown, path: str, section: str) -> dict[str, dict[str, Node]]:
    """Lines of a table by the node (or the slice) that they are about."""
    lines = read(await ledger.get(path)).section(section).rows()
    return {next(iter(line.values())).text: line for line in lines}


async def test_a_round_shows_steps_and_bytes_of_every_node(ledger: Shown) -> None:
    assert read(await ledger.get("/round/1")).cards()["steps"] == "16"
    members = await rows(ledger, "/round/1", "members-0")
    for member in ledger.world.members:
        line = members[short_peer(member.peer_id)]
        # Made of the round before and of this one.
        assert (line["steps"].text, line["made"].text, line["weight"].text) == ("4", "1 + 3", "128")
        assert line["contribution"].text.endswith("1,000 bytes")
        assert (line["bytes up"].text, line["bytes down"].text) == ("2,000", "3,000")
        assert line["contribution"].links[0].startswith("/entry/")


async def test_a_round_shows_its_slices_and_the_guilty(ledger: Shown) -> None:
    world = ledger.world
    guilty, accuser = world.aggregator(1, 2).peer_id, world.aggregator(1, 3).peer_id
    assert read(await ledger.get("/round/1")).section("agreed").facts()["wrong slices"].text == "2"
    slices = await rows(ledger, "/round/1", "slices-0")
    assert slices["2"]["combined by"].text == short_peer(guilty)
    assert short_peer(accuser) in slices["2"]["outcome"].text
    assert next(slices["2"]["outcome"].all("span")).text
    assert [short_peer(accuser) in slices[n]["outcome"].text for n in "013"] == [False] * 3
    members = await rows(ledger, "/round/1", "members-0")
    assert "slice 2" in members[short_peer(guilty)]["outcome"].text
    # A false accusation makes nothing wrong.
    pills = [
        span.attributes.get("class")
        for line in (await rows(ledger, "/round/2", "slices-0")).values()
        for span in line["outcome"].all("span")
    ]
    assert "pill bad" not in pills
    assert "2 slices" in read(await ledger.get("/round/3")).section("slices-0").text


async def test_entries_of_slices_have_pages(ledger: Shown) -> None:
    def of_kind(kind: str) -> list[int]:
        return [did.index for did in ledger.history.chosen(kind=kind)][::-1]

    recorded, accused = of_kind("aggregate"), of_kind("slice_wrong")
    assert (len(recorded), len(accused)) == (14, 2)
    assert [ledger.history.did(number).round for number in accused] == [1, 2]
    assert (
        read(await ledger.get(f"/entry/{recorded[6]}")).section("says").facts()["slice"].text == "2"
    )
    assert "wrong" in read(await ledger.get(f"/entry/{recorded[6]}")).section("did").text
    opened = read(await ledger.get(f"/entry/{of_kind('round_opened')[0]}"))
    assert opened.section("says").facts()["members"].text.count(", 4 steps") == 4
    shown_at = read(await ledger.get(f"/entry/{of_kind('contribution')[0]}"))
    assert numbers(shown_at.section("says").facts()["up"]) == [2000]
    agreed = read(await ledger.get(f"/entry/{of_kind('state_agreed')[1]}"))
    assert numbers(agreed.section("says").facts()["wrong"]) == [2]
    assert len(agreed.section("did").rows()) == 3, "the fourth combined a slice wrongly"
    assert len(read(await ledger.get("/entries?kind=slice_wrong")).rows()) == 2


async def test_the_history_counts_what_the_fold_counts(ledger: Shown) -> None:
    state = replay(ledger.store.leaves())
    assert ledger.fold.state == state
    tally: Counter[tuple[str, str]] = Counter()
    for account in state.accounts:
        for _, item in ledger.history.left_out_of(account):
            tally[item.node, item.reason] += 1
    expected = {
        (node, reason): count
        for node, counts in state.rejected.items()
        for reason, count in counts.items()
    }
    assert tally == expected
    assert sorted(reason for _, reason in expected) == [
        reasons.FALSE_ACCUSATION,
        reasons.WRONG_SLICE,
    ]
    guilty = state.account_of(ledger.world.aggregator(1, 2).peer_id)
    codes = read(await ledger.get(f"/account/{guilty}")).section("left-out").all("code")
    assert reasons.WRONG_SLICE in [code.text for code in codes]


async def test_every_link_of_a_round_leads_somewhere(ledger: Shown) -> None:
    for number in range(4):
        for link in set(read(await ledger.get(f"/round/{number}")).links):
            if link.startswith("/") and link != "/":  # the front page is the daemon's own
                await ledger.bytes(link.partition("#")[0])
