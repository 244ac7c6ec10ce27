"""Cosignatures as c2sp.org/tlog-cosignature says, checked against another implementation."""

from __future__ import annotations

import base64
import logging

import pytest
from tlog_scales.signing import MLDSA44CosignatureSigner, PlainEd25519Signer, Vkey, VkeySet
from tlog_scales.tlog import Checkpoint as ScalesCheckpoint

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.cosignature import (
    CosignerKey,
    add_lines,
    cosign,
    open_cosigned,
    parse_key,
    time_of,
    verify_cosignature,
    witness_key,
    witness_name,
)
from artel.ledger.tlog.note import SignatureLine, VerifierKey
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.identity import verify
from tlog_world import LOG, LOG_KEY, ORIGIN, cosigned, key, leaves_of, signed, tree_of

TREE = tree_of(leaves_of(11))
NOTE = signed(TREE, 11)
TEXT = note.parse(NOTE).text
ALICE, BOB = key("alice"), key("bob")
ALICE_KEY, BOB_KEY = CosignerKey("witness/alice", ALICE.public), CosignerKey("bob", BOB.public)
TIME = 1_727_964_367


def test_cosigner_key_of_another_implementation() -> None:
    # transparency-dev/formats, note/note_cosigv1_test.go.
    vkey = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
    parsed = parse_key(vkey)
    assert isinstance(parsed, CosignerKey)
    assert (parsed.name, parsed.key_id.hex(), parsed.encode()) == (
        "remora.n621.de",
        "da77ade7",
        vkey,
    )
    with pytest.raises(DecodeError, match="type 0x04, not 0x01"):
        VerifierKey.parse(vkey)


def test_time_in_a_cosignature_of_another_implementation() -> None:
    # The same file.
    data = base64.b64decode(
        "ZGhGuQAAAABm/qTPeyKXD+R2rzyQsxPiP8mXum7qq/iF0u4vanlqJyocWODBt97w9uL+8qT7S5gxEHWWOworDcFiEBYJ"
        "XORmnFBOBA=="
    )
    assert time_of(SignatureLine("name", data[:4], data[4:])) == 1_727_964_367
    assert time_of(SignatureLine("name", data[:4], data[4:-8])) is None


def test_signed_message_is_the_one_of_the_spec() -> None:
    line = cosign(ALICE, "witness/alice", TEXT, TIME)
    body = f"{ORIGIN}\n11\n{TEXT.splitlines()[2]}\n"
    message = f"cosignature/v1\ntime 1727964367\n{body}".encode()
    assert line.signature[:8] == TIME.to_bytes(8, "big")
    assert len(line.signature) == 72
    assert verify(ALICE.public, line.signature[8:], message)
    assert line.key_id == ALICE_KEY.key_id
    assert line.key_id != VerifierKey("witness/alice", ALICE.public).key_id


def test_another_implementation_verifies_our_checkpoint_and_cosignatures() -> None:
    crowded = cosigned(NOTE, (ALICE, "witness/alice"), (BOB, "bob"))
    theirs = ScalesCheckpoint.from_text(crowded)
    keys = [Vkey.from_string(k.encode()) for k in (LOG_KEY, ALICE_KEY, BOB_KEY)]
    verified = VkeySet(*keys).verify(theirs.signatures, theirs)
    assert {vkey.name for vkey, _ in verified} == {ORIGIN, "witness/alice", "bob"}
    assert theirs.serialize() == crowded


def test_another_implementation_refuses_what_we_damaged(caplog: pytest.LogCaptureFixture) -> None:
    damaged = cosigned(NOTE, (ALICE, "witness/alice")).replace("\n11\n", "\n12\n")
    theirs = ScalesCheckpoint.from_text(damaged)
    keys = [Vkey.from_string(k.encode()) for k in (LOG_KEY, ALICE_KEY)]
    with caplog.at_level(logging.CRITICAL):
        assert VkeySet(*keys).verify(theirs.signatures, theirs) == set()


def test_we_verify_the_checkpoint_of_another_implementation() -> None:
    signers = [PlainEd25519Signer(ORIGIN, LOG.seed), MLDSA44CosignatureSigner("pq", bytes(32))]
    theirs = ScalesCheckpoint.make_signed(ORIGIN, 11, bytes(32), signers).serialize()
    checkpoint, times = open_cosigned(theirs, [LOG_KEY], [ALICE_KEY])
    assert (checkpoint, times) == (Checkpoint(ORIGIN, 11, bytes(32)), {})


def test_cosigners_are_reported_with_their_newest_time() -> None:
    lines = [
        cosign(ALICE, "witness/alice", TEXT, TIME),
        cosign(ALICE, "witness/alice", TEXT, TIME + 9),
        cosign(ALICE, "witness/alice", TEXT, TIME + 5),
        cosign(key("stranger"), "bob", TEXT, TIME),  # a known name, another key
        cosign(BOB, "stranger", TEXT, TIME),  # a known key under another name
    ]
    parsed = note.parse(NOTE)
    crowded = note.Note(parsed.text, (*parsed.signatures, *lines)).encode()
    checkpoint, times = open_cosigned(crowded, [LOG_KEY], [ALICE_KEY, BOB_KEY])
    assert checkpoint == Checkpoint.parse(TEXT)
    assert times == {"witness/alice": TIME + 9}
    assert open_cosigned(NOTE, [LOG_KEY], [ALICE_KEY])[1] == {}


def test_a_bad_cosignature_of_a_known_witness_rejects_the_note() -> None:
    good = cosign(ALICE, "witness/alice", TEXT, TIME)
    later = good.signature[:7] + bytes([good.signature[7] ^ 1]) + good.signature[8:]
    changed = [
        SignatureLine(good.name, good.key_id, later),  # another time
        SignatureLine(good.name, good.key_id, good.signature[:-1] + b"\0"),
        SignatureLine(good.name, good.key_id, good.signature[8:]),  # no time
        SignatureLine(good.name, good.key_id, good.signature + b"\0"),
        SignatureLine(good.name, good.key_id, b"\xff" + good.signature[1:]),  # beyond 2^63
        # What the same key signed as a log is no cosignature, nor the other way round.
        SignatureLine(good.name, good.key_id, bytes(8) + ALICE.sign(TEXT.encode())),
        cosign(ALICE, "witness/alice", TEXT.replace("\n11\n", "\n12\n"), TIME),
        cosign(ALICE, "witness/alice", TEXT + "extension\n", TIME),
    ]
    for line in changed:
        with pytest.raises(CheckFailed, match="does not verify"):
            verify_cosignature(ALICE_KEY, line, TEXT)
        parsed = note.parse(NOTE)
        crowded = note.Note(parsed.text, (*parsed.signatures, line)).encode()
        with pytest.raises(CheckFailed, match="does not verify"):
            open_cosigned(crowded, [LOG_KEY], [ALICE_KEY])
        assert open_cosigned(crowded, [LOG_KEY], [BOB_KEY])[1] == {}
    with pytest.raises(CheckFailed, match="not by the cosigner"):
        verify_cosignature(BOB_KEY, good, TEXT)
    same_key = VerifierKey("witness/alice", ALICE.public)
    with pytest.raises(CheckFailed):
        note.open_note(note.Note(TEXT, (good,)).encode(), [same_key])


def test_times_end_where_the_spec_ends_them() -> None:
    for time, fits in (((1 << 63) - 1, True), (1 << 63, False)):
        signature = ALICE.sign(f"cosignature/v1\ntime {time}\n{TEXT}".encode())
        line = SignatureLine("witness/alice", ALICE_KEY.key_id, time.to_bytes(8, "big") + signature)
        if fits:
            assert verify_cosignature(ALICE_KEY, line, TEXT) == time
            continue
        with pytest.raises(CheckFailed):
            verify_cosignature(ALICE_KEY, line, TEXT)


def test_extension_lines_are_covered() -> None:
    extended = note.sign(TEXT + "extension\n", ORIGIN, LOG).encode()
    both = cosigned(extended, (ALICE, "witness/alice"))
    assert open_cosigned(both, [LOG_KEY], [ALICE_KEY])[0].extensions == ("extension",)


def test_the_log_itself_has_to_sign() -> None:
    only_witness = note.Note(TEXT, (cosign(ALICE, "witness/alice", TEXT, TIME),)).encode()
    with pytest.raises(CheckFailed, match="not signed"):
        open_cosigned(only_witness, [LOG_KEY], [ALICE_KEY])
    with pytest.raises(CheckFailed):
        open_cosigned(NOTE, [VerifierKey(ORIGIN, BOB.public)], [])


def test_a_checkpoint_of_another_log_is_refused() -> None:
    elsewhere = note.sign(TEXT.replace(ORIGIN, "elsewhere"), ORIGIN, LOG).encode()
    with pytest.raises(CheckFailed, match="another log"):
        open_cosigned(elsewhere, [LOG_KEY], [])
    with pytest.raises(CheckFailed, match="another log"):
        open_cosigned(NOTE, [LOG_KEY], [], origin="elsewhere")
    # A log whose key has another name than its origin can be asked for.
    assert open_cosigned(elsewhere, [LOG_KEY], [], origin="elsewhere")[0].origin == "elsewhere"


def test_only_checkpoints_are_cosigned_and_only_at_a_time() -> None:
    with pytest.raises(DecodeError):
        cosign(ALICE, "witness/alice", "hello\n", TIME)
    for time in (0, -1, 1 << 63):
        with pytest.raises(UsageError):
            cosign(ALICE, "witness/alice", TEXT, time)


def test_added_lines_replace_older_ones_of_the_same_key() -> None:
    lines = [cosign(ALICE, "witness/alice", TEXT, TIME + shift) for shift in (3, 7, 5)]
    full = add_lines(note.parse(NOTE), [*lines, cosign(BOB, "bob", TEXT, TIME)])
    assert [line.name for line in full.signatures] == [ORIGIN, "witness/alice", "bob"]
    assert time_of(full.signatures[1]) == TIME + 7
    assert add_lines(full, lines) == full
    assert add_lines(full, note.parse(NOTE).signatures) == full
    crowd = [cosign(BOB, f"bob-{number}", TEXT, TIME) for number in range(100)]
    with pytest.raises(DecodeError):
        add_lines(full, crowd)


def test_a_node_cosigns_with_the_key_in_its_peer_id() -> None:
    name = witness_name(ALICE.peer_id)
    assert name == f"artel/witness/{ALICE.peer_id}"
    origin = origin_of("ab" * 32)
    text = signed(TREE, 5, origin, LOG)
    both = cosigned(text, (ALICE, name))
    _, times = open_cosigned(
        both,
        [VerifierKey(origin, LOG.public)],
        [witness_key(ALICE.peer_id), witness_key(BOB.peer_id)],
    )
    assert list(times) == [name]
    with pytest.raises(DecodeError):
        witness_key("QmNotAnEd25519PeerId")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        ALICE_KEY.encode()[:-4],
        ALICE_KEY.encode().replace("+B", "+C"),  # another type
        ALICE_KEY.encode().replace("witness/", "w itness/"),
        "x" * 2000 + ALICE_KEY.encode(),
        Vkey("pq", None, 6, bytes(1312)).serialize(),
    ],
)
def test_keys_of_unknown_types_are_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_key(text)
