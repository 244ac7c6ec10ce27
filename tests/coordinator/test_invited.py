"""The line for volunteers names the other coordinators as soon as it is known where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.coordinator.joining import _words
from artel.coordinator.process import INVITE_FILE, CoordinatorProcess
from artel.ledger.entries.fold_state import FoldState
from artel.protocol.identity import short_peer
from artel.protocol.invite import MAX_PEERS, Invite
from artel.protocol.pasted import MAX_CHARACTERS
from artel.protocol.tasks import end
from ledger_world import World, key

OWN, STANDBYS = key("who leads"), [key(f"standby {number}") for number in range(3)]
RUN = "ab" * 32
CONFIG = SimpleNamespace(run=SimpleNamespace(name="a run"))


def process(home: Path, addresses: int = 1, *, as_json: bool = False) -> CoordinatorProcess:
    """One that is known at so many addresses."""
    ways = [f"/ip4/192.0.2.{n}/tcp/4200/p2p/{OWN.peer_id}" for n in range(addresses)]

    async def known() -> list[str]:
        return ways

    keys = [each.key for each in (OWN, *STANDBYS)]
    parts: dict[str, Any] = {
        "options": SimpleNamespace(home=home, invite=None, as_json=as_json),
        "prepared": SimpleNamespace(run=RUN, manifest=SimpleNamespace(coordinators=keys)),
        "identity": OWN,
        "host": SimpleNamespace(addresses=known),
        "http": None,
        "began": 0.0,
    }
    return CoordinatorProcess(**parts)


def at(number: int) -> str:
    return f"/ip4/198.51.100.{number}/tcp/4200/p2p/{STANDBYS[number].peer_id}"


async def looked(leading: CoordinatorProcess, known: dict[str, Sequence[str]]) -> str:
    """The page's invite after a look that finds these."""
    page: Any = SimpleNamespace(invite="")
    asked = asyncio.Event()

    async def learn(_: Sequence[str]) -> None:
        asked.set()

    circle: Any = SimpleNamespace(learn=learn, known=known)
    keeping = asyncio.create_task(leading._keep_invite(page, circle))
    async with asyncio.timeout(10):
        await asked.wait()
        while known and not page.invite:
            await asyncio.sleep(0.01)
    await end(keeping)
    return str(page.invite)


async def test_an_invite_names_a_standby_that_came_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leading = process(tmp_path)
    first = Invite.decode(await leading.invited())
    assert [OWN.peer_id in address for address in first.peers] == [True]

    stranger = "/ip4/203.0.113.9/tcp/1/p2p/" + key("a member").peer_id
    known = {STANDBYS[1].peer_id: [at(1)], key("a member").peer_id: [stranger]}
    shown = await looked(leading, known)
    assert Invite.decode(shown).peers == (*first.peers, at(1))
    assert (tmp_path / INVITE_FILE).read_text().strip() == shown
    # Whoever published the first one is told; of the other standbys nothing is known.
    said = capsys.readouterr().out
    assert said.startswith(f"The invite names {short_peer(STANDBYS[1].peer_id)} now, ")
    assert f"artel join {shown}\n" in said
    # Started again, it says so from the beginning, and nothing of it later.
    again = process(tmp_path)
    assert await again.invited() == shown
    await looked(again, {STANDBYS[1].peer_id: [at(0).replace(*(x.peer_id for x in STANDBYS[:2]))]})
    assert capsys.readouterr().out == ""
    await looked(process(tmp_path, as_json=True), {STANDBYS[2].peer_id: [at(2)]})
    assert capsys.readouterr().out == ""


async def test_an_invite_stays_as_short_as_it_may_be(tmp_path: Path) -> None:
    leading = process(tmp_path, addresses=8)
    known = {each.peer_id: [at(number)] for number, each in enumerate(STANDBYS)}
    shown = Invite.decode(await looked(leading, known))
    assert len(shown.peers) == MAX_PEERS
    assert len(shown.encode()) < MAX_CHARACTERS
    named = [address for address in shown.peers if OWN.peer_id not in address]
    assert len(named) == 2
    assert {*named} < {at(number) for number in range(3)}


async def test_the_home_of_another_run_says_nothing_about_this_one(tmp_path: Path) -> None:
    (tmp_path / INVITE_FILE).write_text(Invite("cd" * 32, (at(0),)).encode())
    assert at(0) not in Invite.decode(await process(tmp_path).invited()).peers


def test_a_person_is_told_when_the_part_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["stands by", "leads term 3", "leads term 3", "stands by"]
    for as_json, lines in ((False, 3), (True, 1)):
        one = process(tmp_path, as_json=as_json)
        for part in parts:
            one.greet("http://127.0.0.1:1", "artel1.x", part, lambda part=part: part)  # type: ignore[misc]
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_the_words_of_a_standby_name_who_leads_as_soon_as_that_is_known() -> None:
    prepared: Any = SimpleNamespace(run=RUN, manifest=SimpleNamespace(config=CONFIG))
    url, world = "http://127.0.0.1:1", World()
    leads = world.coordinator.peer_id
    assert "leads   " not in _words(prepared, FoldState(), OWN.peer_id, url)
    world.add(*world.start)
    said = _words(prepared, world.state, OWN.peer_id, url)
    assert f"leads   {short_peer(leads)}, term 0\n" in said
    assert "leads   " not in _words(prepared, world.state, leads, url)
