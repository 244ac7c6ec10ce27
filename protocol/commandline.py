"""The command line: commands are typed functions, and a wrong line is an error like any other.

:mod:`cyclopts` reads the signatures and docstrings of the commands. What is ours: one way to say
what is wrong with a line (:func:`call`), and values that are judged before a command begins
(:func:`value`, :func:`values`; the judges are in :mod:`artel.protocol.options`).
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Parameter,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from artel.protocol import options
from artel.protocol.errors import EXIT_OK, UsageError, suggestion
from artel.protocol.telling import Tell, silent
from artel.protocol.terminal import printable

_TOLD_EVERY = 256
_ENDLESS = 1_000_000
"""Columns of what is no terminal: lines are for other programs, and stay whole."""


def group(name: str, about: str | None, exits: Mapping[int, str] | None) -> App:
    """An empty group of commands.

    :param about: what ``--help`` says of it; None: the docstring of its default command
    :param exits: what the exit codes of its commands mean, which stands below their help; None: the
        same as of the group above
    """
    codes = " · ".join(f"{code} {meaning}" for code, meaning in (exits or {}).items())
    return App(
        name=name,
        help=about,
        help_epilogue=None if exits is None else f"exit codes: {codes}" if codes else "",
        help_format="markdown",
        version_flags=(),
        # No --no-json beside --json; of an option that is given twice the last counts.
        default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_default),
    )


def agreed(question: str) -> bool:
    """Whether a person says yes; asked on stderr, since stdout may be what a script reads.

    :raises UsageError: nobody is there
    """
    print(question, end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        raise UsageError("nobody is there to say yes", "add --yes") from None


def _default(value: Any) -> str | None:
    """A default as the help shows it; None where there is nothing to show."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        value = " ".join(map(str, value))
    return str(value) if value or type(value) is int else None


def call(app: App, words: Sequence[str]) -> int:
    """Run the command that the words name; returns its exit code.

    :raises UsageError: there is no such command, or it cannot be called like this
    """
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise _explained(error) from None
    except UsageError as error:  # of a value
        error.hint = error.hint or _see(app.parse_commands(words)[0])
        raise
    except ImportError as error:  # of cyclopts' own, which does not say what is missing
        raise error.__cause__ or error from None
    if command == app.help_print:
        return _help(app, bound.args[0], asked=bool({"--help", "-h"} & set(words)))
    code: int = command(*bound.args, **bound.kwargs)
    return code


def _help(app: App, words: Sequence[str], *, asked: bool) -> int:
    """Print the help of a command or a group; without colours, which would not pass the screen.

    :raises UsageError: nobody asked for it: the words end before there is a command
    """
    from rich.console import Console

    _, apps, _ = app.parse_commands(words)
    below = apps[-1].resolved_commands()  # what is not loaded has no help
    if not asked:
        raise UsageError("a command is missing", _choice("", _names(below)))
    console = Console(
        file=io.StringIO(), color_system=None
    )  # to a pipe that broke it would exit with 1
    with console.capture() as shown:
        app.help_print(words, console=console)
    print(shown.get(), end="")
    return EXIT_OK


def _names(commands: Iterable[str]) -> list[str]:
    return [name for name in commands if not name.startswith("-")]


def _choice(word: str, known: Sequence[str]) -> str:
    return suggestion(word, known) or f"one of: {', '.join(known)}"


def _see(command: Sequence[str]) -> str:
    return f"see {' '.join(('artel', *command))} --help"


def _explained(error: CycloptsError) -> UsageError:
    """What is wrong with a line, in our form."""
    error.verbose = False
    see = _see(error.command_chain or ())
    if isinstance(error, UnknownCommandError) and error.app and error.unused_tokens:
        word = error.unused_tokens[0]
        return UsageError(f"there is no command {word!r}", _choice(word, _names(error.app)))
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value.partition("=")[0]
        known = [name for item in error.argument_collection for name in item.names]
        if word in known:
            return UsageError(f"after -- {word} is no option", "write -- behind all options")
        return UsageError(f"there is no option {word}", suggestion(word, known) or see)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return UsageError(f"unknown arguments: {' '.join(error.unused_tokens)}", see)
    if isinstance(error, CoercionError) and error.argument and error.token:
        choices = error.argument.get_choices(force=True)
        if choices:
            said = f"{_named(error.token, error.argument.name)}: {error.token.value!r} is no choice"
            return UsageError(said, _choice(error.token.value, choices))
    return UsageError(str(error).rstrip("."), see)


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Aligned columns; what is in the cells may come from strangers."""

    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()
    right: Collection[int] = ()
    """Numbers of the columns that are aligned to the right."""

    def __str__(self) -> str:
        """As text; cells are broken where a terminal is not wide enough for them."""
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(box=None, show_header=bool(self.heads), pad_edge=False, padding=(0, 2, 0, 0))
        for column in range(max(len(row) for row in (self.heads, *self.rows))):
            head = self.heads[column] if self.heads else ""
            side: Literal["left", "right"] = "right" if column in self.right else "left"
            drawn.add_column(head, justify=side, overflow="fold")
        for row in self.rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _ENDLESS
        console = Console(file=io.StringIO(), color_system=None, width=width)
        with console.capture() as shown:
            console.print(drawn)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())


def fields(lines: Iterable[tuple[str, str]]) -> Table:
    """Labels and what they stand for, without those that stand for nothing."""
    return Table([line for line in lines if line[1]])


def show(facts: Any, lines: Iterable[str | Table], *, as_json: bool) -> int:
    """Print a result: the facts as the one JSON document that ``--json`` promises, or the lines.

    :param lines: for a person; not looked at for JSON
    :returns: the exit code of success
    """
    if as_json:
        print(json.dumps(facts, indent=2, default=_plain))
    else:
        for line in lines:
            print(line)
    return EXIT_OK


def _plain(value: Any) -> Any:
    """What JSON has no form for: bytes in hex digits, paths, dataclasses."""
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, Path) else asdict(value)


def progress(what: str) -> Tell:
    """Tells a person how far it is, on one line of a terminal; nothing of what is soon done."""

    def tell(done: int, total: int) -> None:
        if done % _TOLD_EVERY == 0:
            print(f"\r{done:,} of {total:,} {what}", end="", file=sys.stderr, flush=True)
        if done == total >= _TOLD_EVERY:
            print(file=sys.stderr)

    return tell if sys.stderr.isatty() else silent


# --- values ---------------------------------------------------------------------------------------


def value(parse: Callable[[str], Any], metavar: str | None = None, **more: Any) -> Parameter:
    """An argument that a function reads, which raises ValueError for what can never be right."""

    def convert(_type: Any, tokens: Sequence[Token]) -> Any:
        return _read(parse, tokens[0], metavar)

    return Parameter(converter=convert, n_tokens=1, accepts_keys=False, metavar=metavar, **more)


def values(parse: Callable[[str], Any], metavar: str | None = None, **more: Any) -> Parameter:
    """As :func:`value`, for what may be given several times; the command gets a tuple."""

    def convert(_type: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        return tuple(_read(parse, token, metavar) for token in tokens)

    return Parameter(converter=convert, metavar=metavar, **more)


def _read(parse: Callable[[str], Any], token: Token, metavar: str | None) -> Any:
    try:
        return parse(token.value)
    except ValueError as error:
        message, _, hint = str(error).partition("\n")
        raise UsageError(f"{_named(token, metavar or '')}: {message}".lstrip(": "), hint) from None


def _named(token: Token, otherwise: str) -> str:
    return token.keyword or otherwise.lstrip("-").upper()


File = Annotated[Path, value(options.path, "FILE")]
Folder = Annotated[Path, value(options.path, "DIR")]
Count = Annotated[int, value(options.whole(0, 10**15), "N")]
Http = Annotated[options.Endpoint, value(options.endpoint, "HOST:PORT")]
Listen = Annotated[tuple[str, ...], values(options.listen, "MULTIADDR")]
Announce = Annotated[tuple[str, ...], values(options.announce, "MULTIADDR")]
RunId = Annotated[str, value(options.run_id, "ID")]
VKeys = Annotated[
    tuple[str, ...],
    values(
        str,
        "VKEY",
        name="--vkey",
        help="key to trust, of the log or of a witness; may be given several times",
    ),
]
Bootstrap = Annotated[
    tuple[str, ...],
    values(
        str,
        "DOOR",
        help="an address of the network of public runs: http(s)://HOST:PORT of any coordinator or "
        "node, a URL of a file of such addresses, or /ip4/HOST/tcp/PORT/p2p/PEER; may be given "
        "more than once; otherwise those of ARTEL_BOOTSTRAP, or of ~/.config/artel/bootstrap",
    ),
]
AsJson = Annotated[bool, Parameter(name="--json", help="print one JSON document")]
Verbose = Annotated[bool, Parameter(help="log more, show tracebacks")]
LogJson = Annotated[bool, Parameter(help="events as JSON lines")]
