"""``artel ledger``: see, check and prove who contributed what, here or from anywhere.

A command reads a ledger either from a home (a copy of it, so a daemon may be running) or, with
``--from``, over HTTP or libp2p from anybody who holds it. It loads neither torch nor hivemind.

Each module of this package adds its commands with ``register(add)``; what a command imports beyond
the parser it imports when it runs, because a person waits for every import.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from artel.protocol.arguments import Parser

DEFAULT_HOME = Path("~/.artel/node")
MODULES = (
    *("overview", "mine", "reading", "proving", "checking", "rechecking", "comparing"),
    *("statements", "keys", "exporting", "mirroring"),
)
"""In the order in which ``artel ledger --help`` lists their commands."""

EXIT_CODES = """\
exit codes: 0 it holds · 1 a check failed · 2 wrong input · 3 unreachable
            4 this machine lacks something (room for a copy, a working disk)"""

GROUPS = {
    "key": "the key of an account: new, show, rotate, recover, backup, restore",
    "export": "shares and proofs as files: csv, proofs",
}
"""Commands that have commands of their own."""

Command = Callable[[argparse.Namespace], int]
"""Runs a command with its parsed arguments and returns the exit code; errors are raised."""


class Add(Protocol):
    """What ``register`` is given; see :class:`_Commands`."""

    def __call__(
        self, name: str, command: Command, about: str, example: str, *, target: bool = True
    ) -> argparse.ArgumentParser: ...


def main(argv: list[str]) -> int:
    """Run ``artel ledger`` with these arguments and return the exit code.

    :raises ArtelError: for the caller to print
    """
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    return command(arguments)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    commands = _Commands()
    for name in MODULES:
        try:
            module = importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            continue
        module.register(commands)
    return commands.parser


def print_json(value: Any) -> None:
    """The one JSON document that ``--json`` promises."""
    print(json.dumps(value, indent=2))


class _Help(argparse.RawDescriptionHelpFormatter):
    """As wide as our lines."""

    def __init__(self, prog: str) -> None:
        columns = min(100, shutil.get_terminal_size().columns)
        super().__init__(prog, max_help_position=16, width=columns)


class _Commands:
    """Adds commands to the parser, so that all of them look and behave alike."""

    def __init__(self) -> None:
        self.parser = Parser(
            prog="artel ledger",
            description="See, check and prove who contributed what to a run.",
            epilog=(
                "examples:\n"
                "  artel ledger me                                   what my work counts for\n"
                "  artel ledger shares --from http://HOST:8080       who owns what, from anywhere\n"
                "  artel ledger verify entry-17.tlog-proof           check a proof offline\n\n"
                f"{EXIT_CODES}"
            ),
            formatter_class=_Help,
        )
        self._groups = {"": self._group(self.parser)}

    def __call__(
        self, name: str, command: Command, about: str, example: str, *, target: bool = True
    ) -> argparse.ArgumentParser:
        """Add a command; one of a group is named with a space, as ``key new``.

        :param about: what it does, beginning with a small letter and without a full stop
        :param example: what to write after its name
        :param target: whether it reads a ledger: adds --home, --from and --run
        """
        group, _, last = name.rpartition(" ")
        sub: argparse.ArgumentParser = self._of(group).add_parser(
            last,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: artel ledger {name} {example}".rstrip() + f"\n\n{EXIT_CODES}",
            formatter_class=_Help,
        )
        if target:
            add_target(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(command=command)
        return sub

    def _of(self, group: str) -> Any:
        if group not in self._groups:
            about = GROUPS[group]
            sub = self._groups[""].add_parser(
                group,
                help=about,
                description=about[0].upper() + about[1:] + ".",
                epilog=EXIT_CODES,
                formatter_class=_Help,
            )
            self._groups[group] = self._group(sub)
        return self._groups[group]

    def _group(self, parent: argparse.ArgumentParser) -> Any:
        return parent.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_target(sub: argparse.ArgumentParser) -> None:
    """Add the arguments that say which ledger to read; ``cli.opening`` understands them."""
    sub.add_argument(
        "--home",
        type=Path,
        default=DEFAULT_HOME,
        metavar="DIR",
        help=f"home of a node or a coordinator (default: {DEFAULT_HOME})",
    )
    add_source(sub)


def add_source(sub: argparse.ArgumentParser) -> None:
    """Add the arguments for reading a ledger from elsewhere."""
    sub.add_argument(
        "--from",
        dest="source",
        metavar="TARGET",
        help="read the ledger from elsewhere, the home is then only whose keys and claims are "
        "meant: an invite, http(s)://..., a multiaddr with /p2p/PEER, or a folder of tiles",
    )
    sub.add_argument(
        "--run", metavar="ID", help="run id that TARGET has to have (an invite contains it)"
    )
    sub.add_argument(
        "--no-cache", action="store_true", help="with --from: fetch and check everything again"
    )


def quote(path: Path) -> str:
    """A path as a person can paste it behind a command."""
    return shlex.quote(str(path))


def count(value: str) -> int:
    """An argument that is a whole number from 0 on."""
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 0 on")
    return int(value)
