"""How well a model foretells text that it was not trained on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artel.model.pretrained import LoadedModel
from artel.protocol import assignment, objective, shards
from artel.protocol.errors import ResourceError, UsageError
from artel.protocol.run_config import StdlibSource, TextSource
from artel.protocol.shards import ShardIndex
from artel.protocol.tokenizer import END_OF_TEXT

WHOLE = "validation"
"""The run's own held-out text."""
MAX_TEXT_BYTES = 64 << 20

Batch = npt.NDArray[np.int64]
"""Windows, (batch, seq_len + 1)."""


@dataclass(frozen=True)
class Evaluation:
    """The mean loss over a text."""

    text: str
    """Its name."""
    tokens: int
    """That were foretold."""
    loss: float
    """Nats per token."""

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700))

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": self.perplexity,
        }


def source_name(source: StdlibSource | TextSource) -> str:
    """What a source of text is called."""
    return "Python's standard library" if isinstance(source, StdlibSource) else source.path


def held_out(loaded: LoadedModel, blobs: Path) -> list[Evaluation]:
    """The windows that the run's nodes evaluate each state on: all, and then by source, where there
    are several.

    :param blobs: content of the home
    :raises ResourceError: the home lacks a shard of that text
    :raises CheckFailed: one is damaged
    """
    run = loaded.manifest
    split = assignment.validation_split(run)
    refs = assignment.evaluation_windows(split, run.config.data.validation_windows)
    index = shards.decode_index(_read(blobs, run.data.validation.index), run.data.validation)
    tokens = {n: _shard(blobs, index, n, loaded) for n in assignment.shards_needed(refs)}
    length = run.config.data.seq_len + 1
    ends = list(accumulate(run.data.validation_by_source))
    windows = dict[int, list[npt.NDArray[Any]]]()
    for ref in refs:
        # A window belongs to the source of its first token.
        source = bisect_right(ends, ref.shard * index.shard_tokens + ref.offset)
        window = tokens[ref.shard][ref.offset : ref.offset + length]
        windows.setdefault(source if ends else 0, []).append(window)
    names = [source_name(source) for source in run.config.data.sources]
    found = [_evaluated(loaded, names[source], windows[source]) for source in sorted(windows)]
    count = sum(one.tokens for one in found)
    whole = Evaluation(WHOLE, count, sum(one.loss * one.tokens for one in found) / count)
    return [whole, *(found if len(found) > 1 else ())]


def _shard(blobs: Path, index: ShardIndex, number: int, loaded: LoadedModel) -> shards.Tokens:
    vocabulary = loaded.manifest.tokenizer.vocab_size
    return shards.decode_shard(_read(blobs, index.shards[number]), index, number, vocabulary)


def _read(blobs: Path, blob: str) -> bytes:
    try:
        return (blobs / blob).read_bytes()
    except OSError:
        raise ResourceError(
            f"{blobs.parent} lacks {blob[:12]}…, a part of the text that is held out",
            "name the coordinator's home, or that of a node which has evaluated a state",
        ) from None


def of_file(loaded: LoadedModel, path: Path) -> Evaluation:
    """A text file, cut into windows from its beginning.

    :raises UsageError: it is no UTF-8 text, or shorter than two tokens
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "name a text file") from None
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{path} is longer than {MAX_TEXT_BYTES:,} bytes", "cut it")
    codec, length = loaded.tokenizer, loaded.manifest.config.data.seq_len
    ids = np.concatenate([np.array([codec.end_of_text], np.uint32), codec.encode([text])[0]])
    windows = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    if not windows:
        raise UsageError(f"{path} is empty", "name a text file")
    return _evaluated(loaded, path.name, windows)


def _evaluated(loaded: LoadedModel, name: str, windows: Sequence[npt.NDArray[Any]]) -> Evaluation:
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in _batches(windows, loaded.manifest.config.optimizer.batch_size):
            loss, _ = objective.losses(loaded.module, torch.from_numpy(batch), reduction="sum")
            total, count = total + float(loss), count + batch[:, 1:].size
    return Evaluation(name, count, total / count)


def _batches(windows: Sequence[npt.NDArray[Any]], size: int) -> Iterable[Batch]:
    """Windows of one length together; the last one of a text may be shorter."""
    whole = [window for window in windows if len(window) == len(windows[0])]
    for start in range(0, len(whole), size):
        yield np.stack(whole[start : start + size]).astype(np.int64)
    for rest in windows[len(whole) :]:
        yield rest[None].astype(np.int64)


# --- tasks ----------------------------------------------------------------------------------------


def scores(loaded: LoadedModel, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """What lm-evaluation-harness finds: task to metric to number.

    :raises ResourceError: it is not installed
    :raises UsageError: it does not know a task
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError:
        raise ResourceError(
            "tasks need lm-evaluation-harness, which is not installed",
            "pip install 'lm-eval[hf]'; without --tasks nothing more is needed",
        ) from None
    from transformers import PreTrainedTokenizerFast

    known = lm_eval.tasks.TaskManager()
    if unknown := [task for task in tasks if not known.match_tasks([task])]:
        raise UsageError(f"lm-evaluation-harness knows no task {unknown[0]!r}", "lm_eval ls tasks")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.tokenizer.library, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )
    window = loaded.manifest.config.data.seq_len
    model = HFLM(pretrained=loaded.module, tokenizer=tokenizer, max_length=window)
    found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=known)
    return {
        task: {name: value for name, value in numbers.items() if isinstance(value, float)}
        for task, numbers in found["results"].items()
    }
