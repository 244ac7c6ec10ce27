"""One trainer process as its parent sees it: requests out, answers in, and why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.node.trainer import channel, orders
from artel.node.trainer.channel import Message, TrainerError
from artel.node.trainer.launch import launch
from artel.node.trainer.orders import Answer, Command, Steps
from artel.node.trainer.throttle import Allowance
from artel.protocol import tether
from artel.protocol.cgroup import Groups
from artel.protocol.errors import ArtelError, DecodeError
from artel.protocol.tasks import within
from artel.protocol.terminal import printable

START_S = 30.0
"""Until a fresh child answers; it does so before it imports torch."""
CANCEL_S = 60.0
"""Until a cancelled command must have ended: one inner step."""
STOP_S = 5.0
"""For each of asking and killing."""
MAX_WORDS_BYTES = 8192
LAST_LINES, MAX_LINE = 3, 200
"""Of the child's log in the error that says why it ended."""


class TrainerDied(ArtelError):
    """The child process is gone."""


@dataclass
class _Call:
    """A request that waits for its answer."""

    answer: asyncio.Future[Message]
    on_progress: Callable[[Steps], None] | None


class Child:
    """A child process; owned by one event loop. Make one with :meth:`start`.

    ``dead`` is set, once, to why it ended.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        writer: asyncio.StreamWriter,
        log: Path | None,
        log_size: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.dead: asyncio.Future[TrainerDied] = loop.create_future()
        self._writer = writer
        self._log, self._log_size = log, log_size
        self._kills = Groups().kills()
        self._ready: asyncio.Future[Message] = loop.create_future()
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._reading: asyncio.Task[None]
        """Owns the incoming side, and reaps the process."""

    @classmethod
    async def start(cls, log_file: Path | None, threads: int) -> Child:
        """Start a process, and wait until it answers.

        :raises TrainerDied: it ended at once
        :raises ResourceError: it cannot be started
        """
        process, ours, log_size = await launch(log_file, threads)
        reader, writer = await asyncio.open_connection(sock=ours, limit=channel.MAX_BYTES)
        child = cls(process, writer, log_file, log_size)
        child._reading = asyncio.create_task(child._read(reader))
        try:
            first: set[asyncio.Future[Any]] = {child._ready, child.dead}
            await asyncio.wait(first, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await child.end()
            raise
        if not child._ready.done():
            await child.end()
            raise child.dead.result()
        return child

    async def call(
        self,
        command: Command[Answer],
        on_progress: Callable[[Steps], None] | None,
    ) -> Answer:
        """Have a command carried out.

        What loads, sets a state, applies or aggregates is not interrupted once it runs.

        :raises TrainerError: the child says no, or the command's time is over
        :raises TrainerDied: the child is gone
        """
        number = next(self._numbers)
        name, body = command.name(), orders.plain(command)
        line = channel.encode({"id": number, "command": name, "with": body})
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda f: f.cancelled() or f.exception())  # looked at, always
        self._calls[number] = _Call(answer, on_progress)
        try:
            self._writer.write(line)
            await asyncio.wait({answer}, timeout=command.limit_s)
            if not answer.done():
                await self._out_of_time(number, name, command.limit_s or 0.0)
            return orders.answer(command, answer.result()["result"])
        finally:
            del self._calls[number]
            if not answer.done():  # the caller was cancelled: the child must not go on with it
                self._send({"command": "cancel", "target": number})

    def limit(self, share: Allowance) -> None:
        """Say what the child may take from now on."""
        self._send({"command": "limit", "share": vars(share)})

    async def end(self) -> None:
        """Ask the process to end, then kill it."""
        if not self.dead.done():
            self._send({"command": "stop"})
        try:
            await within(asyncio.shield(self.dead), STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await asyncio.wait({self.dead}, timeout=STOP_S)
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Owner of the incoming side; ends with the child."""
        try:
            # Without its end a line is the last words of a child that is ending, or dead.
            while (line := await reader.readline()).endswith(b"\n"):
                self._dispatch(channel.decode(line))
        except OSError:
            pass  # as above
        except (DecodeError, ValueError):  # ValueError: an endless line
            self.process.kill()
        finally:
            await self._bury()

    def _dispatch(self, message: Message) -> None:
        if "ready" in message:
            self._ready.set_result(message)
            return
        call = self._calls.get(message["id"])
        if call is None or call.answer.done():
            return
        if "progress" in message:
            if call.on_progress is not None:
                try:
                    call.on_progress(Steps(**message["progress"]))
                except Exception as error:  # the callback's bug belongs to the caller of train()
                    call.answer.set_exception(error)
                    self._send({"command": "cancel", "target": message["id"]})
        elif "error" in message:
            call.answer.set_exception(TrainerError(**message["error"]))
        else:
            call.answer.set_result(message)

    async def _bury(self) -> None:
        """Reap the child and tell everybody who waits for it."""
        self._writer.transport.abort()  # close() would wait for what the child does not read
        try:
            # A child whose socket is closed can do nothing useful any more.
            returncode = await within(self.process.wait(), STOP_S)
        except (TimeoutError, asyncio.CancelledError):
            self.process.kill()
            returncode = await self.process.wait()
        death = self._death(returncode)
        self.dead.set_result(death)
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(death)

    def _death(self, returncode: int) -> TrainerDied:
        if returncode == 0:
            return TrainerDied("the trainer was stopped")
        log = f"its log is {self._log}" if self._log else "its output is above"
        message = f"the trainer {tether.ending(returncode)}"
        if returncode != -signal.SIGKILL:
            said = self._last_words()
            return TrainerDied(message + (f": {said}" if said else ""), log)
        groups = Groups()
        kills, limit = groups.kills(), groups.memory().limit
        helps = "close other programs, or join a run with a smaller model or batch"
        bound = "the machine's memory is full"
        if limit is not None:
            helps = "give the container or service more memory, or join a run with a smaller model"
            bound = f"its container or service may use {limit / 1e6:,.0f} MB"
        if None not in (kills, self._kills) and kills != self._kills:
            killed = f"the kernel killed the trainer for lack of memory: {bound}"
            return TrainerDied(killed, helps)
        return TrainerDied(message, f"most likely there was no memory left: {helps}")

    def _last_words(self) -> str:
        """The end of what this child has written to its log, as one line."""
        if self._log is None:
            return ""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_size, size - MAX_WORDS_BYTES))
                text = file.read(MAX_WORDS_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [printable(line.strip())[:MAX_LINE] for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-LAST_LINES:])

    async def _out_of_time(self, number: int, command: str, timeout: float) -> None:
        """Cancel a command; a child that does not let go of it is killed."""
        hint = "the machine is too slow for this run, or busy with something else"
        self._send({"command": "cancel", "target": number})
        answer = self._calls[number].answer
        await asyncio.wait({answer}, timeout=CANCEL_S)
        if answer.done():
            failed = answer.exception()
            if isinstance(failed, TrainerError) and failed.code == "cancelled":
                raise TrainerError("timeout", f"{command} took longer than {timeout:g} s", hint)
            return
        self.process.kill()
        await self.dead
        raise TrainerDied(
            f"the trainer hung in {command} for {timeout + CANCEL_S:g} s and was killed", hint
        )

    def _send(self, message: Message) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # a dead child is reported by its reader
            self._writer.write(channel.encode(message))
