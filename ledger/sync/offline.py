"""Proof files: made from a ledger, and checked later with nothing else at hand.

A proof file is a c2sp.org/tlog-proof: inclusion in a signed checkpoint. Ours carry the signed
manifest (entry 0) as extra data. That is not trusted as such: its hash is the run id, which stands
in the checkpoint's origin line, and it names the key that signs the checkpoints of term 0. Later
terms have their handovers beside it (:class:`.leadership.Mandate`). So whoever knows the run id
needs no other key. Nothing here touches a network, a home or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.entries import Entry, Genesis, decode, evidence
from artel.ledger.entries.records import Term
from artel.ledger.store.published import run_of, term_of
from artel.ledger.sync.leadership import Mandate
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint, verifier_keys
from artel.ledger.tlog.cosignature import (
    CosignerKey,
    named_key,
    open_cosigned,
    parse_key,
)
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import TlogProof
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import inclusion, leaf_hash, verify_inclusion

if TYPE_CHECKING:
    from artel.ledger.store.finality import Finality
    from artel.ledger.store.reader import LedgerReader

MAX_EVIDENCE_BYTES = 256 * 1024
PROOF_SUFFIX = ".tlog-proof"
ENTRY_SUFFIX = ".json"
"""An entry is canonical JSON, so a person can open the file that a proof speaks of."""


@dataclass(frozen=True)
class Proven:
    """What a proof shows."""

    checkpoint: Checkpoint
    index: int
    log_key: str
    """Hex key that signed the checkpoint."""
    pinned: bool
    """Whether the caller gave the key; otherwise it follows from the run id."""
    run: str
    """Run id in the origin; "" for a log that is no run."""
    cosigners: dict[str, int]
    """Names of the witnesses that the caller named and whose cosignatures verify, and when they
    signed (POSIX seconds)."""
    unknown_cosigners: dict[str, int]
    """If the caller named none: whose names contain the key that signed. Anybody can make such a
    key; a proof does not say which are of nodes of the run."""
    entry: Entry | None
    """None when the log is no run."""
    genesis: Genesis | None = None
    terms: tuple[Term, ...] = ()
    """Who led, as far as the proof shows it: in the first term, that of the checkpoint, and that of
    the entry. A node that starts a coordinator can be anybody, as can those that sealed for it."""
    sealed_by: int = 0
    """How many nodes sealed the term before that of the checkpoint."""

    @property
    def leader(self) -> str:
        """The key (hex) of who led when the entry came; "" where that is not shown."""
        found = [term for term in self.terms if term.begins <= self.index]
        return found[-1].leader if found else ""


def prove(log: LedgerReader, finality: Finality, index: int) -> TlogProof:
    """The proof of one entry, under the newest certified checkpoint or, before there is one, the
    newest cosigned one that covers it, or the newest at all.

    :param finality: of this log
    :raises UsageError: when there is no such entry
    """
    for signed in (finality.certified, finality.cosigned):
        if signed and parse_checkpoint(signed).size > index:
            break
    else:
        # With no other lines than the log's own: whoever has the same log makes the same file.
        keys = verifier_keys(log.origin, log.signers(log.term))
        signed = note.open_note(log.latest_note, keys).encode()
    head = parse_checkpoint(signed)
    hashes = inclusion(log, index, head.size)
    terms, own = log.terms(), term_of(head.origin, log.genesis.run)
    needed = [term for term in terms if term.number == own]
    needed += [term for term in terms if term.begins <= index][-1:]
    mandate = Mandate.of(log, head.size, needed)
    return TlogProof(index, tuple(hashes), signed, extra=mandate.encode())


def entry_beside(proof: Path) -> Path:
    """Where the entry lies that a proof file is of."""
    return proof.with_name(proof.name.removesuffix(PROOF_SUFFIX) + ENTRY_SUFFIX)


def verify(proof: bytes, leaf: bytes, vkeys: Sequence[str] = (), run: str = "") -> Proven:
    """Check a proof file.

    :param leaf: the entry's exact bytes
    :param vkeys: keys to trust, of the log (and then no others are) and of witnesses
    :param run: run id that it must be of; "" for the one in the origin line
    :raises DecodeError: when a file or a key is malformed
    :raises UsageError: when there is no key of the log
    :raises CheckFailed: when it does not hold
    """
    parsed = TlogProof.parse(proof)
    head = parse_checkpoint(parsed.checkpoint)
    origin, named = head.origin, run_of(head.origin)
    if run and named != run:
        raise CheckFailed(f"the proof is of {f'run {named[:12]}…' if named else origin[:120]!r}")
    keys = [parse_key(text) for text in vkeys]
    log_keys = [key for key in keys if isinstance(key, VerifierKey)]
    pinned = bool(log_keys)
    mandate = Mandate.decode(parsed.extra) if named and parsed.extra else None
    genesis = mandate.manifest(named) if mandate is not None else None
    terms = mandate.terms(named, head) if mandate is not None else []
    if not pinned:
        own = term_of(origin, named)
        log_keys = verifier_keys(origin, [term.leader for term in terms if term.number == own])
    if not log_keys:
        raise UsageError(
            "the proof does not carry the run's manifest, or the handover to the term that it is "
            "of, so the key of the log is not known",
            "give it with --vkey; /ledger/run and `artel ledger status --json` show it",
        )
    given = [key for key in keys if isinstance(key, CosignerKey)]
    cosigners = given or _named_witnesses(parsed.checkpoint)
    checkpoint, times = open_cosigned(parsed.checkpoint, log_keys, cosigners, origin)
    known, unknown = (times, {}) if given else ({}, times)
    signed = note.open_note(parsed.checkpoint, log_keys).signatures[0]
    key = next(k for k in log_keys if (k.name, k.key_id) == (signed.name, signed.key_id))
    verify_inclusion(leaf_hash(leaf), parsed.index, checkpoint.size, parsed.hashes, checkpoint.root)
    entry = _entry(leaf) if named else None
    return Proven(
        checkpoint=checkpoint,
        index=parsed.index,
        log_key=key.public.hex(),
        pinned=pinned,
        run=named,
        cosigners=known,
        unknown_cosigners=unknown,
        entry=entry,
        genesis=genesis,
        terms=tuple(terms),
        sealed_by=mandate.sealed_by if mandate is not None else 0,
    )


def verify_evidence(
    data: bytes, vkeys: Sequence[str] = ()
) -> tuple[evidence.SplitView, VerifierKey | CosignerKey]:
    """Check evidence of a split view; returned is also the key that is convicted.

    The key of a run's log follows from the manifest in the file and the handover to the term, that
    of a node from its name.

    :raises DecodeError: when it is malformed
    :raises UsageError: when the key is not known
    :raises CheckFailed: when it proves nothing
    """
    split, mandate = read_evidence(data)
    keys = [parse_key(text) for text in vkeys]
    if not keys:
        run = run_of(split.origin)
        if mandate is not None and run:
            heads = map(parse_checkpoint, (split.first, split.second))
            terms, own = mandate.terms(run, *heads), term_of(split.origin, run)
            leaders = [term.leader for term in terms if term.number == own]
            keys += verifier_keys(split.origin, leaders)
        keys += _named_witnesses(split.first)
    if not keys:
        raise UsageError("the file does not say whose key it is about", "give it with --vkey")
    return split, evidence.check(split, keys)


def read_evidence(data: bytes) -> tuple[evidence.SplitView, Mandate | None]:
    """Evidence, with or without what shows whose key it is about: a file that ``compare`` or a node
    wrote.

    :returns: the evidence and that, neither of which is checked yet
    :raises DecodeError: when it is neither
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise DecodeError(f"evidence of {len(data)} bytes, at most {MAX_EVIDENCE_BYTES} allowed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise DecodeError("evidence is a JSON object") from None
    if not isinstance(value, dict) or set(value) != {"evidence", "mandate"}:
        return evidence.SplitView.from_dict(value), None
    try:
        mandate = Mandate.decode(note.decode_base64(value["mandate"]))
    except TypeError:
        raise DecodeError("mandate is not base64") from None
    return evidence.SplitView.from_dict(value["evidence"]), mandate


def write_evidence(split: evidence.SplitView, mandate: Mandate) -> bytes:
    """What :func:`read_evidence` reads."""
    value = {"evidence": split.to_dict(), "mandate": note.encode_base64(mandate.encode())}
    return json.dumps(value, indent=1).encode() + b"\n"


def _entry(leaf: bytes) -> Entry:
    entry = decode(leaf)
    if not entry.signers:
        raise CheckFailed("a signature of the entry does not verify")
    return entry


def _named_witnesses(signed: str) -> list[CosignerKey]:
    """The keys of nodes that have a line; a node's name contains its key."""
    return list(filter(None, map(named_key, note.parse(signed).signatures)))
