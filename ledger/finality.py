"""Who has cosigned a tree head, and whether that makes it final.

A head is **final** when nodes of as many accounts as the manifest asks for have cosigned it; every
entry that it covers then is. Nodes of one account count once, those of a barred account not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ledger import note
from ledger.accounts import FoldState
from ledger.checkpoint import Checkpoint
from ledger.cosignature import (
    COSIGNATURE_BYTES,
    WITNESS_PREFIX,
    CosignerKey,
    verify_cosignature,
    witness_key,
)
from ledger.note import Note, SignatureLine, VerifierKey
from protocol.errors import CheckFailed

if TYPE_CHECKING:
    from ledger.heads import HeadStore

MAX_TOLD_CHARACTERS = 10 * 1024
"""Longest note that a message carries: about 50 cosignatures."""


def verified(
    data: str | bytes, origin: str, coordinators: Iterable[str], nodes: Mapping[str, str]
) -> tuple[Checkpoint, Note]:
    """A run's tree head, with no other signature lines than those that were verified here.

    :param coordinators: keys (hex) of which one must have signed
    :param nodes: peer ids whose cosignatures count
    :raises DecodeError: when it is malformed
    :raises CheckFailed: when no coordinator signed it, a known key's signature does not verify, or
        it is of another log
    """
    parsed = note.parse(data)
    keys = [VerifierKey(origin, bytes.fromhex(key)) for key in coordinators]
    signed = note.open_note(data, keys)
    head = Checkpoint.parse(parsed.text)
    if head.origin != origin:
        raise CheckFailed(f"the checkpoint is of another log: {head.origin[:120]!r}")
    lines = list(signed.signatures)
    for line in parsed.signatures:
        key = _known_witness(line, nodes)
        if key is not None:
            verify_cosignature(key, line, parsed.text)
            lines.append(line)
    return head, Note(parsed.text, tuple(lines))


def cosigners(signed: Note, nodes: Mapping[str, str]) -> dict[str, SignatureLine]:
    """Peer id to cosignature, of the known nodes; nothing is verified."""
    found: dict[str, SignatureLine] = {}
    for line in signed.signatures:
        key = _known_witness(line, nodes)
        if key is not None:
            found[line.name.removeprefix(WITNESS_PREFIX)] = line
    return found


def seats(signed: Note, state: FoldState) -> dict[str, list[str]]:
    """Account to those of its nodes that cosigned; without barred accounts."""
    found: dict[str, list[str]] = {}
    for peer in sorted(cosigners(signed, state.nodes)):
        account = state.account_of(peer)
        if not state.accounts[account].barred:
            found.setdefault(account, []).append(peer)
    return found


def is_final(signed: Note, state: FoldState) -> bool:
    """Whether enough accounts have cosigned this head; its lines were verified before."""
    wanted = state.rules.witnesses if state.rules is not None else 0
    return wanted > 0 and len(seats(signed, state)) >= wanted


def newest_final(heads: HeadStore, state: FoldState) -> str:
    """The newest final head that is kept here, as a note; "" when there is none."""
    lines = state.rules.witnesses if state.rules is not None else 0
    while lines and (text := heads.newest(lines)):
        signed = note.parse(text)
        if is_final(signed, state):
            return text
        # Several nodes of one account sign more lines than they have seats: ask for more lines.
        lines = max(lines, len(cosigners(signed, state.nodes))) + 1
    return ""


def fitting(text: str, limit: int = MAX_TOLD_CHARACTERS) -> str:
    """The note, without the last signature lines if it is too long for a message."""
    if len(text) <= limit:
        return text
    lines = list(note.parse(text).signatures)
    signed = Note(note.parse(text).text, tuple(lines))
    while lines and len(signed.encode()) > limit:
        lines.pop()
        signed = Note(signed.text, tuple(lines))
    return signed.encode()


def _known_witness(line: SignatureLine, nodes: Mapping[str, str]) -> CosignerKey | None:
    peer = line.name.removeprefix(WITNESS_PREFIX)
    if peer == line.name or peer not in nodes or len(line.signature) != COSIGNATURE_BYTES:
        return None
    key = witness_key(peer)
    return key if key.key_id == line.key_id else None
