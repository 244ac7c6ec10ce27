"""A node as a service of its user: the unit for systemd."""

from __future__ import annotations

import sys
from pathlib import Path

from artel.protocol import files
from artel.protocol.errors import UsageError

UNIT = "artel-node.service"
FOLDER = Path("~/.config/systemd/user")
STOP_S = 3600
"""For the round under way, which the node finishes when it is asked to end."""

_TEXT = """\
[Unit]
Description=Artel node in {home}
After=network-online.target

[Service]
ExecStart={program} -P -m artel node start --home {folder}
# It has a hint for its owner, who has to act first: wrong input, or what the machine lacks.
RestartPreventExitStatus=2 4
Restart=on-failure
RestartSec=30
# The node ends its own children, after the round.
KillMode=mixed
TimeoutStopSec={stop}
Nice=10
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def unit(home: Path, program: str = sys.executable) -> str:
    """The unit that starts the node of a home.

    :raises UsageError: a name that cannot stand in one
    """
    for name in (str(home), program):
        if any(ord(character) < 32 for character in name):
            raise UsageError(f"{name!r} cannot stand in a unit", "choose another --home")
    return _TEXT.format(
        home=_escaped(str(home)), folder=_quoted(str(home)), program=_quoted(program), stop=STOP_S
    )


def install(home: Path, folder: Path) -> Path:
    """Write the unit; returns its file. One that this program did not write is left alone.

    :param folder: of the user's units
    :raises UsageError: the home has not joined a run, or another program's file is in the way
    :raises ResourceError: it cannot be written
    """
    if not (home / "invite").exists():
        raise UsageError(
            f"the node of {home} has not joined a run yet",
            "start it once by hand, with --join INVITE; then install the service",
        )
    path = folder / UNIT
    files.require_ours(path, lambda data: data.startswith(b"[Unit]\nDescription=Artel node in "))
    with files.told(path):
        folder.mkdir(parents=True, exist_ok=True)
        files.write(path, unit(home).encode())
    return path


def _escaped(text: str) -> str:
    """Text in which systemd looks for specifiers and variables, and finds none."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    inner = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{inner}"'
