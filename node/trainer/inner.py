"""Inner optimisation: the steps of one node on its own data.

The scheme is DiLoCo's (arXiv 2311.08105): an ordinary optimiser (:mod:`node.trainer.muon`) whose
moments are kept across rounds and never sent.

The module's parameters are views into one flat fp32 vector in the order of the run's layout, so
that loading a state, going back to it and forming a pseudo-gradient are single passes.

An evaluation has a module of its own, made from a copy that no forward pass has ever touched: in
eval mode some architectures change their weights in place, or remember that they did.

Memory, N parameters in fp32: 4N parameters, 4N gradients, 8N moments on the device, and 12N more on
the CPU for weights and moments at the beginning of the round (:class:`Saved`), which a repeated
attempt starts from; 4N more on the device during an evaluation. Muon's matrices have 4 bytes of
moments instead of 8.

Same bits: a round trained twice from the same state on one CPU, with the same number of threads and
the same software, gives the same bits. CUDA kernels may add in another order.
"""

from __future__ import annotations

import copy
import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from artel.node.trainer import machine
from artel.node.trainer.data import Batch
from artel.node.trainer.muon import optimizers
from artel.protocol import objective
from artel.protocol.exchange.parts import Part
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, Vector

_SEED = b"artel/training/v1\0"


def training_seed(run_seed: int, round: int, node: str, *, tail: bool) -> int:
    """Seed of a node's own randomness (dropout) in the head or the tail of a round, 63 bits."""
    numbers = struct.pack(">QQB", run_seed, round, tail)
    return int.from_bytes(hashlib.sha256(_SEED + numbers + node.encode()).digest()[:8], "big") >> 1


@dataclass
class Saved:
    """A copy, on the CPU, of the weights and of the optimisers' state.

    ``moments``: by position of the parameter, then by name.
    """

    weights: Vector  # (N,)
    moments: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Aside:
    """What one training has changed, while another one uses the model: on the CPU."""

    weights: torch.Tensor  # (N,)
    moments: list[dict[torch.Tensor, dict[str, torch.Tensor]]]
    """Of each optimiser."""
    random: list[torch.Tensor]
    """The generators' states."""


class Inner:
    """A model on a device, with its optimisers.

    Owned by the trainer's main thread.

    :param module: the run's model, fp32 on the CPU, in training mode; its parameters are replaced
        by views with arbitrary numbers: :meth:`load` some
    :param device: "cpu" or "cuda"
    """

    def __init__(
        self, manifest: Manifest, module: torch.nn.Module, layout: Layout, device: str
    ) -> None:
        settings = manifest.config.optimizer
        self.device = torch.device(device)
        self.layout = layout
        # Weights stay fp32; only activations are narrower, and only where the hardware likes it.
        width = int(getattr(module.config, "hidden_size", 0) or 0)
        self.bf16 = machine.autocast(settings.precision, device, width)
        self.measure_hardware()
        self._clip = settings.clip
        self._norm = torch.zeros((), device=self.device)
        objective.without_memory(module)
        for parameter in module.parameters():
            parameter.data = torch.empty(0)
        self._module = module.to(self.device)
        self._untouched = copy.deepcopy(self._module)  # no memory in its parameters
        self._flat = self._views(self._module)
        self._balance = objective.balance_weight(manifest.config.model, self._module)
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        self._optimizers = optimizers(manifest, self._module, machine.computes_bf16(device))
        self._place = {id(p): index for index, p in enumerate(self._parameters)}

    def measure_hardware(self) -> None:
        """Find out what computes now: ``hardware`` (:func:`node.trainer.machine.hardware`)."""
        self.hardware = machine.hardware(self.device.type, self.bf16)

    def load(self, params: Vector) -> None:
        """Set the parameters, shape (N,); the optimisers keep their moments."""
        self.layout.require(params)
        self._flat.copy_(torch.from_numpy(params))

    def begin(self, params: Vector) -> None:
        """Set the parameters, shape (N,), and forget the moments: nothing was trained."""
        self.load(params)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()

    def read(self, out: Vector | None = None) -> Vector:
        """A copy of the parameters on the CPU, shape (N,).

        :param out: takes the numbers, if given
        """
        copy = np.empty(self.layout.parameters, np.float32) if out is None else out
        torch.from_numpy(copy).copy_(self._flat)
        return copy

    def look(self) -> Vector:
        """The parameters on the CPU, shape (N,), without a copy where they lie there already.

        Only valid until the next step.
        """
        return self._flat.numpy() if self.device.type == "cpu" else self.read()

    def merge(self, part: Part, state: Vector, sent: Vector | None) -> None:
        """Let ``part`` follow an agreed state: ``state + (weights - sent)``, elementwise in fp32.

        :param state: the agreed parameters of the whole model, shape (N,)
        :param sent: the weights, (N,), at which the last pseudo-gradient was formed; None: nothing
            has been trained since, and the part becomes the state's, bit for bit
        """
        for run in part.runs:
            mine = self._flat[run]
            agreed = torch.from_numpy(state[run]).to(self.device)
            if sent is None:
                mine.copy_(agreed)
            else:
                mine.sub_(torch.from_numpy(sent[run]).to(self.device)).add_(agreed)

    def step(self, windows: Batch, lr: float) -> torch.Tensor:
        """One optimiser step on windows (batch, seq_len + 1).

        :param lr: AdamW's learning rate; other optimisers follow in proportion
        :returns: the mean loss before the step, nats per token, a scalar still on the device;
            without the auxiliary loss of experts, so that it compares with an evaluation's
        """
        loss, auxiliary = objective.losses(
            self._module, self._tokens(windows), bf16=self.bf16, balance=self._balance > 0
        )
        whole = loss if auxiliary is None else loss + self._balance * auxiliary
        whole.backward()  # type: ignore[no-untyped-call]
        if self._clip > 0:
            self._norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["ratio"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def fingerprint(self, loss: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """What :mod:`protocol.fingerprints` keeps of the last step, (2 + P,) on the device.

        :param loss: what the step gave
        :param places: of weights, (P,) on the device
        """
        return torch.cat((torch.stack((loss, self._norm)), self._flat[places]))

    def loss_sum(self, params: Vector, batches: Iterable[Batch]) -> float:
        """Loss in nats of the model at ``params``, (N,), summed over the targets of all windows.

        Nothing that belongs to the training is touched, randomness included.

        :param batches: windows (batch, seq_len + 1) each
        """
        self.layout.require(params)
        module = copy.deepcopy(self._untouched).eval()
        self._views(module).copy_(torch.from_numpy(params))
        devices = [self.device] if self.device.type == "cuda" else []
        total = 0.0
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for windows in batches:
                tokens = self._tokens(windows)
                loss, _ = objective.losses(module, tokens, reduction="sum", bf16=self.bf16)
                total += float(loss)
        return total

    def save(self, into: Saved | None = None) -> Saved:
        """Copy weights and moments to the CPU (12 bytes per parameter once it has stepped).

        :param into: an older copy that nobody needs any more; its memory is used again, since
            fresh pages cost more than the copies
        """
        if into is None:
            into = Saved(np.empty(self.layout.parameters, np.float32))
        self.read(into.weights)
        kept, into.moments = into.moments, {}
        for optimizer in self._optimizers:
            for parameter, values in optimizer.state.items():
                place = self._place[id(parameter)]
                old = kept.get(place, {})
                into.moments[place] = {
                    name: old[name].copy_(value) if name in old else value.to("cpu", copy=True)
                    for name, value in values.items()
                }
        return into

    def restore(self, saved: Saved) -> None:
        """Put weights and optimisers back to where :meth:`save` found them, to the bit."""
        self.load(saved.weights)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    kept = saved.moments.get(self._place[id(parameter)])
                    if kept is None:
                        optimizer.state.pop(parameter, None)
                        continue
                    state = optimizer.state[parameter]
                    for name, value in kept.items():
                        if name in state:
                            state[name].copy_(value)
                        else:
                            state[name] = value.to(self.device, copy=True)

    def seed(self, seed: int) -> None:
        """Fix what is random in training."""
        torch.manual_seed(seed)

    def aside(self) -> Aside:
        """Another training of the model, not begun: :meth:`swap` it in, then :meth:`begin`."""
        weights = torch.empty(self.layout.parameters)
        return Aside(weights, [{} for _ in self._optimizers], self._random())

    def swap(self, other: Aside) -> Aside:
        """Go on with another training; returns the one that was here, to be swapped in again.

        Nothing is copied where the model is on the CPU. Either training goes on as if the other one
        had not been, to the bit.
        """
        moments = [_moved(optimizer.state, "cpu") for optimizer in self._optimizers]
        mine = Aside(self._flat.cpu(), moments, self._random())
        self._flat = self._views(self._module, other.weights.to(self.device))
        for optimizer, values in zip(self._optimizers, other.moments, strict=True):
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            optimizer.state.update(_moved(values, self.device))
        torch.set_rng_state(other.random[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(other.random[1], self.device)
        return mine

    def _random(self) -> list[torch.Tensor]:
        cuda = self.device.type == "cuda"
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.device)] if cuda else [])]

    def _views(self, module: torch.nn.Module, flat: torch.Tensor | None = None) -> torch.Tensor:
        """Make the module's parameters views into a vector, (N,), a new one unless one is given;
        returns it."""
        if flat is None:
            flat = torch.empty(self.layout.parameters, dtype=torch.float32, device=self.device)
        named = dict(module.named_parameters())
        for tensor in self.layout.tensors:
            end = tensor.offset + tensor.size
            named[tensor.name].data = flat[tensor.offset : end].view(tensor.shape)
        return flat

    def _tokens(self, windows: Batch) -> torch.Tensor:
        return torch.from_numpy(windows).to(self.device)


def _moved(
    moments: Mapping[torch.Tensor, dict[str, torch.Tensor]], device: torch.device | str
) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
    """Moments of parameters on a device; themselves when they are there."""
    return {p: {name: v.to(device) for name, v in values.items()} for p, values in moments.items()}


def mean_loss(losses: list[torch.Tensor]) -> float:
    """Mean of scalar losses, in float64."""
    return float(np.mean(torch.stack(losses).cpu().numpy(), dtype=np.float64))
