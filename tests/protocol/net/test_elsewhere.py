"""Two processes with one key find each other: a copied ``node.key``, homes on two machines."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from artel.protocol.errors import ResourceError
from artel.protocol.net import dht
from artel.protocol.net.elsewhere import answers_at, require_alone
from artel.protocol.net.host import Host
from host_world import start

RUN = "cd" * 32


@pytest_asyncio.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[list[Host]]:
    """Whoever leads, and two with one key that know it."""
    (tmp_path / "second").mkdir(mode=0o700)
    found = [await start(tmp_path / "leader", runs=[RUN])]
    found.append(await start(tmp_path / "first", found[0], runs=[RUN]))
    shutil.copy2(tmp_path / "first" / "node.key", tmp_path / "second" / "node.key")
    found.append(await start(tmp_path / "second", found[0], runs=[RUN]))
    yield found
    for host in found:
        await host.close()


async def publish(host: Host) -> None:
    record = dht.RunRecord(
        name="a run", addresses=await host.addresses(), http="", round=0, term=-1
    )
    assert await host.publish(dht.run_key(RUN), record)


async def test_who_has_the_same_key_and_runs_is_found_before_anything_is_published(
    hosts: list[Host],
) -> None:
    _, first, second = hosts
    assert first.peer_id == second.peer_id
    for host in (first, second):
        await require_alone(host, RUN)
    await publish(first)
    await require_alone(first, RUN)
    with pytest.raises(ResourceError, match="another process runs with this coordinator's key"):
        await require_alone(second, RUN)
    # What the second one says finds the first one in its turn.
    await asyncio.sleep(0.01)
    await publish(second)
    with pytest.raises(ResourceError, match=(await second.addresses())[0]):
        await require_alone(first, RUN)
    await require_alone(second, RUN)


async def test_what_a_process_that_is_gone_has_left_holds_nobody_up(hosts: list[Host]) -> None:
    _, first, second = hosts
    await publish(first)
    await first.close()
    await require_alone(second, RUN)


async def test_another_address_of_this_very_process_is_no_other_process(
    hosts: list[Host],
) -> None:
    """As behind a router that forwards a port."""
    host = hosts[1]
    port = int((await host.addresses())[0].split("/")[4])

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(4096):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as router:
        outside = router.sockets[0].getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{outside}/p2p/{host.peer_id}"
        assert await answers_at(host, [address]) == ""
        assert await answers_at(hosts[2], [address]) == address
