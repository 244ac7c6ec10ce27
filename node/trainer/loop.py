"""The trainer's command loop: requests come over a socket and are answered.

Requests ``{"id", "command", "with"}``, answers ``{"id", "result"}`` or ``{"id", "error": {code,
message, hint, node}}``; while it trains also ``{"id", "progress"}``. :mod:`node.trainer.orders` has
the commands and their two lanes: main (:mod:`node.trainer.training`) and merge
(:mod:`node.trainer.merging`).

Three more do not wait for their turn and have no answer: ``cancel`` ends the request that it names,
at once while it waits, between two of its steps while it runs; ``limit`` says what the process may
take (:mod:`node.trainer.throttle`); ``stop`` ends it.

Three threads: the main one is the main lane and the only one that touches torch, ``merge`` is the
merge lane (numpy, and compiled loops that run without the interpreter's lock), ``reader`` reads the
socket. The reader is what notices that the daemon died (end of stream) and ends the process at
once, whatever the others are doing; files are only ever renamed into place when complete, so
nothing half-made stays under a final name.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from artel.node.trainer import channel, orders
from artel.node.trainer.channel import Message, TrainerError
from artel.node.trainer.throttle import Allowance, Throttle
from artel.protocol.errors import ArtelError

if TYPE_CHECKING:
    from artel.node.trainer.training import Training

_PARENT_GONE = 3
_NICENESS = 5

Lane = queue.SimpleQueue[Message]
"""Requests for one thread, in order; filled by the reader thread."""


class Loop:
    """The child's end of the channel.

    ``_cancelled`` is filled by the reader thread and looked up by the lanes; ``_state`` guards
    ``_stopping``, ``_busy``, the number of lanes at work, and ``_waiting``, the requests in lanes
    (who takes one out of it answers it); ``_sending`` guards the socket's outgoing side;
    ``_training`` is set by the main lane, and the merge lane uses its ``merging`` alone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._main, self._merge = Lane(), Lane()
        self._waiting: set[int] = set()
        self._cancelled: set[int] = set()
        self._state = threading.Lock()
        self._stopping = threading.Event()
        self._busy = 0
        self._sending = threading.Lock()
        self._nice = False
        self._throttle = Throttle()
        self._training: Training | None = None

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
            if not self._take(request["id"]):
                continue  # cancelled, and answered
            with self._state:
                # Either the reader sees that we are busy and leaves the end to us, or we see it.
                if self._stopping.is_set():
                    self._answer_error(request["id"], _cancelled(request["command"]))
                    continue
                self._busy += 1
            if lane is self._main:
                self._throttle.apply(self._training.inner if self._training else None)
            self._answer(request)
            with self._state:
                self._busy -= 1
                if self._stopping.is_set() and not self._busy:
                    os._exit(0)  # taking torch apart in order would take seconds

    def _take(self, number: int) -> bool:
        """Take a request that waits; False when it was taken before."""
        with self._state:
            waits = number in self._waiting
            self._waiting.discard(number)
        return waits

    def _answer(self, request: Message) -> None:
        try:
            done = self._execute(request)
            self._send({"id": request["id"], "result": orders.plain(done)})
        except Exception as error:
            self._answer_error(request["id"], _failure(error))

    def _answer_error(self, number: int, failure: TrainerError) -> None:
        self._send({"id": number, "error": vars(failure)})

    def _execute(self, request: Message) -> Any:
        """Carry a command out; returns what comes back."""
        number = request["id"]

        def check() -> None:
            if number in self._cancelled or self._stopping.is_set():
                raise _cancelled(request["command"])

        def report(steps: orders.Steps) -> None:
            self._send({"id": number, "progress": orders.plain(steps)})

        check()
        command = orders.command(request["command"], request["with"])
        match command:
            case orders.Choose():
                from artel.node.trainer import machine

                return machine.choose(command.device)
            case orders.Weigh():
                from artel.node.trainer.training import weigh

                return weigh(command.manifest)
            case orders.Load():
                return self._load(command)
        training = self._training
        if training is None:
            raise TrainerError("not_loaded", "the trainer has no run yet", "load one first")
        match command:
            case orders.Apply():
                return training.merging.apply(command)
            case orders.Combine():
                return training.merging.aggregate(command)
            case orders.ApplySlices():
                return training.merging.apply_slices(command)
            case orders.SetState():
                return training.set_state(command)
            case orders.Benchmark():
                return training.benchmark(command, check)
            case orders.Train():
                self._step_back()
                return training.train(command, report, check)
            case orders.RunOn():
                self._step_back()
                return training.run_on(command, report, check)
            case orders.Evaluate():
                return training.evaluate(command, check)
            case orders.BeginReplay():
                return training.begin_replay(command)
            case orders.GoOn():
                self._step_back()
                return training.go_on(command, check)
            case orders.DropReplay():
                return training.drop_replay()
        raise TrainerError("bad_request", f"the trainer does not know how to {command.name()}")

    def _load(self, command: orders.Load) -> orders.Loaded:
        from artel.node.trainer import exchange
        from artel.node.trainer.training import open_training

        self._training = None  # frees the old run before the new one takes memory
        training = open_training(command.manifest, command.state, command.device)
        exchange.warm_up(training.manifest, training.inner.device.type)
        self._training = training
        inner = training.inner
        return orders.Loaded(inner.device.type, training.agreed.now().root, inner.hardware)

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
            for line in self._connection.makefile("rb"):
                if not line.endswith(b"\n"):
                    break
                message = channel.decode(line)
                match message["command"]:
                    case "cancel":
                        number = message["target"]
                        self._cancelled.add(number)
                        if self._take(number):
                            self._answer_error(number, _cancelled("the command"))
                    case "limit":
                        self._throttle.take(Allowance(**message["share"]))
                    case "stop":
                        with self._state:
                            self._stopping.set()
                            if not self._busy:  # importing, or waiting for commands
                                os._exit(0)
                    case command:
                        lane = self._merge if orders.COMMANDS[command].merges else self._main
                        with self._state:
                            self._waiting.add(message["id"])
                        lane.put(message)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(_PARENT_GONE)

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

    import artel.node.trainer.merging
    import artel.node.trainer.training  # noqa: F401

    # One operation at a time; the parallelism that helps is inside it. Must precede any other work.
    torch.set_num_interop_threads(1)
    transformers.utils.logging.set_verbosity_error()


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
