"""What a person means: an entry by its index or id, an account by its key or name, a file."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from artel.protocol.errors import UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView

MAX_FILE_BYTES = 256 * 1024


# --- files ----------------------------------------------------------------------------------------


def quote(path: Path) -> str:
    """A path as a person can paste it behind a command."""
    return shlex.quote(str(path))


def read(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a file that a person named.

    :raises UsageError: when it cannot be read, or is longer than any that is meant here
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise UsageError(f"{path} is larger than {limit:,} bytes", "name the proof or the evidence")
    return data


def digest_of(text: str) -> str:
    """The SHA-256 of a file of any size that a person named, in hex digits."""
    try:
        with Path(text).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {text}: {error.strerror}") from None


# --- entries --------------------------------------------------------------------------------------

EntryName = Annotated[
    str, Parameter(metavar="INDEX|ID", help="its index, or 8 or more digits of its id")
]


def index_of(view: LedgerView, wanted: str) -> int:
    """The index that a person means; a short number is an index, anything else an id.

    :raises UsageError: when there is no such entry, or more than one
    """
    digits = wanted.removeprefix("-")
    is_number = digits.isascii() and digits.isdigit()
    is_index = is_number and (len(digits) < 8 or digits != wanted)
    if is_index and digits == wanted and int(wanted) < view.log.size:
        return int(wanted)
    found = [] if is_index else view.log.find(wanted)
    if is_number and not found:
        raise UsageError(
            f"there is no entry {wanted[:64]}; the ledger has {view.log.size}",
            "they are counted from 0: see artel ledger log",
        )
    if len(found) != 1:
        many = "more than one entry" if found else "no entry"
        raise UsageError(f"{many} has an id that begins with {wanted[:64]}", "see artel ledger log")
    return found[0]


def contribution_of(view: LedgerView, wanted: str) -> tuple[int, str]:
    """Index and id of the contribution that a person means.

    :raises UsageError: when it is none
    """
    from artel.ledger import entries

    index = index_of(view, wanted)
    entry = entries.decode(view.log.leaf(index))
    if not isinstance(entry.body, entries.Contribution):
        raise UsageError(
            f"entry {index} is no contribution, but {entry.kind}",
            "see artel ledger log --kind contribution",
        )
    return index, entry.id


# --- accounts -------------------------------------------------------------------------------------

AccountName = Annotated[str | None, Parameter(metavar="KEY")]


def account_named(view: LedgerView, wanted: str, least: int = 8) -> str:
    """The account that a person means by its name or its present key, or the beginning of either.

    Not by an alias: nobody signs a holder's table of these, and another account can bear the same.

    :param least: digits that are needed; nobody finds another key that begins with the same 16
    :raises UsageError: when it is none or several
    """
    low = wanted.lower()
    found = {low} & view.state.accounts.keys()
    if not found and len(low) >= least:
        found = view.state.accounts_like(low)
    if len(found) == 1:
        return found.pop()
    raise UsageError(
        f"{'several accounts are' if found else 'no account is'} called {wanted[:64]!r}",
        f"give {least} or more of its key's 64 digits: see artel ledger shares --json",
    )


def account_of(view: LedgerView, home: Path, account: str | None) -> str:
    """The account that is meant: the one that is named, or else the one of this home.

    :param account: its key, or its start
    :raises UsageError: when it is none, or there is no key in the home
    """
    return account_named(view, account) if account else _home_account(view, home)


def _home_account(view: LedgerView, home: Path) -> str:
    """The account of a home by its key, or by its node's when the key lies elsewhere."""
    from artel.protocol import identity

    state = view.state
    for file in ("account.key", "account.key.next"):
        if (home / file).exists():
            name = state.keys.get(identity.load(home / file).key)
            if name is not None:
                return name
    peer = peer_of(home)
    if peer in state.nodes:
        return state.nodes[peer]
    first_key(home)  # there has to be one
    return ""


def first_key(home: Path) -> str:
    """The name that the account of a home has by the earliest key that is there.

    :raises UsageError: there is none
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    file = keyfiles.first(home / keyfiles.ACCOUNT_KEY)
    if file.exists():
        return identity.load(file).key
    raise UsageError(
        f"there is no account.key in {home}",
        "give the home of your node with --home DIR, or name an account with --account KEY",
    )


def peer_of(home: Path) -> str:
    """The peer id of the node of a home; "" when it has no key."""
    from artel.protocol import identity

    path = home / "node.key"
    return identity.load(path).peer_id if path.exists() else ""
