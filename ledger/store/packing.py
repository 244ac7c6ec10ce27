"""How an entry is stored: the bytes of its leaf, spelled shorter.

What is hashed, signed and sent is the leaf: an envelope as JSON, its payload in base64, its keys,
digests and signatures in hex or base64. A row holds the same values as bytes: the signatures with
their keys, the payload's text deflated against the words that all entries use, and the values that
stood in it. A leaf that has no such form is stored as it is. Nothing here is trusted: the store
signs nothing before the leaf comes out of the database as it went in, and whenever one is read, it
is compared with its hash.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from base64 import b64encode
from binascii import hexlify

from artel.ledger.entries import ENTRY_TYPE, MANIFEST_TYPE
from artel.protocol import canonical
from artel.protocol.dsse import MAX_ENVELOPE_BYTES, Envelope
from artel.protocol.errors import DecodeError
from artel.protocol.identity import peer_id_of, public_of

_AS_IS = b"\x00"
_TYPES = {ENTRY_TYPE: 1, MANIFEST_TYPE: 2}
_AFTER_PAYLOAD = {
    number: b'","payloadType":%b,"signatures":[' % canonical.dumps(name)
    for name, number in _TYPES.items()
}
_SIGNED = 32 + 64
"""Bytes of a key and its signature."""

# What is replaced, quotes included, by one byte that no JSON has; the value follows the text. The
# first signer is not repeated: most entries speak of whoever signed them.
_VALUES = re.compile(
    rb'"(?:([0-9a-f]{64}(?:[0-9a-f]{64})?)|(12D3KooW[1-9A-HJ-NP-Za-km-z]{44}))"', re.ASCII
)
_HEX, _LONG_HEX, _PEER, _OWN_HEX, _OWN_PEER = b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"
_MARKS = re.compile(rb"([\x01-\x05])")
_WINDOW = -12
_WORDS = b"".join(
    (
        b'{"alias":"","team":"","version":1},"adamw","beta":0.9,"device":"","dtype":"float32","eps":',
        b'{"config":{"data":{"seq_len":,"shard_tokens":,"source":"","exchange":{"codec":"int4",',
        b'"coordinators":[\x01],"ledger":{"witnesses":},"organiser":\x01,"ownership":{"rates":{',
        b'"rounds":{"inner_steps":,"total":,"optimizer":{"batch_size":,"lr":0.00,"weight_decay":',
        b'{"claim":\x01,"contribution":\x01,"kind":"dispute","reason":"","run":\x01,"ruling":"lapsed',
        b'{"by":\x01,"kind":"transfer","to":\x01,"amount":{"kind":"split_seen","evidence":\x01,',
        b'{"kind":"verdict","outcome":"accepted","loss":,"kind":"slice_wrong","number":,"slice":',
        b'{"kind":"run_closed","reason":"complete","run":\x01}{"kind":"key_rotated","new":\x01,',
        b'{"kind":"account","key":\x04,"recovery":"","run":\x01}',
        b'{"account":\x01,"kind":"node","node":\x05,"run":\x01}',
        b'{"attempt":0,"kind":"aggregate","index":\x01,"node":\x05,"parts":[],"run":\x01,"slice":}',
        b'{"cosignatures":[{"node":\x03,"signature":\x02,"time":17959},{"node":\x03,"signature":\x02',
        b',"time":18}],"kind":"witnessed","root":\x01,"run":\x01,"size":100,"term":0}',
        b'{"accepted":[{"entry":\x01,"node":\x03,"weight":20480},{"entry":\x01,"node":\x03,"weight":',
        b'}],"attempt":0,"kind":"round_closed","rejected":[],"round":1,"run":\x01}',
        b'{"attempt":0,"commitments":{\x03:\x01,\x03:\x01,\x03:\x01},"kind":"round_committed","round":',
        b'{"attempt":0,"base":\x01,"cursor":100,"kind":"round_opened","members":[\x03,\x03,\x03],',
        b'"round":1,"run":\x01,"steps":[40,40,40]}{"kind":"state_agreed","root":\x01,"round":1,',
        b'"run":\x01,"wrong":[]}{"attempt":0,"base":\x01,"blob":\x01,"chain":\x01,"down":10000000,',
        b'"hardware":"x86_64-genuineintel/avx512/fp32/t2/torch2.13","head":40,',
        b'"kind":"contribution","node":\x05,"round":1,"run":\x01,"salt":\x01,"size":500000,"span":0,"tail":0,',
        b'"tokens":20480,"up":1000000}',
    )
)
"""What texts of entries have in common, the most frequent last, where it is found most cheaply.
Part of the format: with other words, no row could be read."""
FORM = hashlib.sha256(_WORDS).hexdigest()[:8]
"""Names the words; stands in the file, so that no other program takes the rows for its own."""
# Copied for each entry, which is cheaper than to read the words in again.
_DEFLATE = zlib.compressobj(6, zlib.DEFLATED, _WINDOW, 4, zlib.Z_DEFAULT_STRATEGY, _WORDS)


def pack(leaf: bytes, envelope: Envelope) -> bytes:
    """What is stored for a leaf, which is the encoding of this envelope."""
    return _packed(envelope) or _AS_IS + leaf


def unpack(stored: bytes) -> bytes:
    """The leaf that was stored.

    :raises DecodeError: when it is nothing that :func:`pack` gave
    """
    if stored[:1] == _AS_IS:
        return stored[1:]
    try:
        return _leaf(stored)
    except (LookupError, ValueError, zlib.error):
        raise DecodeError("a stored entry is damaged") from None


def _packed(envelope: Envelope) -> bytes:
    """Empty when this form has no place for it."""
    number, payload = _TYPES.get(envelope.payload_type), envelope.payload
    signed = [bytes.fromhex(key) + signature for key, signature in envelope.signatures]
    own = signed[0][:32] if signed else b""
    try:
        # A byte that cannot be printed could be taken for a mark.
        if number is None or not payload.decode().isprintable():
            return b""
        text, values = _split(payload, own)
    except (UnicodeDecodeError, DecodeError):
        return b""
    deflate = _DEFLATE.copy()
    head = bytes((number, len(signed)))
    return b"".join((head, *signed, deflate.compress(text), deflate.flush(), *values))


def _split(payload: bytes, own: bytes) -> tuple[bytes, list[bytes]]:
    """The text with its marks, and the values that they stand for.

    :raises DecodeError: when something only looks like the name of a peer
    """
    pieces = _VALUES.split(payload)
    text, values = [pieces[0]], list[bytes]()
    for at in range(1, len(pieces), 3):
        digits, peer, after = pieces[at : at + 3]
        if digits is None:
            value, mark, own_mark = public_of(peer.decode()), _PEER, _OWN_PEER
        else:
            value, own_mark = bytes.fromhex(digits.decode()), _OWN_HEX
            mark = _HEX if len(value) == 32 else _LONG_HEX
        if value == own:
            mark = own_mark
        else:
            values.append(value)
        text += (mark, after)
    return b"".join(text), values


def _leaf(stored: bytes) -> bytes:
    after_payload, start = _AFTER_PAYLOAD[stored[0]], 2 + _SIGNED * stored[1]
    signatures = [
        b'{"keyid":"%b","sig":"%b"}'
        % (hexlify(stored[at : at + 32]), b64encode(stored[at + 32 : at + _SIGNED]))
        for at in range(2, start, _SIGNED)
    ]
    inflate = zlib.decompressobj(_WINDOW, zdict=_WORDS)
    text = inflate.decompress(stored[start:], MAX_ENVELOPE_BYTES)
    if not inflate.eof:
        raise ValueError("the text does not end")
    payload = _joined(text, inflate.unused_data, stored[2:34])
    return b'{"payload":"%b%b%b]}' % (b64encode(payload), after_payload, b",".join(signatures))


def _joined(text: bytes, values: bytes, own: bytes) -> bytes:
    pieces, at = _MARKS.split(text), 0
    for place in range(1, len(pieces), 2):
        mark = pieces[place]
        if mark in (_OWN_HEX, _OWN_PEER):
            value = own
        else:
            value = values[at : at + (64 if mark == _LONG_HEX else 32)]
            at += len(value)
        name = peer_id_of(value).encode() if mark in (_PEER, _OWN_PEER) else hexlify(value)
        pieces[place] = b'"%b"' % name
    if at != len(values):
        raise ValueError("there are more values than marks")
    return b"".join(pieces)
