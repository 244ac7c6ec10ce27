"""``int8``: blocks of 4096, levels -127..127, one byte each. 8.004 bits a parameter.

INTELLECT-1 (arXiv 2412.01152) trained 10B parameters on 8-bit pseudo-gradients. With 255 levels a
large block costs little: relative mean square error about 5e-5 on Gaussian values.
"""

from __future__ import annotations

from artel.protocol.exchange.codec.blockwise import Blockwise


class Int8(Blockwise):
    """One two's complement byte an element; -128 is unused."""

    name = "int8"
    id = 3
    block = 4096
    top = 127
    nibbles = False
