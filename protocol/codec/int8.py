"""``int8``: blocks of 4096, levels -127..127, one byte each. 8.004 bits a parameter.

INTELLECT-1 (arXiv 2412.01152) trained 10B parameters on 8-bit pseudo-gradients. With 255 levels a
large block costs little: relative mean square error about 5e-5 on Gaussian values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.codec.blockwise import Blockwise, Bytes
from protocol.state import Vector


class Int8(Blockwise):
    """One two's complement byte an element; -128 is unused."""

    name = "int8"
    id = 3
    block = 4096
    top = 127

    def packed_bytes(self, elements: int) -> int:
        return elements

    def pack(self, levels: npt.NDArray[np.int8]) -> Bytes:
        return levels.reshape(-1).view(np.uint8)

    def unpack(self, packed: Bytes, blocks: int, width: int) -> Vector:
        return packed.view(np.int8).reshape(blocks, width).astype(np.float32)

    def magnitudes(self, packed: Bytes, blocks: int, width: int) -> Bytes:
        levels = packed.view(np.int8).reshape(blocks, width)
        # np.abs(int8(-128)) wraps to -128, which reads as 128 in a uint8: L + 1, as wanted.
        largest: Bytes = np.abs(levels).view(np.uint8).max(axis=1)
        return largest
