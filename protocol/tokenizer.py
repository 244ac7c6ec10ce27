"""Text to tokens and back: byte-level BPE (the GPT-2 scheme) trained on the run's own data.

Lossless on any text; token 0 is end-of-text, which stands between documents. A run on plain bytes
has the same without a single merge. A tokenizer is stored as the ``tokenizer.json`` of the
``tokenizers`` library, so that any program that reads those can use it. Since that file comes from
a stranger, only the one shape that :func:`train` writes is accepted (no regular expressions, no
normalisers).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import DecodeError

Ids = npt.NDArray[np.uint32]
"""Token ids of one text, shape (T,)."""

END_OF_TEXT = "<|endoftext|>"
BYTES_VOCAB = 257
"""Tokens without any merge: end-of-text, and one for each byte."""
MAX_TOKENIZER_BYTES = 64 << 20


class Tokenizer:
    """A run's tokenizer, over the ``tokenizers`` library."""

    end_of_text = 0
    """The token between documents."""

    def __init__(self, data: bytes) -> None:
        """Load a ``tokenizer.json``.

        :raises DecodeError: when it is no tokenizer of ours
        """
        from tokenizers import Tokenizer as Library

        _require_plain(data)
        try:
            library = Library.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise DecodeError(f"the tokenizer does not load: {str(error)[:160]}") from None
        # The end-of-text token is set between documents only: inside a text its name is just text.
        library.encode_special_tokens = True
        self.library: Any = library
        """The object of that library, for others that build on it."""
        self.vocab_size: int = library.get_vocab_size()
        bytes_of = {char: byte for byte, char in enumerate(_byte_characters())}
        self._pieces: list[bytes] = []  # bytes of each token
        for token in range(self.vocab_size):
            text = library.id_to_token(token)
            if text is None or (token > 0 and not all(char in bytes_of for char in text)):
                raise DecodeError(f"the tokenizer's token {token} stands for no bytes")
            self._pieces.append(bytes(bytes_of[char] for char in text) if token else b"")

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Tokens of each text, without the end-of-text token."""
        encodings = self.library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact UTF-8 bytes that the tokens stand for; end-of-text stands for none."""
        return b"".join(self._pieces[token] for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", "replace")


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train byte-level BPE; returns its ``tokenizer.json``, the same bytes for the same texts.

    A small text has fewer pairs to merge, and then the vocabulary is smaller than asked for. With
    :data:`BYTES_VOCAB` nothing is merged, whatever the texts are: each token is a byte.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return bytes(library.to_str().encode())


def _require_plain(data: bytes) -> None:
    """Only what :func:`train` writes; everything else could run slow patterns on our texts."""
    if len(data) > MAX_TOKENIZER_BYTES:
        raise DecodeError(f"tokenizer of {len(data)} bytes, at most {MAX_TOKENIZER_BYTES} allowed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise DecodeError("the tokenizer is not JSON") from None
    if not isinstance(value, dict):
        raise DecodeError("the tokenizer is not a JSON object")
    added = value.get("added_tokens")
    kinds = [
        part.get("type") if isinstance(part := value.get(key), dict) else part
        for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
    ]
    if (
        kinds != [None, "ByteLevel", None, "ByteLevel", "BPE"]
        or not isinstance(added, list)
        or [item.get("content") for item in added if isinstance(item, dict)] != [END_OF_TEXT]
        or added[0].get("id") != 0
    ):
        raise DecodeError("the tokenizer is not byte-level BPE with one end-of-text token 0")


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]
