"""The commented run file that ``artel run new`` writes, made from the models that check it."""

from __future__ import annotations

import json
import textwrap
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from artel.protocol.run_config import (
    DataSection,
    ExchangeSection,
    ModelSection,
    OptimizerSection,
    OuterSection,
    RoundsSection,
    RunConfig,
    RunSection,
    StdlibSource,
    TextSource,
    TokenizerSection,
)
from artel.protocol.run_file import bounds

WIDTH = 100


def _llama(width: int, inner: int, layers: int, heads: int, positions: int) -> ModelSection:
    return ModelSection(
        type="llama",
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": positions,
            "tie_word_embeddings": True,
        },
    )


_PYTHON: tuple[StdlibSource | TextSource, ...] = (StdlibSource(kind="stdlib"),)

SIZES = {
    "tiny": RunConfig(
        run=RunSection(name="my-first-run"),
        model=_llama(128, 344, 4, 4, 256),
        tokenizer=TokenizerSection(kind="bpe", vocab_size=1024),
        data=DataSection(sources=_PYTHON),
        rounds=RoundsSection(span=25, ramp=3),
    ),
    "small": RunConfig(
        run=RunSection(name="my-first-run"),
        model=_llama(384, 1024, 8, 6, 512),
        tokenizer=TokenizerSection(kind="bpe", vocab_size=8192),
        data=DataSection(sources=_PYTHON, seq_len=256),
        optimizer=OptimizerSection(lr=1e-3, warmup_steps=200),
        rounds=RoundsSection(
            total=200, inner_steps=40, max_nodes=16, deadline_s=1800.0, span=15, ramp=3
        ),
    ),
    "100m": RunConfig(
        run=RunSection(name="my-first-run"),
        model=_llama(768, 2048, 12, 12, 1024),
        tokenizer=TokenizerSection(kind="bpe", vocab_size=16384),
        data=DataSection(sources=_PYTHON, seq_len=512, shard_tokens=2**20),
        optimizer=OptimizerSection(lr=6e-4, warmup_steps=500),
        rounds=RoundsSection(
            total=400,
            inner_steps=50,
            max_nodes=16,
            deadline_s=3600.0,
            reveal_s=300.0,
            settle_s=300.0,
            span=12,
            ramp=3,
        ),
        exchange=ExchangeSection(codec="sparse"),
    ),
}
"""What ``artel run new --size`` writes: about 1, 17 and 98 million parameters. The first is for a
machine that does other things too, the last for graphics cards. A span is 500 steps or more, which
costs a few tenths of a percent of the loss at most (docs/results/convergence.md)."""


def example(size: str = "tiny", name: str = "my-first-run", data: str = "") -> RunConfig:
    """A run of a size, with a name, on a file or folder ``data`` ("": Python's own sources).

    The name and ``data`` are not checked; whoever reads the file does that.
    """
    config = SIZES[size]
    learns = f"learns from {PurePath(data).name}" if data else "learns to write Python"
    about = f"A Llama of the size {size} that {learns}."
    source = TextSource.model_construct(kind="text", path=data)
    sources = (source,) if data else _PYTHON
    return config.model_copy(
        update={
            "run": RunSection.model_construct(name=name, description=about),
            "data": config.data.model_copy(update={"sources": sources}),
        }
    )


EXAMPLE = example()
"""About a million parameters on the Python sources that every machine has."""

_HEAD = """\
# A run of Artel: what is trained, on what, and by which rules. Edit it, then:
#   artel run check {name}       what it means: parameters, bytes, memory, tokens
#   artel coordinator start {name} --home DIR --http 127.0.0.1:8080
# A value that is left out has the default that is written here. Once published a run never changes.
"""


def template(name: str = "RUN.toml", config: RunConfig = EXAMPLE) -> str:
    """A run as commented TOML; ``name`` is what the file is called in its comments."""
    return _HEAD.format(name=name) + "".join(
        _table((section,), getattr(config, section)) for section in RunConfig.model_fields
    )


def _table(path: tuple[str, ...], section: BaseModel) -> str:
    """One TOML table with a comment above every key; tables inside it follow."""
    lines = [f"\n# {(section.__doc__ or '').splitlines()[0]}", f"[{'.'.join(path)}]"]
    inner = ""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            inner += _table((*path, name), value)
            continue
        limits = bounds(field)
        comment = " ".join(filter(None, (field.description, f"({limits})" if limits else "")))
        if isinstance(value, dict):
            inner += "\n" + _comment(comment) + f"[{'.'.join((*path, name))}]\n"
            inner += "".join(f"{key} = {toml(item)}\n" for key, item in value.items())
            continue
        # What depends on the codec is shown, and left to it until somebody takes the mark away.
        mark = "# " if isinstance(section, OuterSection) else ""
        lines.append(_comment(comment) + f"{mark}{name} = {toml(value)}")
    return "\n".join(lines) + "\n" + inner


def _comment(text: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - 2)
    return "".join(f"# {line}\n" for line in lines)


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, BaseModel):
        pairs = (f"{key} = {toml(item)}" for key, item in value.model_dump().items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
