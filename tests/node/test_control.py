"""The socket through which the owner speaks to a running node."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from artel.node import control
from artel.node.control import OwnerOrder
from artel.node.settings import OwnerSettings
from artel.protocol.errors import Unreachable, UsageError


async def _echo(order: OwnerOrder) -> str:
    if order.settings.quota == 1:
        raise UsageError("too small", "more")
    return f"{order.do} {order.settings.uplink}"


async def test_an_order_reaches_the_node_of_a_home_however_long_its_name_is(
    tmp_path: Path,
) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir()
    async with control.listening(home, _echo):
        place = home / control.SOCKET_FILE
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        order = OwnerOrder("set", OwnerSettings(uplink=5.0))
        assert await asyncio.to_thread(control.tell, home, order) == "set 5.0"
        with pytest.raises(UsageError, match="too small") as refused:
            await asyncio.to_thread(control.tell, home, OwnerOrder("set", OwnerSettings(quota=1)))
        assert refused.value.hint == "more"
    assert not place.exists()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b'{"do": "dance"}\n',
        b'{"do": "set", "settings": {"uplink": 1e9}}\n',
        b'{"do": "set", "settings": {"hours": "25-1"}}\n',
        b'{"do": "set", "more": 1}\n',
        b"[" * 4000 + b"\n",
        b"x" * 100_000 + b"\n",
    ],
)
async def test_what_is_no_order_changes_nothing(line: bytes, tmp_path: Path) -> None:
    obeyed: list[OwnerOrder] = []

    async def obey(order: OwnerOrder) -> str:
        obeyed.append(order)
        return ""

    async with control.listening(tmp_path, obey):
        with control._near(tmp_path) as name:
            reader, writer = await asyncio.open_unix_connection(name)
        writer.write(line)
        assert b'"error"' in await reader.readline()
        writer.close()
    assert not obeyed


def test_who_is_not_running_is_said_to_be_so(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(Unreachable, match="no node is running"):
            control.tell(home, OwnerOrder("finish"))


async def test_a_socket_that_a_killed_node_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / control.SOCKET_FILE).touch()
    async with control.listening(tmp_path, _echo):
        assert (
            await asyncio.to_thread(control.tell, tmp_path, OwnerOrder("finish")) == "finish None"
        )
