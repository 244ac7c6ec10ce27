"""What the codec benchmark compares: our codecs as nodes use them, and what others deploy in torch.

``torch fp16`` is a cast (OpenDiLoCo, hivemind's default compression). ``torch top-k, 12 bits`` is
the sparse format of SparseLoCo and Covenant-72B written with torch operations: exact top-k of
chunks of 4096, places in 12 bits, values in 2 bits by a table of four means (bins around the mean,
1.5 standard deviations wide, as in the Templar code base).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from artel.protocol.exchange import kernels
from artel.protocol.exchange.codec import Codec
from artel.protocol.exchange.codec.interface import Elements, read_only
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import whole
from artel.protocol.state import Layout, Vector

CHUNK = 4096
SHARE = 0.25
"""What a contribution is multiplied with before it is added."""


class Contender(ABC):
    """One way to send a vector of a layout."""

    name: str
    sparse: bool = False
    """Whether what is not sent is to be kept for the next rounds."""
    remembers: bool = False
    """Whether it does that itself."""

    @abstractmethod
    def encode(self, vector: Vector) -> Any:
        """What is sent of ``vector``, shape (N,)."""

    @abstractmethod
    def add(self, payload: Any, total: Vector) -> None:
        """Decode, and add :data:`SHARE` of it to ``total``, shape (N,)."""

    @abstractmethod
    def size(self, payload: Any) -> int:
        """Bytes on the wire."""

    def decode(self, payload: Any, parameters: int) -> Vector:
        """The vector that was sent."""
        total = np.zeros(parameters, np.float32)
        self.add(payload, total)
        return total / np.float32(SHARE)


class Ours(Contender):
    """A codec, and the loop that the aggregation adds with."""

    def __init__(self, name: str, codec: Codec, layout: Layout) -> None:
        self.name, self.sparse = name, codec.sparse
        self._codec, self._layout = codec, layout
        self._offsets = np.array([0, *(t.offset + t.size for t in layout.tensors)], np.int64)
        self._scales = np.full(len(layout.tensors), SHARE, np.float32)
        self._mass = np.zeros(layout.parameters if codec.sparse else 0, np.float32)

    def encode(self, vector: Vector) -> bytes:
        return self._codec.encode(self._layout, vector)

    def add(self, payload: bytes, total: Vector) -> None:
        sent = self._codec.decode(self._layout, payload)
        if isinstance(sent, Elements):
            where, values = read_only(sent.positions), read_only(sent.values)
            kernels.scatter_scaled(
                total, self._mass, where, values, self._offsets, self._scales, np.float32(SHARE)
            )
        else:
            kernels.add_scaled(total, read_only(sent), self._offsets, self._scales, False)

    def size(self, payload: bytes) -> int:
        return len(payload)


class WithFeedback(Ours):
    """The sparse codec behind its error feedback."""

    remembers = True

    def __init__(self, name: str, codec: Codec, layout: Layout, decay: float) -> None:
        super().__init__(name, codec, layout)
        self._part = whole(layout)
        self._memory = Feedback(codec, layout, decay=decay)

    def encode(self, vector: Vector) -> bytes:
        return self._memory.encode([self._part], [vector])[0]


class TorchHalf(Contender):
    """A cast to fp16 and back."""

    name = "torch fp16"

    def encode(self, vector: Vector) -> torch.Tensor:
        return torch.from_numpy(vector).half()

    def add(self, payload: torch.Tensor, total: Vector) -> None:
        torch.from_numpy(total).add_(payload.float(), alpha=SHARE)

    def size(self, payload: torch.Tensor) -> int:
        return payload.nbytes


@dataclass
class _Sent:
    """A tensor's part of the 12-bit format; one smaller than a chunk goes in fp16."""

    places: torch.Tensor  # bytes
    values: torch.Tensor  # bytes
    table: torch.Tensor  # four fp32

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + self.values.nbytes + self.table.nbytes


class TorchTopK(Contender):
    """Top-k with fixed-width places; a tensor's last chunk is filled up with zeros."""

    sparse = True

    def __init__(self, top_k: int, layout: Layout) -> None:
        self.name = f"torch top-{top_k}, 12 bits"
        self._top_k, self._layout = top_k, layout

    def encode(self, vector: Vector) -> list[_Sent | torch.Tensor]:
        result: list[_Sent | torch.Tensor] = []
        flat = torch.from_numpy(vector)
        for tensor in self._layout.tensors:
            part = flat[tensor.offset : tensor.offset + tensor.size]
            if tensor.size < CHUNK:
                result.append(part.half())
                continue
            chunks = functional.pad(part, (0, -tensor.size % CHUNK)).view(-1, CHUNK)
            places = chunks.abs().topk(self._top_k, dim=1, sorted=False).indices
            values = chunks.gather(1, places)
            mean, step = values.mean(), 1.5 * values.std()
            bins = ((values - mean) / step + 2).round_().clamp_(0, 3).to(torch.uint8).flatten()
            table = torch.zeros(4).scatter_add_(0, bins.long(), values.flatten())
            table /= torch.bincount(bins, minlength=4).clamp_(min=1)
            wide = places.flatten().to(torch.int32)
            low, high = wide[0::2], wide[1::2]
            three = [low & 255, (low >> 8) | ((high & 15) << 4), high >> 4]
            four = bins.view(-1, 4)
            marks = four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6
            packed = torch.stack(three, dim=1).to(torch.uint8)
            result.append(_Sent(packed.flatten(), marks, table))
        return result

    def add(self, payload: list[_Sent | torch.Tensor], total: Vector) -> None:
        flat = torch.from_numpy(total)
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
        for tensor, sent in zip(self._layout.tensors, payload, strict=True):
            part = flat[tensor.offset : tensor.offset + tensor.size]
            if isinstance(sent, torch.Tensor):
                part.add_(sent.float(), alpha=SHARE)
                continue
            three = sent.places.view(-1, 3).to(torch.int32)
            low = three[:, 0] | ((three[:, 1] & 15) << 8)
            high = (three[:, 1] >> 4) | (three[:, 2] << 4)
            places = torch.stack([low, high], dim=1).view(-1, self._top_k).long()
            bins = (sent.values[:, None] >> shifts & 3).view(-1, self._top_k)
            values = sent.table[bins.long()] * SHARE
            whole = tensor.size // CHUNK
            part[: whole * CHUNK].view(-1, CHUNK).scatter_add_(1, places[:whole], values[:whole])
            if len(places) > whole:
                last = torch.zeros(CHUNK).scatter_(0, places[whole], values[whole])
                part[whole * CHUNK :].add_(last[: tensor.size - whole * CHUNK])

    def size(self, payload: list[_Sent | torch.Tensor]) -> int:
        return sum(sent.nbytes for sent in payload)
