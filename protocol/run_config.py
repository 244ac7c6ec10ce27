"""The file that describes a run, section by section: what a person may write, with unit and bounds.

Every field is followed by its docstring; the commented template, the reference in
``docs/manifest.md`` and the error messages are all made from these models (after prime-rl's typed
configuration). Unknown keys are refused, nothing is converted between types.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from artel.protocol.schema import MAX_EXACT, Conflict, OptionalDigest, Section, one_line, shown
from artel.protocol.terms import (
    MAX_NODES,
    CoordinationSection,
    LedgerSection,
    OwnershipSection,
    TrustSection,
)

Codec = Literal["fp32", "fp16", "int8", "int4", "sparse"]
Topology = Literal["auto", "gather", "sharded"]
WSD_DECAY_FRACTION = 0.2
"""Schedule ``wsd`` (warm-up, stable, decay): the last fifth of the steps decays linearly."""
RESERVED_MODEL_KEYS = {
    "vocab_size": "it comes from the tokenizer",
    "model_type": "write it as type in [model]",
    "dtype": "parameters are 32-bit floats",
    "torch_dtype": "parameters are 32-bit floats",
    "auto_map": "models with their own code are not run",
    "trust_remote_code": "models with their own code are not run",
}


def _model_table(table: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Bound the one free-form table, and write whole floats as integers, as RFC 8785 does."""
    for key in table:
        if key in RESERVED_MODEL_KEYS or key.startswith("_"):
            why = RESERVED_MODEL_KEYS.get(key, "keys with a leading underscore are internal")
            raise Conflict(f"[model.config] {key} cannot be set: {why}", f"remove {key}")
        shown(key, "a key of [model.config]")
    return {key: _plain(value, f"[model.config] {key}", 3) for key, value in table.items()}


def _plain(value: JsonValue, where: str, depth: int) -> JsonValue:
    if isinstance(value, dict | list):
        if depth == 0 or len(value) > 256:
            raise Conflict(f"{where} is nested too deeply or has more than 256 entries")
        if isinstance(value, list):
            return [_plain(item, where, depth - 1) for item in value]
        return {
            shown(key, f"a key in {where}"): _plain(item, where, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, str) and len(value) > 256:
        raise Conflict(f"{where} is longer than 256 characters")
    if isinstance(value, str):
        return shown(value, where)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or abs(value) > 2**31:
            raise Conflict(f"{where} = {value} is out of bounds (at most 2^31 either way)")
        return int(value) if value == int(value) else value
    return value


class RunSection(Section):
    """Who the run is for people, and the seed that fixes everything random in it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    """Short name: lower-case letters, digits and hyphens, at most 40 characters."""
    description: Annotated[str, Field(max_length=400), AfterValidator(one_line)] = ""
    """One or two sentences for volunteers."""
    seed: Annotated[int, Field(ge=0, le=MAX_EXACT)] = 0
    """Seed of the initial parameters and of the order of the data."""
    public: bool = False
    """Whether strangers may find the run: its coordinator lists it, and `artel runs` shows it."""
    model_licence: Annotated[str, Field(max_length=80), AfterValidator(one_line)] = ""
    """Licence of the trained model, for example "Apache-2.0"; empty: not said."""
    data_licence: Annotated[str, Field(max_length=80), AfterValidator(one_line)] = ""
    """Licence of the text that is trained on; empty: not said."""


class ModelSection(Section):
    """The architecture: any causal language model that transformers knows."""

    type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
    """The `model_type` of transformers, for example "llama", "gpt2" or "qwen3"."""
    config: Annotated[dict[str, JsonValue], Field(max_length=64), AfterValidator(_model_table)]
    """Keys of that model type's transformers configuration, without vocab_size. With experts \
router_aux_loss_coef is how much their even use counts in training."""


class TokenizerSection(Section):
    """How text becomes tokens."""

    kind: Literal["bytes", "bpe"]
    """"bytes": one token per byte; "bpe": byte-level BPE, trained on the run's own data."""
    vocab_size: Annotated[int, Field(ge=257, le=262_144)] = 257
    """Tokens in the vocabulary; "bytes" always has 257, "bpe" needs at least 258."""

    @model_validator(mode="after")
    def _fits_kind(self) -> TokenizerSection:
        if self.kind == "bytes" and self.vocab_size != 257:
            raise Conflict(
                f"[tokenizer] vocab_size = {self.vocab_size} does not fit kind = 'bytes'",
                "remove vocab_size, or write kind = 'bpe'",
            )
        if self.kind == "bpe" and self.vocab_size < 258:
            raise Conflict(
                "[tokenizer] kind = 'bpe' needs a vocab_size of at least 258",
                "write for example vocab_size = 1024",
            )
        return self


class StdlibSource(Section):
    """The Python sources of the organiser's interpreter: about 30 MB that every machine has."""

    kind: Literal["stdlib"]
    """The literal "stdlib"."""


class TextSource(Section):
    """A file, or a folder with everything below it."""

    kind: Literal["text"]
    """The literal "text"."""
    path: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(one_line)]
    """A file or a folder, relative to this file; published as written. Read are .txt, .md, .py, \
.rst, .html, and .jsonl, .json and .parquet with a "text" in each line or row; .gz and .zst of \
these."""
    contributor: OptionalDigest = ""
    """Account (64 hex digits) that earns data credit when this text is first trained on; empty: \
nobody."""


Source = Annotated[StdlibSource | TextSource, Field(discriminator="kind")]


class DataSection(Section):
    """What is trained on, and how it is cut."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=16)]
    """Where the text comes from, in this order: { kind = "stdlib" } is the Python sources of this \
machine, { kind = "text", path = "FILE or FOLDER" } any text."""
    seq_len: Annotated[int, Field(ge=8, le=131_072)] = 128
    """Tokens per window: what the model sees at once."""
    validation_fraction: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05
    """Part of the text that is never trained on (0 to 1)."""
    validation_windows: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Windows of the validation split that an evaluation reads, evenly spaced."""
    shard_tokens: Annotated[int, Field(ge=1024, le=2**26)] = 262_144
    """Tokens per shard, the unit that nodes download."""
    span_windows: Annotated[int, Field(ge=1, le=4096)] = 8
    """Consecutive windows that are shuffled as one; more of them means fewer shards per node."""
    max_bytes: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Bytes of text to use; a sample of the files is drawn when there is more; 0 means all."""


class OptimizerSection(Section):
    """The inner optimiser, which every node runs on its own data."""

    kind: Literal["adamw", "muon"] = "adamw"
    """The optimiser; its state is kept across rounds and never leaves the node. "muon" is for the \
matrices of the blocks; embeddings, the head and vectors stay with AdamW."""
    lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Peak learning rate of AdamW."""
    muon_lr: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Peak learning rate of Muon."""
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Momentum of Muon (Nesterov's)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the activations: "bf16" where the machine computes in it; "auto" where that is also \
faster: on CUDA, and on CPUs for models at least 192 wide. Parameters stay 32-bit."""
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)],
        Annotated[float, Field(ge=0, lt=1)],
    ] = (0.9, 0.95)
    """Decay of the first and of the second moment, each at least 0 and below 1."""
    eps: Annotated[float, Field(ge=1e-12, le=1e-2)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled weight decay."""
    clip: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Largest norm of a gradient; 0 means no limit."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Windows (sequences) per inner step and node."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate after the warm-up; "wsd" stays at the peak and decays in the last fifth."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 40
    """Inner steps of linear warm-up; below rounds.total × rounds.inner_steps."""
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last step, as a part of lr."""


class RoundsSection(Section):
    """The rules of a round: train, commit, reveal, settle."""

    total: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    """Rounds (outer steps) of the whole run."""
    inner_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Inner steps of every node in a round (H)."""
    min_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    """Nodes that must be ready before a round opens."""
    max_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 32
    """Most members of a round."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.66
    """Part of the members, by standing once the run rests on them, whose commitments start the \
grace time (0 to 1)."""
    deadline_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Seconds from the opening of a round until its commitments close, quorum or not."""
    box_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Seconds of training in a round: each node is assigned as many steps as it can make in them, \
from inner_steps / 4 to inner_steps * 4; 0: everybody makes inner_steps."""
    grace_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds that stragglers get once the quorum has committed; in rounds with a time box: after \
the box."""
    reveal_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Seconds to reveal a committed contribution."""
    settle_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Seconds to apply the accepted contributions and sign the new state."""
    heartbeat_timeout_s: Annotated[float, Field(ge=2, le=3600)] = 20.0
    """Seconds of silence after which a node counts as gone."""
    span: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Rounds after which every node begins anew from the agreed state, without what its optimiser \
and its error feedback remember, so that its work can be repeated from public data; 0: never."""
    ramp: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """First inner steps of a node's span in which its learning rate rises to that of the run."""
    mirror_every: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """The coordinator keeps a copy of every n-th agreed state and of the last; 0 means none."""
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Of those copies the two newest stay; every n-th agreed state is copied too, and stays for \
good, for `artel model export`; 0 means none."""

    def copies(self, round: int) -> bool:
        """Whether the coordinator keeps a copy of the state before a round."""
        return any(n and round % n == 0 for n in (self.mirror_every, self.keep_every))

    @model_validator(mode="after")
    def _ramp_needs_spans(self) -> RoundsSection:
        if self.ramp and not self.span:
            raise Conflict(
                f"[rounds] ramp = {self.ramp:,} is for the beginning of spans, but span = 0",
                "set span, or remove ramp",
            )
        return self


class OuterSection(Section):
    """The outer optimiser, applied to the mean pseudo-gradient by everybody alike."""

    lr: Annotated[float, Field(gt=0, le=2)] = 0.7
    """Outer learning rate; 1.0 by default with the codec "sparse"."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Outer momentum; 0 with "sparse", whose memory is one. 0.9 hurts below about 200 steps."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    final_lr_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Outer learning rate at the end as a part of lr, reached over the last quarter of rounds; \
0.65 by default with "sparse"."""


SPARSE_OUTER = {"lr": 1.0, "momentum": 0.0, "final_lr_fraction": 0.65}
"""What [exchange.outer] means by default with the codec "sparse": its memory is the momentum."""


class ExchangeSection(Section):
    """What travels between nodes, and how it is combined."""

    codec: Codec = "int4"
    """How a pseudo-gradient is packed: about 32, 16, 8.1 or 4.1 bits per parameter; "sparse" \
sends the largest elements alone, 0.15 to 0.3 bits, and keeps the rest for the next rounds."""
    top_k: Annotated[int, Field(ge=8, le=1024)] = 128
    """Elements that "sparse" sends of every 4096 (64: 1.6 %, 128: 3.1 %)."""
    error_feedback: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Part of what "sparse" did not send that counts again in the next round."""
    aggregator: Literal["mean", "centered_clip"] = "centered_clip"
    """How contributions are combined; each is first clipped to the median norm. "centered_clip" \
draws those far from the others towards them, and takes longer than the mean (docs/exchange.md)."""
    contributor_floor: Annotated[float, Field(gt=0, le=1)] = 0.25
    """With "sparse" an element is the mean over those who sent it, but never over less than this \
part of all weights; 1: the mean over everybody."""
    topology: Topology = "auto"
    """"gather": every node fetches every contribution; "sharded": each node combines one slice \
for all; "auto": sharded for rounds of more than 8 members."""
    holders: Annotated[int, Field(ge=0, le=8)] = 0
    """Members that are given each slice of a sharded round's contributions; the coordinator then \
takes hashes, and asks some of them to show what they hold. 0: it takes every contribution."""
    overlap_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Inner steps of a round that are trained while its exchange is under way; they count in the \
next round. 0: nodes wait for the exchange."""
    fragments: Annotated[int, Field(ge=1, le=64)] = 1
    """Parts of the model that take turns: each round exchanges one of them."""
    outer: OuterSection = OuterSection()
    """The outer optimiser."""

    @model_validator(mode="before")
    @classmethod
    def _sparse_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("codec") == "sparse":
            outer = value.get("outer", {})
            if isinstance(outer, dict):
                return {**value, "outer": {**SPARSE_OUTER, **outer}}
        return value

    @model_validator(mode="after")
    def _held_in_slices(self) -> ExchangeSection:
        if self.holders and self.topology == "gather":
            raise Conflict(
                f"[exchange] holders = {self.holders} does not go with topology = 'gather', where "
                "every node holds every contribution",
                "write topology = 'sharded' or 'auto', or holders = 0",
            )
        return self

    @model_validator(mode="after")
    def _no_second_momentum(self) -> ExchangeSection:
        if self.codec == "sparse" and self.outer.momentum > 0:
            raise Conflict(
                f"[exchange.outer] momentum = {self.outer.momentum} does not go with codec = "
                "'sparse', whose error feedback is a momentum already",
                "write momentum = 0, or leave it out",
            )
        return self


MAX_PARAMETERS = 1 << 32
"""Of a model. A state with momentum is then 32 GiB, half of what a content id can name."""
MAX_STEP_TOKENS = 1 << 24
"""Tokens of one inner step."""
MAX_ROUND_WINDOWS = 1 << 22
"""Windows that one node is assigned in a round: it lists them all."""
MAX_VALIDATION_TOKENS = 1 << 27
"""Tokens that one evaluation reads."""
BOX_FACTOR = 4
"""A time-boxed round assigns from inner_steps / 4 to 4 inner_steps."""


class RunConfig(Section):
    """A whole run, as written in TOML."""

    run: RunSection
    """Name and seed."""
    model: ModelSection
    """Architecture."""
    tokenizer: TokenizerSection
    """Tokenizer."""
    data: DataSection
    """Text."""
    optimizer: OptimizerSection = OptimizerSection()
    """Inner optimiser."""
    rounds: RoundsSection = RoundsSection()
    """Rounds."""
    exchange: ExchangeSection = ExchangeSection()
    """Exchange."""
    ownership: OwnershipSection = OwnershipSection()
    """Ownership."""
    ledger: LedgerSection = LedgerSection()
    """Ledger."""
    coordination: CoordinationSection = CoordinationSection()
    """Coordination."""
    trust: TrustSection = TrustSection()
    """Trust."""

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        data, rounds, warmup = self.data, self.rounds, self.optimizer.warmup_steps
        if rounds.min_nodes > rounds.max_nodes:
            raise Conflict(
                f"[rounds] min_nodes = {rounds.min_nodes} is above max_nodes = {rounds.max_nodes}",
                f"lower min_nodes to {rounds.max_nodes} or raise max_nodes",
            )
        steps = rounds.total * rounds.inner_steps
        if warmup >= steps and warmup > 0:
            raise Conflict(
                f"[optimizer] warmup_steps = {warmup} does not end within the run of {steps} steps",
                f"lower it below {steps} (rounds.total × rounds.inner_steps)",
            )
        exchange = self.exchange
        if 2 * exchange.overlap_steps > rounds.inner_steps:
            raise Conflict(
                f"[exchange] overlap_steps = {exchange.overlap_steps} is more than half of "
                f"[rounds] inner_steps = {rounds.inner_steps}",
                f"lower it to {rounds.inner_steps // 2} or raise inner_steps",
            )
        if exchange.fragments > rounds.total:
            raise Conflict(
                f"[exchange] fragments = {exchange.fragments} is more than [rounds] total = "
                f"{rounds.total}: some would never be exchanged",
                f"lower it to {rounds.total} or raise total",
            )
        self._bounded_products()
        if rounds.grace_s > rounds.deadline_s:
            raise Conflict(
                f"[rounds] grace_s = {rounds.grace_s:g} is above deadline_s = "
                f"{rounds.deadline_s:g}",
                "lower grace_s; a tenth of deadline_s is usual",
            )
        if rounds.box_s and rounds.box_s + rounds.grace_s > rounds.deadline_s:
            raise Conflict(
                f"[rounds] box_s = {rounds.box_s:g} and grace_s = {rounds.grace_s:g} together are "
                f"above deadline_s = {rounds.deadline_s:g}",
                "raise deadline_s; twice box_s is usual",
            )
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            limit = self.model.config.get(key)
            if isinstance(limit, int) and data.seq_len > limit:
                raise Conflict(
                    f"[data] seq_len = {data.seq_len} is above [model.config] {key} = {limit}",
                    f"lower seq_len to {limit} or raise {key}",
                )
        needed = data.seq_len * data.span_windows + 1
        if data.shard_tokens < needed:
            raise Conflict(
                f"[data] shard_tokens = {data.shard_tokens} is too small for one span of "
                f"{data.span_windows} windows of {data.seq_len} tokens",
                f"raise shard_tokens to at least {needed}, or lower span_windows",
            )
        return self

    def _bounded_products(self) -> None:
        """Numbers that are each possible and together would take all of a volunteer's machine."""
        data, batch, rounds = self.data, self.optimizer.batch_size, self.rounds
        most = rounds.inner_steps * (BOX_FACTOR if rounds.box_s else 1)
        for what, product, limit, lower in (
            (
                f"[optimizer] batch_size = {batch} × [data] seq_len = {data.seq_len} tokens a step",
                batch * data.seq_len,
                MAX_STEP_TOKENS,
                "lower batch_size or seq_len",
            ),
            (
                f"[optimizer] batch_size = {batch} × {most} steps of a round",
                batch * most,
                MAX_ROUND_WINDOWS,
                "lower batch_size or rounds.inner_steps",
            ),
            (
                f"[data] validation_windows = {data.validation_windows} × seq_len = {data.seq_len}",
                data.validation_windows * data.seq_len,
                MAX_VALIDATION_TOKENS,
                "lower validation_windows",
            ),
        ):
            if product > limit:
                raise Conflict(f"{what} is too much: {product:,}, at most {limit:,}", lower)
