"""The proxy that breaks connections breaks them as it says, and only so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from fault_proxy import BLACKHOLE, REPEATED_BYTES, Fault, FaultProxy

pytestmark = pytest.mark.timeout(60)
DATA = random.Random(1).randbytes(1 << 17)


class Mouth:
    """A server behind a proxy that keeps what each connection brings, and answers with ``say``."""

    def __init__(self, say: bytes = b"") -> None:
        self.say = say
        self.heard: list[bytearray] = []
        self.times: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = bytearray()
        self.heard.append(heard)
        writer.write(self.say)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                heard += data
                self.times.append(asyncio.get_running_loop().time())
        writer.close()


@contextlib.asynccontextmanager
async def behind(mouth: Mouth, seed: int = 0) -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(mouth.serve, "127.0.0.1", 0)
    async with server, FaultProxy(server.sockets[0].getsockname()[:2], seed) as proxy:
        yield proxy


async def send(proxy: FaultProxy, data: bytes, piece: int = 1 << 16, source: str = "") -> bytes:
    """Write it all in pieces, and return what comes back, until both have ended."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", proxy.port, local_addr=(source, 0) if source else None
    )
    try:
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def through(fault: Fault, seed: int = 0, piece: int = 1 << 16, way: str = "up") -> bytes:
    """What arrives of DATA."""
    mouth = Mouth()
    async with behind(mouth, seed) as proxy:
        proxy.apply(fault, way)
        await send(proxy, DATA, piece)
    return bytes(mouth.heard[0])


async def test_without_a_fault_both_ways_are_whole_and_have_ends_of_their_own() -> None:
    mouth = Mouth(DATA[::-1])
    async with behind(mouth) as proxy:
        assert await send(proxy, DATA) == DATA[::-1]
        assert mouth.heard == [DATA]
        await until(lambda: not proxy.lines)


async def test_bits_are_flipped_where_the_seed_says_and_nowhere_else() -> None:
    once = await through(Fault(corrupt_every=4000), seed=3)
    places = [at for at, (a, b) in enumerate(zip(once, DATA, strict=True)) if a != b]
    assert len(DATA) / 8000 < len(places) < len(DATA) / 2000
    assert all((once[at] ^ DATA[at]).bit_count() == 1 for at in places)
    # However the bytes are cut into pieces, the same ones are hit.
    assert await through(Fault(corrupt_every=4000), seed=3, piece=777) == once
    assert await through(Fault(corrupt_every=4000), seed=4) != once
    assert await through(Fault(corrupt_every=4000), way="down") == DATA


async def test_bytes_come_twice_where_the_seed_says() -> None:
    twice = await through(Fault(repeat_every=5000), seed=3)
    rest, found = twice, 0
    while rest != DATA:
        # What is there beside the data is a copy of the last bytes before it.
        same = (a == b for a, b in zip(rest, DATA, strict=False))
        at = next((at for at, equal in enumerate(same) if not equal), len(DATA))
        rest = rest[:at] + rest[at + REPEATED_BYTES :]
        found += 1
        assert len(rest) >= len(DATA)
    assert len(DATA) / 10_000 < found < len(DATA) / 2500
    assert await through(Fault(repeat_every=5000), seed=3, piece=777) == twice


async def test_a_connection_is_cut_after_so_many_bytes_and_the_next_one_is_not() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        rule = proxy.apply(Fault(cut_after=1000), "up", nth=1)
        with pytest.raises(ConnectionError):
            await send(proxy, DATA)
        await send(proxy, DATA)
    assert rule.hits["cut"] == 1
    assert len(mouth.heard[0]) <= 1000
    assert mouth.heard[1] == DATA


async def test_what_is_open_is_cut_by_the_address_that_it_comes_from() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        lines = []
        for source in ("127.0.0.1", "127.0.0.2"):
            lines.append(
                await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=(source, 0))
            )
        await until(lambda: len(mouth.heard) == 2)
        assert proxy.cut("127.0.0.2") == 1
        with pytest.raises(ConnectionError):
            await lines[1][0].readexactly(1)
        lines[0][1].write(b"still here")
        await until(lambda: b"still here" in mouth.heard)
        for _, writer in lines:
            writer.close()


async def test_a_black_hole_takes_everything_and_gives_it_when_it_is_gone() -> None:
    mouth = Mouth(b"welcome")
    async with behind(mouth) as proxy:
        rule = proxy.apply(BLACKHOLE, source="127.0.0.2")
        await send(proxy, b"from elsewhere")
        sending = asyncio.create_task(send(proxy, DATA, source="127.0.0.2"))
        await until(lambda: rule.hits["hold"] >= 2)  # of both ways
        assert mouth.heard[1] == b""
        assert not sending.done()
        proxy.lift(rule)
        assert await sending == b"welcome"
        assert mouth.heard[1] == DATA


async def test_a_fault_ends_by_itself_after_its_time() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        began = asyncio.get_running_loop().time()
        proxy.apply(BLACKHOLE, seconds=0.3)
        await send(proxy, b"late")
        assert asyncio.get_running_loop().time() - began >= 0.3
        assert mouth.heard == [b"late"]


async def test_a_rate_is_kept_to_and_can_be_changed_under_way() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        clock = asyncio.get_running_loop().time
        began = clock()
        slow = proxy.apply(Fault(rate=100_000), "up")
        sending = asyncio.create_task(send(proxy, DATA))
        await until(lambda: mouth.heard and len(mouth.heard[0]) > 40_000)
        assert 40_000 / (clock() - began) < 130_000
        proxy.apply(Fault(rate=1.0), "up")
        proxy.lift(slow)
        arrived = len(mouth.heard[0])
        proxy.lift()
        await sending
        assert mouth.heard[0] == DATA
        assert arrived < len(DATA)


async def test_what_is_delayed_comes_later_in_one_piece_and_is_not_held_up_more() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        proxy.apply(Fault(delay_s=0.2), "up")
        clock = asyncio.get_running_loop().time
        began = clock()
        await send(proxy, DATA, piece=4096)
        assert mouth.heard == [DATA]
        assert mouth.times[0] - began >= 0.2
        # The delay is that of the way and not one for each piece.
        assert mouth.times[-1] - began < 2.0
        assert all(a <= b for a, b in pairwise(mouth.times))


async def test_nothing_stays_behind_a_proxy_that_is_closed() -> None:
    mouth = Mouth()
    async with behind(mouth) as proxy:
        proxy.apply(BLACKHOLE)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(DATA)
        await until(lambda: proxy.lines)
    assert not proxy.lines
    with pytest.raises(ConnectionError):
        await reader.readexactly(1)
    writer.close()
