"""The manifest of a tiny run, and its parts wrong in one way."""

from __future__ import annotations

from artel.protocol.identity import Identity
from artel.protocol.manifest import DataFacts, Manifest, ModelFacts, SplitFacts, TokenizerFacts
from artel.protocol.run_config import RunConfig
from artel.protocol.run_file import parse_config

ORGANISER = Identity.from_seed(bytes(range(32)))

COORDINATOR = Identity.from_seed(bytes(32))

BASE = """
[run]
name = "tiny"
[model]
type = "llama"
config = { hidden_size = 64, max_position_embeddings = 256, rms_norm_eps = 1.0 }
[tokenizer]
kind = "bpe"
vocab_size = 1024
[data]
sources = [{ kind = "stdlib" }, { kind = "text", path = "texts" }]
"""


def config(extra: str = "", **replaced: str) -> RunConfig:
    text = BASE
    for old, new in replaced.items():
        text = text.replace(old, new)
    return parse_config((text + extra).encode(), "RUN.toml")


def manifest(**changes: object) -> Manifest:
    split = SplitFacts(index="11" * 32, root="22" * 32, shards=2, tokens=300_000)
    fields: dict[str, object] = {
        "config": config(),
        "organiser": ORGANISER.key,
        "coordinators": (COORDINATOR.key,),
        "tokenizer": TokenizerFacts(id="33" * 32, vocab_size=1024),
        "data": DataFacts(train=split, validation=split, dtype="uint16"),
        "model": ModelFacts(layout="44" * 32, parameters=1_000_000),
        "initial_state": "55" * 32,
    }
    return Manifest.model_validate(fields | changes)
