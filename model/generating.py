"""Text from a model, token by token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from artel.model.pretrained import LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """0 takes the likeliest token, 1 the model's own distribution."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability, at least one."""
    seed: int = 0


TURN_END = "\n\n"
"""What ends the model's turn in a conversation: an empty line."""


def as_text(said: Iterable[str]) -> str:
    """A conversation as a text, each turn on a line: the models of runs know no roles."""
    return "\n".join(said) + "\n"


def prompt_ids(loaded: LoadedModel, prompt: str) -> list[int]:
    """The tokens of a prompt as a document's beginning: the model saw documents behind an
    end-of-text token."""
    codec = loaded.tokenizer
    return [codec.end_of_text, *(int(token) for token in codec.encode([prompt])[0])]


def tokens(loaded: LoadedModel, ids: Sequence[int], most: int, how: Sampling) -> Iterator[int]:
    """What the model writes after ``ids``: at most so many tokens; end-of-text ends it before."""
    import torch

    # The model never saw more than seq_len tokens at once.
    window, known = loaded.manifest.config.data.seq_len, list(ids)
    random = torch.Generator().manual_seed(how.seed)
    for _ in range(most):
        context = torch.tensor([known[-window:]])  # (1, at most seq_len)
        with torch.inference_mode():
            logits = loaded.module(input_ids=context).logits[0, -1].float()  # (vocab,)
            token = _chosen(logits, how, random)
        if token == loaded.tokenizer.end_of_text:
            return
        known.append(token)
        yield token


def _chosen(logits: Any, how: Sampling, random: Any) -> int:
    import torch

    if how.temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits / how.temperature, dim=-1)
    if how.top_p < 1:
        ranked, order = chances.sort(descending=True)
        ranked[ranked.cumsum(0) - ranked >= how.top_p] = 0  # all behind the one that reaches it
        return int(order[torch.multinomial(ranked, 1, generator=random)])
    return int(torch.multinomial(chances, 1, generator=random))


class Spelling:
    """Tokens as text while they come: a character may be spread over several of them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._codec = loaded.tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that are whole now."""
        return self._bytes.decode(self._codec.to_bytes([token]))

    def end(self) -> str:
        """What is left, as U+FFFD."""
        return self._bytes.decode(b"", final=True)


def text(loaded: LoadedModel, prompt: str, most: int, how: Sampling) -> str:
    """What the model writes after ``prompt``, without the prompt."""
    return loaded.tokenizer.decode(tokens(loaded, prompt_ids(loaded, prompt), most, how))
