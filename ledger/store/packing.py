"""How an entry is stored: the bytes of its leaf, spelled shorter.

What is hashed, signed and sent is the leaf: an envelope as JSON, its payload in base64, its keys
and signatures in hex and base64. A row holds the signatures with their keys as bytes, and the
payload's text deflated against the words that all entries use. A leaf that has no such form is
stored as it is. Nothing here is trusted: the store signs nothing before the leaf comes out of the
database as it went in, and whenever one is read, it is compared with its hash.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64encode
from binascii import hexlify

from artel.ledger.entries import ENTRY_TYPE, MANIFEST_TYPE
from artel.protocol import canonical
from artel.protocol.dsse import MAX_ENVELOPE_BYTES, Envelope
from artel.protocol.errors import DecodeError

_AS_IS = b"\x00"
_TYPES = {ENTRY_TYPE: 1, MANIFEST_TYPE: 2}
_AFTER_PAYLOAD = {
    number: b'","payloadType":%b,"signatures":[' % canonical.dumps(name)
    for name, number in _TYPES.items()
}
_SIGNED = 32 + 64
"""Bytes of a key and its signature."""
_WINDOW = -12
_WORDS = b"".join(
    (
        b'{"alias":"","team":"","version":1},"adamw","beta":0.9,"device":"","dtype":"float32","eps":',
        b'{"config":{"data":{"seq_len":,"shard_tokens":,"source":"","exchange":{"codec":"int4",',
        b'"coordinators":[""],"ledger":{"witnesses":},"organiser":"","ownership":{"rates":{',
        b'"rounds":{"inner_steps":,"total":,"optimizer":{"batch_size":,"lr":0.00,"weight_decay":',
        b'{"claim":"","contribution":"","kind":"dispute","reason":"","run":"","ruling":"lapsed',
        b'{"by":"","kind":"transfer","to":"","amount":{"kind":"split_seen","evidence":"",',
        b'{"kind":"verdict","outcome":"accepted","loss":,"kind":"slice_wrong","number":,"slice":',
        b'{"kind":"run_closed","reason":"complete","run":""}{"kind":"key_rotated","new":"",',
        b'{"kind":"account","key":"","recovery":"","run":""}',
        b'{"account":"","kind":"node","node":"","run":""}',
        b'{"attempt":0,"kind":"aggregate","index":"","node":"","parts":[],"run":"","slice":}',
        b'{"cosignatures":[{"node":"","signature":"","time":17959},{"node":"","signature":""',
        b',"time":18}],"kind":"witnessed","root":"","run":"","size":100,"term":0}',
        b'{"accepted":[{"entry":"","node":"","weight":20480},{"entry":"","node":"","weight":',
        b'}],"attempt":0,"kind":"round_closed","rejected":[],"round":1,"run":""}',
        b'{"attempt":0,"commitments":{"":"","":"","":""},"kind":"round_committed","round":',
        b'{"attempt":0,"base":"","cursor":100,"kind":"round_opened","members":["","",""],',
        b'"round":1,"run":"","steps":[40,40,40]}{"kind":"state_agreed","root":"","round":1,',
        b'"run":"","wrong":[]}{"attempt":0,"base":"","blob":"","chain":"","down":10000000,',
        b'"hardware":"x86_64-genuineintel/avx512/fp32/t2/torch2.13","head":40,',
        b'"kind":"contribution","node":"","round":1,"run":"","salt":"","size":500000,"span":0,"tail":0,',
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
    number = _TYPES.get(envelope.payload_type)
    if number is None:
        return _AS_IS + leaf
    deflate, head = _DEFLATE.copy(), bytes((number, len(envelope.signatures)))
    signed = [bytes.fromhex(key) + signature for key, signature in envelope.signatures]
    return b"".join((head, *signed, deflate.compress(envelope.payload), deflate.flush()))


def unpack(stored: bytes) -> bytes:
    """The leaf that was stored.

    :raises DecodeError: when it is nothing that :func:`pack` gave
    """
    if stored[:1] == _AS_IS:
        return stored[1:]
    inflate = zlib.decompressobj(_WINDOW, zdict=_WORDS)
    try:
        after_payload, start = _AFTER_PAYLOAD[stored[0]], 2 + _SIGNED * stored[1]
        payload = inflate.decompress(stored[start:], MAX_ENVELOPE_BYTES)
    except (LookupError, zlib.error):
        raise DecodeError("a stored entry is damaged") from None
    if not inflate.eof or inflate.unused_data:
        raise DecodeError("a stored entry is damaged")
    signatures = [
        b'{"keyid":"%b","sig":"%b"}'
        % (hexlify(stored[at : at + 32]), b64encode(stored[at + 32 : at + _SIGNED]))
        for at in range(2, start, _SIGNED)
    ]
    return b'{"payload":"%b%b%b]}' % (b64encode(payload), after_payload, b",".join(signatures))
