"""The daemon's side of the trainer: start the child process, talk to it, notice when it dies.

Nothing here imports torch. A :class:`Trainer` is owned by the daemon's event loop; commands run in
the child in the order in which they were called, :meth:`Trainer.cancel` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from node.trainer import channel
from node.trainer.channel import Message, TrainerError
from node.trainer.launch import launch
from node.trainer.results import (
    Applied,
    Contribution,
    Evaluation,
    Loaded,
    Progress,
    Speed,
    Trained,
    Window,
)
from protocol.errors import ArtelError, DecodeError
from protocol.tasks import within

__all__ = [
    "Applied",
    "Contribution",
    "Evaluation",
    "Loaded",
    "Progress",
    "Speed",
    "Trained",
    "Trainer",
    "TrainerDied",
    "TrainerError",
    "Window",
]

START_S = 30.0
"""Until a fresh child answers; it does so before it imports torch."""
LOAD_S = 300.0
WORK_S = 600.0
"""Limit for benchmark, apply and evaluate; training has none unless the caller sets one."""
CANCEL_S = 60.0
"""Until a cancelled command must have ended: one inner step."""
STOP_S = 5.0
"""For each of asking, terminating and killing."""


class TrainerDied(ArtelError):
    """The child process is gone. ``returncode``: its exit code, negative for a signal."""

    def __init__(self, message: str, hint: str, returncode: int | None) -> None:
        super().__init__(message, hint)
        self.returncode = returncode


@dataclass
class _Call:
    """A request that waits for its answer."""

    command: str
    answer: asyncio.Future[Message]
    on_progress: Callable[[Progress], None] | None


@dataclass
class _Child:
    """One child process. ``dead`` is set, once, to why it ended."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    ready: asyncio.Future[Message]
    dead: asyncio.Future[TrainerDied]
    calls: dict[int, _Call] = field(default_factory=dict)
    reading: asyncio.Task[None] = field(init=False)
    """Owns the incoming side, and reaps the process."""


class Trainer:
    """A supervised trainer process. Make one with :meth:`start`, end it with :meth:`close`."""

    def __init__(self, log_file: Path | None, threads: int) -> None:
        self._log_file = log_file
        self._threads = threads
        self._child: _Child | None = None
        self._next_id = 0

    @classmethod
    async def start(cls, *, log_file: Path | None = None, threads: int = 0) -> Trainer:
        """Start a child process; it imports torch while the caller goes on.

        :param log_file: takes what the child and its libraries print; None: our standard error
        :param threads: torch threads; 0 takes every core that this process may use
        :raises TrainerDied: the child ended at once
        :raises ResourceError: it cannot be started
        """
        trainer = cls(log_file, threads)
        try:
            await trainer._spawn()
        except BaseException:
            await trainer.close()
            raise
        return trainer

    async def restart(self) -> None:
        """End the child, if it lives, and start a fresh one, without a run.

        The optimiser's moments are lost; they start at zero again.
        """
        await self.close()
        await self._spawn()

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._child.dead.done()

    @property
    def pid(self) -> int | None:
        """Process id of the child while it lives."""
        return self._child.process.pid if self._child is not None and self.alive else None

    def memory_bytes(self) -> int | None:
        """Resident memory of the child, None when it is gone."""
        try:
            return None if self.pid is None else int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    async def wait_dead(self) -> TrainerDied:
        """Wait until the child is gone, for whatever reason; returns why."""
        if self._child is None:
            return TrainerDied("the trainer was stopped", "", None)
        return await asyncio.shield(self._child.dead)

    async def load(
        self, manifest: Path, state: Path, *, device: str = "auto", timeout: float = LOAD_S
    ) -> Loaded:
        """Load a run from its signed manifest and one of its states.

        :raises TrainerError: ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``
        :raises TrainerDied: as every command
        """
        start = time.monotonic()
        result = await self._call(
            "load",
            timeout,
            manifest=_absolute(manifest),
            state=_absolute(state),
            device=device,
            threads=self._threads,
        )
        return Loaded(**result, seconds=time.monotonic() - start)

    async def set_state(self, state: Path, *, timeout: float = LOAD_S) -> int:
        """Replace parameters and outer buffers; returns the round of the state.

        :raises TrainerError: ``bad_state``; the old state stays
        """
        result = await self._call("set_state", timeout, state=_absolute(state))
        return int(result["round"])

    async def benchmark(self, steps: int = 3, *, timeout: float = WORK_S) -> Speed:
        """Time ``steps`` inner steps (and one before them); nothing changes."""
        return Speed(**await self._call("benchmark", timeout, steps=max(1, steps)))

    async def train(
        self,
        round: int,
        node: str,
        windows: Sequence[Window],
        out: Path,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
    ) -> Trained:
        """Train the node's part of a round and write its contribution's blob into ``out``.

        The current state stays; the same call again gives the same blob. A caller that is itself
        cancelled cancels the training.

        :param node: peer id
        :param windows: H * batch windows, in training order; their files must stay in place
        :param on_progress: called about twice a second
        :raises TrainerError: ``wrong_round``, ``bad_data``, ``cancelled``, ``timeout``,
            ``diverged``, ``disk_full``, ``disk``, ``out_of_memory``
        """
        result = await self._call(
            "train",
            timeout,
            on_progress,
            round=round,
            node=node,
            out=_absolute(out),
            **_listed(windows),
        )
        return Trained(**result | {"blob": Path(result["blob"])})

    async def apply(
        self,
        round: int,
        contributions: Sequence[Contribution],
        out: Path,
        *,
        timeout: float = WORK_S,
    ) -> Applied:
        """Apply a closed round to the current state; writes the next state's file into ``out``.

        Cannot be interrupted: after a cancelled wait, set the state before anything else.

        :raises TrainerError: ``bad_blob`` (``node`` says whose), ``wrong_round``, ``diverged``,
            ``disk_full``, ``disk``, ``out_of_memory``; then nothing has changed
        """
        result = await self._call(
            "apply",
            timeout,
            round=round,
            out=_absolute(out),
            contributions=[
                {"node": c.node, "blob": _absolute(c.blob), "weight": c.weight}
                for c in contributions
            ],
        )
        return Applied(**result | {"state": Path(result["state"])})

    async def evaluate(self, windows: Sequence[Window], *, timeout: float = WORK_S) -> Evaluation:
        """Loss of the current agreed state on windows.

        :raises TrainerError: ``bad_data``, ``cancelled``, ``timeout``, ``diverged``
        """
        return Evaluation(**await self._call("evaluate", timeout, **_listed(windows)))

    def cancel(self) -> None:
        """End the commands that run or wait; each raises ``cancelled``, unless it is done before.

        Loading, setting a state and applying a round are not interrupted.
        """
        if self._child is not None and self.alive:
            for number in self._child.calls:
                self._send(self._child, {"command": "cancel", "target": number})

    async def close(self) -> None:
        """End the child: ask, then terminate, then kill. Returns within about 15 s; idempotent."""
        child = self._child
        if child is None:
            return
        if not child.dead.done():
            self._send(child, {"command": "stop"})
        for act in (None, child.process.terminate, child.process.kill):
            if act is not None:
                with contextlib.suppress(ProcessLookupError):
                    act()
            with contextlib.suppress(TimeoutError):
                await within(asyncio.shield(child.dead), STOP_S)
                break
        child.reading.cancel()
        await asyncio.wait([child.reading])
        self._child = None

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _spawn(self) -> None:
        process, ours = await launch(self._log_file, self._threads)
        reader, writer = await asyncio.open_connection(sock=ours)
        loop = asyncio.get_running_loop()
        child = _Child(process, writer, ready=loop.create_future(), dead=loop.create_future())
        child.reading = loop.create_task(self._read(child, reader))
        self._child = child
        first: set[asyncio.Future[Any]] = {child.ready, child.dead}
        await asyncio.wait(first, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if not child.ready.done():
            await self.close()
            raise child.dead.result()

    async def _read(self, child: _Child, reader: asyncio.StreamReader) -> None:
        """Owner of the incoming side; ends with the child."""
        try:
            while True:
                length = channel.length_of(await reader.readexactly(channel.LENGTH.size))
                self._dispatch(child, channel.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the child closed its end: it is ending, or dead
        except DecodeError:
            child.process.kill()
        finally:
            await self._bury(child)

    def _dispatch(self, child: _Child, message: Message) -> None:
        if "ready" in message:
            child.ready.set_result(message)
            return
        call = child.calls.get(message["id"])
        if call is None or call.answer.done():
            return
        if "progress" in message:
            if call.on_progress is not None:
                try:
                    call.on_progress(Progress(**message["progress"]))
                except Exception as error:  # the callback's bug belongs to the caller of train()
                    call.answer.set_exception(error)
                    self._send(child, {"command": "cancel", "target": message["id"]})
        elif "error" in message:
            call.answer.set_exception(TrainerError(**message["error"]))
        else:
            call.answer.set_result(message["result"])

    async def _bury(self, child: _Child) -> None:
        """Reap the child and tell everybody who waits for it."""
        child.writer.transport.abort()  # close() would wait for what the child does not read
        try:
            # A child whose socket is closed can do nothing useful any more.
            returncode = await within(child.process.wait(), STOP_S)
        except (TimeoutError, asyncio.CancelledError):
            child.process.kill()
            returncode = await child.process.wait()
        death = self._death(returncode)
        child.dead.set_result(death)
        for call in child.calls.values():
            if not call.answer.done():
                call.answer.set_exception(death)

    def _death(self, returncode: int) -> TrainerDied:
        log = f"its log is {self._log_file}" if self._log_file else "its output is above"
        if returncode == 0:
            return TrainerDied("the trainer was stopped", "", 0)
        if returncode > 0:
            return TrainerDied(f"the trainer ended with exit code {returncode}", log, returncode)
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = log
        if returncode == -signal.SIGKILL:
            hint = (
                "most likely the machine is out of memory: close other programs, or join a run "
                "with a smaller model or batch"
            )
        return TrainerDied(f"the trainer was killed by {name}", hint, returncode)

    async def _call(
        self,
        command: str,
        timeout: float | None,
        on_progress: Callable[[Progress], None] | None = None,
        **arguments: Any,
    ) -> Message:
        child = self._child
        if child is None or child.dead.done():
            raise TrainerDied("the trainer is not running", "start it again", None)
        self._next_id += 1
        number = self._next_id
        frame = channel.encode({"id": number, "command": command, **arguments})
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda f: f.cancelled() or f.exception())  # looked at, always
        child.calls[number] = _Call(command, answer, on_progress)
        try:
            child.writer.write(frame)
            await asyncio.wait({answer}, timeout=timeout)
            if not answer.done():
                await self._out_of_time(child, number, command, timeout or 0.0)
            return answer.result()
        finally:
            del child.calls[number]
            if not answer.done():  # the caller was cancelled: the child must not go on with it
                self._send(child, {"command": "cancel", "target": number})

    async def _out_of_time(self, child: _Child, number: int, command: str, timeout: float) -> None:
        """Cancel a command; a child that does not let go of it is killed."""
        hint = "the machine is too slow for this run, or busy with something else"
        self._send(child, {"command": "cancel", "target": number})
        answer = child.calls[number].answer
        await asyncio.wait({answer}, timeout=CANCEL_S)
        if answer.done():
            failed = answer.exception()
            if isinstance(failed, TrainerError) and failed.code == "cancelled":
                raise TrainerError("timeout", f"{command} took longer than {timeout:g} s", hint)
            return
        child.process.kill()
        await child.dead
        raise TrainerDied(
            f"the trainer hung in {command} for {timeout + CANCEL_S:g} s and was killed", hint, None
        )

    def _send(self, child: _Child, message: Message) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # a dead child is reported by its reader
            child.writer.write(channel.encode(message))


def _listed(windows: Sequence[Window]) -> Message:
    """Windows as they pass to the child: every path once."""
    shards = {path: number for number, path in enumerate(dict.fromkeys(p for p, _ in windows))}
    return {
        "shards": [_absolute(path) for path in shards],
        "windows": [(shards[path], offset) for path, offset in windows],
    }


def _absolute(path: Path) -> str:
    return str(path.absolute())
