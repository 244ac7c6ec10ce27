"""Signed notes and checkpoints: other people's examples, every refusal of the spec, any bytes."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import (
    Checkpoint,
    open_checkpoint,
    origin_of,
    parse_checkpoint,
    sign_checkpoint,
)
from artel.protocol.errors import CheckFailed, DecodeError
from ledger_world import key

# The example of c2sp.org/signed-note.
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuw"
    "HjG1Yu72IneyaQM=\n"
)
# The example of golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM=\n"
)
SIGNER = key("log")
ORIGIN = origin_of("ab" * 32)
KEY = note.VerifierKey(ORIGIN, SIGNER.public)
ROOT = bytes(range(32))


@pytest.mark.parametrize(("vkey", "text"), [(SPEC_KEY, SPEC_NOTE), (GO_KEY, GO_NOTE)])
def test_notes_of_other_implementations_verify(vkey: str, text: str) -> None:
    verifier = note.VerifierKey.parse(vkey)
    assert verifier.encode() == vkey
    opened = note.open_note(text.encode(), [verifier, KEY])
    assert opened.encode() == text
    with pytest.raises(CheckFailed):
        note.open_note(text.replace("is", "iz", 1), [verifier])


def test_key_with_plus_signs_in_its_base64_parses() -> None:
    vkey = "TEST+7997405c+AQcC+FTVKf0jlTdHDY3rbevmnKxxPjigCXlVtGe6RIr6"
    assert note.VerifierKey.parse(vkey).encode() == vkey


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        SPEC_KEY.replace("530d903a", "530d903b"),
        SPEC_KEY.replace("530d903a", "530D903A"),
        SPEC_KEY.replace("+Ae", "+Be"),  # another type
        SPEC_KEY[:-4],
        SPEC_KEY + "=",
        SPEC_KEY + "\n",
        SPEC_KEY.replace("example.com/foo", ""),
        SPEC_KEY.replace("example.com/foo", "example com"),
        "x" * 2000 + SPEC_KEY,
    ],
)
def test_malformed_verifier_keys_are_refused(vkey: str) -> None:
    with pytest.raises(DecodeError):
        note.VerifierKey.parse(vkey)


def test_twenty_signatures_of_strangers_are_ignored() -> None:
    signed = note.sign("hello\n", ORIGIN, SIGNER)
    strangers = [
        note.sign("hello\n", f"stranger-{i}", key(f"stranger {i}")).signatures[0] for i in range(18)
    ]
    # Another type with a long signature, and a stranger who uses the log's very name.
    strangers.append(note.SignatureLine("post-quantum", b"\1\2\3\4", bytes(2420)))
    strangers.append(note.sign("hello\n", ORIGIN, key("impostor")).signatures[0])
    crowded = note.Note(signed.text, (*strangers, *signed.signatures))
    assert note.open_note(crowded.encode(), [KEY]) == signed
    with pytest.raises(CheckFailed, match="not signed"):
        note.open_note(note.Note(signed.text, tuple(strangers)).encode(), [KEY])


def test_one_bad_signature_of_a_known_key_rejects_the_whole_note() -> None:
    other = key("second")
    good = note.sign("hello\n", ORIGIN, SIGNER)
    wrong = note.sign("other\n", "second", other).signatures[0]
    both = note.Note(good.text, (*good.signatures, wrong))
    with pytest.raises(CheckFailed, match="second does not verify"):
        note.open_note(both.encode(), [KEY, note.VerifierKey("second", other.public)])
    assert note.open_note(both.encode(), [KEY]) == good


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("— ", "- "),
        lambda text: text.replace("— ", "—  "),
        lambda text: text.replace("hello", "hel\tlo"),
        lambda text: text.replace("hello", "hel\0lo"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("=\n", "\n"),
        lambda text: text + "— name\n",
        lambda text: text + "— name AAAA\n",  # three bytes: not even a key id
        lambda text: text + "— name AAAAAA==\n",  # a key id and no signature
        lambda text: text + "— na+me AAAAAAAA\n",
        lambda text: text + "— name AAAAAAAA extra\n",
        lambda text: text + "\n— name AAAAAAAA\nno signature\n",
        lambda text: text + "— name AAAAAAAA\n" * 100,
        lambda text: "x" * note.MAX_NOTE_BYTES + text,
        lambda text: "\ud800" + text,
    ],
)
def test_malformed_notes_are_refused(damage) -> None:  # type: ignore[no-untyped-def]
    text = note.sign("hello\n", "name", SIGNER).encode()
    assert note.parse(text).text == "hello\n"
    with pytest.raises(DecodeError):
        note.parse(damage(text))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_note_or_a_decode_error(data: bytes) -> None:
    try:
        parsed = note.parse(data)
    except DecodeError:
        return
    assert parsed.encode().encode() == data


TEXTS = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]) | st.just("\n"))
NAMES = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Z"]), min_size=1).filter(
    lambda name: "+" not in name and not any(c.isspace() for c in name)
)
LINES = st.builds(
    note.SignatureLine, NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80)
)


@settings(deadline=None)
@given(TEXTS, st.lists(LINES, min_size=1, max_size=20))
def test_encoded_notes_parse_to_themselves(text: str, lines: list[note.SignatureLine]) -> None:
    written = note.Note(text + "\n", tuple(lines))
    assert note.parse(written.encode().encode()) == written


def mutations(text: str) -> st.SearchStrategy[str]:
    """The text with a slice replaced by something else."""
    cut = st.tuples(st.integers(0, len(text)), st.integers(0, 8), st.text(max_size=4))
    return cut.map(lambda c: text[: c[0]] + c[2] + text[c[0] + c[1] :])


SIGNED = sign_checkpoint(SIGNER, ORIGIN, 7, ROOT)


@settings(deadline=None)
@given(mutations(SIGNED))
def test_a_changed_checkpoint_is_refused_or_means_the_same(text: str) -> None:
    try:
        opened = open_checkpoint(text, ORIGIN, [SIGNER.key])
    except (DecodeError, CheckFailed):
        return
    assert opened == Checkpoint(ORIGIN, 7, ROOT)


def test_checkpoint_body_is_origin_size_root() -> None:
    body, _, signature = SIGNED.partition("\n\n")
    assert body == f"artel/{'ab' * 32}/term/0\n7\n{base64.b64encode(ROOT).decode()}"
    assert signature.startswith(f"— {ORIGIN} ")
    assert open_checkpoint(SIGNED, ORIGIN, [key("other").key, SIGNER.key]) == parse_checkpoint(
        SIGNED
    )


def test_checkpoint_of_another_log_or_by_another_key_is_refused() -> None:
    elsewhere = sign_checkpoint(SIGNER, origin_of("cd" * 32), 7, ROOT)
    with pytest.raises(CheckFailed):
        open_checkpoint(elsewhere, ORIGIN, [SIGNER.key])
    # The right key name over a text of another origin.
    mixed = note.sign(Checkpoint("elsewhere", 7, ROOT).encode(), ORIGIN, SIGNER).encode()
    with pytest.raises(CheckFailed, match="another log"):
        open_checkpoint(mixed, ORIGIN, [SIGNER.key])
    with pytest.raises(CheckFailed):
        open_checkpoint(SIGNED, ORIGIN, [key("other").key])


@pytest.mark.parametrize(
    "size",
    ["", "07", "+7", "-7", " 7", "7 ", "7.0", "1_0", "0x7", "٧", "9007199254740992", "9" * 30],
)
def test_other_spellings_of_a_size_are_refused(size: str) -> None:
    body = Checkpoint("log", 7, ROOT).encode()
    with pytest.raises(DecodeError):
        Checkpoint.parse(body.replace("\n7\n", f"\n{size}\n"))


@pytest.mark.parametrize("root", ["", "AAAA", "A" * 44, base64.b64encode(ROOT).decode() + "="])
def test_roots_that_are_not_32_bytes_are_refused(root: str) -> None:
    with pytest.raises(DecodeError):
        Checkpoint.parse(f"log\n7\n{root}\n")


def test_extension_lines_are_kept_and_never_empty() -> None:
    extended = replace(Checkpoint("log", 7, ROOT), extensions=("one", "two"))
    assert Checkpoint.parse(extended.encode()) == extended
    with pytest.raises(DecodeError):
        Checkpoint.parse(extended.encode().replace("one\n", "\n"))
    with pytest.raises(DecodeError):
        Checkpoint.parse(extended.encode()[:-1])


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_checkpoint_or_a_decode_error(text: str) -> None:
    try:
        parsed = Checkpoint.parse(text)
    except DecodeError:
        return
    assert parsed.encode() == text
