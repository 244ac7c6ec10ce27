"""hivemind's DecentralizedAverager as a peer of :mod:`benchmarks.exchange`.

Every peer has a DHT node and an averager, both in processes of their own as hivemind makes them,
and takes real averaging steps: matchmaking through the DHT, then the butterfly all-reduce. An
average is all that this is: no outer step, no root of the new state.

Two moments are told apart, as hivemind's Optimizer does, which looks for a group before it needs
one: ``matchmaking`` until the group stands, ``all-reduce`` from then on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HIVEMIND_LOGLEVEL", "CRITICAL")

import hivemind
import numpy as np
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.compression import CompressionBase, Float16Compression, quantization

from benchmarks.exchange_worker import Setup, initial, layout, steps

COMPRESSIONS: dict[str, type[CompressionBase]] = {
    "fp16": Float16Compression,
    "8bit": quantization.Uniform8BitQuantization,
}
STEP_TIMEOUT_S = 30.0
_POLL_S = 0.001


class _Numbers:
    """numpy for hivemind 1.1.12's quantisation, which numpy >= 2.4 breaks: there, int() of an
    array with one element is an error unless the array has no dimension."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def frombuffer(buffer: Any, *, count: int = -1, offset: int = 0, dtype: Any) -> Any:
        found = np.frombuffer(buffer, dtype, count, offset)
        return found[0] if count == 1 else found


quantization.np = _Numbers()


class Peer:
    """See :class:`benchmarks.exchange_worker.Peer`."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self._setup = setup
        self._layout = layout(setup.size)
        self._base = initial(setup.size)
        self._dht: hivemind.DHT | None = None
        self._averager: hivemind.DecentralizedAverager | None = None

    def start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        self._dht = hivemind.DHT(
            host_maddrs=[f"/ip4/{self._setup.address}/tcp/0"],
            initial_peers=first["addresses"] if first else [],
            start=True,
        )
        return {"addresses": [str(address) for address in self._dht.get_visible_maddrs()]}

    def meet(self, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
        tensors = [
            torch.tensor(self._base[t.offset : t.offset + t.size]).view(t.shape)
            for t in self._layout.tensors
        ]
        self._averager = hivemind.DecentralizedAverager(
            tensors,
            self._dht,
            prefix=f"bench{self._setup.variant}",
            target_group_size=self._setup.peers,
            min_group_size=self._setup.peers,
            compression=COMPRESSIONS[self._setup.variant](),
            allow_state_sharing=False,
            # Without a limit (the default) one lost message stops all peers of a step for good.
            allreduce_timeout=STEP_TIMEOUT_S,
            start=True,
        )
        return {}

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._averager is not None
        trained = self._base + steps(self._setup.size, self._setup.number, order["round"])
        with self._averager.get_tensors() as tensors:
            for tensor, place in zip(tensors, self._layout.tensors, strict=True):
                part = trained[place.offset : place.offset + place.size]
                tensor.copy_(torch.from_numpy(part).view(place.shape))
        return {}

    def sync(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._averager is not None
        began = grouped = time.monotonic()
        limit = order.get("timeout", STEP_TIMEOUT_S)
        control = self._averager.step(timeout=limit, allow_retries=False, wait=False)
        try:
            while control.stage.value < AveragingStage.RUNNING_ALLREDUCE.value:
                if control.done():
                    break
                time.sleep(_POLL_S)
            grouped = time.monotonic()
            met = control.result(timeout=limit)
        except Exception as error:
            # A step without a group is a result of this benchmark, not an end of it.
            return {"averaged": 0, "failed": f"{type(error).__name__}: {error}"}
        ended = time.monotonic()
        reply: dict[str, Any] = {
            "averaged": len(met),
            "phases": {"matchmaking": grouped - began, "all-reduce": ended - grouped},
            "ended": ended,
        }
        if order.get("digest"):
            reply["error_of_mean"] = self._error(order["round"])
        return reply

    def end(self) -> None:
        if self._averager is not None:
            self._averager.shutdown()
        if self._dht is not None:
            self._dht.shutdown()

    def _error(self, round: int) -> float:
        """Greatest distance from the true mean."""
        assert self._averager is not None
        peers = range(self._setup.peers)
        mean = self._base + sum(steps(self._setup.size, peer, round) for peer in peers) / len(peers)
        with self._averager.get_tensors() as tensors:
            found = np.concatenate([tensor.numpy().reshape(-1) for tensor in tensors])
        return float(np.abs(found - mean).max())
