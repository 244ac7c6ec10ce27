"""Members without trainers: many daemons of nodes in one process, for :mod:`benchmarks.members`.

Everything of a node is the real thing: its network daemon and streams, its key, its replica of the
ledger, its cosignatures, its checks before it joins. What its trainer would be asked to do is done
here: training is a vector drawn by chance, packed as trainers pack it; combining and the outer step
are the trainer's own code, and what all members of a process compute alike is computed once.
Members stay out of the DHT, whose searches would take most of this machine: where others are, they
learn from the coordinator, as nodes do first anyway. And what members ask each other goes by a
local socket and not through two network daemons; what they ask the coordinator goes through both.

``python -m benchmarks.members_crowd FOLDER INVITE FIRST COUNT``
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from artel.node import daemon, sealing, watch
from artel.node import join as joining
from artel.node.daemon import Daemon
from artel.node.settings import OwnerSettings
from artel.node.trainer import exchange, orders
from artel.node.trainer.agreed import Agreed
from artel.node.trainer.merging import Merging
from artel.protocol import assignment, model
from artel.protocol.errors import ArtelError
from artel.protocol.exchange import parts
from artel.protocol.exchange.aggregate_slice import round_slices
from artel.protocol.exchange.next_state import Base
from artel.protocol.files import write as write_file
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from artel.protocol.leaving import on_signals
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.net import host as network
from artel.protocol.net import knocking, p2pd
from artel.protocol.net.host import Host
from artel.protocol.state import Layout, read_state, state_root
from artel.protocol.tasks import end

SPEED = 1e6
"""Tokens per second that a member says it trains."""
START_AT_ONCE = 4
THREADS = 4
"""Of each member at most; a process of its own has six or more."""
JOIN_TRIES = 8
SLOWER = 6
"""How many times as long a member waits here as elsewhere, for its own network daemon, for others,
and between two looks that have nothing to do with rounds: hundreds share two processors."""
UNPACKED = "ARTEL_BENCHMARK_P2PD"
"""Environment variable: path of a network daemon to start members' with, whose code they share in
memory; hivemind's file is packed, and each process unpacks a copy of its own."""
LISTEN = ("/ip4/127.0.0.1/tcp/0",)
QUOTA_MB = 1 << 12
making: contextvars.ContextVar[tuple[Shared, int]] = contextvars.ContextVar("making")
"""The member that is being made in this task, for its stand-in."""


def keys_of(number: int) -> tuple[Identity, Identity]:
    """The keys of a member's node and of its account."""
    seeds = (hashlib.sha256(f"{what} {number}".encode()).digest() for what in ("node", "account"))
    node, account = map(Identity.from_seed, seeds)
    return node, account


class Shared:
    """What all members of one process know alike: the run's layout, and what was computed."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._bases: dict[str, Base] = {}
        self._made: dict[tuple[Any, ...], tuple[Path, Base | None]] = {}

    def layout(self, manifest: Manifest) -> Layout:
        """Of the run's model, which is built once."""
        if self._layout is None:
            config = manifest.config
            module = model.build(config.model, manifest.tokenizer.vocab_size, config.run.seed)
            self._layout = model.layout_of(module)
        return self._layout

    def base(self, path: Path, layout: Layout) -> Base:
        """The state in a file whose name is its root, or that of a file like it."""
        known = self._bases.get(path.name)
        if known is None:
            state = read_state(path, layout)
            known = self._bases[path.name] = Base(state, state_root(state))
        return known

    def once(
        self, key: tuple[Any, ...], out: Path, make: Callable[[], tuple[Path, Base | None]]
    ) -> tuple[Path, Base | None]:
        """What ``make`` gives, as a file in ``out``; made by the first who asks."""
        kept = self._made.get(key)
        if kept is None:
            path, base = make()
            copy = path.with_name(f"kept-{path.name}")
            shutil.copyfile(path, copy)
            self._made[key] = copy, base
            while len(self._made) > 256:
                self._made.pop(next(iter(self._made)))[0].unlink(missing_ok=True)
            return path, base
        path = out / f"copy-{kept[0].name}"
        shutil.copyfile(kept[0], path)
        return path, kept[1]


class StandIn:
    """In place of a :class:`artel.node.supervisor.Trainer`."""

    child = None
    alive = True
    pid = None

    def __init__(self, shared: Shared, number: int) -> None:
        self._shared, self._number = shared, number
        self._merging: Merging | None = None
        self._manifest: Manifest | None = None

    async def restart(self) -> None:
        """There is no process."""

    async def close(self) -> None:
        """There is no process."""

    def memory_bytes(self) -> int | None:
        """There is no process."""
        return None

    async def insist(self, work: Callable[[], Any], died: Callable[[Any], None]) -> Any:
        """Nothing dies here."""
        return await work()

    async def do(self, command: Any, *, on_progress: Any = None) -> Any:
        """Carry a command out as a trainer's child does."""
        match command:
            case orders.Weigh(manifest=path):
                manifest, _ = open_manifest(path.read_bytes())
                return orders.Weighed(manifest.model.parameters, 0)
            case orders.Load():
                self._load(command.manifest, command.state)
                merging = self._loaded
                return orders.Loaded(
                    "cpu", merging.agreed.now().root, hardware="cpu/native/fp32/t1/2"
                )
            case orders.Benchmark():
                return orders.Measured(SPEED, 1e-3)
            case orders.SetState():
                merging = self._loaded
                merging.agreed.replace(self._shared.base(command.state, merging.layout))
            case orders.Train():
                return self._train(command)
            case orders.Apply():
                given = tuple(one.blob.name for one in command.contributions)
                return self._step(("apply", command.round, given), command, "apply")
            case orders.Combine():
                given = tuple(one.blob.name for one in command.contributions)
                key = ("combine", command.round, command.slice, given)
                merging = self._loaded
                made = self._shared.once(
                    key, command.out, lambda: (merging.aggregate(command), None)
                )
                return made[0]
            case orders.ApplySlices():
                given = tuple(path.name for path in command.slices)
                return self._step(("slices", command.round, given), command, "apply_slices")
            case orders.Evaluate():
                return 1.0
        return None

    @property
    def _loaded(self) -> Merging:
        assert self._merging is not None
        return self._merging

    def _load(self, manifest_file: Path, state: Path) -> None:
        manifest, _ = open_manifest(manifest_file.read_bytes())
        layout = self._shared.layout(manifest)
        self._manifest = manifest
        self._merging = Merging(manifest, layout, Agreed(self._shared.base(state, layout)))

    def _step(self, key: tuple[Any, ...], command: Any, how: str) -> orders.Applied:
        merging = self._loaded

        def make() -> tuple[Path, Base | None]:
            applied = getattr(merging, how)(command)
            return applied.state, merging.agreed.now()

        path, base = self._shared.once(key, command.out, make)
        assert base is not None
        if merging.agreed.now().root != base.root:
            merging.agreed.replace(base)
        return orders.Applied(path, base.root, {})

    def _train(self, command: orders.Train) -> orders.Trained:
        """A contribution of numbers drawn by chance, others for each member and round."""
        merging = self._loaded
        manifest, layout = merging.manifest, merging.layout
        settings, base = manifest.config.exchange, merging.agreed.now()
        merging.agreed.take_changes(command.round)
        part = parts.fragment(layout, settings.fragments, command.round)
        pieces = [part]
        if command.slices:
            pieces = list(round_slices(layout, settings, command.round, command.slices))
        chance = np.random.default_rng([self._number, command.round])
        vector = chance.normal(0, 1e-3, part.parameters).astype(np.float32)
        written = exchange.write_contribution(
            manifest,
            pieces,
            exchange.encode(manifest, pieces, vector, None),
            round=command.round,
            base=base.root,
            sharded=command.slices > 0,
            out=command.out,
        )
        rows = command.out / "fingerprints"
        steps = command.steps - command.tail
        write_file(rows, chance.bytes(ROW_BYTES * steps), durable=False)
        tokens = assignment.Work.of(manifest.config).tokens(steps)
        return orders.Trained(
            blob=written.blob,
            parts=written.parts,
            size=written.size,
            fingerprints=rows,
            hardware="cpu/native/fp32/t1/2",
            payload=written.payload,
            loss=1.0,
            tokens=tokens,
            head=steps,
            span=0,
            tail=0,
            seconds={},
        )


async def joined(options: joining.Options, stack: AsyncExitStack, number: int) -> Daemon:
    """A node that has joined; on a busy machine it may take several tries, as for people."""
    for left in reversed(range(JOIN_TRIES)):
        try:
            async with AsyncExitStack() as attempt:
                node = await joining.join(options, attempt, lambda line: None)
                stack.push_async_callback(attempt.pop_all().aclose)
                return node
        except ArtelError as error:
            print(f"member {number} tries {left} times more: {error.message}", flush=True)
            if not left:
                raise
    raise AssertionError("not reached")


async def member(folder: Path, invite: Invite, number: int, shared: Shared, gate: Any) -> None:
    """One node, from its start to the end of the run."""
    home = folder / f"member-{number}"
    home.mkdir(parents=True)
    node, account = keys_of(number)
    key = home / "node.key"
    write_file(key, node.encode(), durable=False)
    key.chmod(0o600)
    options = joining.Options(
        home=home,
        invite=invite,
        identity=node,
        account=account,
        device="cpu",
        listen=LISTEN,
        announce=(),
        settings=OwnerSettings(threads=1, quota=QUOTA_MB),
        check=False,
    )
    making.set((shared, number))
    async with AsyncExitStack() as stack:
        async with gate:
            running = await joined(options, stack, number)
        print(f"member {number} has joined", flush=True)
        await running.run()


class Doors:
    """Streams between members without network daemons: each process listens on a socket of its own,
    and each member has a link to it by its name.

    :param place: folder of links, the same for all processes
    :param path: of this process's socket
    """

    HEAD = 128

    def __init__(self, place: Path, path: Path) -> None:
        self._place, self._path = place, path
        self._inside: dict[str, Host] = {}
        place.mkdir(exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(4096)

    def add(self, host: Host) -> None:
        """Let others reach a member of this process."""
        self._inside[host.peer_id] = host
        link = self._place / host.peer_id
        link.unlink(missing_ok=True)  # that of a try to join before
        link.symlink_to(self._path)

    async def keep(self) -> None:
        """Take in what others open."""
        loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._take(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _take(self, sock: socket.socket) -> None:
        loop, head = asyncio.get_running_loop(), b""
        while len(head) < self.HEAD:
            piece = await loop.sock_recv(sock, self.HEAD - len(head))
            if not piece:
                sock.close()
                return
            head += piece
        peer, caller, service = head.decode().split()
        name = network.PeerID.from_base58(caller).to_bytes()
        self._inside[peer]._reception.take(service, name, "127.0.0.1", sock)

    async def dial(self, host: Host, peer: str, service: str) -> socket.socket | None:
        """A stream to another member; None if that is not one that is here."""
        loop, sock = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, str(self._place / peer))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        head = f"{peer} {host.peer_id} {service}".encode().ljust(self.HEAD)
        await loop.sock_sendall(sock, head)
        return sock


def through(doors: Doors) -> None:
    """Have hosts of this process open streams to other members by these doors."""
    start, dial = Host.start.__func__, Host._dial  # type: ignore[attr-defined]

    async def started(cls: type[Host], *given: Any, **named: Any) -> Host:
        host: Host = await start(cls, *given, **named)
        doors.add(host)
        return host

    async def dialled(host: Host, peer: str, service: str) -> socket.socket:
        return await doors.dial(host, peer, service) or await dial(host, peer, service)

    Host.start = classmethod(started)  # type: ignore[assignment]
    Host._dial = dialled  # type: ignore[method-assign]


async def crowd(folder: Path, invite: Invite, first: int, count: int) -> None:
    """All members of this process, until SIGTERM or the end of the run."""
    shared, gate = Shared(), asyncio.Semaphore(START_AT_ONCE)
    # What a node has done in a thread must not wait until other nodes' threads have had answers.
    pool = ThreadPoolExecutor(THREADS * count)
    asyncio.get_running_loop().set_default_executor(pool)
    doors = Doors(folder.parent / "doors", folder / "door")
    through(doors)
    task = asyncio.current_task()
    assert task is not None
    on_signals(task.cancel, task.cancel)
    keeping = asyncio.create_task(doors.keep())
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(first, first + count):
                group.create_task(member(folder, invite, number, shared, gate))
    except asyncio.CancelledError:
        pass
    finally:
        await end(keeping)


def without_dht() -> None:
    """Let hosts of this process find and say nothing in the DHT, nor their network daemons."""
    arguments = p2pd.Settings.arguments

    def fewer(settings: p2pd.Settings, path: str) -> tuple[str, ...]:
        return tuple(each for each in arguments(settings, path) if each != "-dhtServer=1")

    p2pd.Settings.arguments = fewer  # type: ignore[method-assign]

    async def nothing(host: Host, *_: Any) -> dict[str, Any]:
        return {}

    for name in ("join", "lookup", "publish"):
        setattr(Host, name, nothing)


def slower() -> None:
    """Let what members do by the clock take its time."""
    os.environ.setdefault("GOMAXPROCS", "1")
    p2pd.START_S *= SLOWER
    p2pd.PROBE_EVERY_S *= SLOWER
    p2pd.PROBE_S *= SLOWER
    knocking.SWEEP_S *= SLOWER
    sealing.LOOK_S *= SLOWER
    daemon.ANSWER_S *= SLOWER
    interval = {"interval": watch.INTERVAL_S * SLOWER}
    watch.Watch.__init__.__kwdefaults__ |= interval


def main(argv: list[str]) -> int:
    """Run the members ``FIRST`` to ``FIRST + COUNT - 1`` of a folder."""
    folder, invite, first, count = argv
    joining.Trainer = lambda *_: StandIn(*making.get())  # type: ignore[assignment,misc]
    without_dht()
    p2pd._PATH = Path(os.environ.get(UNPACKED) or p2pd._PATH)
    slower()
    asyncio.run(crowd(Path(folder), Invite.decode(invite), int(first), int(count)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
