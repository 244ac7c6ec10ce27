"""A run's text as tokens, and whether there is enough of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from artel.coordinator import sources
from artel.protocol.assignment import Split, require_capacity
from artel.protocol.errors import UsageError
from artel.protocol.run_config import RunConfig
from artel.protocol.tokenizer import Ids, Tokenizer, train

TOKENIZER_SAMPLE_BYTES = 6 << 20
"""Text that BPE is trained on; more of it changes a vocabulary of some thousand tokens little."""
BATCH_BYTES = 4 << 20
"""Text that is tokenised at a time."""
MOST_BYTES_PER_TOKEN = 16
"""Where so many bytes to a token are enough tokens, they are not counted: no token crosses a word,
so text has fewer bytes to each, unless it is long rows of one character."""

Parts = tuple[sources.Text, ...]


def splits(config: RunConfig, inventory: sources.Inventory) -> tuple[Parts, Parts]:
    """The text to train on, and that for validation.

    :raises UsageError: it cannot be split
    """
    chosen = sources.sample(inventory.parts, config.data.max_bytes)
    return sources.split(chosen, config.data.validation_fraction)


def trained(config: RunConfig, text: Sequence[sources.Text]) -> bytes:
    """The ``tokenizer.json`` of a run, of the text that it trains on."""
    chosen = sources.sample(text, TOKENIZER_SAMPLE_BYTES)
    texts = (piece for part in chosen for piece, _ in sources.pieces(part))
    return train(texts, config.tokenizer.vocab_size)


def encoded(
    tokenizer: Tokenizer, parts: Sequence[sources.Text], report: Callable[[float], None]
) -> Iterator[list[tuple[Ids, int]]]:
    """The tokens of the parts, documents separated by end-of-text, and the number of the source
    that they are from; some megabytes of text at a time.

    :param report: called with the fraction that is done
    """
    total, done = max(1, sum(part.size for part in parts)), 0
    end = np.array([tokenizer.end_of_text], np.uint32)
    for batch in _batches(parts):
        found = list[tuple[Ids, int]]()
        ids_of = tokenizer.encode([text for text, _, _ in batch])
        for ids, (_, ends, source) in zip(ids_of, batch, strict=True):
            found += [(run, source) for run in ((ids, end) if ends else (ids,))]
        yield found
        done += sum(len(text) for text, _, _ in batch)
        report(min(1.0, done / total))


def _batches(parts: Iterable[sources.Text]) -> Iterator[list[tuple[str, bool, int]]]:
    """Pieces of text, about :data:`BATCH_BYTES` at a time: text, whether it ends a document, and
    the number of its source."""
    batch: list[tuple[str, bool, int]] = []
    size = 0
    for part in parts:
        for text, ends in sources.pieces(part):
            batch.append((text, ends, part.source))
            size += len(text)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


# --- enough ---------------------------------------------------------------------------------------


def require_enough(config: RunConfig, train_tokens: int, validation_tokens: int) -> None:
    """Refuse data that is too small for one round, or for one validation window.

    :raises UsageError: it is
    """
    require_capacity(Split.of(config.data, train_tokens), config)
    seq_len = config.data.seq_len
    if validation_tokens <= seq_len:
        raise UsageError(
            f"the validation split has {validation_tokens} tokens, less than one window of "
            f"{seq_len}",
            "use more text, raise validation_fraction or lower seq_len",
        )


def require_enough_text(
    config: RunConfig, inventory: sources.Inventory, stages: Callable[[str, float], None]
) -> None:
    """As :func:`require_enough`, before anything is prepared: tokens are counted where it is not
    plain from the bytes, as :mod:`.prepare` makes them.

    :raises UsageError: it is too little, or cannot be split
    """
    parts = splits(config, inventory)
    try:
        require_enough(config, *(_size(text) // MOST_BYTES_PER_TOKEN for text in parts))
    except UsageError:
        stages("training the tokenizer", 0.0)
        tokenizer = Tokenizer(trained(config, parts[0]))
        counts = list[int]()
        for text in parts:
            batches = encoded(tokenizer, text, lambda done: stages("counting tokens", done))
            counts.append(sum(len(ids) for batch in batches for ids, _ in batch))
        require_enough(config, *counts)


def _size(text: Parts) -> int:
    return sum(part.size for part in text)
