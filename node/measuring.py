"""How far apart two machines come with the same work: what tolerances are measured with.

One machine trains short spans of tiny runs and leaves in a folder all that repeating them takes;
any machine repeats them from there, by the orders with which nodes audit each other. What differs
is then due to the machines alone: their kernels, precision, threads and software.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sysconfig
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from artel.node.supervisor import Trainer
from artel.node.trainer.orders import (
    Answer,
    Apply,
    BeginReplay,
    Command,
    Counted,
    GoOn,
    Load,
    RunOn,
    SpanRound,
    Train,
    Window,
    plain,
)
from artel.protocol import assignment, content, files
from artel.protocol.errors import DecodeError, UsageError
from artel.protocol.identity import Identity
from artel.protocol.manifest import (
    DataFacts,
    Manifest,
    ModelFacts,
    SplitFacts,
    TokenizerFacts,
    sign,
)
from artel.protocol.run_config import RunConfig

KINDS: dict[str, dict[str, Any]] = {
    f"{optimizer} {codec}": {"optimizer": {"kind": optimizer}, "exchange": {"codec": codec}}
    for optimizer in ("adamw", "muon")
    for codec in ("fp32", "int4", "sparse")
}
"""What is trained: an optimiser and a codec."""
ROUNDS, STEPS, OVERLAP = 4, 25, 5
"""100 steps in one span, as in a span of rounds.span = 4; 5 of each round are its tail."""
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SEQ_LEN, BATCH = 64, 4
TOKENS = ROUNDS * STEPS * BATCH * SEQ_LEN + 1
MAX_TOLD_BYTES = 1 << 20
_TOLD = "span.json"


class Does(Protocol):
    """A trainer (:class:`node.supervisor.Trainer`)."""

    async def do(self, command: Command[Answer], /) -> Answer: ...


@dataclass(frozen=True)
class Apart:
    """How far a kind of work that one machine did is from what another one made of it."""

    kind: str
    made_on: str
    repeated_on: str
    error: float
    """The largest of the rounds: L2 of the difference over L2."""
    overlap: float | None
    """The smallest of the rounds; with ``sparse``."""
    rounds: tuple[float, ...]
    """The error of each, in order."""


@dataclass(frozen=True)
class Told:
    """What lies beside the files of a span."""

    hardware: str
    replay: BeginReplay


async def recorded(folder: Path, threads: int) -> str:
    """Record with a trainer process of its own; returns the class of this machine.

    :raises UsageError: a folder is there already
    """
    async with _trainer(threads) as trainer:
        return await record(trainer, folder)


async def measured(folder: Path, threads: int) -> list[Apart]:
    """Measure with a trainer process of its own.

    :raises DecodeError: the folder holds something else
    """
    async with _trainer(threads) as trainer:
        return await measure(trainer, folder)


@contextlib.asynccontextmanager
async def _trainer(threads: int) -> AsyncIterator[Trainer]:
    trainer = Trainer(None, threads)
    await trainer.restart()
    try:
        yield trainer
    finally:
        await trainer.close()


def words(one: Apart) -> str:
    """For people."""
    overlap = "" if one.overlap is None else f", {100 * one.overlap:.2f} % of the positions"
    return f"relative error {one.error:.2e}{overlap}"


async def record(trainer: Does, folder: Path, kinds: Sequence[str] = tuple(KINDS)) -> str:
    """Train a span of each kind; what others need to repeat it goes into a folder of its own.

    :returns: the class of this machine
    :raises UsageError: a folder is there already
    """
    hardware = ""
    for kind in kinds:
        where = folder / kind.replace(" ", "-")
        if where.exists():
            raise UsageError(f"{where} is there already", "name another folder, or remove it")
        where.mkdir(parents=True)
        manifest = await asyncio.to_thread(_prepare, where, KINDS[kind])
        told = await _span(trainer, where, manifest)
        data = json.dumps({"hardware": told.hardware, "replay": plain(told.replay)})
        files.write(where / _TOLD, data.encode())
        hardware = told.hardware
    return hardware


async def measure(trainer: Does, folder: Path) -> list[Apart]:
    """Repeat every span that a folder has.

    :raises DecodeError: it holds something else
    """
    found = []
    for where in sorted(path.parent for path in folder.glob(f"*/{_TOLD}")):
        told = await asyncio.to_thread(read_span, where)
        await trainer.do(Load(where / "manifest.json", where / "state-0.bin", "auto"))
        await trainer.do(told.replay)
        done = await trainer.do(GoOn(1 << 20))
        errors = tuple(one.error for one in done.compared)
        overlaps = [one.overlap for one in done.compared if one.overlap is not None]
        least = min(overlaps) if overlaps else None
        kind = where.name.replace("-", " ")
        found.append(Apart(kind, told.hardware, done.hardware, max(errors), least, errors))
    if not found:
        raise DecodeError(f"{folder} holds nothing that was recorded for measuring")
    return found


async def _span(trainer: Does, where: Path, manifest: Manifest) -> Told:
    node = Identity.from_seed(b"\1" * 32).peer_id
    work = assignment.Work.of(manifest.config)
    loaded = await trainer.do(Load(where / "manifest.json", where / "state-0.bin", "auto"))
    state, base, hardware = where / "state-0.bin", loaded.root, ""
    rounds: list[SpanRound] = []
    for round in range(ROUNDS):
        tail = work.tail(round, STEPS)
        windows = _windows(where, round)
        head, rest = windows[: (STEPS - tail) * BATCH], windows[(STEPS - tail) * BATCH :]
        carried = rounds[-1].tail if rounds else 0
        order = Train(round, node, head, where, STEPS, tail, carried=carried, span=0)
        made = await trainer.do(order)
        hardware = made.hardware
        told = SpanRound(
            round=round,
            state=state,
            base=base,
            steps=STEPS,
            head=made.head,
            windows=head,
            blobs=[made.blob],
            tail=tail,
            tail_windows=rest,
        )
        if tail and round < ROUNDS - 1:
            await trainer.do(RunOn(round, node, rest, STEPS))
        applied = await trainer.do(Apply(round, [Counted(node, made.blob, made.tokens)], where))
        state, base = applied.state, applied.root
        rounds.append(told)
    state.unlink()  # nothing starts from the last one
    return Told(hardware, BeginReplay(node, rounds))


def _windows(where: Path, round: int) -> list[Window]:
    first = round * STEPS * BATCH
    return [(where / "shard.bin", (first + i) * SEQ_LEN) for i in range(STEPS * BATCH)]


def read_span(where: Path) -> Told:
    """What a folder says of its span; only files of the folder are named in it."""
    data = (where / _TOLD).read_bytes()
    if len(data) > MAX_TOLD_BYTES:
        raise DecodeError(f"{where / _TOLD} is too long")
    try:
        told = TypeAdapter(Told).validate_python(json.loads(data))
    except (LookupError, RecursionError, TypeError, ValueError):
        raise DecodeError(f"{where / _TOLD} was not recorded for measuring") from None

    def here(path: Path) -> Path:
        return where / path.name

    rounds = [
        replace(
            one,
            state=here(one.state),
            windows=[(here(path), at) for path, at in one.windows],
            tail_windows=[(here(path), at) for path, at in one.tail_windows],
            blobs=[here(path) for path in one.blobs],
            aggregates=[here(path) for path in one.aggregates],
        )
        for one in told.replay.rounds
    ]
    return replace(told, replay=replace(told.replay, rounds=rounds))


def _prepare(where: Path, kind: dict[str, Any]) -> Manifest:
    """A tiny run on the interpreter's own sources: manifest, first state, tokens."""
    import numpy as np

    from artel.protocol import model, tokenizer
    from artel.protocol.state import State, write_state

    organiser = Identity.from_seed(os.urandom(32))
    trained = tokenizer.train([""], tokenizer.BYTES_VOCAB)
    tokens = np.frombuffer(_text(TOKENS), np.uint8).astype("<u2")
    (where / "shard.bin").write_bytes(tokens.tobytes())
    config = RunConfig.model_validate_json(
        json.dumps(
            {
                "run": {"name": "measure", "description": "How far machines are apart.", "seed": 1},
                "model": {"type": "llama", "config": MODEL},
                "tokenizer": {"kind": "bytes"},
                "data": {"sources": [{"kind": "stdlib"}], "seq_len": SEQ_LEN},
                "optimizer": {"batch_size": BATCH, "warmup_steps": 10, "precision": "bf16"}
                | kind["optimizer"],
                "rounds": {"total": ROUNDS + 1, "inner_steps": STEPS, "span": ROUNDS + 1},
                "exchange": {"overlap_steps": OVERLAP} | kind["exchange"],
            }
        )
    )
    module = model.build(config.model, tokenizer.BYTES_VOCAB, config.run.seed)
    layout = model.layout_of(module)
    params = model.read_parameters(module)
    momentum = np.zeros_like(params) if config.exchange.outer.momentum else None
    root = write_state(where / "state-0.bin", State(0, layout.digest, params, momentum))
    split = SplitFacts(index="0" * 64, root="0" * 64, shards=1, tokens=len(tokens))
    manifest = Manifest(
        config=config,
        organiser=organiser.key,
        coordinators=(organiser.key,),
        tokenizer=TokenizerFacts(id=content.content_id(trained), vocab_size=tokenizer.BYTES_VOCAB),
        data=DataFacts(train=split, validation=split, dtype="uint16"),
        model=ModelFacts(layout=layout.digest, parameters=layout.parameters),
        initial_state=root,
    )
    (where / "manifest.json").write_bytes(sign(manifest, organiser).encode())
    return manifest


def _text(count: int) -> bytes:
    """So many bytes of the standard library's sources."""
    found = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += path.read_bytes()
        if len(found) >= count:
            return found[:count]
    raise UsageError("this Python has no sources to train on", "use one that has")
