"""The socket in a home through which the owner tells a running node what to do.

One line of JSON each way. It lies in the home and is the owner's alone (mode 0600): whoever may
write to it could also end the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from artel.ledger.store.keyfiles import require_home_of
from artel.node.settings import OwnerSettings, refused
from artel.protocol.errors import ArtelError, ResourceError, Unreachable, UsageError
from artel.protocol.identity import in_use
from artel.protocol.net.http import start_of
from artel.protocol.tasks import within

SOCKET_FILE = "control.sock"
MAX_LINE_BYTES = 4096
ANSWER_S = 20.0


@dataclass(frozen=True)
class OwnerOrder:
    """What the owner wants of a running node; ``settings`` are those to change."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    do: Literal["set", "finish", "leave"]
    settings: OwnerSettings = field(default_factory=OwnerSettings)


_ORDERS = TypeAdapter(OwnerOrder)

Obey = Callable[[OwnerOrder], Awaitable[str]]
"""Carries an order out; what it says is for the owner."""


def from_form(form: Mapping[str, object]) -> OwnerOrder:
    """The order of the page's form; a field that is empty changes nothing.

    :raises UsageError: it is none
    """
    said = {name: text for name, text in form.items() if text}
    order = {"do": said.pop("do", "set"), "settings": said}
    try:
        return _ORDERS.validate_strings(order)
    except ValidationError as error:
        raise refused(error) from None


def nobody(home: Path) -> Unreachable:
    """Nobody takes orders in a home."""
    return Unreachable(f"no node is running in {home}", f"start it with: {start_of('node', home)}")


@contextlib.contextmanager
def _near(home: Path) -> Iterator[str]:
    """The socket's name, short enough for any home: such names have 107 bytes at most."""
    try:
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise nobody(home) from None
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_FILE}"
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def listening(home: Path, obey: Obey) -> AsyncIterator[None]:
    """Take orders for as long as the context lasts; the home is this process's.

    :raises ResourceError: there can be no socket in the home
    """
    (home / SOCKET_FILE).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _near(home) as name:
            listener.bind(name)
        (home / SOCKET_FILE).chmod(0o600)  # nobody can connect before it listens
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot make a socket in {home}: {error.strerror}", "choose another --home"
        ) from None

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            reply = await within(_answered(reader, obey), ANSWER_S)
            writer.write(json.dumps(reply).encode() + b"\n")
            await within(writer.drain(), ANSWER_S)
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=listener, limit=MAX_LINE_BYTES)
    try:
        yield
    finally:
        server.close()
        (home / SOCKET_FILE).unlink(missing_ok=True)


async def _answered(reader: asyncio.StreamReader, obey: Obey) -> dict[str, str]:
    try:
        return {"said": await obey(_ORDERS.validate_json(await reader.readline()))}
    except ArtelError as error:
        return {"error": error.message, "hint": error.hint}
    except (ValidationError, ValueError):
        return {"error": "this is no order", "hint": "use the artel of the node's own version"}


def tell(home: Path, order: OwnerOrder) -> str:
    """Have the node of a home do something; returns what it says.

    :raises Unreachable: none is running there, or it does not answer
    :raises UsageError: it refuses
    """
    require_home_of("node", home)
    line = _ORDERS.dump_json(order, exclude_none=True) + b"\n"
    try:
        with _near(home) as name, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(name)
            connection.sendall(line)
            with connection.makefile("rb") as file:
                reply = json.loads(file.readline(MAX_LINE_BYTES))
    except (FileNotFoundError, ConnectionRefusedError):
        raise nobody(home) from None
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"the node in {home} does not answer ({error})", "ask again in a moment"
        ) from None
    if "error" in reply:
        raise UsageError(str(reply["error"]), str(reply["hint"]))
    return str(reply["said"])


def runs(home: Path) -> bool:
    """Whether a node of this home takes orders, or is about to."""
    return (home / SOCKET_FILE).exists() and in_use(home)
