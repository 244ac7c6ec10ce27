"""How a run exchanges, in plain words: for ``artel run check``, the page and the API."""

from __future__ import annotations

from artel.coordinator.pace import SHARE
from artel.protocol.assignment import GATHER_MEMBERS, Work
from artel.protocol.run_config import ExchangeSection, OuterSection, RunConfig


def exchange_words(config: RunConfig) -> dict[str, str]:
    """Setting to a sentence; only what the run uses is said at length."""
    exchange = config.exchange
    return {
        "codec": _codec(exchange),
        "combining": _combining(exchange),
        "topology": _topology(config),
        "overlap": _overlap(config),
        "fragments": _fragments(config),
        "spans": _spans(config),
        "steps": _steps(config),
        "outer": outer_words(exchange.outer),
        "optimizer": _optimizer(config),
    }


def number(value: float) -> str:
    """A number for people, with separators of thousands."""
    return f"{value:,.10g}"


def outer_words(outer: OuterSection) -> str:
    """The outer optimiser in words."""
    if not outer.momentum:
        how = f"plain steps of {outer.lr:g}"
    else:
        kind = "Nesterov momentum" if outer.nesterov else "momentum"
        how = f"steps of {outer.lr:g} with {kind} {outer.momentum:g}"
    if outer.final_lr_fraction == 1:
        return how
    last = outer.lr * outer.final_lr_fraction
    return f"{how}, falling to {last:g} over the last quarter of the rounds"


def _codec(exchange: ExchangeSection) -> str:
    if exchange.codec != "sparse":
        return f"{exchange.codec}, every element of a pseudo-gradient"
    kept = f"the {exchange.top_k} largest of every 4,096 elements"
    if not exchange.error_feedback:
        return f"sparse: {kept}; the rest is dropped"
    return (
        f"sparse: {kept}; the rest is kept on the node and counts by "
        f"{exchange.error_feedback:g} in the next round"
    )


def _combining(exchange: ExchangeSection) -> str:
    first = "each contribution is clipped to the median norm and weighs by its accepted tokens"
    if exchange.aggregator == "centered_clip":
        first += "; those far from the others are drawn towards them (centred clipping)"
    if exchange.codec != "sparse":
        return first
    floor = exchange.contributor_floor
    if floor == 1:
        return f"{first}; an element is the mean over everybody"
    return (
        f"{first}; an element is the mean over those who sent it, but over {floor:.0%} of all "
        "weights at least"
    )


def _topology(config: RunConfig) -> str:
    gather = "gather: every node fetches every contribution"
    sharded = "sharded: each node combines one slice for all, another one checks it"
    if config.exchange.topology == "gather":
        return gather
    if config.exchange.topology == "sharded":
        return sharded
    if config.rounds.max_nodes <= GATHER_MEMBERS:
        return gather
    return f"{gather}, up to {GATHER_MEMBERS} members; above, {sharded}"


def _overlap(config: RunConfig) -> str:
    steps, whole = config.exchange.overlap_steps, config.rounds.inner_steps
    if not steps:
        return "none: nodes wait for the exchange"
    room = f"{steps:,} of {whole:,} steps ({steps / whole:.0%} of the training)"
    words = f"{room} go on during the exchange and count in the next round"
    if config.rounds.box_s:
        seconds = exchange_seconds(config)
        return f"{words}; it may take {number(round(seconds, 1))} s without anybody waiting"
    tokens = Work.of(config).tokens(steps)
    return (
        f"{words}; it may take as long as they do ({number(round(tokens / 10_000, 1))} s at "
        "10,000 tokens per second)"
    )


def exchange_seconds(config: RunConfig) -> float:
    """How long an exchange may take in a time-boxed run without anybody waiting; 0 if unknown."""
    overlap = config.exchange.overlap_steps / config.rounds.inner_steps
    return SHARE * config.rounds.box_s * overlap


def _fragments(config: RunConfig) -> str:
    count = config.exchange.fragments
    if count == 1:
        return "the whole model in every round"
    steps = count * config.rounds.inner_steps
    return (
        f"{count} parts of the model take turns: a round exchanges one of them, and each is "
        f"exchanged every {steps:,} steps"
    )


def _spans(config: RunConfig) -> str:
    rounds = config.rounds
    if not rounds.span:
        return "none: nodes keep what training remembers, and nobody can repeat their work"
    return (
        f"every {rounds.span:,} rounds ({rounds.span * rounds.inner_steps:,} steps) all nodes "
        "begin anew from the agreed state, so that their work can be repeated from public data; "
        + _audits(config)
    )


def _audits(config: RunConfig) -> str:
    trust = config.trust
    if not trust.audit_rate:
        return "nobody repeats any of it"
    return (
        f"other nodes repeat about {100 * trust.audit_rate:g} % of the steps of known nodes, and "
        f"each round of a new one until {trust.newcomer_rounds:,} were found right"
    )


def _steps(config: RunConfig) -> str:
    rounds, work = config.rounds, Work.of(config)
    if not work.boxed:
        return f"{rounds.inner_steps:,} inner steps for everybody"
    return (
        f"as many as each node makes in {number(rounds.box_s)} s, from {work.least:,} to "
        f"{work.most:,}; nobody is waited for longer than {number(rounds.box_s + rounds.grace_s)} s"
    )


def _optimizer(config: RunConfig) -> str:
    optimizer = config.optimizer
    precision = {
        "auto": "bf16 activations where the machine is faster in them, else fp32",
        "fp32": "fp32 activations",
        "bf16": "bf16 activations where the machine computes in them",
    }[optimizer.precision]
    if optimizer.kind == "muon":
        return f"Muon for the matrices of the blocks, AdamW for the rest; {precision}"
    return f"AdamW; {precision}"
