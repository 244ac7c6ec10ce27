"""What a smart contract takes: EVM addresses, and OpenZeppelin's Merkle tree of who gets how much.

Specs: ERC-55 (mixed-case checksum of an address), the contract ABI of ``(address, uint256)``, and
the dump format ``standard-v1`` of npm's ``@openzeppelin/merkle-tree``. A contract that holds the
root checks a claim with OpenZeppelin's ``MerkleProof.verify``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from artel.protocol.errors import UsageError

ENCODING = ("address", "uint256")
MAX_AMOUNT = (1 << 256) - 1
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it, which is not SHA3-256: the padding differs."""
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()


def checksummed(address: str) -> str:
    """The address with the upper and lower case letters that ERC-55 gives it."""
    digits = address[2:].lower()
    digest = keccak256(digits.encode()).hex()
    # ERC-55: the i-th letter is printed in upper case if the i-th digit of the hash is 8 or more.
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) >= 8 else digit
        for digit, nibble in zip(digits, digest, strict=False)
    )


def parse_address(text: str) -> str:
    """A person's address in lower case; the checksum of mixed case is checked.

    :raises UsageError: when it is no address, mistyped, or the zero address
    """
    if not _ADDRESS.fullmatch(text):
        raise UsageError(
            f"{text[:60]!r} is not an EVM address",
            "it is 0x and 40 hex digits; copy it from your wallet",
        )
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and text != checksummed(text):
        raise UsageError(
            f"the checksum of {text} is wrong: a letter is mistyped or in the wrong case",
            "copy the address from your wallet again",
        )
    if not int(digits, 16):
        raise UsageError("nobody has the key of the zero address", "give the address of a wallet")
    return text.lower()


def merkle_tree(rows: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What ``StandardMerkleTree.of(rows, ["address", "uint256"]).dump()`` returns.

    Amounts become decimal strings, as JavaScript's numbers end at 2^53. The root is ``tree[0]``.

    :param rows: address (as it is to be shown) and amount
    :raises UsageError: when there is no row, an amount does not fit, or an address is there twice
    """
    if not rows:
        raise UsageError("a Merkle tree needs at least one row")
    if len({address.lower() for address, _ in rows}) < len(rows):
        raise UsageError("an address is there twice, so one of its claims could not be told apart")
    hashes = [_leaf_hash(address, amount) for address, amount in rows]
    ranked = sorted(range(len(rows)), key=lambda row: hashes[row])
    # A heap: the children of node i are 2i+1 and 2i+2; leaves fill it from the end, smallest first.
    tree = [b""] * (2 * len(rows) - 1)
    places = [0] * len(rows)
    for rank, row in enumerate(ranked):
        places[row] = len(tree) - 1 - rank
        tree[places[row]] = hashes[row]
    for node in reversed(range(len(rows) - 1)):
        left, right = sorted(tree[2 * node + 1 : 2 * node + 3])
        tree[node] = keccak256(left + right)
    values = [
        {"value": [address, str(amount)], "treeIndex": place}
        for (address, amount), place in zip(rows, places, strict=True)
    ]
    return {
        "format": "standard-v1",
        "leafEncoding": list(ENCODING),
        "tree": ["0x" + node.hex() for node in tree],
        "values": values,
    }


def _leaf_hash(address: str, amount: int) -> bytes:
    """Hashed twice, so that no inner node of 64 bytes can pass for a leaf."""
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"{address[:60]!r} is not an EVM address")
    if not 0 <= amount <= MAX_AMOUNT:
        raise UsageError(f"the amount of {address} does not fit into 256 bits")
    encoded = bytes.fromhex(address[2:]).rjust(32, b"\0") + amount.to_bytes(32, "big")
    return keccak256(keccak256(encoded))
