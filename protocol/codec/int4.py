"""``int4``: blocks of 256, levels -7..7, two to a byte. 4.06 bits a parameter.

Streaming DiLoCo (arXiv 2501.18512) and Decoupled DiLoCo (arXiv 2604.21428) send four bits without
error feedback. The element of even index lies in the low half of a byte, as two's complement; -8 is
unused; the last high half of a tensor with an odd size is zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.codec.blockwise import Blockwise, Bytes
from protocol.errors import DecodeError
from protocol.state import Vector

_LEVELS = np.arange(16, dtype=np.int8)
_LEVELS[8:] -= 16  # half byte -> level: 0..7, -8..-1

_PAIRS = np.stack([np.tile(_LEVELS, 16), np.repeat(_LEVELS, 16)], axis=1)  # (256, 2): low, high
# Both levels of a byte as the bits of one 8-byte word: unpacking is then a single gather.
_PAIR_BITS = np.ascontiguousarray(_PAIRS, np.float32).view(np.uint64).reshape(256)
_MAGNITUDE = np.abs(_PAIRS).max(axis=1).astype(np.uint8)  # 8 when either level is the unused one


class Int4(Blockwise):
    """Half a byte an element."""

    name = "int4"
    id = 4
    block = 256
    top = 7

    def packed_bytes(self, elements: int) -> int:
        return -(-elements // 2)

    def pack(self, levels: npt.NDArray[np.int8]) -> Bytes:
        flat = levels.reshape(-1)
        if len(flat) % 2:
            flat = np.append(flat, np.int8(0))
        pairs = flat.view("<u2")  # low byte: even element
        packed: Bytes = ((pairs & 0x000F) | ((pairs >> 4) & 0x00F0)).astype(np.uint8)
        return packed

    def unpack(self, packed: Bytes, blocks: int, width: int) -> Vector:
        values = _PAIR_BITS[packed].view(np.float32)
        return values[: blocks * width].reshape(blocks, width)

    def magnitudes(self, packed: Bytes, blocks: int, width: int) -> Bytes:
        if blocks * width % 2 and packed[-1] >> 4:
            raise DecodeError("int4 payload has padding that is not zero")
        largest: Bytes = _MAGNITUDE[packed].reshape(blocks, -1).max(axis=1)
        return largest
