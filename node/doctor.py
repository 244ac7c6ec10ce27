"""What is wrong with a node, and what its owner can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from artel.protocol.errors import ArtelError, Unreachable

if TYPE_CHECKING:
    from artel.node.preflight import Finding

WARNINGS = 3
"""Of the log, the newest."""


class Trouble(NamedTuple):
    """Something that is wrong, and what to do; that may be nothing."""

    name: str
    what: str
    advice: str


def troubles(now: dict[str, Any]) -> Iterator[Trouble]:
    """What is wrong with a running node, by its status (:func:`node.overview.overview`)."""
    from artel.ledger.entries.reasons import explain

    if now["coordinator_lost"]:
        yield Trouble(
            "leader",
            now["waiting"] or "the coordinator does not answer",
            "check the connection; else wait: this node keeps trying, and trains meanwhile",
        )
    if now["doubtful"]:
        yield Trouble(
            "ledger", "others were shown another history", "look at both: artel ledger compare"
        )
    if not now["reachable"]:
        yield Trouble(
            "address",
            "others cannot reach this machine",
            "it takes part all the same; to serve others, forward a port: --listen, --announce",
        )
    for reason, count in now["rejected"].items():
        yield Trouble(
            "refused", f"{count} × {explain(reason)}", "what became of each: artel ledger me"
        )
    if now["last_error"]:
        yield Trouble("error", now["last_error"], "what came before: artel node logs")


def examine(home: Path) -> Iterator[Finding]:
    """All that can be found out about the node of a home, running or not."""
    from artel.node import preflight, settings, status
    from artel.node.preflight import Finding
    from artel.node.trainer.orders import Weighed
    from artel.protocol.manifest import read_manifest

    try:
        wishes = settings.load(home)
        yield Finding("settings", "ok", ", ".join(wishes.words()))
    except ArtelError as error:
        yield Finding("settings", "problem", f"{error.message}: {error.hint}")
        wishes = settings.OwnerSettings()
    running = False
    try:
        now = status.read(home)
        running = True
        doing = f"{now['phase']} ({now['resting'] or now['reason']}), {now['credit']:,} credit"
        yield Finding("running", "warning" if now["resting"] else "ok", doing)
        for trouble in troubles(now):
            yield Finding(trouble.name, "warning", f"{trouble.what}: {trouble.advice}")
    except Unreachable as error:
        yield Finding("running", "problem", f"{error.message}: {error.hint}")
    if not (home / "manifest.json").exists():
        yield Finding("run", "problem", "it has not joined one yet: artel node start --join INVITE")
        return
    manifest, _ = read_manifest(home / "manifest.json")
    yield preflight.disk(manifest, home, wishes.quota_bytes)
    try:
        preflight.require_quota(manifest, wishes.quota_bytes)
    except ArtelError as error:
        yield Finding("quota", "problem", f"{error.message}: {error.hint}")
    if not running:  # else it is taken already
        counted = Weighed(manifest.model.parameters, 0)
        yield preflight.memory(manifest, counted, wishes.memory_bytes)
    yield from _logged(home)


def _logged(home: Path) -> Iterator[Finding]:
    """The newest warnings of the log."""
    from artel.node.log_file import last_lines
    from artel.node.preflight import Finding

    try:
        lines = last_lines(home, 2000)
    except ArtelError:
        return
    marks = (" warning ", " error ", '"level": "warning"', '"level": "error"')
    said = [line for line in lines if any(mark in line for mark in marks)]
    for line in said[-WARNINGS:]:
        yield Finding("log", "warning", line[:300])
