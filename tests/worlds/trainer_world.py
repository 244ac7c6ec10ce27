"""A tiny run on disk for the trainer's tests: signed manifest, initial state, token shards."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artel.node.child import TrainerDied
from artel.node.supervisor import Trainer
from artel.node.trainer.orders import Window
from artel.protocol import assignment, content, model, tokenizer
from artel.protocol.identity import Identity
from artel.protocol.manifest import (
    DataFacts,
    Manifest,
    ModelFacts,
    TokenizerFacts,
    sign,
)
from artel.protocol.run_config import RunConfig
from artel.protocol.shards import ShardIndex
from artel.protocol.state import State, write_state
from places import ROOT

NODES = (Identity.from_seed(b"\1" * 32).peer_id, Identity.from_seed(b"\2" * 32).peer_id)
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class World:
    """Where everything lies."""

    home: Path
    run: Manifest
    manifest: Path
    state: Path
    """Initial state."""
    shard: Path
    """100,000 tokens of text."""
    tokenizer: Path

    @property
    def content(self) -> dict[Path, str]:
        """What a home of the run has, and content ids: tokenizer, index, shard, first state."""
        index = self.run.data.validation.index
        files = (self.tokenizer, self.shard.with_name(index), self.shard, self.state)
        return {path: content.file_content_id(path) for path in files}

    def windows(self, member: int, round: int = 0, steps: int | None = None) -> list[Window]:
        """What a member is assigned in a round: its own part of the shard."""
        per_round = self.run.config.rounds.inner_steps * self.run.config.optimizer.batch_size
        length = self.run.config.data.seq_len
        first = (2 * round + member) * per_round
        count = per_round if steps is None else steps * self.run.config.optimizer.batch_size
        return [(self.shard, (first + i) * length % 90_000) for i in range(count)]

    def split(
        self, member: int, round: int, steps: int | None = None
    ) -> tuple[list[Window], list[Window], dict[str, int]]:
        """The same as head and tail, and how the trainer is told of them."""
        config = self.run.config
        steps = config.rounds.inner_steps if steps is None else steps
        tail = assignment.Work.of(config).tail(round, steps)
        windows = self.windows(member, round, steps)
        cut = (steps - tail) * config.optimizer.batch_size
        return windows[:cut], windows[cut:], {"steps": steps, "tail": tail}

    @property
    def validation(self) -> list[Window]:
        return [(self.shard, 90_000 + 40 * i) for i in range(16)]


async def started(log_file: Path | None, threads: int = 1) -> Trainer:
    """A fresh trainer process; it has answered before it has imported torch."""
    trainer = Trainer(log_file, threads)
    await trainer.restart()
    return trainer


async def death_of(trainer: Trainer) -> TrainerDied:
    """Wait until the child is gone, for whatever reason; why."""
    assert trainer.child is not None
    return await asyncio.shield(trainer.child.dead)


def make_world(
    home: Path,
    *,
    inner_steps: int = 8,
    bpe: bool = False,
    exchange: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    rounds: dict[str, Any] | None = None,
    kind: str = "llama",
    **model_keys: Any,
) -> World:
    """Prepare a run in ``home``; ``model_keys`` override the tiny llama's, and are all that another
    ``kind`` of model has."""
    home.mkdir(parents=True, exist_ok=True)
    organiser = Identity.from_seed(b"\7" * 32)
    text = (ROOT / "protocol" / "state.py").read_text() * 10
    trained = tokenizer.train([text], 300 if bpe else tokenizer.BYTES_VOCAB)
    codec = tokenizer.Tokenizer(trained)
    tokens = np.resize(codec.encode([text])[0], 100_000)
    shard = home / "shard.bin"
    shard.write_bytes(tokens.astype("<u2").tobytes())
    config = RunConfig.model_validate_json(
        json.dumps(
            {
                "run": {"name": "tiny", "description": "A test.", "seed": 5},
                "model": {
                    "type": kind,
                    "config": (LLAMA if kind == "llama" else {}) | model_keys,
                },
                "tokenizer": {"kind": "bpe", "vocab_size": 300} if bpe else {"kind": "bytes"},
                "data": {"sources": [{"kind": "stdlib"}], "seq_len": 32},
                "optimizer": {"batch_size": 4, "warmup_steps": 4, "lr": 5e-3} | (optimizer or {}),
                "rounds": {"total": 10, "inner_steps": inner_steps} | (rounds or {}),
                "exchange": exchange or {},
            }
        )
    )
    module = model.build(config.model, codec.vocab_size, config.run.seed)
    layout = model.layout_of(module)
    params = model.read_parameters(module)
    state = home / "state-0.bin"
    momentum = np.zeros_like(params) if config.exchange.outer.momentum else None
    root = write_state(state, State(0, layout.digest, params, momentum))
    index = ShardIndex(
        dtype="uint16",
        shard_tokens=config.data.shard_tokens,
        tokens=100_000,
        shards=(content.file_content_id(shard),),
    )
    split = index.facts()
    (home / split.index).write_bytes(index.encode())
    run = Manifest(
        config=config,
        organiser=organiser.key,
        coordinators=(organiser.key,),
        tokenizer=TokenizerFacts(id=content.content_id(trained), vocab_size=codec.vocab_size),
        data=DataFacts(train=split, validation=split, dtype="uint16"),
        model=ModelFacts(layout=layout.digest, parameters=layout.parameters),
        initial_state=root,
    )
    manifest = home / "manifest.json"
    manifest.write_bytes(sign(run, organiser).encode())
    path = home / "tokenizer.json"
    path.write_bytes(trained)
    return World(home, run, manifest, state, shard, path)
