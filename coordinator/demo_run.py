"""What ``artel demo`` does: run the swarm, and then check everything that it has left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from artel.coordinator.demo_check import Demo, Facts, checked
from artel.coordinator.demo_view import DemoView
from artel.coordinator.local_run import LocalRun, finished
from artel.coordinator.page import loss_chart
from artel.ledger.web.render import Templates
from artel.protocol import tether
from artel.protocol.errors import EXIT_INTERRUPTED, ArtelError, CheckFailed, Unreachable
from artel.protocol.leaving import on_signals
from artel.protocol.tasks import within

STALL_S = 300.0
"""Without any change of round, phase or step the demo gives up."""
SAMPLE_TIMEOUT_S = 120.0
PROMPT, SAMPLE_TOKENS, TEMPERATURE = "def __init__(self", 120, 0.7


async def run(demo: Demo, view: DemoView) -> Facts:
    """Run the demo.

    :raises ArtelError: the swarm could not be started, or a part of it failed
    """
    began = time.monotonic()
    interrupted = _interruptible()
    async with LocalRun(demo.folder, demo.run_file, http_port=demo.port) as swarm:
        view.say("preparing the run: reading the text, training a tokenizer, drawing the model")
        async with _retold(demo.folder / "coordinator" / "console.log", view):
            await swarm.start_coordinator()
        view.say(f"the coordinator is ready; its page is {swarm.http}")
        for _ in range(demo.nodes):
            await swarm.add_node()
        view.say(f"{demo.nodes} node(s) are starting; each one checks this machine first")
        bytes_up = await _follow(swarm, view, interrupted)
        await swarm.ended()
        rows = (await swarm.get("/api/v1/rounds?last=1000"))["rounds"]
        view.say("the run is finished; stopping the processes")
    view.say("checking every ledger and every state that they left behind")
    facts = await asyncio.to_thread(checked, demo, rows, bytes_up)
    view.say("letting the model write")
    await _finish(demo, facts)
    return {"ok": not facts["problems"], **facts, "seconds": round(time.monotonic() - began, 1)}


@contextlib.asynccontextmanager
async def _retold(log: Path, view: DemoView) -> AsyncIterator[None]:
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
    """Let a signal cancel the present task; the event stays set.

    A cancellation that arrives in the middle of a library's own time-out can get lost, so whoever
    loops looks at the event too. A second signal ends this process at once, and the kernel then
    ends what is tied to it.
    """
    interrupted = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        interrupted.set()
        task.cancel()

    on_signals(interrupt, lambda: os._exit(EXIT_INTERRUPTED))
    return interrupted


async def _follow(swarm: LocalRun, view: DemoView, interrupted: asyncio.Event) -> dict[str, int]:
    """Show the status until the run is finished; returns bytes sent by node."""
    bytes_up: dict[str, int] = {}
    last, moved = None, time.monotonic()
    async for status in swarm.watch(1.0):
        if interrupted.is_set():
            raise asyncio.CancelledError
        view.show(status)
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


# --- what is nice to have -------------------------------------------------------------------------


async def _finish(demo: Demo, facts: Facts) -> None:
    """The picture and the sample; without them the run is still a good one, but say so."""
    path = demo.folder / "loss.svg"
    facts |= {"plot": str(path), "sample": ""}
    try:
        await asyncio.to_thread(draw_loss, path, facts)
        facts["sample"] = await _sample(demo.folder / "node-1")
    except OSError as error:
        facts["problems"].append(f"the plot could not be written: {error}")
    except ArtelError as error:
        facts["problems"].append(error.message)


def draw_loss(path: Path, facts: Facts) -> None:
    """Write the chart of the run's page as a file of its own, where there is something to show."""
    chart = loss_chart(facts["loss_curve"], facts["rounds"])
    if chart is not None:
        title = f"{facts['nodes']} nodes, {facts['tokens']:,} tokens"
        picture = Templates().render("loss.svg", title=title, chart=chart)
        path.write_text(picture, encoding="utf-8")


async def _sample(home: Path) -> str:
    """Text of the trained model, from a process of its own since it needs torch."""
    command = ("model", "generate", "--home", str(home), "--prompt", PROMPT)
    options = (f"--tokens={SAMPLE_TOKENS}", f"--temperature={TEMPERATURE}", "--seed=1")
    process = await asyncio.create_subprocess_exec(
        *tether.command(*command, *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tether.environment(),
        start_new_session=True,
    )
    try:
        output, errors = await within(process.communicate(), SAMPLE_TIMEOUT_S)
    except TimeoutError:
        raise Unreachable(f"the model wrote nothing in {SAMPLE_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CheckFailed(f"the model could not write: {errors.decode(errors='replace')[-500:]}")
    return PROMPT + output.decode("utf-8", "replace").rstrip("\n")
