"""Rows of the convergence benchmark: what each of them trains, written as short text.

A row is ``CODEC[/OPTION=VALUE]...``, as ``int4/H=20/mu=0.3/lr=0.004``; ``ddp`` in the place
of the codec averages fp32 gradients at every step. What a row does not say comes from the plan and
from the defaults below.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from artel.protocol.run_config import RunConfig

DDP = "ddp"
CODECS = (DDP, "fp32", "fp16", "int8", "int4", "sparse")
SLOWEST = 64


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Row:
    """One row; None stands for the default of its codec or of the plan."""

    codec: str
    opt: str = _option("adamw", "inner optimiser: adamw or muon")
    lr: float | None = _option(None, "peak inner learning rate of AdamW (default: the table's)")
    mlr: float = _option(0.02, "peak inner learning rate of Muon")
    H: int | None = _option(None, "inner steps of a round (default: the table's)")
    K: int | None = _option(None, "workers (default: the table's)")
    outer: float | None = _option(None, "outer learning rate (default: the codec's)")
    mu: float | None = _option(None, "outer momentum, Nesterov's (default: the codec's)")
    final: float | None = _option(None, "outer learning rate at the end, as a part of outer")
    k: int = _option(128, "elements of every 4096 that sparse sends")
    decay: float = _option(0.95, "error feedback of sparse")
    floor: float = _option(0.25, "contributor floor of sparse; 1: the mean over everybody")
    agg: str = _option("mean", "aggregator: mean or centered_clip")
    tau: int = _option(0, "inner steps that are trained while the exchange is under way")
    P: int = _option(1, "fragments")
    drop: float = _option(0.0, "part of the contributions that are lost, drawn by lot")
    slow: int = _option(1, "how many times slower worker 0 is; rounds are then time-boxed")
    R: int = _option(0, "rounds after which every worker begins anew from the state; 0: never")
    ramp: int = _option(0, "inner steps in which a span's learning rate rises")
    nudge: float = _option(0.0, "initial weights are scaled by 1 + nudge")
    seed: int = _option(0, "of the initial weights and of the data")

    @property
    def key(self) -> str:
        """The text of the row, in one order of its options."""
        said = [
            f"{option.name}={_text(getattr(self, option.name))}"
            for option in fields(self)[1:]
            if getattr(self, option.name) != option.default
        ]
        return "/".join([self.codec, *said])


def parse(text: str) -> Row:
    """The row of its text.

    :raises ValueError: with a message for people
    """
    codec, *options = text.strip().split("/")
    if codec not in CODECS:
        raise ValueError(f"unknown row {text!r}: it begins with one of {', '.join(CODECS)}")
    known = {option.name: option for option in fields(Row)[1:]}
    given: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in known or not equals or name in given:
            raise ValueError(f"row {text!r}: {option!r} is none of {', '.join(known)} = value")
        kind = str(known[name].type).split(" ", 1)[0]
        try:
            given[name] = {"int": int, "float": float, "str": str}[kind](value)
        except ValueError:
            raise ValueError(f"row {text!r}: {value!r} is no {kind}") from None
    row = Row(codec, **given)
    counts = (row.H, row.K, row.P)
    bounded = 0 <= row.drop < 1 and 1 <= row.slow <= SLOWEST and row.ramp >= 0
    if not bounded or any(c is not None and c < 1 for c in counts):
        raise ValueError(f"row {text!r}: drop, slow, ramp, H, K or P is out of bounds")
    return row


@dataclass(frozen=True)
class Plan:
    """What all rows of a table share."""

    name: str
    width: int
    layers: int
    seq_len: int
    vocab_size: int | None
    """Of the BPE tokenizer; None: bytes."""
    batch: int
    """Windows that a worker sees in an inner step."""
    tokens: int
    """Of a row, about: a row makes whole rounds."""
    lr: float = 3e-3
    K: int = 4
    H: int = 20
    warm_up: float = 1 / 20
    final: float = 0.1

    def workers(self, row: Row) -> int:
        return row.K or self.K

    def inner_steps(self, row: Row) -> int:
        return 1 if row.codec == DDP else row.H or self.H

    def rounds(self, row: Row) -> int:
        """Rounds (for DDP: steps) that see about ``tokens`` tokens."""
        members, whole = self.workers(row), self.inner_steps(row)
        steps = whole * (members - 1) + whole / row.slow
        return max(4, round(self.tokens / (steps * self.batch * self.seq_len)))

    def config(self, row: Row, vocab_size: int) -> RunConfig:
        """The run that a row is, as its organiser would write it.

        :raises ValueError: when the options contradict each other
        """
        rounds, whole = self.rounds(row), self.inner_steps(row)
        exchange: dict[str, Any] = {"codec": "fp32" if row.codec == DDP else row.codec}
        outer = {"lr": row.outer, "momentum": row.mu, "final_lr_fraction": row.final}
        exchange |= {
            "outer": {key: value for key, value in outer.items() if value is not None},
            "top_k": row.k,
            "error_feedback": row.decay,
            "contributor_floor": row.floor,
            "aggregator": row.agg,
            "overlap_steps": row.tau,
            "fragments": row.P,
        }
        table = {
            "run": {"name": self.name, "seed": row.seed},
            "model": {
                "type": "llama",
                "config": {
                    "hidden_size": self.width,
                    "intermediate_size": self.width * 8 // 3 // 32 * 32,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "max_position_embeddings": self.seq_len,
                    "tie_word_embeddings": False,
                },
            },
            "tokenizer": {"kind": "bytes"}
            if self.vocab_size is None
            else {"kind": "bpe", "vocab_size": vocab_size},
            "data": {"sources": [{"kind": "stdlib"}], "seq_len": self.seq_len},
            "optimizer": {
                "kind": row.opt,
                "lr": row.lr or self.lr,
                "muon_lr": row.mlr,
                "batch_size": self.batch,
                "warmup_steps": round(self.warm_up * rounds * whole),
                "final_lr_fraction": self.final,
            },
            "rounds": {
                "total": rounds,
                "inner_steps": whole,
                "box_s": 60.0 if row.slow > 1 else 0.0,
                "span": row.R,
            },
            "exchange": exchange,
        }
        return RunConfig.model_validate(table, strict=False)


@dataclass(frozen=True)
class Table:
    """A plan and the rows that it is made of, as text."""

    plan: Plan
    rows: tuple[str, ...]
    compiled: bool = True
    """Whether compiling the model is worth its half minute."""


_MUON = "/opt=muon/lr=0.004/H=10"
_LOW, _MIDDLE = (f"/opt=muon/lr={lr}/mlr=0.01/H=10" for lr in (0.004, 0.008))
_HIGH = "/opt=muon/lr=0.016/H=10"
_ROBUST = ("drop=0.3", "slow=4", "slow=15", "tau=2", "tau=5", "P=2", "P=4")

TABLES = {
    "quick": Table(
        Plan("quick", 64, 2, 32, None, batch=4, tokens=61_440, H=10),
        ("ddp", "fp32", "fp32/nudge=1e-06", "fp16", "int8", "int4", "sparse", "int4/tau=2/P=2"),
        compiled=False,
    ),
    # 0.13M parameters: what each setting does, one at a time; then tuned rates.
    "small": Table(
        Plan("small", 64, 2, 64, None, batch=2, tokens=500_000),
        (
            *(f"ddp/lr={lr}" for lr in (0.001, 0.002, 0.004, 0.008)),
            *(f"ddp/opt=muon/lr=0.004{mlr}" for mlr in ("/mlr=0.01", "")),
            *(f"{codec}{_MUON}" for codec in ("fp32", "fp16", "int8", "int4", "sparse")),
            f"sparse{_MUON}/k=64",
            f"sparse{_MUON}/floor=1",
            f"fp32{_MUON}/nudge=1e-06",
            *(
                f"fp32/opt=muon/lr=0.004/H={H}{outer}"
                for H in (10, 20, 50)
                for outer in ("/outer=1/mu=0", "/mu=0.3", "", "/mu=0.9")
                if (H, outer) != (10, "")
            ),
            "fp32/opt=muon/lr=0.004/mlr=0.04/H=10/outer=1/mu=0",
            "fp32/opt=muon/lr=0.004/H=10/outer=1.4/mu=0",
            *(f"{codec}/opt=muon/lr=0.004/H={H}" for codec in ("int4", "sparse") for H in (20, 50)),
            *(f"{codec}{_MUON}/{what}" for codec in ("int4", "sparse") for what in _ROBUST),
            "ddp/lr=0.004/K=8",
            "ddp/opt=muon/lr=0.004/mlr=0.01/K=8",
            f"int4{_MUON}/K=8",
            *(f"fp32/lr={lr}/H=10/outer=1/mu=0" for lr in (0.002, 0.004)),
            *(f"sparse/lr={lr}/H=10" for lr in (0.002, 0.004, 0.006)),
            # From here on: rates, to compare methods at the best of each.
            "int4/lr=0.002/H=10",
            "int4/lr=0.002/H=10/mu=0.7",
            "int4/lr=0.001/H=10/outer=1/mu=0.5",
            "sparse/lr=0.002/H=5",
            *(f"ddp/opt=muon/lr={lr}/mlr=0.01" for lr in (0.002, 0.008, 0.016, 0.032)),
            *(f"ddp/opt=muon/{rates}" for rates in ("lr=0.004/mlr=0.005", "lr=0.016")),
            *(f"int4/opt=muon/lr={lr}/mlr=0.01/H=10" for lr in (0.002, 0.004, 0.008, 0.016)),
            *(f"int4/opt=muon/lr={lr}/H=10" for lr in (0.008, 0.016, 0.032)),
            "int4/opt=muon/lr=0.004/H=5",
            *(f"int4/opt=muon/lr={lr}/mlr=0.01/H=5" for lr in (0.004, 0.008, 0.016)),
            *(f"int4/opt=muon/{r}/H=10" for r in ("lr=0.004/mlr=0.005", "lr=0.016/mlr=0.03")),
            *(f"int4{_LOW}/{what}" for what in ("outer=1/mu=0.5", "mu=0.7", "drop=0.3", "tau=2")),
            "int4/opt=muon/lr=0.004/mlr=0.01/H=20",
            "int4/opt=muon/lr=0.004/mlr=0.005/H=10/mu=0.7",
            "int4/opt=muon/lr=0.002/mlr=0.01/H=10/outer=1/mu=0.7",
            *(
                f"int4{_MIDDLE}/{what}"
                for what in ("outer=1/mu=0.3", "outer=0.8/mu=0.5", "outer=0.5/mu=0.7", "drop=0.3")
            ),
            *(f"int4{_MIDDLE}{what}/seed=1" for what in ("", "/drop=0.3")),
            f"int4{_HIGH}/drop=0.3",
            *(f"sparse{rates}" for rates in (_LOW, _MIDDLE, _HIGH)),
            *(f"sparse/opt=muon/lr={lr}/mlr=0.01/H=5" for lr in (0.004, 0.008, 0.016)),
            *(f"sparse/opt=muon/{r}/H=10" for r in ("lr=0.004/mlr=0.005", "lr=0.016/mlr=0.01")),
            *(
                f"sparse{_LOW}/{what}"
                for what in ("outer=0.7", "outer=1.4", "decay=1", "decay=0.9")
            ),
            f"sparse{_MIDDLE}/drop=0.3",
            *(f"fp32{rates}{n}" for rates in (_LOW, _MIDDLE, _HIGH) for n in ("", "/nudge=1e-06")),
            "ddp/opt=muon/lr=0.008/mlr=0.01/seed=1",
        ),
    ),
    # 0.44M parameters: AdamW and Muon, momentum and sparse.
    "bytes": Table(
        Plan("bytes", 128, 2, 128, None, batch=2, tokens=1_000_000),
        (
            "ddp/lr=0.0025",
            "ddp/opt=muon/lr=0.0025/mlr=0.01",
            "fp32/lr=0.0025/H=10/outer=1/mu=0",
            "fp32/lr=0.0025/H=10/outer=1/mu=0.5",
            "sparse/lr=0.0025/H=10",
            "int4/opt=muon/lr=0.0025/mlr=0.01/H=10/outer=1/mu=0",
        ),
    ),
    # 2.2M parameters and a BPE tokenizer: the table of the targets.
    "bpe": Table(
        Plan("bpe", 192, 4, 128, 1024, batch=2, tokens=2_000_000),
        (
            "ddp/lr=0.0015",
            *(f"ddp/opt=muon/lr={lr}/mlr=0.01" for lr in (0.003, 0.006)),
            *(f"{codec}/opt=muon/lr=0.003/mlr=0.01/H=10" for codec in ("int4", "sparse")),
            "int4/opt=muon/lr=0.006/H=10",
            *(f"int4/opt=muon/lr={lr}/mlr=0.01/H=10" for lr in (0.006, 0.012)),
            "int4/opt=muon/lr=0.006/mlr=0.01/H=10/drop=0.3",
            *(f"{codec}/opt=muon/lr=0.006/mlr=0.01/H=5" for codec in ("int4", "sparse")),
            # Against DDP: the price of averaging the workers' steps instead of their gradients.
            "fp32/opt=muon/lr=0.006/mlr=0.01/H=1/outer=1/mu=0",
        ),
    ),
    # 1.02M parameters, 15 tokens for each: what spans cost (docs/results/convergence.md).
    "spans": Table(
        Plan("spans", 128, 4, 128, 1024, batch=8, tokens=15_300_000),
        tuple(f"int4/opt=muon/lr=0.006/mlr=0.01/H=10{span}" for span in ("", "/R=50/ramp=3")),
    ),
}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
