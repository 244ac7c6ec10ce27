"""Which ledger a command reads: the arguments that say so, and how it is opened."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.protocol import commandline
from artel.protocol.commandline import AsJson, Count, File, Folder, RunId, Table
from artel.protocol.errors import UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView
    from artel.ledger.sync.source import Holder

DEFAULT_HOME = Path("~/.artel/node")
Home = Annotated[Folder, Parameter(name="--home", help="home of a node or a coordinator")]

KeyFile = Annotated[
    File | None, Parameter(help="the account's key file; otherwise HOME/account.key")
]
At = Annotated[Count | None, Parameter(help="as it was after the first N entries")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LedgerOptions:
    """A ledger in a home, or elsewhere."""

    source: Annotated[
        str | None,
        Parameter(
            name="--from",
            metavar="TARGET",
            help="read the ledger from elsewhere, the home is then only whose keys and claims are "
            "meant: an invite, http(s)://..., a multiaddr with /p2p/PEER, a folder of tiles, or "
            "another home",
        ),
    ] = None
    run: Annotated[
        RunId,
        Parameter(
            help="run id that the ledger has to have; what was read of it before is shown where "
            "neither --from nor the home has it"
        ),
    ] = ""
    home: Home = DEFAULT_HOME
    as_json: AsJson = False

    @property
    def folder(self) -> Path:
        """The home: whose ledger is read, and with ``--from`` whose keys are meant."""
        return expanded(self.home)

    @contextmanager
    def opened(self) -> Iterator[LedgerView]:
        """The ledger of ``--from``, or else of the home, verified as far as ``View`` says; of a run
        that the home does not have, as it was read here last.

        :raises UsageError: there is none, or the target cannot be understood
        :raises CheckFailed: it does not hold
        :raises Unreachable: nobody answers
        """
        from artel.ledger.sync import client

        if self.source is None:
            named = client.run_view(self.folder, self.run) if self.run else None
            with named or client.home_view(self.folder) as view:
                if view.trust and not self.as_json:
                    print(view.trust, file=sys.stderr)
                yield view
            return
        with (
            holding(self.source, self.run) as (holder, run),
            client.remote_view(holder, run) as view,
        ):
            behind = f"behind: checkpoint {view.seen:,} of it was read here before"
            for said in (view.trust, behind if view.seen else ""):
                if said and not self.as_json:
                    print(said, file=sys.stderr)
            yield view

    def show(self, facts: Any, lines: Iterable[str | Table]) -> int:
        """As :func:`artel.protocol.commandline.show`."""
        return commandline.show(facts, lines, as_json=self.as_json)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SigningOptions(LedgerOptions):
    """A ledger, and whose key signs what is said to it."""

    key: KeyFile = None

    @property
    def key_file(self) -> Path:
        """The account's key file."""
        return key_path(self.key, self.folder)


def key_path(key: Path | None, home: Path) -> Path:
    """The key file that a person means, or else the one of a home."""
    from artel.ledger.store.keyfiles import ACCOUNT_KEY

    return expanded(key) if key is not None else home / ACCOUNT_KEY


@contextmanager
def holding(target: str, run: str = "") -> Iterator[tuple[Holder, str]]:
    """Whoever a person names, and the run id of an invite or of ``--run``.

    :raises UsageError: they name different runs
    """
    from artel.ledger.sync.holding import hold

    holder, named = hold(target)
    try:
        if run and named and run != named:
            raise UsageError("the invite and --run name different runs")
        yield holder, run or named
    finally:
        holder.close()
