"""``artel plan``: what training or using a model takes on which machines, and a run file for it.

Arithmetic alone (:mod:`artel.protocol.needs`): nothing is measured, and no torch is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from artel.coordinator.run_commands import run_name, text_source, write
from artel.ledger.entries.words import plural
from artel.protocol import commandline, needs, offer
from artel.protocol.assignment import GATHER_MEMBERS
from artel.protocol.commandline import AsJson, File, Folder, Table, fields, show, value
from artel.protocol.errors import EXIT_OK, UsageError
from artel.protocol.manifest_template import example
from artel.protocol.needs import ACCELERATORS, Accelerator, LlamaShape
from artel.protocol.options import amount, number, whole
from artel.protocol.run_config import (
    MAX_PARAMETERS,
    Codec,
    ExchangeSection,
    OptimizerSection,
    RoundsSection,
    RunConfig,
    RunSection,
    TokenizerSection,
)
from artel.protocol.terms import MAX_NODES
from artel.protocol.units import readable

STEPS = (20, 30, 50, 100, 200, 500)
"""Inner steps of a round that are tried, until machines hardly wait for each other ..."""
MOST_DENSE = 100
"""... up to here with "int4"; rarer exchanges cost more loss than the smaller ones of "sparse"."""
BUSY = 0.95
"""Part of the time that machines are to compute."""
SPAN_STEPS = 500
"""Least steps of a span: what shorter ones cost is in docs/results/convergence.md."""
CONTEXTS = (3e6, 128), (50e6, 256), (300e6, 512), (1e9, 1024), (3e9, 2048), (math.inf, 4096)
"""Tokens that a model up to a size sees at once, unless somebody says so."""

app = commandline.group("plan", None, {0: "done", 2: "wrong input"})


def _help(parse: Any, metavar: str, text: str) -> Parameter:
    return value(parse, metavar, help=text)


_SIZE = amount(10**5, 10**13)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Who is there, with what, and what it costs."""

    active: Annotated[
        int | None, _help(_SIZE, "SIZE", "parameters that a token goes through, of experts")
    ] = None
    tokens: Annotated[
        int | None, _help(amount(1, 10**15), "N", "to train on; 20 for each active parameter")
    ] = None
    nodes: Annotated[int, _help(whole(1, MAX_NODES), "N", "machines that take part")] = 8
    gpu: Annotated[str, _help(str, "NAME", f"of a machine: {', '.join(ACCELERATORS)}")] = "rtx4090"
    gpus: Annotated[int, _help(whole(1, 1024), "N", "accelerators of a machine")] = 1
    tflops: Annotated[
        float | None, _help(number(1e-3, 1e6), "TFLOPS", "of one, dense, in place of --gpu's")
    ] = None
    memory: Annotated[
        float | None, _help(number(0.1, 1e5), "GB", "of one, in place of --gpu's")
    ] = None
    utilisation: Annotated[
        float, _help(number(0.001, 1), "PART", "of the peak that inner steps reach")
    ] = needs.UTILISATION
    up: Annotated[float, _help(number(0.01, 1e6), "MBIT", "uplink of a machine, Mbit/s")] = 20.0
    down: Annotated[float, _help(number(0.01, 1e6), "MBIT", "downlink, Mbit/s")] = 100.0
    codec: Annotated[Codec | None, Parameter(help="of the exchange; otherwise by the links")] = None
    inner_steps: Annotated[
        int | None, _help(whole(1, 10_000), "H", "of a round; otherwise by the links")
    ] = None
    context: Annotated[
        int | None, _help(whole(8, 131_072), "TOKENS", "that the model sees at once; by size")
    ] = None
    price: Annotated[float, _help(number(0, 1e6), "MONEY", "of a machine for an hour")] = 0.0
    kwh_price: Annotated[float, _help(number(0, 1e4), "MONEY", "of a kWh of electricity")] = 0.0
    batch: Annotated[
        int | None, _help(whole(1, 65_536), "N", "sequences at once; by memory, 1 to answer")
    ] = None

    def machine(self) -> Accelerator:
        """All accelerators of one machine, taken as one.

        :raises UsageError: there is no such accelerator
        """
        if self.gpu not in ACCELERATORS:
            raise UsageError(
                f"no data sheet of {self.gpu[:40]!r} is known",
                f"one of: {', '.join(ACCELERATORS)}; or give --tflops and --memory of another",
            )
        one, count = ACCELERATORS[self.gpu], self.gpus
        flops = self.tflops * 1e12 if self.tflops else one.flops
        memory = self.memory * 1e9 if self.memory else one.memory
        return Accelerator(flops * count, memory * count, one.bandwidth * count, one.watts * count)


@app.default
def plan(
    size: Annotated[int, value(_SIZE, "SIZE")],
    /,
    *,
    options: PlanOptions = PlanOptions(),
    inference: bool = False,
    write_to: Annotated[Folder | None, Parameter(name="--write")] = None,
    data: File | None = None,
    as_json: AsJson = False,
) -> int:
    """Say what a model takes: memory, bytes, hours, electricity, money; and propose a run file.

    Each number follows from published formulas; docs/results/plan.md has their errors.

    example: artel plan 7B --nodes 16 --gpu rtx4090 --up 20 --down 100

    example: artel plan 46.7B --active 12.9B --inference --gpu a100

    example: artel plan 1M --nodes 4 --gpu cpu --write my-plan

    :param size: parameters, as 922752, 100M, 7B or 1.5T
    :param inference: what answering takes, in place of training
    :param write_to: writes the run file into this folder; only for training
    :param data: text to train on, for the run file; otherwise Python's own sources
    """
    if options.active is not None and options.active > size:
        raise UsageError(
            f"--active {options.active:,} is more than the {size:,} parameters that there are",
            "give the parameters that a token goes through",
        )
    if inference:
        answers = answering(size, options)
        return show(answers, _answers(answers), as_json=as_json)
    config, facts = training(size, options)
    if write_to is not None:
        if size > MAX_PARAMETERS:
            raise UsageError(
                f"the model of a run has at most {MAX_PARAMETERS:,} parameters",
                "plan without --write, or plan a smaller one",
            )
        sources = example(data=text_source(write_to, data)).data.sources
        about = f"A {config.model.type} model of about {size:,} parameters, as artel plan proposes."
        run = RunSection(name=run_name(write_to), description=about)
        text = config.data.model_copy(update={"sources": sources})
        write(write_to, config.model_copy(update={"run": run, "data": text}))
        return EXIT_OK
    return show(facts, _trainings(facts), as_json=as_json)


# --- training -------------------------------------------------------------------------------------


def training(size: int, options: PlanOptions) -> tuple[RunConfig, dict[str, Any]]:
    """A run for a model and machines, and its numbers (seconds, bytes, hours, counts)."""
    active, machine = options.active or size, options.machine()
    shape = needs.llama_shape(size, options.active)
    context = options.context or next(tokens for most, tokens in CONTEXTS if active < most)
    tokens = options.tokens or needs.TOKENS_PER_PARAMETER * active
    batch = options.batch or _batch(size, active, tokens, shape, context, options)
    per_token = needs.training_flops(active, shape, context)
    step_s = per_token * batch * context / (machine.flops * options.utilisation)
    exchange, steps, traffic, times = _exchange(size, step_s, options)
    in_round = options.nodes * steps * batch * context
    rounds = math.ceil(tokens / in_round)
    config = _config(shape, context, batch, _rounds(steps, rounds, times, options), exchange)
    hours = rounds * times.whole / 3600
    machine_hours = hours * options.nodes
    kwh = machine_hours * machine.watts / 1000
    fits = needs.method_bytes("artel", size, shape, batch * context) <= machine.memory
    piece = batch if fits or options.batch else 1  # the least there is, where nothing fits
    seen = piece * context
    held = {name: round(needs.method_bytes(name, size, shape, seen)) for name in needs.METHODS}
    pieces = {"optimizer": config.optimizer.model_copy(update={"batch_size": piece})}
    vectors = size * offer.copies(exchange)
    node = needs.trainer_bytes(config.model_copy(update=pieces), vectors, shape.layers, shape.width)
    flops = needs.training_flops(active) * tokens
    facts = {
        "parameters": size,
        "active": active,
        "shape": asdict(shape) | {"parameters": shape.parameters, "active": shape.active},
        "context": context,
        "batch": batch,
        "batch_at_once": piece,
        "tokens": tokens,
        "flops": flops,
        "petaflop_days": flops / 1e15 / 86_400,
        "nodes": options.nodes,
        "machine": asdict(machine) | {"gpu": options.gpu, "gpus": options.gpus},
        "memory_bytes": held | {"process": node},
        "fits": fits,
        "codec": exchange.codec,
        "inner_steps": steps,
        "overlap_steps": exchange.overlap_steps,
        "topology": traffic.topology,
        "contribution_bytes": traffic.contribution,
        "up_bytes": traffic.up_usual,
        "down_bytes": traffic.down,
        "state_bytes": round(4 * size * (1 + (exchange.outer.momentum > 0))),
        "rounds": rounds,
        "train_s": times.train,
        "round_s": times.whole,
        "computing": times.computing,
        "utilisation": options.utilisation * times.computing,
        "tokens_per_s": in_round / times.whole,
        "hours": hours,
        "machine_hours": machine_hours,
        "kwh": kwh,
        "cost": machine_hours * options.price + kwh * options.kwh_price,
    }
    return config, facts | {"notes": list(_notes(facts, times))}


def _batch(
    size: int, active: int, tokens: int, shape: LlamaShape, context: int, options: PlanOptions
) -> int:
    """Sequences of a step: as many as fit, and not so many that few steps are left."""

    def held(batch: int) -> float:
        return needs.method_bytes("artel", size, shape, batch * context)

    steps = 2000 * (active / 1e6) ** 0.25
    wanted, room = tokens / steps / options.nodes, options.machine().memory
    if held(1) > room:
        room = math.inf  # as if it fitted, for what else there is to know
    batch = 1
    while 2 * batch * context <= wanted and batch < 4096 and held(2 * batch) <= room:
        batch *= 2
    return batch


def _exchange(
    size: int, step_s: float, options: PlanOptions
) -> tuple[ExchangeSection, int, needs.RoundTraffic, needs.RoundTimes]:
    """Codec, overlap and inner steps: the densest and most frequent that machines keep up with."""
    members, found = options.nodes, []
    move = needs.gathered if members <= GATHER_MEMBERS else needs.sharded
    codecs: tuple[Codec, ...] = (options.codec,) if options.codec else ("int4", "sparse")
    for codec in codecs:
        traffic = move(math.ceil(size * needs.BITS[codec] / 8), members)
        most = STEPS[-1] if codec == "sparse" or options.codec else MOST_DENSE
        tried = [options.inner_steps] if options.inner_steps else [s for s in STEPS if s <= most]
        for steps, half in itertools.product(tried, (0, 1)):
            overlap = half * steps // 2
            times = needs.round_times(
                size, traffic, members, steps * step_s, overlap / steps,
                options.up * 1e6, options.down * 1e6,
            )  # fmt: skip
            exchange = ExchangeSection(codec=codec, overlap_steps=overlap)
            found.append((exchange, steps, traffic, times))
            if times.computing >= BUSY or members == 1:
                return found[-1]
    return max(found, key=lambda one: one[-1].computing)


def _rounds(steps: int, total: int, times: needs.RoundTimes, options: PlanOptions) -> RoundsSection:
    """Three times what each part of a round takes; what is out of bounds is at the bound."""
    deadline = math.ceil(min(86_400, max(60, 3 * times.whole)))
    reveal, settle = (min(3600, max(60, 3 * part)) for part in (times.reveal, times.apply))
    return RoundsSection(
        total=min(total, 1_000_000),
        inner_steps=steps,
        min_nodes=max(1, options.nodes // 2),
        max_nodes=min(MAX_NODES, 2 * options.nodes),
        deadline_s=float(deadline),
        grace_s=float(min(3600, math.ceil(deadline / 10))),
        reveal_s=float(math.ceil(reveal)),
        settle_s=float(math.ceil(settle)),
        span=math.ceil(SPAN_STEPS / steps),
        ramp=3,
    )


def _config(
    shape: LlamaShape, context: int, batch: int, rounds: RoundsSection, exchange: ExchangeSection
) -> RunConfig:
    """The run as a file would say it."""
    base, rate = example(), min(3e-3, 3e-3 * (shape.active / 1e6) ** -0.35)
    shard = max(2**18, 2 ** math.ceil(math.log2(context * 8 + 1)))
    warmup = min(10_000, rounds.total * rounds.inner_steps // 50)
    return base.model_copy(
        update={
            "model": shape.section(context),
            "tokenizer": TokenizerSection(kind="bpe", vocab_size=shape.vocab),
            "data": base.data.model_copy(update={"seq_len": context, "shard_tokens": shard}),
            "optimizer": OptimizerSection(
                lr=float(f"{rate:.1e}"), batch_size=batch, warmup_steps=warmup
            ),
            "rounds": rounds,
            "exchange": exchange,
        }
    )


def _notes(facts: dict[str, Any], times: needs.RoundTimes) -> Iterator[str]:
    memory, room = facts["memory_bytes"]["artel"], facts["machine"]["memory"]
    if not facts["fits"]:
        yield (
            f"it does not fit: a machine has {readable(room)}, and every node holds the whole "
            f"model; {math.ceil(memory / room):,} such machines would hold it once"
        )
    if facts["parameters"] > MAX_PARAMETERS:
        yield f"the model of a run has at most {MAX_PARAMETERS:,} parameters"
    if facts["nodes"] > 1 and facts["computing"] < BUSY:
        yield (
            f"machines wait for the exchange {1 - facts['computing']:.0%} of the time: faster "
            "links, more --inner-steps or --codec sparse would help"
        )
    if 3 * max(times.reveal, times.apply) > 3600 or 3 * times.whole > 86_400:
        yield "rounds are longer than a run file can give them time for"


# --- answering ------------------------------------------------------------------------------------


def answering(size: int, options: PlanOptions) -> dict[str, Any]:
    """What a model takes that only answers, by precision (bytes, tokens a second, money)."""
    machine, batch = options.machine(), options.batch or 1
    active = options.active or size
    shape = needs.llama_shape(size, options.active)
    context = options.context or 8192
    cache = needs.cache_bytes(shape, context) * batch
    prefill = machine.flops * options.utilisation / (2 * active)
    money = options.price + machine.watts / 1000 * options.kwh_price
    rows = {}
    for precision in needs.WEIGHT_BITS:
        weights = needs.weight_bytes(precision, size, shape)
        read = min(weights, weights * active * batch / size) + cache
        speed = min(batch / needs.answer_s(read, machine), prefill)
        rows[precision] = {
            "weight_bytes": round(weights),
            "memory_bytes": round(weights + cache),
            "fits": weights + cache <= machine.memory,
            "tokens_per_s": speed,
            "cost_of_million_tokens": money / (speed * 3600) * 1e6,
        }
    return {
        "parameters": size,
        "active": active,
        "context": context,
        "batch": batch,
        "cache_bytes": cache,
        "machine": asdict(machine) | {"gpu": options.gpu, "gpus": options.gpus},
        "prompt_tokens_per_s": prefill,
        "precisions": rows,
    }


# --- in words -------------------------------------------------------------------------------------


def _machine(facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    many = f"{machine['gpus']} x " if machine["gpus"] > 1 else ""
    return (
        f"{many}{machine['gpu']}, {_short(machine['flops'] / 1e12)} Tflop/s at its peak, "
        f"{readable(machine['memory'])}"
    )


def _short(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _model(facts: dict[str, Any]) -> str:
    experts = (
        f", {facts['active']:,} of them active" if facts["active"] < facts["parameters"] else ""
    )
    return f"{facts['parameters']:,} parameters{experts}"


def _trainings(facts: dict[str, Any]) -> Iterator[str | Table]:
    shape, held = facts["shape"], facts["memory_bytes"]
    overlap = facts["overlap_steps"]
    spare = f", {overlap} of them during the exchange" if overlap else ""
    kind = f", {shape['experts']} experts" if shape["experts"] > 1 else ""
    money = f", {facts['cost']:,.2f} in money" if facts["cost"] else ""
    at_once = plural(facts["batch_at_once"], "sequence")
    yield f"training {_model(facts)}, on {plural(facts['nodes'], 'machine')}"
    yield ""
    yield fields(
        [
            ("machine", _machine(facts)),
            ("shape", f"{shape['layers']} layers, {shape['width']:,} wide{kind} (a guess)"),
            ("work", f"{facts['tokens']:,} tokens, {facts['flops']:.3g} operations "
             f"({facts['petaflop_days']:,.4g} petaflop/s-days)"),
            ("step", f"{facts['batch']} x {facts['context']:,} tokens on each machine"),
            ("memory", f"{readable(held['artel'])} on the accelerator, "
             f"{readable(held['process'])} with the host's, for {at_once} at once"),
            ("round", f"{facts['inner_steps']} inner steps{spare}; {_short(facts['train_s'])} s of "
             f"training in {_short(facts['round_s'])} s"),
            ("exchange", f"{facts['codec']}, {facts['topology']}: {readable(facts['up_bytes'])} "
             f"sent and {readable(facts['down_bytes'])} received by a node in a round"),
            ("joining", f"{readable(facts['state_bytes'])} for the state"),
            ("computing", f"{facts['computing']:.1%} of the time; {facts['utilisation']:.1%} of "
             f"the peak; {_short(facts['tokens_per_s'])} tokens a second in all"),
            ("time", f"{_short(facts['hours'])} hours, {facts['rounds']:,} rounds"),
            ("cost", f"{_short(facts['machine_hours'])} machine-hours, "
             f"{_short(facts['kwh'])} kWh{money}"),
        ]
    )  # fmt: skip
    yield ""
    yield f"memory of other ways to train it, activations recomputed, {at_once} at once:"
    yield Table(
        [[name, readable(held[name])] for name in needs.METHODS if name != "artel"], right=(1,)
    )
    if facts["notes"]:
        yield ""
        yield from (f"  ! {note}" for note in facts["notes"])


def _answers(facts: dict[str, Any]) -> Iterator[str | Table]:
    yield f"answering with {_model(facts)}"
    yield ""
    yield fields(
        [
            ("machine", _machine(facts)),
            ("cache", f"{readable(facts['cache_bytes'])} for {facts['batch']} x "
             f"{facts['context']:,} tokens"),
            ("prompts", f"{facts['prompt_tokens_per_s']:,.0f} tokens a second read"),
        ]
    )  # fmt: skip
    yield ""
    yield Table(
        [
            [
                name,
                readable(row["weight_bytes"]),
                readable(row["memory_bytes"]),
                "yes" if row["fits"] else "no",
                f"{row['tokens_per_s']:,.1f}",
                f"{row['cost_of_million_tokens']:,.2f}" if row["cost_of_million_tokens"] else "-",
            ]
            for name, row in facts["precisions"].items()
        ],
        ("weights in", "weights", "with cache", "fits", "tokens/s", "money/1M tokens"),
        right=(1, 2, 4, 5),
    )
