"""torchft's DiLoCo over gloo as a peer of :mod:`benchmarks.exchange`.

Every peer is a replica group of one process: a manager, a TCP store, gloo. The inner optimiser is
SGD that changes nothing, so a step of it is what DiLoCo's hook does after it: the quorum at the
lighthouse, the pseudo-gradients, their all-reduce in fp32, the vote, Nesterov momentum, the copies.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from benchmarks.exchange_worker import Setup, initial, layout, steps

TIMEOUT = timedelta(seconds=120)


class Peer:
    """See :class:`benchmarks.exchange_worker.Peer`. Variants: "tensors" (one all-reduce for each
    tensor, torchft's default) and "buckets"."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = setup.interface
        self._setup = setup
        self._layout = layout(setup.size)
        self._manager: Any = None

    def start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        base = initial(self._setup.size)
        self._model = torch.nn.ParameterDict(
            {
                t.name.replace(".", "_"): torch.nn.Parameter(
                    torch.tensor(base[t.offset : t.offset + t.size]).view(t.shape)
                )
                for t in self._layout.tensors
            }
        )
        return {}

    def meet(self, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from torch.distributed import TCPStore
        from torchft.local_sgd import DiLoCo
        from torchft.manager import Manager
        from torchft.process_group import ProcessGroupGloo

        address, model = self._setup.address, self._model
        inner = torch.optim.SGD(model.parameters(), lr=0.0)
        outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False)

        def state_dict() -> dict[str, Any]:
            return {"model": model.state_dict(), "inner": inner.state_dict()}

        def load_state_dict(state: dict[str, Any]) -> None:
            model.load_state_dict(state["model"])
            inner.load_state_dict(state["inner"])

        self._manager = Manager(
            pg=ProcessGroupGloo(timeout=TIMEOUT),
            rank=0,
            world_size=1,
            store_addr=address,
            store_port=store.port,
            lighthouse_addr=f"http://{self._setup.services}",
            replica_id=f"replica{self._setup.number}",
            hostname=address,
            use_async_quorum=False,
            min_replica_size=self._setup.peers,
            timeout=TIMEOUT,
            quorum_timeout=TIMEOUT,
            # All begin with the same weights; its own way to send them asks for the host by the
            # machine's name, which a network namespace does not have.
            init_sync=False,
            load_state_dict=load_state_dict,
            state_dict=state_dict,
        )
        self._store, self._inner = store, inner
        self._diloco = DiLoCo(
            self._manager,
            [model],
            inner,
            outer,
            sync_every=1,
            use_bucketization=self._setup.variant == "buckets",
        )
        self._diloco.__enter__()
        return {}

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        change = steps(self._setup.size, self._setup.number, order["round"])
        with torch.no_grad():
            for place, value in zip(self._layout.tensors, self._model.values(), strict=True):
                part = change[place.offset : place.offset + place.size]
                value.add_(torch.from_numpy(part).view(place.shape))
        return {}

    def sync(self, order: dict[str, Any]) -> dict[str, Any]:
        began, before = time.monotonic(), self._manager.current_step()
        self._inner.step()
        ended = time.monotonic()
        # The outer step counts only when the replicas have voted for it.
        committed = self._manager.current_step() == before + 1
        reply: dict[str, Any] = {
            "averaged": self._manager.num_participants() if committed else 0,
            "phases": {"optimizer.step": ended - began},
            "ended": ended,
        }
        if order.get("digest"):
            digest = hashlib.sha256()
            for value in self._model.values():
                digest.update(value.detach().numpy().tobytes())
            reply["digest"] = digest.hexdigest()
        return reply

    def end(self) -> None:
        if self._manager is not None:
            self._manager.shutdown(wait=False)
