"""Opens the ledger that a command is to read, from a home or from elsewhere."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from artel.protocol.errors import UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import View
    from artel.ledger.sync.holders import Holder

_RUN = re.compile(r"[0-9a-f]{64}", re.ASCII)


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[View]:
    """The ledger that ``--home`` or ``--from`` names, verified as far as ``View`` says.

    :raises UsageError: there is none, or the target cannot be understood
    :raises CheckFailed: it does not hold
    :raises Unreachable: nobody answers
    """
    from artel.ledger.sync import client

    caching = not arguments.no_cache
    run = run_id(arguments.run)
    if arguments.source is None:
        with client.home_view(arguments.home, caching=caching) as view:
            if run and view.log.size and view.log.genesis.run != run:
                raise UsageError(f"{view.where} holds run {view.log.genesis.run[:12]}…")
            yield view
        return
    with remote(arguments.source, run, caching=caching) as view:
        if view.trust and not arguments.json:
            print(view.trust, file=sys.stderr)
        yield view


@contextmanager
def remote(target: str, run: str = "", *, caching: bool = True) -> Iterator[View]:
    """The ledger that ``target`` holds."""
    from artel.ledger.sync import client

    with holding(target) as (holder, named):
        if run and named and run != named:
            raise UsageError("the invite and --run name different runs")
        with client.remote_view(holder, run or named, caching=caching) as view:
            yield view


@contextmanager
def holding(target: str) -> Iterator[tuple[Holder, str]]:
    """Whoever a person names, and the run id of an invite."""
    from artel.ledger.sync.holders import hold

    holder, run = hold(target)
    try:
        yield holder, run
    finally:
        holder.close()


def run_id(value: str | None) -> str:
    """A run id that a person wrote; "" for none.

    :raises UsageError: when it is none
    """
    if value is not None and not _RUN.fullmatch(value):
        raise UsageError(f"{value[:80]!r} is no run id", "it is 64 hex digits")
    return value or ""
