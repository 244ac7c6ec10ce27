"""Before a node joins: can this machine keep up with the run, and what would stop it?

Each check measures something real here and compares it with the manifest; nothing that it finds is
sent to anybody.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artel.node.trainer.orders import Weighed
from artel.protocol import assignment, messages, tolerances
from artel.protocol.cgroup import Groups
from artel.protocol.errors import ArtelError, ResourceError, Unfit
from artel.protocol.exchange import codec
from artel.protocol.manifest import Manifest
from artel.protocol.net import clocks, wire
from artel.protocol.net.host import Host
from artel.protocol.offer import disk_bytes, memory_bytes
from artel.protocol.state import Layout, state_bytes
from artel.protocol.units import readable

PROBE_BYTES = 512 * 1024
MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}


@dataclass(frozen=True)
class Finding:
    """One check: what was found, in words. ``level`` is ok, warning or problem."""

    name: str
    level: str
    text: str


class Findings:
    """What the checks found; each is shown to the node's owner.

    :param strict: refuse to start on a machine that cannot keep up
    """

    def __init__(self, say: Callable[[str], None], *, strict: bool) -> None:
        self._say, self._strict = say, strict
        self._problems: list[str] = []

    def add(self, *findings: Finding) -> None:
        """Note and show what was found."""
        for finding in findings:
            self._say(f"{MARKS[finding.level]} {finding.name:<8} {finding.text}")
            self._problems += [finding.name] * (finding.level == "problem")

    def conclude(self, kind: type[ResourceError], otherwise: str = "") -> None:
        """Say that this machine can keep up, or what it lacks.

        :param otherwise: said when there is no problem
        :raises ResourceError: of this kind, when problems are to end the start
        """
        said = f"This machine cannot keep up with this run ({', '.join(self._problems)})."
        if self._problems and self._strict:
            raise kind(
                said, "mend what is marked ✗ above, or start with --no-check to try all the same"
            )
        if otherwise:
            self._say(said if self._problems else otherwise)


def _level(needed: float, allowed: float, well_below: float) -> str:
    """How good it is to need so much of what is allowed."""
    if needed > allowed:
        return "problem"
    return "ok" if needed < well_below * allowed else "warning"


def memory(manifest: Manifest, weighed: Weighed, most: int | None = None) -> Finding:
    """Free memory, of the machine or of its container, against what a run takes.

    :param weighed: what this machine has counted itself; a model has two copies of its buffers
    :param most: what the owner lets the trainer take
    """
    need = memory_bytes(manifest, weighed.parameters, weighed.buffers)
    now = Groups().memory()
    free = now.free
    text = f"{readable(free)} free, about {readable(need)} needed"
    if now.limit is not None:
        text += (
            f"; this program may use {readable(now.limit)} (the limit of its container or service)"
        )
    if most is not None and most < free:
        free, text = most, f"{text}; its owner gives {readable(most)}"
    return Finding("memory", _level(need, free, 1 / 1.2), text)


def disk(manifest: Manifest, home: Path, quota: int) -> Finding:
    """Free disk space against states and the data cache."""
    need = min(quota, disk_bytes(manifest))
    free = shutil.disk_usage(home).free
    level = "ok" if free > 1.2 * need else "problem"
    return Finding("disk", level, f"{readable(free)} free, about {readable(need)} needed")


def most_of_a_ledger(home: Path, quota: int) -> int:
    """Bytes of a ledger that are taken over before the run has welcomed this node."""
    return min(quota, shutil.disk_usage(home).free // 2)


def too_much(most: float) -> Unfit:
    """The error for a ledger of more bytes than that."""
    return Unfit(
        f"the ledger of this run is more than the {readable(int(most))} that this node takes over "
        "before it is welcomed: its --quota, or half of the free disk",
        "give it a larger --quota, or a home on a larger disk; ask the organiser how long the "
        "ledger is",
    )


def require_quota(manifest: Manifest, quota: int) -> None:
    """Refuse a quota into which a node's part of one round does not fit.

    :raises Unfit: with the quota that would do
    """
    need = _quota_need(manifest)
    if quota < need:
        raise Unfit(
            f"--quota {quota // 10**6} is too small for this run: a node needs {readable(need)}",
            f"give it at least --quota {-(-need // 10**6)}",
        )


def _quota_need(manifest: Manifest) -> int:
    """The states of two rounds and the one that is being made, what the fewest members send in a
    round, and a shard of each split."""
    config, data = manifest.config, manifest.data
    fragment = Layout.of([("all", (-(-manifest.model.parameters // config.exchange.fragments),))])
    payload = codec.of(config.exchange).payload_bytes(fragment)
    members = config.rounds.min_nodes
    # Of a sharded round: the inputs of one slice, and all that were combined.
    payloads = members if assignment.Work.of(config).topology_of(members) == "gather" else 2
    width = 2 if data.dtype == "uint16" else 4
    shard = config.data.shard_tokens
    tokens = min(shard, data.train.tokens) + min(shard, data.validation.tokens)
    state = state_bytes(manifest.model.parameters, config.exchange.outer)
    return 3 * state + payloads * payload + width * tokens


async def clock(host: Host, coordinator: str, theirs: float, asked: float) -> Finding:
    """Our clock against the coordinator's, in the middle of the round trip; where the two differ,
    others say which one is wrong.

    :param theirs: what it says, just now
    :param asked: when (steady seconds) it was asked
    """
    offset = time.time() - (time.monotonic() - asked) / 2 - theirs
    if not clocks.is_off(offset):
        return Finding("clock", "ok", f"{abs(offset):.1f} s off")
    reason, hint = clocks.words(offset, "the coordinator", "the coordinator's")
    near = [peer for peer in await host.connected() if peer != coordinator]
    others = await clocks.ahead(host, near)
    if others is not None and not clocks.is_off(others):
        text = f"{reason}, and the clocks of others agree with this machine's: tell the organiser"
        return Finding("clock", "warning", text)
    return Finding("clock", "problem", f"{reason}: {hint}")


def speed(manifest: Manifest, step_seconds: float, tokens_per_second: float) -> Finding:
    """A real inner step against the time that a round allows."""
    rounds = manifest.config.rounds
    allowed = rounds.box_s or rounds.deadline_s
    steps = assignment.Work.of(manifest.config).least
    seconds = step_seconds * steps
    least = "at least " if rounds.box_s else ""
    text = (
        f"{tokens_per_second:,.0f} tokens/s, {seconds:.0f} s for {least}{steps} steps of a round "
        f"({allowed:.0f} s allowed)"
    )
    return Finding("speed", _level(seconds, allowed, 0.7), text)


def unchecked(manifest: Manifest, hardware: str) -> list[Finding]:
    """A warning where audits pay for work and nobody's machine could check that of this one.

    :param hardware: class of this machine
    """
    config = manifest.config
    audited, steps = (
        config.rounds.span and config.trust.audit_rate,
        assignment.Work.of(config).least,
    )
    if not audited or tolerances.covered(config.trust.tolerances, hardware, steps):
        return []
    text = (
        f"no row of trust.tolerances covers machines of class {hardware}: nobody could check the "
        "work of this node, so it would not be paid. Ask the organiser, who can measure them "
        "(artel node measure) and begin a run with a row for them"
    )
    return [Finding("class", "warning", text)]


async def uplink(host: Host, coordinator: str, manifest: Manifest, payload: int) -> Finding:
    """Upload speed, measured, against one contribution and the time to reveal it."""
    data = os.urandom(PROBE_BYTES)
    start = time.monotonic()
    try:
        async with host.open(coordinator, wire.CONTROL) as stream:
            await wire.write_message(stream, messages.Probe(size=PROBE_BYTES))
            await stream.write(data)
            await wire.read_message(stream)
    except ArtelError as error:
        return Finding("uplink", "warning", f"could not be measured: {error.message}")
    rate = PROBE_BYTES / max(time.monotonic() - start, 1e-6)
    seconds = payload / rate
    allowed = manifest.config.rounds.reveal_s
    text = (
        f"{rate * 8 / 1e6:,.0f} Mbit/s up, {seconds:.1f} s for one contribution of "
        f"{readable(payload)} ({allowed:.0f} s allowed)"
    )
    return Finding("uplink", _level(seconds, allowed, 0.5), text)


def reachable(answer: bool) -> Finding:
    """Whether others can open connections to this machine."""
    if answer:
        return Finding("address", "ok", "others can reach this machine directly")
    text = (
        "others cannot reach this machine directly; it takes part all the same, the coordinator "
        "passes its work on (to serve others too, forward a port and use --listen and --announce)"
    )
    return Finding("address", "warning", text)
