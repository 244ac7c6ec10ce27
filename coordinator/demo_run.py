"""What ``artel demo`` does: run the swarm, and then check everything that it has left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from coordinator import tether
from coordinator.plot import loss_plot
from coordinator.swarm import LocalSwarm, Status, finished
from ledger import entries
from ledger.shares import FoldState, shares
from ledger.snapshot import snapshot
from ledger.store import LedgerStore
from ledger.verify import Verification, verify_home
from protocol import content, merkle
from protocol.errors import EXIT_INTERRUPTED, ArtelError, CheckFailed, Unreachable
from protocol.identity import public_of

STALL_S = 300.0
"""Without any change of round, phase or step the demo gives up."""
SAMPLE_TIMEOUT_S = 120.0
PROMPT, SAMPLE_TOKENS, TEMPERATURE = "def __init__(self", 120, 0.7


class View(Protocol):
    """What shows progress."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def show(self, status: Status, seconds: float) -> None:
        """The newest status, after this many seconds."""


@dataclass(frozen=True)
class Demo:
    """What to run."""

    folder: Path
    run_file: Path
    nodes: int
    rounds: int
    port: int = 0


@dataclass
class Result:
    """What came out. ``problems`` lists, in words, everything that does not hold."""

    demo: Demo
    curve: list[dict[str, Any]]
    """Of each round: validation loss of the state that it starts from, mean training loss."""
    state_root: str
    state_roots_agree: bool
    bytes_up: Mapping[str, int]
    """By node: bytes that it has sent in the whole run, as counted at its streams."""
    ledgers: Mapping[str, Verification]
    """By home, the coordinator's first."""
    fold: FoldState
    phases: Mapping[str, float]
    """Mean seconds of a round in each phase."""
    sample: str
    seconds: float
    problems: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Validation losses in order."""
        return [row["validation"] for row in self.curve if row["validation"] is not None]

    @property
    def bytes_up_per_node_per_round(self) -> int:
        per_node = sum(self.bytes_up.values()) / max(1, len(self.bytes_up))
        return round(per_node / self.demo.rounds)

    @property
    def plot(self) -> Path:
        return self.demo.folder / "loss.png"

    def to_json(self) -> dict[str, Any]:
        """The one object that ``--json`` prints."""
        main = next(iter(self.ledgers.values()))
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "rounds": self.fold.round,
            "nodes": self.demo.nodes,
            "first_val_loss": self.losses[0] if self.losses else None,
            "final_val_loss": self.losses[-1] if self.losses else None,
            "state_root": self.state_root,
            "state_roots_agree": self.state_roots_agree,
            "bytes_up_per_node_per_round": self.bytes_up_per_node_per_round,
            "ledger": {
                "size": main.size,
                "root": main.root,
                "verified": all(ledger.verified for ledger in self.ledgers.values()),
                "homes": {
                    name: {"size": ledger.size, "root": ledger.root, "verified": ledger.verified}
                    for name, ledger in self.ledgers.items()
                },
            },
            "shares": [
                {"account": share.account, "credit": share.credit, "share": share.share}
                for share in shares(self.fold)
            ],
            "tokens": self.fold.total,
            "seconds": round(self.seconds, 1),
            "seconds_per_round": {name: round(s, 3) for name, s in self.phases.items()},
            "loss_curve": self.curve,
            "sample": self.sample,
            "plot": str(self.plot),
            "out": str(self.demo.folder),
        }


async def run(demo: Demo, view: View) -> Result:
    """Run the demo.

    :raises ArtelError: the swarm could not be started, or a part of it failed
    """
    began = time.monotonic()
    interrupted = _interruptible()
    async with LocalSwarm(demo.folder, demo.run_file, http_port=demo.port) as swarm:
        view.say("preparing the run: reading the text, training a tokenizer, drawing the model")
        async with _retold(demo.folder / "coordinator" / "console.log", view):
            await swarm.start_coordinator()
        view.say(f"the coordinator is ready; its page is {swarm.http}")
        for _ in range(demo.nodes):
            await swarm.add_node()
        view.say(f"{demo.nodes} node(s) are starting; each one checks this machine first")
        bytes_up = await _follow(swarm, view, began, interrupted)
        await swarm.wait_finished(timeout=60)
        rows = (await swarm.get("/api/v1/rounds?last=1000"))["rounds"]
        view.say("the run is finished; stopping the processes")
    view.say("checking every ledger and every state that they left behind")
    result = await asyncio.to_thread(_checked, demo, rows, bytes_up)
    view.say("letting the model write")
    await _finish(result)
    result.seconds = time.monotonic() - began
    return result


@contextlib.asynccontextmanager
async def _retold(log: Path, view: View) -> AsyncIterator[None]:
    """Pass the progress lines of a log on to the view while the block runs."""

    async def follow() -> None:
        told = 0
        while True:
            await asyncio.sleep(0.5)
            with contextlib.suppress(OSError):
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                for line in lines[told:]:
                    if line.startswith("  "):
                        view.say(line)
                told = len(lines)

    task = asyncio.create_task(follow())
    try:
        yield
    finally:
        task.cancel()


def _interruptible() -> asyncio.Event:
    """Let Ctrl-C cancel the present task; the event stays set.

    A cancellation that arrives in the middle of a library's own time-out can get lost, so whoever
    loops looks at the event too. A second Ctrl-C ends this process at once, and the kernel then
    ends what is tied to it.
    """
    interrupted = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def on_interrupt() -> None:
        if interrupted.is_set():
            os._exit(EXIT_INTERRUPTED)
        interrupted.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
    return interrupted


async def _follow(
    swarm: LocalSwarm, view: View, began: float, interrupted: asyncio.Event
) -> dict[str, int]:
    """Show the status until the run is finished; returns bytes sent by node."""
    bytes_up: dict[str, int] = {}
    last, moved = None, time.monotonic()
    async for status in swarm.watch(1.0):
        if interrupted.is_set():
            raise asyncio.CancelledError
        view.show(status, time.monotonic() - began)
        for node in status["nodes"]:
            bytes_up[node["node"]] = max(node["bytes_up"], bytes_up.get(node["node"], 0))
        if finished(status):
            break
        steps = [node["step"] for node in status["nodes"]]
        now = (status["phase"], status["round"], status["attempt"], status["ledger"], steps)
        if now != last:
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > STALL_S:
            raise Unreachable(
                f"nothing has moved for {STALL_S:.0f} s in round {status['round']} "
                f"({status['phase']})",
                f"see the console.log of each process below {swarm.folder}",
            )
    return bytes_up


# --- the check, from the files alone --------------------------------------------------------------


def _checked(demo: Demo, rows: Sequence[dict[str, Any]], bytes_up: Mapping[str, int]) -> Result:
    homes = ["coordinator", *(f"node-{number}" for number in range(1, demo.nodes + 1))]
    ledgers = {name: verify_home(demo.folder / name) for name in homes}
    main = ledgers["coordinator"]
    problems = []
    for name, ledger in ledgers.items():
        problems += [
            f"ledger of {name}: {check.name}: {check.detail}"
            for check in ledger.checks
            if not check.ok
        ]
    if main.state.round != demo.rounds:
        problems.append(f"{main.state.round} of {demo.rounds} rounds were agreed on")
    disagreements = [*_ledgers_differ(demo, ledgers), *_states_differ(demo, main.state)]
    result = Result(
        demo,
        curve=[{key: row[key] for key in ("round", "validation", "loss")} for row in rows],
        state_root=main.state.states[-1] if main.state.states else "",
        state_roots_agree=not disagreements,
        bytes_up=bytes_up,
        ledgers=ledgers,
        fold=main.state,
        phases=_mean_phases(rows),
        sample="",
        seconds=0.0,
        problems=problems + disagreements,
    )
    if sum(share.share for share in shares(main.state)) != 1:
        result.problems.append("the shares do not add up to 1")
    losses = result.losses
    if len(losses) < 2 or not losses[-1] < losses[0]:
        result.problems.append("the validation loss has not fallen")
    return result


def _ledgers_differ(demo: Demo, ledgers: Mapping[str, Verification]) -> list[str]:
    """Each node's ledger must be the coordinator's, or the beginning of it."""
    problems = []
    with _ledger_of(demo.folder / "coordinator") as store:
        for name, ledger in ledgers.items():
            leaves = store.leaves(0, ledger.size)
            root = merkle.root(merkle.leaf_hash(leaf) for leaf in leaves).hex()
            if ledger.size > store.size or root != ledger.root:
                problems.append(f"{name} holds another ledger than the coordinator")
    return problems


def _states_differ(demo: Demo, fold: FoldState) -> list[str]:
    """All accepted contributors must have signed each agreed root, and each node must hold the last
    one: its file is hashed again here, whatever the node said of it."""
    problems = []
    with _ledger_of(demo.folder / "coordinator") as store:
        accepted: set[str] = set()
        for entry in map(entries.decode, store.leaves()):
            body = entry.body
            if isinstance(body, entries.RoundClosed):
                accepted = {public_of(item.node).hex() for item in body.accepted}
            elif isinstance(body, entries.StateAgreed) and not accepted <= entry.signers:
                missing = len(accepted - entry.signers)
                problems.append(f"{missing} contributor(s) did not sign state {body.round}")
    final = fold.states[-1] if fold.states else ""
    for number in range(1, demo.nodes + 1):
        path = demo.folder / f"node-{number}" / "blobs" / final
        if not final or not path.is_file():
            problems.append(f"node {number} does not hold the final state")
        elif content.file_content_id(path) != final:
            problems.append(f"the final state of node {number} is another one")
    return problems


@contextlib.contextmanager
def _ledger_of(home: Path) -> Iterator[LedgerStore]:
    with snapshot(home) as copied, LedgerStore.open_copy(copied.path) as store:
        yield store


def _mean_phases(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    tally: Counter[str] = Counter()
    done = [row["seconds"] for row in rows if "applying" in row["seconds"]]
    for seconds in done:
        tally.update(seconds)
    means = {name: total / len(done) for name, total in tally.items()}
    if means:
        means["not_training"] = sum(s for name, s in means.items() if name != "training")
    return means


# --- what is nice to have -------------------------------------------------------------------------


async def _finish(result: Result) -> None:
    """The picture and the sample; without them the run is still a good one, but say so."""
    curve = result.curve
    try:
        await asyncio.to_thread(
            loss_plot,
            result.plot,
            f"{result.demo.nodes} nodes, {result.fold.total:,} tokens",
            [(r["round"], r["validation"]) for r in curve if r["validation"] is not None],
            [(r["round"], r["loss"]) for r in curve if r["loss"] is not None],
        )
    except OSError as error:
        result.problems.append(f"the plot could not be written: {error}")
    try:
        result.sample = await _sample(result.demo.folder / "node-1")
    except ArtelError as error:
        result.problems.append(error.message)


async def _sample(home: Path) -> str:
    """Text of the trained model, from a process of its own since it needs torch."""
    command = ("node", "sample", "--home", str(home), "--prompt", PROMPT)
    options = (f"--tokens={SAMPLE_TOKENS}", f"--temperature={TEMPERATURE}", "--seed=1")
    process = await asyncio.create_subprocess_exec(
        *tether.command(*command, *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tether.environment(),
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), SAMPLE_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Unreachable(f"the model wrote nothing in {SAMPLE_TIMEOUT_S:.0f} s") from None
    if process.returncode:
        raise CheckFailed(f"the model could not write: {errors.decode(errors='replace')[-500:]}")
    return PROMPT + output.decode("utf-8", "replace").rstrip("\n")
