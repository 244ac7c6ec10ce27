"""Tokenizers: lossless on any text, deterministic, and only our own shape is loaded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol.errors import DecodeError
from artel.protocol.tokenizer import BYTES_VOCAB, Tokenizer, train

TEXTS = ["def add(a, b):\n    return a + b\n" * 20, "class Thing:\n    pass\n" * 20, "é ☃ 😀"]
TRAINED = train(TEXTS, 300)
BYTES = Tokenizer(train(TEXTS, BYTES_VOCAB))
BOTH = [BYTES, Tokenizer(TRAINED)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_every_text_comes_back_byte_for_byte(texts: list[str]) -> None:
    for tokenizer in BOTH:
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            assert tokenizer.to_bytes(ids.tolist()) == text.encode()
            assert tokenizer.decode(ids.tolist()) == text
            assert tokenizer.end_of_text not in ids
            assert not len(ids) or int(ids.max()) < tokenizer.vocab_size


def test_the_name_of_the_end_token_inside_a_text_is_just_text() -> None:
    tokenizer = Tokenizer(TRAINED)
    (ids,) = tokenizer.encode(["a<|endoftext|>b"])
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode([*ids.tolist(), tokenizer.end_of_text]) == "a<|endoftext|>b"


def test_training_is_deterministic_and_compresses() -> None:
    assert train(TEXTS, 300) == TRAINED
    (ids,) = Tokenizer(TRAINED).encode(TEXTS[:1])
    assert len(ids) < len(TEXTS[0]) / 2


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    assert 257 <= Tokenizer(train(["ab"], 5000)).vocab_size < 300


def test_half_a_character_decodes_to_a_replacement() -> None:
    (ids,) = BYTES.encode(["é"])
    assert BYTES.decode(ids.tolist()[:1]) == "\ufffd"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a*)*b"}}),
        ("decoder", None),
        ("model", {"type": "WordPiece"}),
        ("added_tokens", []),
        ("added_tokens", [1]),
    ],
)
def test_a_tokenizer_of_another_shape_is_refused(key: str, value: object) -> None:
    changed = json.dumps(json.loads(TRAINED) | {key: value}).encode()
    with pytest.raises(DecodeError, match="not byte-level BPE"):
        Tokenizer(changed)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"model": {}}', TRAINED[:-40]])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Tokenizer(data)


def test_without_room_for_a_merge_a_token_is_a_byte() -> None:
    (ids,) = BYTES.encode(["é ☃"])
    assert BYTES.vocab_size == 257
    assert [BYTES.to_bytes([token])[0] for token in ids.tolist()] == list("é ☃".encode())
