"""What a model needs, as arithmetic without torch: memory, operations, bytes, hours.

Where the formulas come from:

- Training takes 6 operations per active parameter and token (Kaplan et al. 2020, arXiv 2001.08361),
  and attention 12 · layers · width · context more (PaLM, arXiv 2204.02311, appendix B).
- 20 tokens per parameter are compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556).
- Mixed precision with Adam takes 16 bytes per parameter (ZeRO, arXiv 1910.02054).
- Activations that are recomputed take 2 bytes per token, layer and unit of width, and 34 for the
  layer at work (Korthikanti et al. 2022, arXiv 2205.05198).
- What ``artel node`` holds is counted from its own code (:func:`artel.protocol.offer.copies`).

How far these are from what others published: docs/results/plan.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from artel.protocol.run_config import Codec, ModelSection, RunConfig

Method = Literal["artel", "mixed", "bf16", "lora", "qlora8", "qlora4"]
Precision = Literal["fp32", "fp16", "int8", "int4"]

METHODS: tuple[Method, ...] = ("artel", "mixed", "bf16", "lora", "qlora8", "qlora4")
TOKENS_PER_PARAMETER = 20
BITS: dict[Codec, float] = {"fp32": 32, "fp16": 16, "int8": 8.004, "int4": 4.063, "sparse": 0.27}
"""Per parameter of a large model, as codecs send it; "sparse" as usual with its usual top_k."""
ENCODE, DECODE, STATE = 1e9, 2e9, 1e9
"""Bytes of fp32 a second of one core: encoded, decoded and combined, written and hashed."""
WEIGHT_BITS: dict[Precision, float] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4.25}
"""With a scale of 8 bits for every 32 weights of "int4" (MXFP4)."""
READING, START_S = 0.75, 0.0025
"""Of generating text: part of the memory's bandwidth that it reaches, and seconds of a token that
nothing is read in."""
UTILISATION = 0.4
"""Part of an accelerator's peak that inner steps reach; 0.3 to 0.5 are published."""
ADAPTERS = 0.006
"""Of all parameters: low-rank matrices of rank 16 beside every matrix of the blocks."""
CHOSEN = 2
"""Experts that a token goes through, of those in a layer."""

_ACTIVATIONS_PER_UNIT = 40
"""fp32 numbers kept for the backward pass, per token, layer and unit of width (a rough figure)."""
_BYTES: dict[Method, float] = {
    "artel": 16,  # weights, gradients and two moments in fp32: what lies on the accelerator
    "mixed": 16,  # weights and gradients of 2 bytes, weights and two moments of 4
    "bf16": 8,  # weights, gradients and two moments, all of 2
    "lora": 2,
    "qlora8": 1,
    "qlora4": 4.127 / 8,  # NF4 with scales that are quantised too (QLoRA, arXiv 2305.14314)
}


@dataclass(frozen=True)
class Accelerator:
    """What computes, by its maker's data sheet."""

    flops: float
    """Operations a second: dense, bf16 with sums in fp32."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second, of its memory."""
    watts: float


ACCELERATORS = {
    "cpu": Accelerator(0.5e12, 16e9, 40e9, 65),  # of a desktop, eight cores
    "rtx3090": Accelerator(71e12, 24e9, 0.936e12, 350),
    "rtx4090": Accelerator(165e12, 24e9, 1.008e12, 450),
    "rtx5090": Accelerator(209e12, 32e9, 1.792e12, 575),
    "l40s": Accelerator(362e12, 48e9, 0.864e12, 350),
    "a100": Accelerator(312e12, 80e9, 2.039e12, 400),
    "h100": Accelerator(989e12, 80e9, 3.35e12, 700),
    "h200": Accelerator(989e12, 141e9, 4.8e12, 700),
    "b200": Accelerator(2250e12, 180e9, 8e12, 1000),
}


@dataclass(frozen=True)
class LlamaShape:
    """A Llama, or with experts a Mixtral, of about a size."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    inner: int
    """Width of the feed-forward part, of each expert."""
    experts: int = 1

    @property
    def kv_width(self) -> int:
        """Of the keys of a token, and of its values."""
        return self.width // self.heads * self.kv_heads

    @property
    def embedding(self) -> int:
        """Parameters of the table of embeddings and of the output head."""
        return self.vocab * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them, exactly."""
        return self._with(self.experts)

    @property
    def active(self) -> int:
        """Parameters that a token goes through."""
        return self._with(min(self.experts, CHOSEN))

    def _with(self, experts: int) -> int:
        attention = 2 * self.width * (self.width + self.kv_width)
        router = self.experts * self.width if self.experts > 1 else 0
        layer = attention + 3 * self.width * self.inner * experts + router + 2 * self.width
        return self.embedding + self.layers * layer + self.width

    def section(self, context: int) -> ModelSection:
        """As ``[model]`` of a run file.

        :param context: tokens that it can see at once
        """
        config: dict[str, JsonValue] = {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": context,
            "tie_word_embeddings": self.tied,
        }
        if self.experts == 1:
            return ModelSection(type="llama", config=config)
        config |= {"num_local_experts": self.experts, "num_experts_per_tok": CHOSEN}
        return ModelSection(type="mixtral", config=config)


def llama_shape(parameters: int, active: int | None = None, vocab: int | None = None) -> LlamaShape:
    """A shape with about so many parameters: wider than deep, the more so the larger it is.

    Width is 32 times the layers at a million parameters and 128 times from 4 billion on, as in
    our own sizes, GPT-3's table and Llama's.

    :param active: parameters that a token goes through; None: all of them
    :param vocab: tokens in the vocabulary; None: what is usual at this size
    """
    dense = active or parameters
    head = 32 if dense < 4e6 else 64 if dense < 1e9 else 128
    sizes = (3e6, 1024), (50e6, 8192), (300e6, 16384), (3e9, 32768), (math.inf, 131072)
    vocab = vocab or next(tokens for most, tokens in sizes if parameters < most)
    aspect = min(128, 32 * (dense / 1e6) ** (1 / 6))
    found = []
    for layers in range(2, 257):
        step = 8 * head if dense >= 1e9 else head  # whole groups of queries share keys
        around = math.sqrt(dense / (11 * layers))
        for width in {max(step, step * int(around / step + more)) for more in (-1, 0, 1)}:
            heads = width // head
            inner = 8 * math.ceil(width / 3)
            shape = LlamaShape(
                layers, width, heads, 8 if dense >= 1e9 else heads, vocab, dense < 1e9, inner
            )
            off = abs(math.log(shape.parameters / dense))
            found.append((8 * off + abs(math.log(width / layers / aspect)), shape))
    shape = min(found, key=lambda pair: pair[0])[1]
    if active is None or active >= parameters:
        return shape
    inner = max(8, 8 * round(shape.inner / CHOSEN / 8))
    one = shape.layers * 3 * shape.width * inner
    return replace(shape, inner=inner, experts=CHOSEN + max(1, round((parameters - dense) / one)))


# --- memory ---------------------------------------------------------------------------------------


def kept_bytes(config: RunConfig, layers: int, width: int) -> int:
    """Of activations and logits (with their softmax and its gradient) in an inner step."""
    tokens = config.optimizer.batch_size * config.data.seq_len
    return 4 * tokens * (layers * width * _ACTIVATIONS_PER_UNIT + config.tokenizer.vocab_size * 3)


def trainer_bytes(config: RunConfig, vectors: int, layers: int, width: int) -> int:
    """Rough peak of the training process, on host and accelerator together.

    :param vectors: fp32 numbers in all copies of the model
    """
    return 4 * vectors + kept_bytes(config, layers, width)


def method_bytes(method: Method, parameters: int, shape: LlamaShape, tokens: int) -> float:
    """What training takes on accelerators; of methods that are not ours, with recomputation.

    :param tokens: of one step
    """
    per = _BYTES[method]
    held = per * parameters
    if method.startswith("qlora"):  # embeddings and head stay in 16 bits
        held += (2 - per) * min(shape.embedding, parameters)
    if "lora" in method:
        held += 16 * ADAPTERS * parameters
    units = shape.layers * shape.width * (_ACTIVATIONS_PER_UNIT * 4 if method == "artel" else 2)
    at_work = 0 if method == "artel" else 34 * shape.width
    return held + tokens * (units + at_work + (12 if method == "artel" else 6) * shape.vocab)


def weight_bytes(precision: Precision, parameters: int, shape: LlamaShape) -> float:
    """Of a model that only answers; below 16 bits embeddings and head stay in 16."""
    bits = WEIGHT_BITS[precision]
    apart = min(shape.embedding, parameters) if bits < 16 else 0
    return (bits * (parameters - apart) + 16 * apart) / 8


def cache_bytes(shape: LlamaShape, context: int) -> int:
    """Of the keys and values of one sequence, in 16 bits."""
    return 4 * shape.layers * shape.kv_width * context


def answer_s(read: float, machine: Accelerator) -> float:
    """Seconds in which each sequence gets its next token.

    :param read: bytes of weights and caches that take part
    """
    return read / (machine.bandwidth * READING) + START_S


# --- time -----------------------------------------------------------------------------------------


def training_flops(active: int, shape: LlamaShape | None = None, context: int = 0) -> float:
    """Operations for one token; with a shape those of attention too, as utilisation counts them."""
    return 6 * active + (12 * shape.layers * shape.width * context if shape else 0)


@dataclass(frozen=True)
class RoundTraffic:
    """Bytes of one node in one round, of contributions and slices alone; the most there can be."""

    topology: str
    contribution: int
    """What the node makes and gives to the coordinator."""
    up_least: int
    """When others fetch what they need from the coordinator or from one another ..."""
    up_most: int
    """... and when all of them fetch it from this node."""
    down: int
    up_usual: int
    """When the coordinator gives one copy of what is needed, and nodes the rest."""


def gathered(total: int, members: int) -> RoundTraffic:
    """``gather``: everybody fetches the contributions of all others, (N - 1) of them.

    :param total: bytes of a contribution
    """
    most = total * members
    return RoundTraffic("gather", total, total, most, total * (members - 1), most)


def sharded(total: int, members: int, index_bytes: int = 0) -> RoundTraffic:
    """``sharded``: a node fetches its own slice and the one that it checks from all others, and the
    combined slices of all others: below three contributions whatever N is."""
    others = members - 1
    mine = -(-(total - index_bytes) // members)
    down = others * (index_bytes + 3 * mine)
    usual = total + down - others * (index_bytes + mine)
    return RoundTraffic("sharded", total, total + mine, total + mine + down, down, usual)


@dataclass(frozen=True)
class RoundTimes:
    """How long a round takes, when all machines are alike. Seconds."""

    train: float
    """Inner steps."""
    encode: float
    reveal: float
    """The contribution is on its way to the coordinator."""
    apply: float
    """What counts is fetched, combined, applied and signed."""
    whole: float

    @property
    def computing(self) -> float:
        """Part (0 to 1) of the time that goes into inner steps."""
        return self.train / self.whole


def round_times(
    parameters: int,
    traffic: RoundTraffic,
    members: int,
    train_s: float,
    tail: float,
    up: float,
    down: float,
) -> RoundTimes:
    """A round without waiting for anybody slower; benchmarks/virtual_time.py has them.

    :param train_s: seconds of all inner steps
    :param tail: part (0 to 1) of them that is trained during the exchange
    :param up: bits a second; ``down`` too
    """  # fmt: skip
    fp32 = 4 * parameters
    encode = fp32 / ENCODE
    reveal = 8 * traffic.contribution / up
    moved = max(8 * (traffic.up_usual - traffic.contribution) / up, 8 * traffic.down / down)
    decoded = 3 if traffic.topology == "sharded" else members
    apply = moved + fp32 * decoded / DECODE + fp32 / STATE
    busy = train_s + encode
    whole = max(busy, busy - tail * train_s + reveal + apply)
    return RoundTimes(train_s, encode, reveal, apply, whole)
