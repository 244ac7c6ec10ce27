"""What the owner says to a running node, and asks about it: ``artel node pause``, ``set``, ``logs``
and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from artel.node import settings, systemd_unit
from artel.node.settings import OwnerSettings
from artel.node.systemd_unit import FOLDER
from artel.protocol import options
from artel.protocol.commandline import AsJson, Folder, Verbose, show, value
from artel.protocol.errors import EXIT_FAILED, EXIT_OK
from artel.protocol.paths import expanded

DEFAULT_HOME = Path("~/.artel/node")
NodeHome = Annotated[Folder, Parameter(help="the node's folder")]


def pause(*, home: NodeHome = DEFAULT_HOME, verbose: Verbose = False) -> int:
    """Stop training, within one inner step; the node stays in the run.

    It gives up its place in the round under way, unless it has committed to what it trained: that
    it shows and applies, without training. It keeps its copy of the ledger, and what others fetch
    from it. A node that is started again stays paused.

    example: artel node pause
    """
    return _set(expanded(home), OwnerSettings(paused=True))


def resume(*, home: NodeHome = DEFAULT_HOME, verbose: Verbose = False) -> int:
    """Train again, from the next round on.

    example: artel node resume
    """
    return _set(expanded(home), OwnerSettings(paused=False))


def finish(*, home: NodeHome = DEFAULT_HOME, verbose: Verbose = False) -> int:
    """Let the node finish the round under way and leave with its credit, as Ctrl-C does.

    example: artel node finish
    """
    return _tell(expanded(home), "finish")


def leave(*, home: NodeHome = DEFAULT_HOME, verbose: Verbose = False) -> int:
    """End the node now, as a second Ctrl-C does: an unfinished round gives no credit.

    example: artel node leave
    """
    return _tell(expanded(home), "leave")


def change(
    *,
    limits: OwnerSettings = OwnerSettings(),
    home: NodeHome = DEFAULT_HOME,
    verbose: Verbose = False,
) -> int:
    """Say what the node may use, and when. A running node obeys at once, and keeps to it later.

    Fewer threads count at once, more from the next round on. Without an option it shows what holds.

    example: artel node set --uplink 5 --hours 22-7
    """
    return _set(expanded(home), limits)


def logs(
    *,
    home: NodeHome = DEFAULT_HOME,
    lines: Annotated[int, value(options.whole(1, 100_000), "N")] = 50,
    follow: bool = False,
    verbose: Verbose = False,
) -> int:
    """Show the end of the node's log, which lies in its home.

    example: artel node logs --lines 200

    :param lines: how many
    :param follow: go on with what comes, until Ctrl-C
    """
    from artel.node import log_file

    folder = expanded(home)
    for line in log_file.last_lines(folder, lines):
        print(line)
    for line in log_file.following(folder) if follow else ():
        print(line, flush=True)
    return EXIT_OK


def doctor(
    *, home: NodeHome = DEFAULT_HOME, as_json: AsJson = False, verbose: Verbose = False
) -> int:
    """Find out what is wrong with the node, running or not, and what to do. Problems: exit code 1.

    example: artel node doctor
    """
    from artel.node.doctor import examine
    from artel.node.preflight import MARKS

    found = list(examine(expanded(home)))
    lines = [f"{MARKS[one.level]} {one.name:<8} {one.text}" for one in found]
    show([vars(one) for one in found], lines, as_json=as_json)
    return EXIT_FAILED if any(one.level == "problem" for one in found) else EXIT_OK


def install_service(
    *,
    home: NodeHome = DEFAULT_HOME,
    units: Annotated[Folder, Parameter(help="folder of the user's units")] = FOLDER,
    verbose: Verbose = False,
) -> int:
    """Write a unit with which systemd starts the node when its user logs in.

    It starts the node of the home with what was said to it last, and starts it again when it fails;
    a stop finishes the round first.

    example: artel node install-service
    """
    path = systemd_unit.install(expanded(home).absolute(), expanded(units))
    print(f"wrote {path}")
    print(f"begin now, and at each login: systemctl --user enable --now {systemd_unit.UNIT}")
    print("also without a login: loginctl enable-linger")
    return EXIT_OK


def _set(home: Path, limits: OwnerSettings) -> int:
    from artel.ledger.store.keyfiles import require_home_of
    from artel.node import control

    if control.runs(home):
        print(control.tell(home, control.OwnerOrder("set", limits)))
        return EXIT_OK
    require_home_of("node", home)
    if not (home / "node.key").exists():
        raise control.nobody(home)
    wanted = settings.load(home).updated(limits)
    if settings.facts(limits):
        settings.save(home, wanted)
    held = "paused, " if wanted.paused else ""
    print(f"{held}{', '.join(wanted.words())}; from the start of the node on, which is not running")
    return EXIT_OK


def _tell(home: Path, do: Literal["finish", "leave"]) -> int:
    from artel.node import control

    print(control.tell(home, control.OwnerOrder(do)))
    return EXIT_OK
