"""The trainer's command loop: requests come over a socket and are answered.

Requests ``{"id", "command", ...}``, answers ``{"id", "result"}`` or ``{"id", "error": {code,
message, hint, node}}``; while it trains also ``{"id", "progress"}``. Each command belongs to one of
two **lanes**, which go on at the same time and take their own commands in order:

- main: choose, load, set_state, benchmark, train, run_on, evaluate (:mod:`node.trainer.session`)
- merge: apply, aggregate, apply_slices (:mod:`node.trainer.merging`)

Two more do not wait for their turn: ``cancel`` ends the request that it names, at once while it
waits, between two of its steps while it runs; ``stop`` ends the process.

Three threads: the main one is the main lane and the only one that touches torch, ``merge`` is the
merge lane (numpy, and compiled loops that run without the interpreter's lock), ``reader`` reads the
socket. The reader is what notices that the daemon died (end of stream) and ends the process at
once, whatever the others are doing; files are only ever renamed into place when complete, so
nothing half-made stays under a final name.
"""

from __future__ import annotations

import collections
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from artel.node.trainer import channel
from artel.node.trainer.channel import Message, TrainerError
from artel.protocol.errors import ArtelError

if TYPE_CHECKING:
    from artel.node.trainer.session import Session

_PARENT_GONE = 3
_NICENESS = 5
_MERGING = frozenset({"apply", "aggregate", "apply_slices"})


class Lane:
    """Requests that wait for one thread, in order. Filled by the reader thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: collections.deque[Message] = collections.deque()

    def put(self, request: Message) -> None:
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()

    def get(self) -> Message:
        """The next request, as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            return self._waiting.popleft()

    def remove(self, number: int) -> bool:
        """Take a request out that still waits; False when it does not."""
        with self._changed:
            for request in self._waiting:
                if request["id"] == number:
                    self._waiting.remove(request)
                    return True
        return False


class Loop:
    """The child's end of the channel.

    ``_cancelled`` is filled by the reader thread and looked up by the lanes; ``_state`` guards
    ``_stopping`` and ``_busy``, the number of lanes at work; ``_sending`` guards the socket's
    outgoing side; ``_session`` is set by the main lane, and the merge lane uses its ``manifest``,
    ``layout`` and ``agreed`` alone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._main, self._merge = Lane(), Lane()
        self._cancelled: set[int] = set()
        self._state = threading.Lock()
        self._stopping = threading.Event()
        self._busy = 0
        self._sending = threading.Lock()
        self._nice = False
        self._session: Session | None = None

    def run(self) -> NoReturn:
        """Serve until told to stop; ends the process."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._send({"ready": os.getpid()})
        # Importing takes seconds; the daemon has other things to do meanwhile.
        _import_heavy()
        threading.Thread(target=self._serve, args=(self._merge,), name="merge", daemon=True).start()
        self._serve(self._main)

    def _serve(self, lane: Lane) -> NoReturn:
        """Carry a lane's requests out, one after the other."""
        while True:
            request = lane.get()
            with self._state:
                # Either the reader sees that we are busy and leaves the end to us, or we see it.
                if self._stopping.is_set():
                    self._answer_error(request["id"], _cancelled(request["command"]))
                    continue
                self._busy += 1
            self._answer(request)
            with self._state:
                self._busy -= 1
                if self._stopping.is_set() and not self._busy:
                    os._exit(0)  # taking torch apart in order would take seconds

    def _answer(self, request: Message) -> None:
        try:
            self._send({"id": request["id"], "result": self._execute(request)})
        except Exception as error:
            self._answer_error(request["id"], _failure(error))

    def _answer_error(self, number: int, failure: TrainerError) -> None:
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
        number, command = request["id"], request["command"]

        def check() -> None:
            if number in self._cancelled or self._stopping.is_set():
                raise _cancelled(command)

        check()
        if command == "choose":
            from artel.node.trainer import device

            return {"device": device.choose(request["device"])}
        if command == "load":
            return self._load(request)
        session = self._session
        if session is None:
            raise TrainerError("not_loaded", "the trainer has no run yet", "load one first")
        if command in _MERGING:
            return _merging(session, request)
        return self._main_lane(session, request, check)

    def _load(self, request: Message) -> Message:
        from artel.node.trainer import exchange
        from artel.node.trainer.session import open_session

        self._session = None  # frees the old run before the new one takes memory
        session = self._session = open_session(
            Path(request["manifest"]), Path(request["state"]), request["device"], request["threads"]
        )
        exchange.warm_up(session.manifest, session.inner.device.type)
        state, root = session.agreed.now()
        return {
            "parameters": session.layout.parameters,
            "device": session.inner.device.type,
            "precision": "bf16" if session.inner.bf16 else "fp32",
            "round": state.round,
            "root": root,
        }

    def _main_lane(self, session: Session, request: Message, check: Any) -> Message:
        from artel.node.trainer.heads import Order

        def report(progress: Message) -> None:
            self._send({"id": request["id"], "progress": progress})

        match request["command"]:
            case "set_state":
                return session.set_state(Path(request["state"]), request["root"])
            case "benchmark":
                return session.benchmark(request["steps"], check)
            case "train":
                self._step_back()
                order = Order(
                    round=request["round"],
                    node=request["node"],
                    windows=_windows(request),
                    out=Path(request["out"]),
                    steps=request["steps"],
                    tail=request["tail"],
                    slices=request["slices"],
                    deadline=request["deadline"],
                    carried=request["carried"],
                )
                return session.train(order, report, check)
            case "run_on":
                self._step_back()
                windows = _windows(request)
                return session.run_on(
                    request["round"], request["node"], windows, request["steps"], report, check
                )
            case "evaluate":
                return session.evaluate(_windows(request), check)
        raise TrainerError("bad_request", f"there is no command {request['command']!r}")

    def _step_back(self) -> None:
        """From the first round on, whatever else the owner of the machine does goes first.

        That is true of this thread and of those that torch starts for it. The merge lane keeps its
        place: the other nodes wait for what it computes.
        """
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
                        number = message["target"]
                        self._cancelled.add(number)
                        if self._main.remove(number) or self._merge.remove(number):
                            self._answer_error(number, _cancelled("the command"))
                    case "stop":
                        with self._state:
                            self._stopping.set()
                            if not self._busy:  # importing, or waiting for commands
                                os._exit(0)
                    case command:
                        (self._merge if command in _MERGING else self._main).put(message)
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


def _merging(session: Session, request: Message) -> Message:
    """A command of the merge lane."""
    from artel.node.trainer import merging

    run = merging.Run(session.manifest, session.layout, session.agreed)
    round, out = request["round"], Path(request["out"])
    if request["command"] == "apply_slices":
        paths = [Path(path) for path in request["slices"]]
        return merging.apply_slices(run, round, paths, request["count"], request["nodes"], out)
    listed = [
        merging.Listed(item["node"], Path(item["blob"]), item["weight"])
        for item in request["contributions"]
    ]
    if request["command"] == "apply":
        return merging.apply(run, round, listed, out)
    return merging.aggregate_slice(run, round, request["slice"], request["slices"], listed, out)


def _import_heavy() -> None:
    """Import what every run needs, before the first command asks for it."""
    import torch
    import transformers.modeling_utils

    import artel.node.trainer.merging
    import artel.node.trainer.session  # noqa: F401

    # One operation at a time; the parallelism that helps is inside it. Must precede any other work.
    torch.set_num_interop_threads(1)
    transformers.utils.logging.set_verbosity_error()


def _windows(request: Message) -> list[tuple[str, int]]:
    shards = request["shards"]
    return [(shards[shard], offset) for shard, offset in request["windows"]]


def _cancelled(what: str) -> TrainerError:
    return TrainerError("cancelled", f"{what} was cancelled")


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
