"""Commands as a test calls them, and a walk over all that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cyclopts import App

from artel import cli


def group(name: str) -> Callable[[list[str]], int]:
    """Runs a command of a group with the words behind it; what it raises is the test's to see."""
    return lambda words: cli.run([name, *words])


def commands(app: App | None = None, line: str = "artel") -> Iterator[tuple[str, App]]:
    """Every command and group with the words that name it."""
    app = app or cli.root()
    yield line, app
    for name, below in app.resolved_commands().items():
        if not name.startswith("-"):
            yield from commands(below, f"{line} {name}")
