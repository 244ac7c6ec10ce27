"""What a run file means for the people who would take part, in numbers and in words."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.coordinator.wording import exchange_seconds, exchange_words, number
from artel.ledger.entries.words import plural
from artel.protocol import needs, offer
from artel.protocol.assignment import Work
from artel.protocol.errors import UsageError
from artel.protocol.run_config import RunConfig
from artel.protocol.state import Layout
from artel.protocol.units import readable

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

BYTES_PER_TOKEN = {"bytes": 1.0, "bpe": 2.6}
"""Measured on Python sources with a vocabulary of 1024; prose has more bytes to a token."""
SLOW_UPLINK = 10e6 / 8
"""10 Mbit/s in bytes a second: what a home connection can send."""
WIDTH = 100
"""Of the lines that explain."""
_MUON_SAVES = 2
"""Muon has one moment where AdamW has two; of the matrices that it trains, and of their copy."""


Estimate = dict[str, Any]
"""The facts of a run file, as ``--json`` prints them: bytes, tokens, steps and parameters are
counts, seconds are seconds, ``exchange`` and ``data`` are in words.

``payload_bytes`` is the most that a contribution can have, of the largest fragment;
``typical_bytes`` what is to be expected of it. ``up_bytes`` and ``down_bytes`` are those of one
node in one round: of the exchange alone, the most there can be. A node uploads its contribution
once to the coordinator (``up_bytes_min``), and at most all that others need of it to each of them.
``tokens_per_node_and_round`` is with rounds.inner_steps; in a time-boxed run a node makes a quarter
to four times of it."""


def estimate(
    config: RunConfig,
    path: Path,
    stages: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Estimate:
    """Work the numbers of a run out; reads the text, and tries a small model.

    :param stages: called with what is done now, and the fraction of it that is done
    :raises UsageError: when the model cannot be built or trained, a source cannot be used, or there
        is too little text
    """
    from artel.coordinator.rehearsal import rehearse
    from artel.coordinator.sources import take_inventory
    from artel.coordinator.tokenising import require_enough_text
    from artel.protocol import model
    from artel.protocol.exchange import codec
    from artel.protocol.exchange.traffic import round_traffic, typical_share
    from artel.protocol.state import state_bytes

    vocab_size = config.tokenizer.vocab_size
    module = model.empty(config.model, vocab_size)
    layout = model.layout_of(module)
    require_fragments(config, layout)
    chosen = codec.of(config.exchange)
    fewest = round_traffic(config, layout, config.rounds.min_nodes)
    most = round_traffic(config, layout, config.rounds.max_nodes)
    inventory = take_inventory(
        config.data.sources, path.parent, lambda done: stages("reading the text", done)
    )
    text = min(inventory.size, config.data.max_bytes or inventory.size)
    kept = (1 - config.data.validation_fraction) / BYTES_PER_TOKEN[config.tokenizer.kind]
    train_tokens = int(text * kept)
    rounds, work = config.rounds, Work.of(config)
    per_node = work.tokens(work.inner_steps)
    in_all = [nodes * per_node * rounds.total for nodes in (rounds.min_nodes, rounds.max_nodes)]
    by_muon = model.block_matrices(module) if config.optimizer.kind == "muon" else []
    muon_parameters = sum(matrix.numel() for matrix in by_muon)
    shape = getattr(module, "config", None)
    trains_s = rounds.box_s + rounds.grace_s if rounds.box_s else rounds.deadline_s
    facts = {
        "name": config.run.name,
        "model": config.model.type,
        "parameters": layout.parameters,
        "vocab_size": vocab_size,
        "codec": config.exchange.codec,
        "bits_per_parameter": round(float(chosen.bits_per_parameter(layout)), 4),
        "payload_bytes": most.contribution,
        "typical_bytes": round(most.contribution * typical_share(chosen, layout)),
        "topology_min_nodes": fewest.topology,
        "topology_max_nodes": most.topology,
        "up_bytes_min": most.up_least,
        "up_bytes_max": most.up_most,
        "down_bytes_min_nodes": fewest.down,
        "down_bytes_max_nodes": most.down,
        "exchange": exchange_words(config),
        "muon_parameters": muon_parameters,
        "state_bytes": state_bytes(layout.parameters, config.exchange.outer),
        "memory_bytes": _memory(config, layout.parameters, muon_parameters, shape),
        "min_nodes": rounds.min_nodes,
        "max_nodes": rounds.max_nodes,
        "tokens_per_node_and_round": per_node,
        "tokens_in_all_min": in_all[0],
        "tokens_in_all_max": in_all[1],
        "inner_steps_in_all": rounds.total * rounds.inner_steps,
        "data": inventory.words(),
        "data_files": len(inventory.parts),
        "data_bytes": inventory.size,
        "data_documents": inventory.documents,
        "data_not_used": dict(inventory.skipped.files),
        "train_tokens_estimate": train_tokens,
        "epochs_min_estimate": round(in_all[0] / max(1, train_tokens), 2),
        "epochs_max_estimate": round(in_all[1] / max(1, train_tokens), 2),
        "deadline_s": trains_s,
        "longest_round_s": trains_s + rounds.reveal_s + rounds.settle_s,
    }
    warnings = [*inventory.warnings, *_warnings(config, facts, module), *rehearse(config, module)]
    require_enough_text(config, inventory, stages)
    return facts | {"warnings": warnings}


def require_fragments(config: RunConfig, layout: Layout) -> None:
    """A fragment has at least one tensor.

    :raises UsageError: the model has fewer tensors than the run has fragments
    """
    count, tensors = config.exchange.fragments, len(layout.tensors)
    if count > tensors:
        raise UsageError(
            f"[exchange] fragments = {count}, but the model has {tensors} tensors",
            f"lower fragments to {tensors} or less",
        )


def render(facts: Estimate) -> str:
    """The estimate in words."""
    muon = facts["muon_parameters"]
    rows = {
        "contribution": _contribution(facts),
        "upload": f"{readable(facts['up_bytes_min'])} per round to the coordinator, at most "
        f"{readable(facts['up_bytes_max'])} when every member fetches from this node",
        "download": f"{readable(facts['down_bytes_min_nodes'])} per round with "
        f"{plural(facts['min_nodes'], 'node')} ({facts['topology_min_nodes']}), "
        f"{readable(facts['down_bytes_max_nodes'])} with "
        f"{plural(facts['max_nodes'], 'node')} ({facts['topology_max_nodes']})",
        **{
            name: words
            for name, words in facts["exchange"].items()
            if name not in ("codec", "combining")
        },
        "joining": f"{readable(facts['state_bytes'])} for the state, and the assigned data shards",
        "memory": f"about {readable(facts['memory_bytes'])} per node for the training process, "
        "beside 0.7 GB for the programs themselves"
        + (f"; Muon trains {muon:,} parameters" if muon else ""),
        "work": f"{facts['tokens_per_node_and_round']:,} tokens per node and round, "
        f"{facts['inner_steps_in_all']:,} inner steps in all",
        "tokens in all": f"{facts['tokens_in_all_min']:,} with "
        f"{plural(facts['min_nodes'], 'node')}, {facts['tokens_in_all_max']:,} with "
        f"{plural(facts['max_nodes'], 'node')}",
        **facts["data"],
        "data": f"about {facts['train_tokens_estimate']:,} tokens to train on: "
        f"{number(facts['epochs_min_estimate'])} to {number(facts['epochs_max_estimate'])} epochs "
        "(estimates)",
        "time": f"a round closes after {number(facts['deadline_s'])} s at the latest and settles "
        f"within {number(facts['longest_round_s'])} s",
    }
    lines = [
        f"{facts['name']}: a {facts['model']} model of {facts['parameters']:,} parameters "
        f"(vocabulary {facts['vocab_size']:,})",
        "",
    ]
    for name, words in rows.items():
        line = f"  {name:<14} {words}"
        lines.append(textwrap.fill(line, WIDTH, subsequent_indent=" " * 17))
    if facts["warnings"]:
        lines += ["", "worth a second look:", *(f"  ! {one}" for one in facts["warnings"])]
    return "\n".join(lines)


def _contribution(facts: Estimate) -> str:
    most = f"{readable(facts['payload_bytes'])} per node and round"
    if facts["typical_bytes"] < facts["payload_bytes"]:
        most = f"{most} at most, about {readable(facts['typical_bytes'])} usually"
    return f"{most} ({facts['codec']}, {facts['bits_per_parameter']:.3g} bits per parameter)"


def _memory(config: RunConfig, parameters: int, by_muon: int, shape: Any) -> int:
    """Rough peak of the training process in bytes: copies of the model, activations, logits."""
    layers = int(getattr(shape, "num_hidden_layers", 1) or 1)
    width = int(getattr(shape, "hidden_size", 1) or 1)
    vectors = parameters * offer.copies(config.exchange) - by_muon * _MUON_SAVES
    return needs.trainer_bytes(config, vectors, layers, width)


def _warnings(config: RunConfig, facts: Estimate, module: torch.nn.Module) -> list[str]:
    """Settings that work but are seldom meant."""
    from artel.protocol import model_keys

    rounds, optimizer, outer = config.rounds, config.optimizer, config.exchange.outer
    found: list[str] = []
    if outer.momentum >= 0.8 and rounds.inner_steps < 200:
        found.append(
            f"exchange.outer.momentum = {outer.momentum:g} with {rounds.inner_steps:,} inner steps "
            "overshoots; 0.5 is safe below 200"
        )
    if outer.momentum == 0 and outer.lr < 0.5:
        found.append(f"exchange.outer.lr = {outer.lr:g} without momentum learns slowly")
    if config.exchange.fragments > 1 and rounds.total < 8 * config.exchange.fragments:
        found.append(
            f"each of the {config.exchange.fragments} fragments is exchanged only "
            f"{rounds.total // config.exchange.fragments} times in {rounds.total} rounds"
        )
    if config.exchange.codec == "sparse" and config.exchange.error_feedback < 0.5:
        found.append(
            f"exchange.error_feedback = {config.exchange.error_feedback:g} forgets most of what "
            "was not sent; 0.95 is usual"
        )
    if optimizer.lr > 0.01:
        found.append(
            f"optimizer.lr = {optimizer.lr:g} is high for AdamW (0.0003 to 0.003 is usual)"
        )
    if optimizer.warmup_steps > 0.2 * facts["inner_steps_in_all"]:
        found.append("the warm-up takes more than a fifth of the run")
    upload_s = facts["up_bytes_min"] / SLOW_UPLINK
    if upload_s > 0.25 * rounds.deadline_s:
        found.append(
            f"at 10 Mbit/s a contribution takes {upload_s:,.0f} s to send, of "
            f"{number(rounds.deadline_s)} s for the round: raise inner_steps and deadline_s, or "
            "choose codec int4 or sparse"
        )
    room = exchange_seconds(config)
    if 0 < room < upload_s:
        found.append(
            f"the overlap leaves {room:,.0f} s for the exchange, and at 10 Mbit/s a contribution "
            f"alone takes {upload_s:,.0f} s to send: raise overlap_steps or box_s"
        )
    download_s = facts["down_bytes_max_nodes"] / (10 * SLOW_UPLINK)
    if download_s > rounds.settle_s:
        found.append(
            f"at 100 Mbit/s a node needs {download_s:,.0f} s for the contributions of "
            f"{rounds.max_nodes} nodes, settle_s is {number(rounds.settle_s)}: raise it, or lower "
            "max_nodes"
        )
    if rounds.quorum == 1 and rounds.min_nodes > 1 and not rounds.box_s:
        found.append("with rounds.quorum = 1 one slow node holds up every round until the deadline")
    if rounds.heartbeat_timeout_s > rounds.deadline_s:
        found.append("a node that dies is noticed only after its round (heartbeat_timeout_s)")
    if facts["epochs_min_estimate"] > 4:
        found.append(
            f"the data is read {number(facts['epochs_min_estimate'])} times: more text learns "
            "better"
        )
    if config.data.validation_windows * config.data.seq_len < 2048:
        found.append("the validation loss rests on fewer than 2,048 tokens and will be noisy")
    shape: Any = module.config
    embedding = facts["vocab_size"] * int(getattr(shape, "hidden_size", 0) or 0)
    if embedding > 0.6 * facts["parameters"]:
        found.append("most parameters are the embedding: lower vocab_size or enlarge the model")
    random = {
        key
        for key, value in vars(shape).items()
        if ("drop" in key or "jitter" in key) and isinstance(value, float) and value > 0
    }
    if random := random and random & model_keys.used(module):
        found.append(
            f"{', '.join(sorted(random))} above 0 makes a node's work random and hard to repeat; "
            "set to 0.0 in [model.config]"
        )
    return found
