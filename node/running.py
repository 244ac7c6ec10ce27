"""A node from its start to its end: join, take part, obey the owner, leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

from artel.node import control, status
from artel.node.daemon import Daemon
from artel.node.join import Options, join
from artel.node.overview import overview
from artel.node.owner import Owner
from artel.node.panel import Panel
from artel.protocol import options as types
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK
from artel.protocol.leaving import on_signals
from artel.protocol.net.doors import Directory, public_runs
from artel.protocol.net.names import first_words
from artel.protocol.tasks import beside, end

LEAVE_AT_ONCE_S = 15.0
DRAW_S = 1.0
"""Between two pictures."""


async def run(options: Options, http: socket.socket, *, drawn: bool) -> int:
    """Join, take part, leave; returns the exit code. A signal once leaves after the round, twice at
    once.

    :param http: where to serve the page
    :param drawn: show a picture of the node, and not lines alone
    """
    with Panel(sys.stdout, drawn=drawn) as panel:
        return await _run(options, http, panel)


async def _run(options: Options, http: socket.socket, panel: Panel) -> int:
    running: list[Daemon] = []
    task = asyncio.current_task()
    assert task is not None

    def leave() -> str:
        if not running:
            leave_now()
            return "leaving now: it has not joined the run yet"
        seconds = running[0].leave()
        return f"finishing the round under way, {seconds:.0f} s at most" if seconds else "leaving"

    def leave_now() -> None:
        task.cancel()
        # Whatever hangs on the way out must not keep a machine that its owner wants back.
        asyncio.get_running_loop().call_later(LEAVE_AT_ONCE_S, os._exit, EXIT_INTERRUPTED)

    spoke = asyncio.Event()

    def say(line: str) -> None:
        spoke.set()
        panel.say(line)

    def asked_to_leave() -> None:
        joined = bool(running)
        after = leave()
        if joined:
            panel.say(f"{after}; press Ctrl-C again to leave now")

    owner = Owner(options.home, options.settings, leave, leave_now)
    on_signals(asked_to_leave, leave_now)
    try:
        async with contextlib.AsyncExitStack() as stack:
            panel.say(f"node {options.identity.peer_id}")
            if types.only_here(options.announce):
                panel.say(f"! announce {types.only_here(options.announce)}")
            await stack.enter_async_context(control.listening(options.home, owner.obey))
            first = asyncio.create_task(first_words(options.invite.peers, panel.say, spoke))
            stack.push_async_callback(end, first)
            daemon = await join(options, stack, say)
            running.append(daemon)
            await owner.meet(daemon)
            site = await status.site_of(daemon.session)
            now = partial(_now, daemon, owner)
            listed = Directory(partial(public_runs, daemon.session.host))
            url = await stack.enter_async_context(
                status.serving(options.home, now, site, http, listed, owner.obey)
            )
            panel.say(f"page {url}")
            try:
                await beside(owner.watch(), beside(_drawing(panel, now), daemon.run()))
            except asyncio.CancelledError:
                await asyncio.shield(daemon.goodbye())
                raise
            panel.say(f"left with {daemon.credit():,} credit, vested and pending")
            return EXIT_OK
    except asyncio.CancelledError:
        had = "a round that was not finished gives no credit"
        panel.say(f"left at once; {had if running else 'it had not joined the run yet'}")
        return EXIT_INTERRUPTED


def _now(daemon: Daemon, owner: Owner) -> dict[str, object]:
    return overview(daemon) | owner.facts()


async def _drawing(panel: Panel, now: Callable[[], dict[str, object]]) -> None:
    """Keep the picture up to date."""
    while panel.drawn:
        panel.show(await asyncio.to_thread(now))
        await asyncio.sleep(DRAW_S)
    await asyncio.Event().wait()
