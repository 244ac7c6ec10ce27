"""Real hosts, and a real web client, on links that break, crawl, and change what they carry."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from artel import cli
from artel.protocol import content
from artel.protocol.errors import Unreachable
from artel.protocol.identity import load_or_create
from artel.protocol.net import delivery
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.delivery import Wanted
from artel.protocol.net.host import Host
from client_world import served, write_tiles
from delivery_world import Holder, answering
from fault_proxy import BLACKHOLE, Fault, FaultProxy
from host_world import start, until
from ledger_world import World

CHUNK = content.CHUNK_BYTES
DATA = random.Random(5).randbytes(6 * CHUNK + 99)
BLOB = content.content_id(DATA)
NOWHERE = ("127.0.0.1", 9)


@dataclass
class Pair:
    """A host that fetches, and one behind a proxy that is the only one to hold something."""

    us: Host
    holder: Holder
    proxy: FaultProxy
    store: BlobStore

    async def fetch(self) -> bytes:
        wanted = Wanted(BLOB, [self.holder.peer], len(DATA))
        return (await delivery.fetch(self.us, self.store, wanted)).read_bytes()

    async def fetch_at_last(self) -> bytes:
        """As whoever needs it does: again and again."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(Unreachable):
                    return await self.fetch()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = probe.getsockname()
    async with contextlib.AsyncExitStack() as undo:
        proxy = await undo.enter_async_context(FaultProxy(target, seed=7))
        key = tmp_path / "there" / "node.key"
        identity = load_or_create(key)
        listen = f"/ip4/127.0.0.1/tcp/{target[1]}"
        there = await Host.start(identity, key, listen=[listen], announce=[proxy.multiaddr])
        undo.push_async_callback(there.close)
        us = await start(tmp_path / "here")
        undo.push_async_callback(us.close)
        us.remember(there.peer_id, await there.addresses())
        holder = Holder(there, tmp_path / "held")
        holder.store.put(DATA)
        (await answering([there]))[there] = holder
        yield Pair(us, holder, proxy, BlobStore(tmp_path / "ours"))


async def test_the_only_holder_dies_in_the_middle_of_a_download_which_goes_on_when_it_is_back(
    pair: Pair,
) -> None:
    assert await pair.us.connect(pair.holder.peer, await pair.holder.host.addresses())
    there, pair.proxy.target = pair.proxy.target, NOWHERE  # for connections to come
    rule = pair.proxy.apply(Fault(cut_after=3 * CHUNK), "down")
    with pytest.raises(Unreachable):
        await pair.fetch()
    assert rule.hits["cut"] == 1
    assert not pair.store.has(BLOB)
    pair.proxy.lift()
    pair.proxy.target = there
    pair.holder.asked.clear()
    assert await pair.fetch_at_last() == DATA
    assert pair.holder.asked["chunks"] < content.chunk_count(len(DATA)), "what was here stays"


@pytest.mark.parametrize(
    ("fault", "what"),
    [(Fault(corrupt_every=CHUNK), "corrupt"), (Fault(repeat_every=CHUNK), "repeat")],
    ids=["flipped", "twice"],
)
async def test_of_wrong_bytes_nothing_is_kept_and_the_rest_comes_over_new_connections(
    pair: Pair, fault: Fault, what: str
) -> None:
    assert await pair.us.connect(pair.holder.peer, await pair.holder.host.addresses())
    (first,) = pair.proxy.lines
    rule = pair.proxy.apply(fault)
    assert await pair.fetch_at_last() == DATA
    assert rule.hits[what] > 0
    # No connection goes on behind a wrong byte. The next may be the other side's, past the proxy.
    await until(lambda: first not in pair.proxy.lines)


async def test_a_link_that_holds_everything_delays_and_loses_nothing(pair: Pair) -> None:
    rule = pair.proxy.apply(BLACKHOLE, "down", seconds=1.0)
    assert await pair.fetch_at_last() == DATA
    assert rule.hits["hold"] > 0


async def test_over_http_wrong_bytes_are_an_error_and_never_another_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.write(tmp_path / "home", rounds=1)
    write_tiles(tmp_path / "home", tmp_path / "tiles")
    codes = set()
    with served(tmp_path / "tiles") as url:

        async def ask(seed: int, fault: Fault) -> tuple[int, str, int]:
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{seed}-{fault}"))
            async with FaultProxy(("127.0.0.1", int(url.rpartition(":")[2])), seed) as proxy:
                rule = proxy.apply(fault, "down")
                place = ("--from", f"http://127.0.0.1:{proxy.port}", "--run", world.run)
                code = await asyncio.to_thread(cli.main, ["ledger", "shares", "--csv", *place])
                said = capsys.readouterr()
                assert "unexpected" not in said.err
                return code, said.out, rule.hits.total()

        code, honest, _ = await ask(0, Fault())
        assert code == 0
        for seed in range(12):
            fault = Fault(corrupt_every=4000) if seed % 2 else Fault(repeat_every=4000)
            code, answer, hits = await ask(seed, fault)
            assert hits
            assert code in (0, 1, 2, 3)
            if code == 0:  # a line of a header was hit, say
                assert answer == honest
            codes.add(code)
    assert codes - {0}
