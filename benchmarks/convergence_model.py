"""Model, text and inner optimiser of the convergence benchmark.

The model is the one that nodes build (:func:`protocol.model.build`) and the optimisers are theirs
(:func:`node.trainer.muon.optimizers`). Only the forward pass is written again here, so that
``torch.compile`` can fuse it: on one core with bf16 instructions that is three times as fast as the
model's own. It computes the same function; a test compares the two.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from artel.node.trainer.muon import optimizers
from artel.protocol import model
from artel.protocol.manifest import Manifest
from artel.protocol.run_config import RunConfig
from artel.protocol.state import Layout, Vector
from artel.protocol.tokenizer import BYTES_VOCAB, Tokenizer
from artel.protocol.tokenizer import train as train_tokenizer

SKIPPED_DIRECTORIES = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
}
VALIDATION_EVERY = 16
"""One file in 16 is held out."""
BPE_BYTES = 4_000_000
"""The tokenizer is trained on about this much of the training text."""

Tokens = npt.NDArray[np.uint16]
Loss = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""Mean loss in nats per token of named parameters on windows (batch, seq_len + 1)."""


class Corpus:
    """The Python sources of the running interpreter as tokens, split by file.

    Directories of tests are left out (they are more than half of the bytes), as are duplicates.
    """

    def __init__(self, vocab_size: int | None) -> None:
        """:param vocab_size: of a BPE tokenizer trained on the training files; None: bytes"""
        train, held_out = _texts()
        self.files = len(train) + len(held_out)
        self.bytes = sum(len(text.encode()) for text in train)
        step = max(1, self.bytes // BPE_BYTES)
        tokenizer = Tokenizer(train_tokenizer(train[::step], vocab_size or BYTES_VOCAB))
        self.vocab_size = tokenizer.vocab_size
        self.train, self.held_out = (_tokens(tokenizer, part) for part in (train, held_out))
        held_out_bytes = sum(len(text.encode()) for text in held_out)
        self.bytes_per_token = held_out_bytes / len(self.held_out)

    def batch(self, seed: int, worker: int, step: int, size: int, length: int) -> torch.Tensor:
        """Windows (size, length + 1): a function of seed, worker and step alone."""
        stream = np.random.default_rng((seed, worker, step))
        starts = stream.integers(0, len(self.train) - length - 1, size, endpoint=True)
        return _windows(self.train, starts, length)

    def validation(self, count: int, length: int) -> torch.Tensor:
        """Windows (count, length + 1), evenly spaced over the held-out text."""
        starts = np.linspace(0, len(self.held_out) - length - 1, count).astype(np.int64)
        return _windows(self.held_out, starts, length)


class Worker:
    """One node's model and inner optimiser, whose state is kept across rounds.

    The parameters are views into one flat fp32 vector in the order of the run's layout.
    """

    def __init__(self, config: RunConfig, vocab_size: int, loss: Loss, bf16: bool) -> None:
        module = model.build(config.model, vocab_size, config.run.seed)
        self.layout: Layout = model.layout_of(module)
        self.flat = torch.from_numpy(model.read_parameters(module))
        named = dict(module.named_parameters())
        self._parameters: dict[str, torch.Tensor] = {}
        for tensor in self.layout.tensors:
            part = self.flat[tensor.offset : tensor.offset + tensor.size]
            named[tensor.name].data = part.view(tensor.shape)
            self._parameters[tensor.name] = named[tensor.name]
        self._loss = loss
        self._clip = config.optimizer.clip
        manifest = cast(Manifest, SimpleNamespace(config=config))
        self._optimizers = optimizers(manifest, module, bf16)

    def step(self, windows: torch.Tensor, rate: float) -> None:
        """One inner step on windows (batch, seq_len + 1)."""
        self._loss(self._parameters, windows).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), self._clip)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def loss(self, windows: torch.Tensor, batch: int) -> float:
        """Mean loss in nats per token; the number of windows is a multiple of ``batch``."""
        with torch.no_grad():
            losses = [self._loss(self._parameters, part) for part in torch.split(windows, batch)]
        return float(torch.stack(losses).double().mean())

    def read(self) -> Vector:
        """A copy of the parameters, shape (N,)."""
        copy: Vector = self.flat.numpy().copy()
        return copy

    def load(self, params: Vector) -> None:
        """Set the parameters, shape (N,); the optimiser keeps its moments."""
        self.flat.copy_(torch.from_numpy(params))

    def forget(self) -> None:
        """Drop the optimiser's moments."""
        for optimizer in self._optimizers:
            optimizer.state.clear()


def fast_loss(config: Any, bf16: bool, compiled: bool) -> Loss:
    """The loss of a Llama of ``transformers`` as one function that compiles well.

    :param config: the transformers configuration, without grouped-query attention
    :param bf16: matrices are multiplied in bf16, everything else is fp32
    :param compiled: fused by ``torch.compile``, which needs a C++ compiler
    """
    narrow = torch.bfloat16 if bf16 else torch.float32
    heads, width = config.num_attention_heads, config.hidden_size
    size, eps = width // heads, config.rms_norm_eps
    assert config.num_key_value_heads == heads
    assert not config.tie_word_embeddings
    theta = config.rope_parameters["rope_theta"]
    turns = torch.outer(
        torch.arange(config.max_position_embeddings).float(),
        1.0 / theta ** (torch.arange(0, size, 2).float() / size),
    )
    cos, sin = torch.cat([turns.cos()] * 2, -1), torch.cat([turns.sin()] * 2, -1)
    future = torch.full((len(turns), len(turns)), -torch.inf).triu(1)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight).to(narrow)

    def turn(x: torch.Tensor, length: int) -> torch.Tensor:
        wide = x.float()
        low, high = wide.chunk(2, -1)
        return (wide * cos[:length] + torch.cat([-high, low], -1) * sin[:length]).to(narrow)

    def loss(p: dict[str, torch.Tensor], windows: torch.Tensor) -> torch.Tensor:
        inputs = windows[:, :-1]
        batch, length = inputs.shape
        x = functional.embedding(inputs, p["model.embed_tokens.weight"])
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}."
            y = norm(x, p[name + "input_layernorm.weight"])
            qkv = torch.cat([p[f"{name}self_attn.{part}_proj.weight"].to(narrow) for part in "qkv"])
            q, k, v = (y @ qkv.T).view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            scores = (turn(q, length) @ turn(k, length).transpose(-1, -2)).float() * size**-0.5
            mixed = (scores + future[:length, :length]).softmax(-1).to(narrow) @ v
            out = p[name + "self_attn.o_proj.weight"].to(narrow)
            x = x + mixed.transpose(1, 2).reshape(batch, length, width) @ out.T
            y = norm(x, p[name + "post_attention_layernorm.weight"])
            up = torch.cat(
                [p[f"{name}mlp.{part}_proj.weight"].to(narrow) for part in ("gate", "up")]
            )
            gate, value = (y @ up.T).chunk(2, -1)
            hidden = (functional.silu(gate.float()) * value.float()).to(narrow)
            x = x + hidden @ p[name + "mlp.down_proj.weight"].to(narrow).T
        logits = norm(x, p["model.norm.weight"]) @ p["lm_head.weight"].to(narrow).T
        return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())

    return torch.compile(loss, dynamic=False) if compiled else loss


def _texts() -> tuple[list[str], list[str]]:
    """Training and held-out files."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        if SKIPPED_DIRECTORIES.intersection(path.relative_to(root).parts):
            continue
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if digest not in seen:
            text = data.decode("utf-8", "replace")
            parts[len(seen) % VALIDATION_EVERY == VALIDATION_EVERY - 1].append(text)
            seen.add(digest)
    return parts


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> Tokens:
    """All texts one behind the other, an end-of-text token behind each."""
    end = np.array([tokenizer.end_of_text], np.uint16)
    pieces = [piece for ids in tokenizer.encode(texts) for piece in (ids.astype(np.uint16), end)]
    return np.concatenate(pieces)


def _windows(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> torch.Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))
