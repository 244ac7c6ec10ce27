"""A libp2p peer as a source of ledgers, through py-libp2p: no daemon, no hivemind, no torch.

TCP, Noise and Yamux only, dialled from a key that lives as long as the process; see
``docs/protocol.md``, sections 3, 4 and 7. py-libp2p takes about a second to import, so this module
is imported only when a peer is named, and the network runs in a thread of its own (trio).
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from artel.ledger.sync.peers import Brought, ask_files
from artel.ledger.sync.source import MAX_WORDS, Service
from artel.protocol import messages
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable, UsageError
from artel.protocol.net import names, wire
from artel.protocol.terminal import printable

DIAL_TIMEOUT_S = 10.0
"""For one address: connection, handshake and the negotiation of the protocol."""
REQUEST_TIMEOUT_S = 20.0
"""For one statement, or one file."""
CLOSE_TIMEOUT_S = 2.0
ELSEWHERE = messages.NOT_LEADING, messages.NOT_COORDINATOR
"""Codes of refusals by who holds the ledger and does not add to it."""

Result = TypeVar("Result")


class PeerHolder(Brought):
    """One of ``addresses`` (multiaddrs with /p2p/PEER, tried in order), dialled on first use.

    :raises UsageError: when none of them can be dialled over TCP
    """

    def __init__(self, addresses: tuple[str, ...]) -> None:
        dialled = [address for address in addresses if _dialable(address)]
        if not dialled:
            raise UsageError(
                f"{addresses[0][:200]!r} cannot be dialled from here",
                "give a TCP address, as /ip4/203.0.113.5/tcp/4001/p2p/12D3KooW...",
            )
        super().__init__()
        self.name = dialled[0]
        self._addresses = dialled
        self._network: _Network | None = None

    def _ask_for(self, paths: Sequence[str], skip: int) -> list[bytes | None]:
        request = messages.Get(run="", paths=list(paths), skip=skip)
        seconds = REQUEST_TIMEOUT_S * len(paths)
        return self._ask(lambda stream: ask_files(stream, request, paths), seconds)

    def send(self, service: Service, run: str, statement: bytes) -> None:
        """Hand in (see :class:`ledger.sync.source.Holder`), at the first peer that takes it."""
        kind = messages.Submit if service == "submit" else messages.SetAlias
        request = kind(run=run, statement=statement)
        while True:
            try:
                reply = self._ask(lambda stream: wire.ask(stream, request))
                break
            except wire.Refused as refusal:
                if refusal.code not in ELSEWHERE or not self._go_on():
                    raise
        if not isinstance(reply, messages.Ok):
            raise CheckFailed(f"the peer answered {reply.KIND}, which nobody asked for")

    def close(self) -> None:
        if self._network is not None:
            self._network.close()
            self._network = None

    def _go_on(self) -> bool:
        """Whether there is a peer after this one; it is the one that is asked from now on."""
        behind = self._addresses[self._addresses.index(self.name) + 1 :]
        peer = self.name.rpartition("/")[2]
        others = [address for address in behind if address.rpartition("/")[2] != peer]
        try:
            network = _Network(others)
        except Unreachable:
            return False
        self.close()
        self._network, self.name = network, network.address
        return True

    def _ask(
        self,
        exchange: Callable[[wire.ByteStream], Awaitable[Result]],
        seconds: float = REQUEST_TIMEOUT_S,
    ) -> Result:
        if self._network is None:
            missing = names.unresolved(self._addresses)
            rest = [one for one in self._addresses if names.name_in(one) not in missing]
            if not rest:
                raise Unreachable(names.words(missing), names.HINT)
            self._network = _Network(rest)
            self.name = self._network.address
        return self._network.ask(exchange, seconds)


def _dialable(address: str) -> bool:
    parts = address.split("/")
    return (
        len(address) <= 300
        and parts[0] == ""
        and parts[1:2] in (["ip4"], ["ip6"], ["dns"], ["dns4"], ["dns6"])
        and parts[3:4] == ["tcp"]
        and parts[5:6] == ["p2p"]
        and len(parts) == 7
    )


class _Network:
    """A connection to one peer, run by trio in a thread. Made and used by one other thread.

    :raises Unreachable: when none of the addresses answers
    """

    def __init__(self, addresses: list[str]) -> None:
        self.address = ""
        self._addresses = addresses
        self._host: Any = None
        self._peer: Any = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="libp2p", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def ask(
        self, exchange: Callable[[wire.ByteStream], Awaitable[Result]], seconds: float
    ) -> Result:
        """One exchange on a stream of its own, within so many seconds."""

        async def call() -> Result:
            return await _bounded(lambda: self._exchange(exchange), seconds)

        return trio.from_thread.run(call, trio_token=self._token)

    def close(self) -> None:
        """Hang up; whatever does not end in time dies with the process."""
        if self._stop is not None and self._token is not None:
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            # Whoever waits for this thread gets the error; after that there is nobody to tell.
            if not self._ready.is_set():
                self._error = _translated(error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        problem: ArtelError = Unreachable("there is no address to dial")
        for address in self._addresses:
            # A host of its own: py-libp2p remembers for a while that a peer could not be reached,
            # and prefers some of the addresses that it has heard of.
            host = _new_host()
            async with host.run(listen_addrs=[]):
                try:
                    self._peer = await _connect(host, address)
                except ArtelError as error:
                    problem = error
                    continue
                self.address, self._host, self._stop = address, host, trio.Event()
                self._token = trio.lowlevel.current_trio_token()
                self._ready.set()
                await self._stop.wait()
                return
        raise problem

    async def _exchange(self, exchange: Callable[[wire.ByteStream], Awaitable[Result]]) -> Result:
        from libp2p.custom_types import TProtocol

        stream = _Stream(await self._host.new_stream(self._peer, [TProtocol(wire.LEDGER)]))
        try:
            return await exchange(stream)
        finally:
            await stream.reset()


class _Stream:
    """py-libp2p's stream as the framing of :mod:`protocol.net.wire` wants it."""

    network = ""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await self._stream.read(count - len(data))
            if not piece:
                raise Unreachable("the connection closed in the middle of a message")
            data += piece
        return bytes(data)

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def reset(self) -> None:
        """Give the stream back; nothing more is expected on it."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            try:
                await self._stream.reset()
            except Exception as error:
                logging.getLogger(__name__).debug("stream not reset: %s", error)


@contextmanager
def _much_is_imported() -> Iterator[None]:
    """Importing makes objects by the hundred thousand that stay: looking for garbage among them
    again and again takes a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _new_host() -> Any:
    """A libp2p host that dials over TCP, Noise and Yamux and listens nowhere."""
    with _much_is_imported():
        from libp2p import generate_new_ed25519_identity, new_host
        from libp2p.crypto.x25519 import create_new_key_pair
        from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
        from libp2p.security.noise.transport import Transport as Noise
        from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
        from libp2p.stream_muxer.yamux.yamux import Yamux

    # Connection errors reach the caller as exceptions; a person does not want to read them twice.
    for name in ("libp2p", "multiaddr", "async_service"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    keys = generate_new_ed25519_identity()
    return new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, create_new_key_pair().private_key)},
        muxer_opt={YAMUX: Yamux},
    )


async def _connect(host: Any, address: str) -> Any:
    """Dial, and return the peer's id, which the handshake has confirmed."""
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    try:
        info = info_from_p2p_addr(Multiaddr(address))
    except Exception as error:  # each of the libraries below has errors of its own
        raise UsageError(
            f"{address[:200]!r} is no multiaddr: {printable(str(error)[:MAX_WORDS])}"
        ) from None
    try:
        await _bounded(partial(host.connect, info), DIAL_TIMEOUT_S)
    except ArtelError as error:
        raise Unreachable(
            f"no peer answers at {address}", "check the address, or ask for a new invite"
        ) from error
    return info.peer_id


async def _bounded(call: Callable[[], Awaitable[Result]], seconds: float) -> Result:
    """Await with a limit, and with errors that a person can act on."""
    try:
        with trio.fail_after(seconds):
            return await call()
    except trio.TooSlowError:
        raise Unreachable(f"the peer did not answer within {seconds:.0f} s") from None
    except ArtelError:
        raise
    except Exception as error:
        raise _translated(error) from error


def _translated(error: BaseException) -> BaseException:
    """py-libp2p has no base for its errors, and trio wraps them in groups."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, ArtelError) or not isinstance(error, Exception):
        return error
    text = printable(str(error)[:MAX_WORDS]) or type(error).__name__
    return Unreachable(f"the peer cannot be reached: {text}", "check that it runs, or ask another")
