"""The local status of a node: a small HTTP API on loopback, and how a command reads it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from protocol.errors import Unreachable

ADDRESS_FILE = "api.json"


async def serve(home: Path, status: Callable[[], dict[str, Any]]) -> web.AppRunner:
    """Serve ``GET /api/v1/status`` on a free port of 127.0.0.1 and note the port in the home.

    The caller cleans the runner up, and then calls :func:`forget`.
    """

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(status())

    app = web.Application(client_max_size=1024)
    app.router.add_get("/api/v1/status", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    (home / ADDRESS_FILE).write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
    return runner


def forget(home: Path) -> None:
    """Nobody answers for this home any more."""
    (home / ADDRESS_FILE).unlink(missing_ok=True)


def read(home: Path, timeout: float = 5.0) -> dict[str, Any]:
    """The status of the node that runs in ``home``.

    :raises Unreachable: none does
    """
    try:
        url = json.loads((home / ADDRESS_FILE).read_text())["url"]
        with urllib.request.urlopen(f"{url}/api/v1/status", timeout=timeout) as reply:
            status: dict[str, Any] = json.loads(reply.read(1 << 20))
            return status
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError):
        raise Unreachable(
            f"no node is running in {home}", "start one with: artel node start --join INVITE"
        ) from None
