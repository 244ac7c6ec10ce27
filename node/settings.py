"""What a node may use of its owner's machine, and when. Kept in the home; a running node obeys it.

Each of these is an option of ``artel node start`` and of ``artel node set``; what was said last
holds, also after a restart. A setting that nobody has spoken of is None, which means its default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from artel.protocol import files, options
from artel.protocol.cgroup import Groups
from artel.protocol.commandline import value
from artel.protocol.errors import UsageError

SETTINGS_FILE = "settings.json"
MAX_FILE_BYTES = 4096
DEFAULT_QUOTA_MB = 10_000
CORES = Groups().cores()

_HOURS = re.compile(r"([01]?\d|2[0-4])(?::([0-5]\d))?-([01]?\d|2[0-4])(?::([0-5]\d))?", re.ASCII)


def hours(text: str) -> str:
    """Hours of the day, like ``22-7`` or ``9:30-12,18-24``; "" and ``always`` are all of them."""
    text = "" if text == "always" else text.replace(" ", "")
    for part in text.split(",") if text else ():
        if not _HOURS.fullmatch(part):
            raise ValueError(f"{part!r} is no part of a day\nwrite it like 22-7 or 9:30-12,18-24")
    return text


def spans(text: str) -> list[tuple[int, int]]:
    """The minutes of the day at which each part of :func:`hours` begins and ends."""
    found = []
    for part in text.split(",") if text else ():
        numbers = _HOURS.fullmatch(part)
        assert numbers is not None
        at, past, until, over = (int(number or 0) for number in numbers.groups())
        found.append((min(60 * at + past, 1440), min(60 * until + over, 1440)))
    return found


def _rate(text: str) -> float:
    return 0.0 if text == "0" else options.number(0.01, 1e6)(text)


def _fraction(text: str) -> float:
    return options.number(0.05, 1)(text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnerSettings:
    """What was said; see the properties for what that means.

    Rates are in megabits per second, sizes in megabytes (10^6 bytes).
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    threads: Annotated[
        int | None,
        Field(ge=0, le=4096),
        value(options.whole(0, CORES), "N"),
        Parameter(help="for training, at most the cores of this machine; 0 takes all"),
    ] = None
    uplink: Annotated[
        float | None,
        Field(ge=0, le=1e6),
        value(_rate, "MBIT"),
        Parameter(help="megabits per second to send at most, all traffic together; 0: no limit"),
    ] = None
    downlink: Annotated[
        float | None,
        Field(ge=0, le=1e6),
        value(_rate, "MBIT"),
        Parameter(help="megabits per second to receive at most; 0: no limit"),
    ] = None
    quota: Annotated[
        int | None,
        Field(ge=1, le=10**9),
        value(options.whole(1, 10**9), "MB"),
        Parameter(help=f"disk space to use at most; at first {DEFAULT_QUOTA_MB}"),
    ] = None
    memory: Annotated[
        int | None,
        Field(ge=0, le=10**9),
        value(options.whole(0, 10**9), "MB"),
        Parameter(help="memory that the trainer may take at most; 0: no limit"),
    ] = None
    gpu_memory: Annotated[
        float | None,
        Field(ge=0.05, le=1),
        value(_fraction, "PART"),
        Parameter(help="part of the GPU's memory that the trainer may take, like 0.5"),
    ] = None
    hours: Annotated[
        str | None,
        Field(max_length=200),
        value(hours, "HOURS"),
        Parameter(help="hours of the day in which to train, like 22-7 or 9:30-12,18-24; or always"),
    ] = None
    idle: Annotated[
        int | None,
        Field(ge=0, le=1440),
        value(options.whole(0, 1440), "MINUTES"),
        Parameter(help="train only when nobody has used the machine for so long; 0: always"),
    ] = None
    battery: Annotated[
        Literal["yes", "no"] | None,
        Parameter(help="whether to train while the machine runs on its battery; at first yes"),
    ] = None
    paused: Annotated[bool | None, Parameter(show=False, parse=False)] = None
    """By ``artel node pause``."""

    def __post_init__(self) -> None:
        if self.hours:
            object.__setattr__(self, "hours", hours(self.hours))

    def updated(self, said: OwnerSettings) -> OwnerSettings:
        """These, after something else was said."""
        return replace(self, **facts(said))

    @property
    def cores(self) -> int:
        """Threads for training."""
        return min(self.threads or CORES, CORES)

    @property
    def up(self) -> float | None:
        """Bytes per second."""
        return self.uplink * 125_000 if self.uplink else None

    @property
    def down(self) -> float | None:
        """Bytes per second."""
        return self.downlink * 125_000 if self.downlink else None

    @property
    def quota_bytes(self) -> int:
        return (self.quota or DEFAULT_QUOTA_MB) * 10**6

    @property
    def memory_bytes(self) -> int | None:
        return self.memory * 10**6 if self.memory else None

    def words(self) -> Iterator[str]:
        """What these mean, for a person."""
        yield f"{self.cores} thread(s)"
        yield f"{self.uplink:g} Mbit/s up" if self.uplink else "all of the uplink"
        yield f"{self.downlink:g} Mbit/s down" if self.downlink else "all of the downlink"
        yield f"{self.quota or DEFAULT_QUOTA_MB:,} MB of disk"
        if self.memory:
            yield f"{self.memory:,} MB of memory"
        if self.gpu_memory:
            yield f"{100 * self.gpu_memory:g} % of the GPU's memory"
        if self.hours:
            yield f"from {self.hours} o'clock"
        if self.idle:
            yield f"when nobody used the machine for {self.idle} min"
        if self.battery == "no":
            yield "not on battery"


_ADAPTER = TypeAdapter(OwnerSettings)


def facts(settings: OwnerSettings) -> dict[str, Any]:
    """What was said, without what was not."""
    return {name: said for name, said in vars(settings).items() if said is not None}


def refused(error: ValidationError) -> UsageError:
    """What is wrong with settings, for a person."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return UsageError(f"setting {where[:40]}: {first['msg']}", "see artel node set --help")


def load(home: Path) -> OwnerSettings:
    """What was said to the node of a home.

    :raises UsageError: its file is damaged
    """
    path = home / SETTINGS_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return OwnerSettings()
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise UsageError(f"{path}: {refused(error).message}", "correct it, or remove it") from None


def save(home: Path, settings: OwnerSettings) -> None:
    """Keep settings in a home.

    :raises ResourceError: they cannot be written
    """
    with files.told(home):
        files.write(
            home / SETTINGS_FILE, json.dumps(facts(settings), indent=1).encode() + b"\n", mode=0o600
        )
