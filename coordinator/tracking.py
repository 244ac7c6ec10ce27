"""``artel run track``: the curves of a run for TensorBoard or Weights & Biases.

They are made of what the run's page says to anybody (``/api/v1/rounds``), by a process of its own:
whoever wants curves has them, and no round ever waits for a service that keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from artel.coordinator.metrics import RoundSums
from artel.protocol import options
from artel.protocol.commandline import Folder, value
from artel.protocol.errors import EXIT_OK, DecodeError, ResourceError, Unreachable, UsageError
from artel.protocol.messages import Count
from artel.protocol.net.http import MAX_OBJECT_BYTES, fetch, fetch_object
from artel.protocol.paths import expanded
from artel.protocol.schema import Record

EVERY_S = 30.0
LAST = 1000
"""Rounds that a page tells of."""
TIMEOUT_S = 30.0

Write = Callable[[RoundSums, dict[str, float]], None]


class _Told(Record):
    """What a page tells of its rounds."""

    total: Count
    rounds: list[RoundSums]


def track(
    url: Annotated[str, value(options.http_url, "URL")],
    /,
    *,
    tensorboard: Folder | None = None,
    wandb: Annotated[str, value(options.text, "PROJECT")] = "",
    once: bool = False,
) -> int:
    """Write the curves of a run for TensorBoard or Weights & Biases, until it is over.

    Losses, tokens, seconds, members and bytes of each round, as the run's page tells them; a round
    that is made again is written again. Started anew it goes on where it was.

    example: artel run track http://HOST:8080 --tensorboard curves

    :param url: the page of the run's coordinator
    :param tensorboard: folder of event files, for tensorboard --logdir
    :param wandb: project; who and where is for wandb itself (wandb login, WANDB_MODE=offline)
    :param once: write what is there, and end
    """
    if not tensorboard and not wandb:
        raise UsageError("nobody is to get the curves", "add --tensorboard DIR or --wandb PROJECT")
    url = url.rstrip("/")
    run = fetch_object(f"{url}/api/v1/run")
    with ExitStack() as stack:
        writers = list[tuple[float, Write]]()  # what it has: until when (seconds since 1970)
        if tensorboard:
            writers.append(_tensorboard(expanded(tensorboard), stack))
        if wandb:
            writers.append(_wandb(wandb, run, stack))
        since = [known for known, _ in writers]
        while True:
            over = False
            try:
                found, over = _rounds(url)
            except Unreachable as error:
                if once:
                    raise
                print(f"{error.message}; trying again", flush=True)
                found = []
            for row in sorted(found, key=lambda row: row.ended):
                for place, (_, write) in enumerate(writers):
                    if row.ended > since[place]:
                        write(row, dict(scalars(row)))
                        since[place] = row.ended
            if once or over:
                return EXIT_OK
            time.sleep(EVERY_S)


def scalars(row: RoundSums) -> Iterator[tuple[str, float]]:
    """Name and number of what is known of a round; ``loss/validation`` is that of the state that it
    starts from."""
    known = {
        "loss/validation": row.validation,
        "loss/training": row.loss,
        "round/tokens": row.tokens,
        "round/seconds": sum(row.seconds.values()),
        "round/members": row.members,
        "round/accepted": row.accepted,
        "round/computing": row.computing,
        "bytes/sent": sum(row.up.values()),
        "bytes/received": sum(row.down.values()),
    }
    return ((name, float(number)) for name, number in known.items() if number is not None)


def _rounds(url: str) -> tuple[list[RoundSums], bool]:
    """The newest rounds that are over, and whether none comes any more."""
    told = fetch(f"{url}/api/v1/rounds?last={LAST}", MAX_OBJECT_BYTES, TIMEOUT_S)
    try:
        found = _Told.model_validate_json(told)
    except ValidationError:
        raise DecodeError(
            f"{url} does not show the rounds of a run", "name the page of the run's coordinator"
        ) from None
    over = [row for row in found.rounds if row.ended]
    return over, any(row.round + 1 == found.total for row in over)


def _tensorboard(folder: Path, stack: ExitStack) -> tuple[float, Write]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise _missing("tensorboard") from None
    folder.mkdir(parents=True, exist_ok=True)
    kept = EventAccumulator(str(folder), {"scalars": 1})
    kept.Reload()
    tags = kept.Tags()["scalars"]
    since = max((kept.Scalars(tag)[-1].wall_time for tag in tags), default=0.0)
    out = EventFileWriter(str(folder))
    stack.callback(out.close)

    def write(row: RoundSums, numbers: dict[str, float]) -> None:
        said = [Summary.Value(tag=name, simple_value=each) for name, each in numbers.items()]
        out.add_event(Event(wall_time=row.ended, step=row.round, summary=Summary(value=said)))
        out.flush()

    return since, write


def _wandb(project: str, run: dict[str, Any], stack: ExitStack) -> tuple[float, Write]:
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    # By the run's id it goes on where it was; a round that is made again is a step of its own.
    out: Any = wandb.init(
        project=project,
        id=str(run["run"])[:32],
        name=str(run["name"]),
        config=run["manifest"]["config"],
        resume="allow",
    )
    stack.callback(out.finish)
    out.define_metric("*", step_metric="round")
    since = float(out.summary.get("ended") or 0.0)

    def write(row: RoundSums, numbers: dict[str, float]) -> None:
        out.log({"round": row.round, "ended": row.ended} | numbers)

    return since, write


def _missing(extra: str) -> ResourceError:
    return ResourceError(f"{extra} is not installed", f"pip install 'artel-network[{extra}]'")
