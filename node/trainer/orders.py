"""The trainer's commands, and what comes back: one frozen value each, the same at both ends.

The child carries them out in two **lanes**, which go on at the same time and take their own
commands in order. What any of them may fail with is in :class:`node.trainer.channel.TrainerError`;
unless it says otherwise, a command that fails has changed nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

WEIGH_S = 120.0
"""The import of torch, which may be under way, included."""
LOAD_S = 300.0
WORK_S = 600.0
"""Limit for everything but loading and training, which has none unless the caller sets one."""

Window = tuple[Path, int]
"""A shard file and the first token of a window in it."""


def _listed(windows: Sequence[Window]) -> dict[str, Any]:
    shards = {path: number for number, path in enumerate(dict.fromkeys(p for p, _ in windows))}
    return {"shards": [str(p) for p in shards], "at": [[shards[p], start] for p, start in windows]}


def _unlisted(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    shards = [Path(shard) for shard in value["shards"]]
    return [(shards[number], start) for number, start in value["at"]]


Windows = Annotated[Sequence[Window], PlainSerializer(_listed), BeforeValidator(_unlisted)]
"""In training order. They pass to the child with every path once."""


# --- what comes back ---


@dataclass(frozen=True)
class Loaded:
    """A run is ready; ``root`` is the state's, ``device`` "cpu" or "cuda", ``hardware`` the class
    of what computes (:func:`node.trainer.machine.hardware`)."""

    device: str
    root: str
    hardware: str


@dataclass(frozen=True)
class Weighed:
    """How large a model is: its parameters, and the bytes of its buffers."""

    parameters: int
    buffers: int


@dataclass(frozen=True)
class Measured:
    """What a benchmark measured."""

    tokens_per_second: float
    step_seconds: float


@dataclass(frozen=True)
class Steps:
    """How far training is: step ``step`` of the ``steps`` that were assigned is done (those of the
    head come first, then those of the tail); mean loss (nats) since the last report."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True)
class Trained:
    """A finished contribution."""

    blob: Path
    """The contribution, or in a sharded round its index."""
    parts: tuple[Path, ...]
    """In a sharded round the blobs that the index lists, in order."""
    size: int
    """Bytes of all of them."""
    fingerprints: Path
    """Of its steps (:mod:`protocol.fingerprints`)."""
    hardware: str
    """The class of what computed it (:func:`node.trainer.machine.hardware`)."""
    payload: str
    """What its numbers are known by (:func:`protocol.exchange.pseudogradient.payload_digest`)."""
    loss: float
    """Mean of the head, in nats per token."""
    tokens: int
    """Of head and tail together."""
    head: int
    """Steps of this round."""
    span: int
    """The round since which moments and error feedback were kept; 0 in a run without spans."""
    tail: int
    """Steps of the round before, trained during its exchange, that this contribution holds."""
    seconds: dict[str, float]
    """merge: taking the new state over; idle: of the main lane since the inner steps of the head
    before, in which it did nothing for the run; train: the head; encode; tail: its ``tail`` steps.
    """


@dataclass(frozen=True)
class Counted:
    """A contribution that counts in a closed round, with its blob as a file here."""

    node: str
    blob: Path
    weight: int


@dataclass(frozen=True)
class Applied:
    """The next state; ``seconds`` has decode, outer, write (with hashing), and aggregate where the
    contributions were combined here."""

    state: Path
    root: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Compared:
    """A contribution beside the one that was made again."""

    round: int
    steps: int
    """Inner steps since the span began, those of the contribution included."""
    error: float
    """L2 norm of the difference over that of what was made again, both as their payloads decode;
    0 when they are the same bytes, and above 1 when they have nothing in common."""
    overlap: float | None
    """With a sparse codec: the part of the elements that both send of those that the contribution
    sends."""


@dataclass(frozen=True)
class Replayed:
    """How far a replay is."""

    left: int
    """Inner steps to go; at 0 it is over, and its memory is free."""
    compared: tuple[Compared, ...]
    """The contributions reached so far, in order."""
    hardware: str
    """The class of what repeats them (:func:`node.trainer.machine.hardware`)."""


# --- the commands ---

Answer = TypeVar("Answer")


class Command(Generic[Answer]):
    """Something that the trainer is to do. ``limit_s``: how long it may take; None: without end.
    ``merges``: it belongs to the merge lane, and not to the main one."""

    limit_s: ClassVar[float | None] = WORK_S
    merges: ClassVar[bool] = False

    @classmethod
    def name(cls) -> str:
        """As people read it: ``apply_slices``."""
        return re.sub("(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True)
class Choose(Command[str]):
    """Find out whether torch can train on a device; needs no run. Fails with ``no_device``."""

    limit_s = LOAD_S
    device: str


@dataclass(frozen=True)
class Weigh(Command[Weighed]):
    """Find out how large the model of a signed manifest is, without building it; needs no run.

    Fails with ``bad_manifest``, ``out_of_memory`` and, when the manifest names another model,
    ``failed``.
    """

    limit_s = WEIGH_S
    manifest: Path


@dataclass(frozen=True)
class Load(Command[Loaded]):
    """Load a run from its signed manifest and one of its states.

    Fails with ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``; then there is no run.
    """

    limit_s = LOAD_S
    manifest: Path
    state: Path
    device: str = "auto"


@dataclass(frozen=True)
class SetState(Command[None]):
    """Take over a state that does not come from our own applying.

    The weights become the state's. The optimiser's moments stay; the tail of the round before and
    the error feedback are dropped. Fails with ``bad_state``.
    """

    limit_s = LOAD_S
    state: Path
    root: str = ""
    """What the state's root has to be, so that a torn file is found out; "": whatever it is."""


@dataclass(frozen=True)
class Benchmark(Command[Measured]):
    """Time ``steps`` inner steps (and one before them); nothing changes."""

    steps: int = 3


@dataclass(frozen=True)
class Train(Command[Trained]):
    """Train the head of a node's part of a round, and write its contribution into ``out``.

    First the weights follow the newest agreed state. The same command again, from the same state,
    begins where the first one began and gives the same bytes; the tail of an attempt that failed
    is dropped. Progress is reported about twice a second.

    Fails with ``wrong_round``, ``bad_data``, ``bad_request``, ``cancelled``, ``timeout``,
    ``diverged``, ``disk_full``, ``disk``, ``out_of_memory``.
    """

    limit_s = None
    round: int
    node: str
    """Peer id; part of the seed of the node's own randomness."""
    windows: Windows
    """``(steps - tail) * batch`` of them; step i trains on those from ``i * batch`` on. Their files
    must stay in place."""
    out: Path
    steps: int
    """All that the node was assigned (h)."""
    tail: int = 0
    """How many of them are for :class:`RunOn`."""
    slices: int = 0
    """Slices that a sharded round asks for (its members); 0: one blob for everybody."""
    deadline: float | None = None
    """When a head of which a quarter is done ends, by :func:`time.monotonic`: the clock is the
    machine's, both processes read the same one."""
    carried: int | None = None
    """Steps of the round before that may count in this one; another tail than that is dropped.
    None: whatever was trained."""
    span: int | None = None
    """In a run with spans: the round in which the span began that the node may go on with; where it
    cannot, or with None, another span begins."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """What was amended of the manifest for this round (:mod:`protocol.amending`)."""


@dataclass(frozen=True)
class RunOn(Command[None]):
    """Train the tail of a round after its head; its steps count in the next contribution.

    Once for each head. A tail that fails or is cancelled is lost, and the weights are those before
    it. Fails with ``wrong_round`` (no head to go on from) and as :class:`Train`.
    """

    limit_s = None
    round: int
    node: str
    windows: Windows
    """Those of the tail."""
    steps: int
    """All that the node was assigned, as in :class:`Train`."""


@dataclass(frozen=True)
class Evaluate(Command[float]):
    """Mean loss of the newest agreed state on windows, in nats per token; the weights stay.

    Fails with ``bad_data``, ``cancelled``, ``timeout``, ``diverged``.
    """

    windows: Windows


@dataclass(frozen=True)
class Apply(Command[Applied]):
    """Combine the contributions of a closed ``gather`` round, and write the next state's file.

    The next state is the agreed one from then on; the weights follow it in the next :class:`Train`.
    Cannot be interrupted: after a cancelled wait, set the state before anything else. Until the
    next round is trained, the round applied last may be applied once more.

    Fails with ``bad_blob`` (``node`` says whose), ``wrong_round``, ``diverged``, ``disk_full``,
    ``disk``, ``out_of_memory``.
    """

    merges = True
    round: int
    contributions: Sequence[Counted]
    out: Path
    changes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Combine(Command[Path]):
    """Combine one slice of a closed ``sharded`` round into a file; the same bytes whoever does it.

    Fails with ``bad_blob`` (``node`` says whose), ``wrong_round``, ``bad_request``, ``disk_full``,
    ``disk``, ``out_of_memory``.
    """

    merges = True
    round: int
    slice: int
    slices: int
    """As in :class:`Train`."""
    contributions: Sequence[Counted]
    """With the blobs of that slice."""
    out: Path


@dataclass(frozen=True)
class ApplySlices(Command[Applied]):
    """Apply a closed ``sharded`` round from the blobs of its slices; otherwise as :class:`Apply`.

    Fails with ``bad_blob``, ``wrong_round``, ``bad_request``, ``diverged``, ``disk_full``,
    ``disk``, ``out_of_memory``.
    """

    merges = True
    round: int
    slices: Sequence[Path]
    """In order."""
    nodes: Sequence[str]
    """Those whose contributions count."""
    out: Path
    count: int
    """As ``slices`` in :class:`Train`; a small model has fewer slices than that."""
    changes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SpanRound:
    """A round of a span (:mod:`protocol.assignment`) as the ledger tells of it: what a node was
    assigned, and what it made of it. The files must stay in place while the replay goes on."""

    round: int
    state: Path
    """File of the agreed state that the round starts from."""
    base: str
    """Its root."""
    steps: int
    """All that the node was assigned (h)."""
    head: int
    """Steps of the head that its contribution holds."""
    windows: Windows
    """``head * batch`` of them."""
    blobs: Sequence[Path]
    """The contribution: one blob, or in a sharded round that of each slice in order. Without any it
    is only trained, and the replay ends with it."""
    tail: int = 0
    """Steps of this round's tail that the node's next contribution holds."""
    tail_windows: Windows = ()
    """``tail * batch`` of them."""
    slices: int = 0
    """As in :class:`Train`."""
    aggregates: Sequence[Path] = ()
    """Sharded, with a sparse codec, not of the last round: the blobs for :class:`ApplySlices`."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """As in :class:`Train`."""


@dataclass(frozen=True)
class BeginReplay(Command[None]):
    """Begin to repeat a node's span, up to the last of ``rounds``; nothing is computed yet.

    Another replay that is under way ends. A replay is independent of the node's own training, which
    goes on as without it, and ends with the run that is loaded. Fails with ``bad_request``.
    """

    node: str
    rounds: Sequence[SpanRound]
    """One after the other, from that in which the span began."""
    out: Path | None = None
    """Where the fingerprints of all steps of the contributions go, in order, when it is over."""


@dataclass(frozen=True)
class GoOn(Command[Replayed]):
    """Repeat at most ``steps`` inner steps more, and compare the contributions that are reached.

    Cancelled, it goes on from where it is next time. Fails with ``not_loaded`` (no replay); and,
    after which the replay is over, with ``bad_state``, ``bad_data``, ``bad_blob``, ``bad_request``,
    ``diverged``, ``out_of_memory``, ``disk_full``, ``disk``.
    """

    limit_s = None
    steps: int


@dataclass(frozen=True)
class DropReplay(Command[None]):
    """End the replay, if one is under way, and free its memory."""


COMMANDS: dict[str, type[Command[Any]]] = {kind.name(): kind for kind in Command.__subclasses__()}

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def plain(value: Any) -> Any:
    """A command, or what comes back, as JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def command(name: str, value: Any) -> Command[Any]:
    """The command of a name and its JSON values."""
    read: Command[Any] = _adapter(COMMANDS[name]).validate_python(value)
    return read


def answer(given: Command[Answer], value: Any) -> Answer:
    """The answer to a command, of its JSON values."""
    (kind,) = get_args(type(given).__orig_bases__[0])  # type: ignore[attr-defined]
    read: Answer = _adapter(kind).validate_python(value)
    return read
