"""One peer of :mod:`benchmarks.exchange`: a process that takes orders as lines of JSON.

What the three systems have in common: the model's shapes, the numbers in it, the orders, the clock.
The parent process sends one order at a time to each peer of a system and waits for all replies; a
sync begins at a moment that it names, on the clock that all processes of a machine share.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from artel.protocol.errors import ArtelError
from artel.protocol.state import Layout, Vector

SYSTEMS = {
    "ours": "benchmarks.exchange_ours",
    "sharded": "benchmarks.exchange_sharded",
    "hivemind": "benchmarks.exchange_hivemind",
    "torchft": "benchmarks.exchange_torchft",
}
"""Which module has the class ``Peer`` of a system."""

SIZES = {
    "0.1M": (64, 176, 2, 512),
    "1M": (128, 384, 5, 258),
    "9M": (256, 704, 8, 10240),
    "40M": (512, 1408, 10, 16384),
}
"""Llama-shaped models: hidden size, intermediate size, layers, vocabulary (embeddings are tied)."""

STEP = 1e-3
"""Standard deviation of what the inner steps of a peer add to each weight."""


@dataclass(frozen=True)
class Setup:
    """What one peer is told at its start."""

    system: str
    variant: str
    number: int
    peers: int
    size: str
    address: str
    interface: str
    folder: str
    services: str
    """Address of what the system needs besides its peers (torchft's lighthouse), or ""."""


class Peer(Protocol):
    """A system's side of the benchmark, in one process."""

    def __init__(self, setup: Setup) -> None: ...

    def start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        """Come up. ``first`` is the reply of peer 0, None for peer 0 itself."""

    def meet(self, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Learn of all peers (the replies of :meth:`start`, in order)."""

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Train: put new weights in place; not timed."""

    def sync(self, order: dict[str, Any]) -> dict[str, Any]:
        """One synchronisation; ``phases`` (seconds) and ``digest`` of the new weights if asked."""

    def end(self) -> None:
        """Stop everything that was started."""


def layout(size: str) -> Layout:
    """The layout of one of :data:`SIZES`."""
    hidden, intermediate, layers, vocabulary = SIZES[size]
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embed", (vocabulary, hidden)),
        ("norm", (hidden,)),
    ]
    for layer in range(layers):
        shapes += [(f"{layer:02}.{name}", (hidden, hidden)) for name in ("k", "o", "q", "v")]
        shapes += [(f"{layer:02}.{name}", (intermediate, hidden)) for name in ("gate", "up")]
        shapes.append((f"{layer:02}.down", (hidden, intermediate)))
        shapes += [(f"{layer:02}.norm{place}", (hidden,)) for place in (1, 2)]
    return Layout.of(sorted(shapes))


def initial(size: str) -> Vector:
    """The weights that all peers begin with, shape (N,)."""
    numbers = np.random.default_rng(0).standard_normal(layout(size).parameters, np.float32)
    return numbers * np.float32(0.02)


def steps(size: str, number: int, round: int) -> Vector:
    """What the inner steps of a peer add to the weights in a round, shape (N,)."""
    random = np.random.default_rng([1, number, round])
    return random.standard_normal(layout(size).parameters, np.float32) * np.float32(STEP)


def serve() -> None:
    """Follow orders from standard input until it ends; ``sys.argv[1]`` is the setup."""
    # Libraries print what they like; the replies need a channel of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = Setup(**json.loads(sys.argv[1]))
    peer: Peer = importlib.import_module(SYSTEMS[setup.system]).Peer(setup)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = _follow(peer, order)
        except ArtelError as error:
            reply = {"error": error.message}
        except Exception as error:  # whatever a library raises: the parent tells it
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    # Threads and processes of libraries must not keep this one alive.
    os._exit(0)


def _follow(peer: Peer, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "start":
            return peer.start(order["first"])
        case "meet":
            return peer.meet(order["others"])
        case "prepare":
            return peer.prepare(order)
        case "sync":
            time.sleep(max(0.0, order["at"] - time.monotonic()))
            reply = peer.sync(order)
            return {"ended": time.monotonic(), **reply}
        case "end":
            peer.end()
            return {}
    raise ValueError(f"unknown order {order['do']}")
