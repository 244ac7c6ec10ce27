"""The command line's parser: whatever is misspelt, the error names what may have been meant."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from artel.protocol.errors import EXIT_USAGE, suggestion


class Parser(argparse.ArgumentParser):
    """As :mod:`argparse`'s, with suggestions; the parsers of its sub-commands are of this class."""

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse's, but an empty path, as an unset variable gives it, is no folder."""
        if action.type is Path and not arg_string:
            raise argparse.ArgumentError(action, "the path is empty\n  → name a file or a folder")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        hint = suggestion(str(value), known) or "one of: " + ", ".join(known)
        if action.nargs == argparse.PARSER:
            raise argparse.ArgumentError(None, f"there is no command {value!r}\n  → {hint}")
        raise argparse.ArgumentError(action, f"{value!r} is no choice\n  → {hint}")

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Nothing may be left over: who knows which command it was meant for says so at once."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            hint = suggestion(rest[0].split("=")[0], self._option_string_actions)
            self.error(f"unknown arguments: {' '.join(rest)}" + (f"\n  → {hint}" if hint else ""))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with 2."""
        self.print_usage(sys.stderr)
        hint = "" if "→" in message else f"\n  → see {self.prog} --help"
        self.exit(EXIT_USAGE, f"error: {message}{hint}\n")
