"""The ``artel`` command: picks a group of commands and loads only that.

``artel --help`` imports neither torch nor hivemind nor anything else that takes time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from artel import __version__
from artel.protocol import files, terminal
from artel.protocol.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RESOURCE,
    EXIT_USAGE,
    ArtelError,
    ResourceError,
    UsageError,
    suggestion,
)

if TYPE_CHECKING:
    from cyclopts import App

GROUPS = {
    "demo": ("artel.coordinator.demo", "train a small model with three nodes on this machine"),
    "runs": ("artel.node.finding", "list the public runs that anybody can join"),
    "join": ("artel.node.joining_in", "see what a run asks and gives, and take part"),
    "node": ("artel.node.commands", "join a run, see what this machine does"),
    "account": ("artel.node.account_commands", "the nodes of one owner, on several machines"),
    "run": (
        "artel.coordinator.run_commands",
        "write, explain and prepare the file that describes a run, change its rules",
    ),
    "plan": ("artel.coordinator.plan", "say what a model takes: memory, bytes, hours, money"),
    "coordinator": ("artel.coordinator.commands", "publish a run and coordinate its rounds"),
    "model": ("artel.model.commands", "take the model along, let it write, measure and serve it"),
    "chaos": ("artel.coordinator.chaos", "let everything go wrong in a run on this machine"),
    "ledger": ("artel.ledger.cli", "see and check who contributed what"),
    "completion": ("artel.completion", "let a shell complete commands with the Tab key"),
}

EXTRAS = dict.fromkeys(("runs", "join", "node", "account", "model"), "node") | dict.fromkeys(
    ("demo", "run", "coordinator", "chaos"), "coordinator"
)
"""The extra of the package that brings what a group imports; ledgers need none, or these two."""
LIBP2P = ("libp2p", "multiaddr", "trio")

DAEMONS = ("node", "coordinator", "join")
"""Groups whose commands take --verbose themselves, to log more."""

HELP = """\
usage: artel GROUP ...

Train a language model together with strangers, and own it by accepted work.

{groups}

  artel GROUP --help    the commands of a group, each with an example
  artel --version       the version
  --verbose             (with any command) show the traceback of an error

examples:
  artel demo                                      a whole run on this machine
  artel runs                                      public runs that anybody can join
  artel join NAME                                 take part in one of them
  artel ledger shares                             who owns what

exit codes: 0 it holds · 1 a check or the work failed · 2 wrong input
            3 a peer cannot be reached · 4 this machine lacks something · 130 interrupted"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    code = EXIT_OK
    try:
        code = _judged(argv)
        sys.stdout.flush()  # here, where it can be told what went wrong, and not after the end
    except BrokenPipeError:  # the reader of our output went away, as in `artel ledger log | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _judged(argv: list[str] | None) -> int:
    """As :func:`main`; what fails has been said.

    :raises BrokenPipeError: nobody reads our output any more
    """
    # Idle OpenMP threads sleep instead of spinning: beside other processes on the same cores the
    # spinning costs torch up to ten times its speed. Read by libraries that are imported later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTHON_COLORS", "0")  # colours would not pass the screen
    terminal.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in arguments
    if verbose and arguments[0] not in DAEMONS:
        arguments.remove("--verbose")
    try:
        return run(arguments)
    except ArtelError as error:
        if verbose:
            raise
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if verbose:
            raise
        print(f"error: {missing(error, arguments[0]).diagnostics()}", file=sys.stderr)
        return EXIT_RESOURCE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if verbose:
            raise
        if isinstance(error, OSError) and error.errno in files.DISK_FULL:
            # A write names no file: not each of them is worth a message of its own.
            full = files.disk_error(error, Path(error.filename or "a file"))
            print(f"error: {full.diagnostics()}", file=sys.stderr)
            return full.exit_code
        odd = next((part for part in arguments if not _is_text(part)), None)
        if isinstance(error, UnicodeEncodeError) and odd is not None:
            print(f"error: the argument {odd!r} is not UTF-8 text", file=sys.stderr)
            print(
                "  → write it in UTF-8, as in a terminal whose locale is C.UTF-8", file=sys.stderr
            )
            return EXIT_USAGE
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("  → run the same command with --verbose and report what it prints", file=sys.stderr)
        return EXIT_FAILED


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    :raises ArtelError: for :func:`main` to print
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, GROUPS))
        groups = "\n".join(f"  {name:<{width}}  {about}" for name, (_, about) in GROUPS.items())
        print(HELP.format(groups=groups))
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(f"artel {__version__}")
        return EXIT_OK
    if arguments[0] not in GROUPS:
        hint = suggestion(arguments[0], GROUPS) or f"one of: {', '.join(GROUPS)}; see artel --help"
        raise UsageError(f"there is no group of commands {arguments[0]!r}", hint)
    from artel.protocol import commandline

    return commandline.call(root(), arguments)


def root() -> App:
    """All groups below ``artel``; a group is imported when something in it is looked at."""
    from artel.protocol import commandline

    app = commandline.group("artel", None, {})
    for name, (module, _) in GROUPS.items():
        app.command(f"{module}:app", name=name)
    return app


def missing(error: ModuleNotFoundError, group: str) -> ResourceError:
    """What to install for a module that the light client comes without."""
    module = (error.name or str(error)).partition(".")[0]
    extra = EXTRAS.get(group) or ("p2p" if module in LIBP2P else "node")
    return ResourceError(
        f"this command needs {module}, which is not installed",
        f"install the extra that brings it: pip install 'artel-network[{extra}]'",
    )


def _is_text(argument: str) -> bool:
    """Whether an argument was UTF-8; a file's name need not be."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


if __name__ == "__main__":
    sys.exit(main())
