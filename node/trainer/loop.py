"""The trainer's command loop: requests come over a socket, one at a time, and are answered.

Requests ``{"id", "command", ...}``, answers ``{"id", "result"}`` or ``{"id", "error": {code,
message, hint, node}}``; while it trains also ``{"id", "progress"}``. Commands: load, set_state,
benchmark, train, apply, evaluate (see :mod:`node.trainer.session`), and two that do not wait for
their turn: ``cancel`` ends the request that it names between two of its steps, ``stop`` ends the
process.

Two threads: the main one computes, the other reads the socket. The reader is what notices that the
daemon died (end of stream) and ends the process at once, whatever the main thread is doing; files
are only ever renamed into place when complete, so nothing half-made stays under a final name.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from node.trainer import channel
from node.trainer.channel import Message, TrainerError
from protocol.errors import ArtelError

_PARENT_GONE = 3
_NICENESS = 5


class Loop:
    """The child's end of the channel.

    ``_requests`` is filled by the reader thread and emptied by the main one; ``_cancelled`` and
    ``_stopping`` are set in the reader thread and looked up in the main one, ``_busy`` the other
    way round; ``_sending`` guards the socket's outgoing side.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._stopping = threading.Event()
        self._busy = threading.Event()
        self._sending = threading.Lock()
        self._nice = False
        self._session: Any = None  # node.trainer.session.Session; its module imports torch

    def run(self) -> NoReturn:
        """Serve until told to stop; ends the process."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._send({"ready": os.getpid()})
        # Importing takes seconds; the daemon has other things to do meanwhile.
        _import_heavy()
        while True:
            request = self._requests.get()
            # In this order: either the reader sees that we are busy and leaves the stop to us, or
            # we see the stop.
            self._busy.set()
            if self._stopping.is_set():
                os._exit(0)  # taking torch apart in order would take seconds
            self._answer(request)
            self._busy.clear()

    def _answer(self, request: Message) -> None:
        number = request["id"]
        try:
            self._send({"id": number, "result": self._execute(request)})
        except Exception as error:
            failure = _failure(error)
            self._send(
                {
                    "id": number,
                    "error": {
                        "code": failure.code,
                        "message": failure.message,
                        "hint": failure.hint,
                        "node": failure.node,
                    },
                }
            )

    def _execute(self, request: Message) -> Message:
        from node.trainer.exchange import Listed
        from node.trainer.session import open_session

        number, command = request["id"], request["command"]

        def check() -> None:
            if number in self._cancelled or self._stopping.is_set():
                raise TrainerError("cancelled", f"{command} was cancelled")

        def report(progress: Message) -> None:
            self._send({"id": number, "progress": progress})

        check()
        if command == "load":
            self._session = None  # frees the old run before the new one takes memory
            self._session = open_session(
                Path(request["manifest"]),
                Path(request["state"]),
                request["device"],
                request["threads"],
            )
            return {
                "parameters": self._session.layout.parameters,
                "device": self._session.inner.device.type,
                "round": self._session.state.round,
                "root": self._session.root,
            }
        session = self._session
        if session is None:
            raise TrainerError("not_loaded", "the trainer has no run yet", "load one first")
        match command:
            case "set_state":
                result = session.set_state(Path(request["state"]))
            case "benchmark":
                result = session.benchmark(request["steps"], check)
            case "train":
                self._step_back()
                windows = _windows(request)
                out = Path(request["out"])
                result = session.train(
                    request["round"], request["node"], windows, out, report, check
                )
            case "apply":
                listed = [
                    Listed(item["node"], Path(item["blob"]), item["weight"])
                    for item in request["contributions"]
                ]
                result = session.apply(request["round"], listed, Path(request["out"]))
            case "evaluate":
                result = session.evaluate(_windows(request), check)
            case _:
                raise TrainerError("bad_request", f"there is no command {command!r}")
        return dict(result)

    def _step_back(self) -> None:
        """From the first round on, whatever else the owner of the machine does goes first."""
        if not self._nice:
            self._nice = True
            os.nice(_NICENESS)

    def _read(self) -> None:
        """The reader thread: queue requests, take cancel and stop at once."""
        try:
            while True:
                length = channel.length_of(self._receive(channel.LENGTH.size))
                message = channel.decode(self._receive(length))
                match message["command"]:
                    case "cancel":
                        self._cancelled.add(message["target"])
                    case "stop":
                        self._stopping.set()
                        self._requests.put(message)
                        if not self._busy.is_set():  # importing, or waiting for a command
                            os._exit(0)
                    case _:
                        self._requests.put(message)
        except (EOFError, OSError):
            os._exit(_PARENT_GONE)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._connection.recv(min(size - len(data), 1 << 16))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _send(self, message: Message) -> None:
        try:
            with self._sending:
                self._connection.sendall(channel.encode(message))
        except OSError:
            os._exit(_PARENT_GONE)


def _import_heavy() -> None:
    """Import what every run needs, before the first command asks for it."""
    import torch
    import transformers.modeling_utils

    import node.trainer.session  # noqa: F401

    # One operation at a time; the parallelism that helps is inside it. Must precede any other work.
    torch.set_num_interop_threads(1)
    transformers.utils.logging.set_verbosity_error()


def _windows(request: Message) -> list[tuple[str, int]]:
    shards = request["shards"]
    return [(shards[shard], offset) for shard, offset in request["windows"]]


def _failure(error: Exception) -> TrainerError:
    """What the daemon hears of an exception; an unexpected one leaves its traceback in the log."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, ArtelError):
        return TrainerError("failed", error.message, error.hint)
    text = str(error)
    # torch has a class for CUDA only; its CPU allocator raises a plain RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
    ):
        return TrainerError(
            "out_of_memory",
            "the trainer ran out of memory",
            "close other programs, or join a run with a smaller model or batch",
        )
    traceback.print_exception(error, file=sys.stderr)
    first = text.strip().splitlines()[0][:200] if text.strip() else ""
    return TrainerError(
        "crash",
        f"the trainer failed: {type(error).__name__}{': ' if first else ''}{first}",
        "its log has the traceback; please report it",
    )
