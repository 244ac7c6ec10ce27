"""``int4``: blocks of 256, levels -7..7, two to a byte. 4.06 bits a parameter.

Streaming DiLoCo (arXiv 2501.18512) and Decoupled DiLoCo (arXiv 2604.21428) send four bits without
error feedback. The element of even index lies in the low half of a byte, as two's complement; -8 is
unused; the last high half of a tensor with an odd size is zero.
"""

from __future__ import annotations

from artel.protocol.exchange.codec.blockwise import Blockwise


class Int4(Blockwise):
    """Half a byte an element."""

    name = "int4"
    id = 4
    block = 256
    top = 7
    nibbles = True
