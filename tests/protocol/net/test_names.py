"""A name server that does not answer, or does not know a name: said at once, with what to do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from artel import cli
from artel.coordinator.local_run import LOOPBACK
from artel.protocol import tether
from artel.protocol.errors import EXIT_UNREACHABLE
from artel.protocol.invite import Invite
from artel.protocol.net import names
from artel.protocol.net.http import not_reached
from artel.protocol.net.names import first_words, unresolved
from host_world import named

NOWHERE = "coord.invalid"
"""No name server has it (RFC 2606, section 2)."""
WAY = f"/dns4/{NOWHERE}/tcp/4200/p2p/{named('nobody').peer_id}"
NUMBER = f"/ip4/127.0.0.1/tcp/1/p2p/{named('nobody').peer_id}"
SAID = f"the name {NOWHERE} cannot be resolved"


def test_names_that_cannot_be_resolved_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unresolved([NUMBER, "/dns4/localhost/tcp/1", "/ip6/::1/tcp/1", ""]) == []
    assert unresolved([NUMBER, WAY, WAY]) == [NOWHERE]

    def silent(*_: Any) -> Any:
        time.sleep(20)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    began = time.monotonic()
    assert unresolved([WAY, "/dns/other.invalid/tcp/1"], 0.3) == [NOWHERE, "other.invalid"]
    assert time.monotonic() - began < 3


async def test_who_waits_is_told_once_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "FIRST_WORDS_S", 0.5)
    said = list[str]()
    spoke = asyncio.Event()
    await first_words([NUMBER], said.append, spoke)
    assert len(said) == 1
    assert said[0].startswith("! waiting ")
    spoke.set()
    await first_words([WAY, NUMBER], said.append, spoke)
    assert said[1:] == [f"! name     {SAID}: check the name, and this machine's name server"]


def test_a_ledger_behind_such_a_name_is_unreachable_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for target in (WAY, Invite("0" * 64, (WAY,)).encode()):
        assert cli.main(["ledger", "status", "--from", target]) == EXIT_UNREACHABLE
        said = capsys.readouterr().err
        assert f"error: {SAID}\n  → check the name, and this machine's name server" in said
    error = not_reached(f"http://{NOWHERE}", socket.gaierror(-3, "try again"))
    assert error.hint == names.HINT


@pytest.mark.parametrize("who", ["node start --join", "coordinator standby"])
async def test_who_starts_with_such_an_invite_says_so(tmp_path: Path, who: str) -> None:
    words = [*who.split(), Invite("0" * 64, (WAY,)).encode(), "--home", str(tmp_path / "home")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "artel", *words),
        *("--listen", LOOPBACK, "--http", "127.0.0.1:0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=tether.environment(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while SAID.encode() not in (line := await process.stdout.readline()):
                assert line, "it has ended"
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 60)
