"""The model that the page of a run offers: made beside it, fetched by a browser, then checked."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from artel import cli
from artel.coordinator import releasing
from artel.coordinator.releasing import Releases
from artel.coordinator.service import Coordinator
from artel.coordinator.web import DOWNLOADS, RunPage
from artel.ledger.store import keyfiles
from artel.ledger.web.server import Gate
from ledger_world import World, digest
from model_world import make_home, write_states
from run_page_world import INVITE, coordinating, numbers_of, one_round, published
from trainer_world import make_world


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Coordinator]:
    world, folder = World(name="releasing"), tmp_path / "core"
    folder.mkdir()
    manifest, metrics = published(world), numbers_of(folder, world, 1)
    async with coordinating(world, manifest, folder, one_round(world), metrics) as core:
        yield core


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that holds two states."""
    world = make_world(tmp_path / "world")
    states = write_states(world, tmp_path, 2)
    home = make_home(world, tmp_path / "home", [path.name for path in states])
    for path in states:
        shutil.copy(path, home / "blobs")
    keyfiles.create(home / keyfiles.ACCOUNT_KEY)
    return home


def client_of(page: RunPage) -> TestClient[web.Request, web.Application]:
    return TestClient(TestServer(page.application(Gate())))


async def test_the_newest_model_is_fetched_from_the_page_and_stands_by_itself(
    core: Coordinator, home: Path, tmp_path: Path
) -> None:
    releases = Releases(core, home, None)
    page = RunPage(core, INVITE, releases)
    async with client_of(page) as client:
        assert (await client.get("/model.tar")).status == 404
        assert "/model.tar" not in await (await client.get("/")).text()
        before = page._version()
        (home / ".release.new.0123.artel-unfinished").mkdir()  # of a process that was killed
        await releases._make()
        assert page._version() != before, "whoever looks at the page is told"
        assert releases.newest is not None
        sample = releases.newest.sample
        assert sample
        shown = await (await client.get("/")).text()
        assert 'href="/model.tar"' in shown
        assert "after 2 rounds" in shown
        status = await (await client.get("/api/v1/status")).json()
        assert status["release"] == releases.newest.model_dump()
        answer = await client.get("/model.tar")
        assert 'filename="web-test-2.tar"' in answer.headers["Content-Disposition"]
        (tmp_path / "fetched.tar").write_bytes(await answer.read())
    with tarfile.open(tmp_path / "fetched.tar") as tar:
        assert {(one.uid, one.uname) for one in tar.getmembers()} == {(0, "")}
        tar.extractall(tmp_path / "out", filter="data")
    assert cli.main(["model", "verify", str(tmp_path / "out/web-test-2")]) == 0
    assert sorted(path.name for path in home.glob("*release.*")) == [
        "release.json",
        "release.key",
        "release.tar",
    ]
    # A process that comes after this one goes on with it, if it is whole.
    assert Releases(core, home, 60.0).newest == releases.newest
    assert Releases(core, home, 0.0).newest is None
    (home / releasing.FILE).write_bytes(b"cut off")
    assert Releases(core, home, None).newest is None


async def test_a_few_fetch_it_at_the_same_time_and_the_others_come_back(
    core: Coordinator, home: Path
) -> None:
    releases = Releases(core, home, None)
    (home / releasing.FILE).write_bytes(b"x" * 1000)
    releases.newest = releasing.ReleaseFacts(round=1, state="s", bytes=1000, sample="text")
    page = RunPage(core, INVITE, releases)
    async with client_of(page) as client:
        page._downloads["127.0.0.1"] = DOWNLOADS // 2
        assert (await client.get("/model.tar")).status == 503, "others have the other half"
        page._downloads.clear()
        page._downloads["192.0.2.1"] = DOWNLOADS // 2
        for _ in range(2):
            assert len(await (await client.get("/model.tar")).read()) == 1000
        async with asyncio.timeout(60):
            while page._downloads != {"192.0.2.1": DOWNLOADS // 2}:
                await asyncio.sleep(0.01)


async def test_one_is_made_when_a_newer_state_is_here_and_a_failure_is_told_and_no_more(
    core: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "artel.coordinator")
    releases = Releases(core, tmp_path / "empty", 3600.0)
    assert not releases._wanted()
    task = asyncio.create_task(releases.run())
    await asyncio.sleep(0)
    core.blobs._sizes[digest("state 1")] = 7  # it has been copied
    assert releases._wanted()
    await core.tell()
    async with asyncio.timeout(60):
        while not any("release.failed" in record.message for record in caplog.records):
            await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_large_model_is_offered_only_when_somebody_says_so(
    core: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "LARGEST", 1)
    await Releases(core, tmp_path, None).run()  # it returns
    assert Releases(core, tmp_path, 60.0)._every == 60.0
