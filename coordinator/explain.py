"""What a run file means for the people who would take part, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from protocol.assignment import assigned_tokens
from protocol.manifest import RunConfig

BYTES_PER_TOKEN = {"bytes": 1.0, "bpe": 2.6}
"""Measured on Python sources with a vocabulary of 1024; prose has more bytes to a token."""
SLOW_UPLINK = 10e6 / 8
"""10 Mbit/s in bytes a second: what a home connection can send."""
_STATE_COPIES = 8
"""fp32 vectors of the model that a node holds at its peak: weights, gradients, two moments of
AdamW, the round's base, the outer momentum, the sum of contributions, and one being decoded."""
_ACTIVATIONS_PER_UNIT = 40
"""fp32 numbers kept for the backward pass, per token, layer and unit of width (a rough figure)."""


@dataclass(frozen=True)
class Explanation:
    """The facts of a run file; bytes and tokens are counts, seconds are seconds."""

    name: str
    model: str
    parameters: int
    vocab_size: int
    codec: str
    bits_per_parameter: float
    payload_bytes: int
    up_bytes_min: int
    """A node uploads its payload once to the coordinator ..."""
    up_bytes_max: int
    """... and at most once to every other member."""
    down_bytes_min_nodes: int
    down_bytes_max_nodes: int
    state_bytes: int
    memory_bytes: int
    min_nodes: int
    max_nodes: int
    tokens_per_node_and_round: int
    tokens_in_all_min: int
    tokens_in_all_max: int
    inner_steps_in_all: int
    train_tokens_estimate: int
    epochs_min_estimate: float
    epochs_max_estimate: float
    deadline_s: float
    longest_round_s: float
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"warnings": list(self.warnings)}


def explain(config: RunConfig, path: Path) -> Explanation:
    """Work the numbers of a run out, without allocating the model or reading the text.

    :raises UsageError: when the model cannot be built or a source is not there
    """
    from coordinator.sources import estimated_bytes
    from protocol import model
    from protocol.codec import codec
    from protocol.state import state_bytes

    text = estimated_bytes(config.data.sources, path.parent)
    vocab_size = config.tokenizer.vocab_size
    module = model.empty(config.model, vocab_size)
    layout = model.layout_of(module)
    chosen = codec(config.exchange.codec)
    payload = chosen.payload_bytes(layout)
    text = min(text, config.data.max_bytes or text)
    train_tokens = int(
        text * (1 - config.data.validation_fraction) / BYTES_PER_TOKEN[config.tokenizer.kind]
    )
    rounds, per_node = config.rounds, assigned_tokens(config)
    in_all = [nodes * per_node * rounds.total for nodes in (rounds.min_nodes, rounds.max_nodes)]
    shape = getattr(module, "config", None)
    facts = Explanation(
        name=config.run.name,
        model=config.model.type,
        parameters=layout.parameters,
        vocab_size=vocab_size,
        codec=config.exchange.codec,
        bits_per_parameter=round(float(chosen.bits_per_parameter(layout)), 4),
        payload_bytes=payload,
        up_bytes_min=payload,
        up_bytes_max=payload * rounds.max_nodes,
        down_bytes_min_nodes=payload * (rounds.min_nodes - 1),
        down_bytes_max_nodes=payload * (rounds.max_nodes - 1),
        state_bytes=state_bytes(layout, momentum=config.exchange.outer.momentum > 0),
        memory_bytes=_memory(config, layout.parameters, shape),
        min_nodes=rounds.min_nodes,
        max_nodes=rounds.max_nodes,
        tokens_per_node_and_round=per_node,
        tokens_in_all_min=in_all[0],
        tokens_in_all_max=in_all[1],
        inner_steps_in_all=rounds.total * rounds.inner_steps,
        train_tokens_estimate=train_tokens,
        epochs_min_estimate=round(in_all[0] / max(1, train_tokens), 2),
        epochs_max_estimate=round(in_all[1] / max(1, train_tokens), 2),
        deadline_s=rounds.deadline_s,
        longest_round_s=rounds.deadline_s + rounds.reveal_s + rounds.settle_s,
        warnings=(),
    )
    return replace(facts, warnings=tuple(_warnings(config, facts, shape)))


def render(facts: Explanation) -> str:
    """The explanation in words."""
    lines = [
        f"{facts.name}: a {facts.model} model of {facts.parameters:,} parameters "
        f"(vocabulary {facts.vocab_size:,})",
        "",
        f"  contribution   {_size(facts.payload_bytes)} per node and round "
        f"({facts.codec}, {facts.bits_per_parameter:.2f} bits per parameter)",
        f"  upload         {_size(facts.up_bytes_min)} per round to the coordinator, at most "
        f"{_size(facts.up_bytes_max)} when every member fetches from this node",
        f"  download       {_size(facts.down_bytes_min_nodes)} per round with "
        f"{_nodes(facts.min_nodes)}, {_size(facts.down_bytes_max_nodes)} with "
        f"{_nodes(facts.max_nodes)}",
        f"  joining        {_size(facts.state_bytes)} for the state, and the assigned data shards",
        f"  memory         about {_size(facts.memory_bytes)} per node for the training process, "
        "beside 0.7 GB for the programs themselves",
        f"  work           {facts.tokens_per_node_and_round:,} tokens per node and round, "
        f"{facts.inner_steps_in_all:,} inner steps in all",
        f"  tokens in all  {facts.tokens_in_all_min:,} with {_nodes(facts.min_nodes)}, "
        f"{facts.tokens_in_all_max:,} with {_nodes(facts.max_nodes)}",
        f"  data           about {facts.train_tokens_estimate:,} tokens to train on: "
        f"{facts.epochs_min_estimate:g} to {facts.epochs_max_estimate:g} epochs (estimates)",
        f"  time           a round closes after {facts.deadline_s:g} s at the latest and settles "
        f"within {facts.longest_round_s:g} s",
    ]
    if facts.warnings:
        lines += ["", "worth a second look:", *(f"  ! {warning}" for warning in facts.warnings)]
    return "\n".join(lines)


def _memory(config: RunConfig, parameters: int, shape: Any) -> int:
    """Rough peak of the training process in bytes: copies of the model, activations, logits."""
    tokens = config.optimizer.batch_size * config.data.seq_len
    layers = int(getattr(shape, "num_hidden_layers", 1) or 1)
    width = int(getattr(shape, "hidden_size", 1) or 1)
    numbers = (
        parameters * _STATE_COPIES
        + tokens * layers * width * _ACTIVATIONS_PER_UNIT
        + tokens * config.tokenizer.vocab_size * 3  # logits, their softmax and its gradient
    )
    return 4 * numbers


def _warnings(config: RunConfig, facts: Explanation, shape: Any) -> list[str]:
    """Settings that work but are seldom meant."""
    rounds, optimizer, outer = config.rounds, config.optimizer, config.exchange.outer
    found: list[str] = []
    if outer.momentum >= 0.8 and rounds.inner_steps < 200:
        found.append(
            f"exchange.outer.momentum = {outer.momentum:g} with {rounds.inner_steps} inner steps "
            "overshoots; 0.5 is safe below 200"
        )
    if outer.momentum == 0 and outer.lr < 0.5:
        found.append(f"exchange.outer.lr = {outer.lr:g} without momentum learns slowly")
    if optimizer.lr > 0.01:
        found.append(
            f"optimizer.lr = {optimizer.lr:g} is high for AdamW (0.0003 to 0.003 is usual)"
        )
    if optimizer.warmup_steps > 0.2 * facts.inner_steps_in_all:
        found.append("the warm-up takes more than a fifth of the run")
    upload_s = facts.up_bytes_min / SLOW_UPLINK
    if upload_s > 0.25 * rounds.deadline_s:
        found.append(
            f"at 10 Mbit/s a contribution takes {upload_s:,.0f} s to send, of "
            f"{rounds.deadline_s:g} s for the round: raise inner_steps and deadline_s, or choose "
            "codec int4"
        )
    download_s = facts.down_bytes_max_nodes / (10 * SLOW_UPLINK)
    if download_s > rounds.settle_s:
        found.append(
            f"at 100 Mbit/s a node needs {download_s:,.0f} s for the contributions of "
            f"{rounds.max_nodes} nodes, settle_s is {rounds.settle_s:g}: raise it, or lower "
            "max_nodes"
        )
    if rounds.quorum == 1 and rounds.min_nodes > 1:
        found.append("with rounds.quorum = 1 one slow node holds up every round until the deadline")
    if rounds.heartbeat_timeout_s > rounds.deadline_s:
        found.append("a node that dies is noticed only after its round (heartbeat_timeout_s)")
    if facts.epochs_min_estimate > 4:
        found.append(
            f"the data is read {facts.epochs_min_estimate:g} times: more text learns better"
        )
    if config.data.validation_windows * config.data.seq_len < 2048:
        found.append("the validation loss rests on fewer than 2,048 tokens and will be noisy")
    embedding = facts.vocab_size * int(getattr(shape, "hidden_size", 0) or 0)
    if embedding > 0.6 * facts.parameters:
        found.append("most parameters are the embedding: lower vocab_size or enlarge the model")
    dropouts = [
        key
        for key, value in (vars(shape) if shape is not None else {}).items()
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float) and value > 0
    ]
    if dropouts:
        found.append(
            f"{', '.join(sorted(dropouts))} above 0 makes a node's work random and hard to repeat; "
            "set to 0.0 in [model.config]"
        )
    return found


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"
