"""``artel ledger key``: make, replace and recover the key of an account."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import account_named
from artel.ledger.cli.opening import DEFAULT_HOME, Home, KeyFile, SigningOptions, key_path
from artel.ledger.cli.sending import recovered, send, speaker
from artel.protocol import commandline
from artel.protocol.commandline import AsJson, File, show
from artel.protocol.errors import EXIT_OK, CheckFailed
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.entries.records import Account
    from artel.ledger.sync.client import LedgerView
    from artel.protocol.identity import Identity

Key = Annotated[KeyFile, Parameter(name="--key")]
PUBLIC = """\
The ledger of a run is public and cannot be changed later. It will hold this public key, the peer
ids of your nodes, the numbers of their work, and no name, address or e-mail of yours; whoever knows
that a key is yours can read what it earned. Use a fresh key for each run to keep them apart."""


key = commandline.group("key", "The key of an account.", None)


@key.command(name="new")
def new(
    *, home: Home = DEFAULT_HOME, file: Key = None, recovery: bool = False, as_json: AsJson = False
) -> int:
    """Make an account's key, and a recovery key that can replace it.

    example: artel ledger key new --recovery

    :param recovery: make recovery.key, too; move it to another place than this machine
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    home = expanded(home)
    path = key_path(file, home)
    # A key of an account would make it the home of a node, in which its coordinator never starts.
    keyfiles.require_home_of("node", path.parent, "an account is that of a node: --home DIR")
    with keyfiles.locked(path.parent):
        made = not (recovery and path.exists())
        # An account key that is there already, as `artel node start` makes one, gets its
        # recovery key later.
        owner = keyfiles.create(path) if made else identity.load(path)
        if recovery:
            keyfiles.create_recovery(home)
    digest = keyfiles.recovery_of(home)
    kept = str(home / keyfiles.RECOVERY_KEY) if recovery else ""
    facts = {"account": owner.key, "key": str(path), "made": made, "recovery": digest}
    return show(facts | {"recovery_key": kept}, _new(facts, kept), as_json=as_json)


def _new(facts: dict[str, Any], kept: str) -> Iterator[str]:
    yield f"account {facts['account']}"
    yield f"key     {facts['key']}{'' if facts['made'] else ' (was there already)'}"
    if kept:
        yield f"recovery key {kept}\n"
        yield (
            "Move recovery.key off this machine NOW, for example to a USB stick in a drawer: it "
            "replaces\nthe account's key when that is lost or stolen, for you and for a thief. "
            "recovery.pub stays here."
        )
        if not facts["made"]:
            yield "If the account is registered already, enter it with: artel ledger key rotate"
    elif not facts["recovery"]:
        yield "\nWithout a recovery key, a lost key is a lost account: see key new --recovery"
    yield f"\n{PUBLIC}"


# --- another key, whenever the power fails --------------------------------------------------------


@key.command
def rotate(*, ledger: SigningOptions = SigningOptions()) -> int:
    """Replace the account's key, for example because somebody may have seen it.

    Finishes what a run that was cut off began.

    example: artel ledger key rotate --home DIR
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path = ledger.key_file
    with keyfiles.locked(path.parent), ledger.opened() as view:
        if _finished(ledger, view, path):
            return EXIT_OK
        owner = identity.load(path)
        following = keyfiles.next_file(path)
        if following.exists() and owner.key not in view.state.keys:
            raise CheckFailed(
                f"as of checkpoint {view.log.size}, the ledger knows neither {path}"
                f" nor {following}",
                "try again when this copy of the ledger is newer, or read another with --from",
            )
        name, account = speaker(view, owner, path)
        return _replace(ledger, view, path, owner, name, account)


@key.command
def recover(
    *,
    recovery_key: File,
    account: Annotated[str | None, Parameter(metavar="ACCOUNT")] = None,
    ledger: SigningOptions = SigningOptions(),
) -> int:
    """Replace a lost or stolen account key with the help of the recovery key.

    example: artel ledger key recover --recovery-key /media/usb/recovery.key

    :param recovery_key: recovery.key
    :param account: needed when several accounts have this recovery key
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path = ledger.key_file
    recovery = identity.load(expanded(recovery_key))
    with keyfiles.locked(path.parent), ledger.opened() as view:
        if _finished(ledger, view, path):
            return EXIT_OK
        name = recovered(view, recovery, account and account_named(view, account))
        return _replace(ledger, view, path, recovery, name, view.state.accounts[name])


def _replace(
    ledger: SigningOptions,
    view: LedgerView,
    path: Path,
    signer: Identity,
    name: str,
    account: Account,
) -> int:
    """Give the account a new key; a run that was cut off made the same entry with the same key."""
    from artel.ledger import entries
    from artel.ledger.store import keyfiles

    # Once there is a recovery key, only itself can name another one; "" keeps it.
    ours = keyfiles.recovery_of(path.parent)
    free = not account.recovery or signer.key != account.key
    recovery = ours if free and ours != account.recovery else ""
    saying = f"account {name[:12]} changes its key"
    fields: dict[str, Any] = {"account": name, "seq": account.seq + 1, "recovery": recovery}
    with keyfiles.replacing(path) as fresh:
        send(ledger, view, saying, entries.key_rotated(signer, fresh, view.state.run, **fields))
    _report(ledger, path, name, bool(recovery or account.recovery))
    if not free and ours not in ("", account.recovery):
        print(
            f"{path.parent / keyfiles.RECOVERY_PUB} is not the recovery key that the ledger has; "
            "only that one can name\nanother: artel ledger key recover --recovery-key OLD",
            file=sys.stderr,
        )
    return EXIT_OK


def _finished(ledger: SigningOptions, view: LedgerView, path: Path) -> bool:
    """Finish what an earlier run began, if the ledger has the new key already."""
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    following = keyfiles.next_file(path)
    if not following.exists():
        return False
    fresh = identity.load(following)
    name = view.state.keys.get(fresh.key)
    if name is None:
        return False
    keyfiles.take_over(path)
    facts = {"account": name, "key": fresh.key, "finished": True}
    ledger.show(facts, ["the ledger has the new key since an earlier run of this command"])
    _report(ledger, path, name, bool(view.state.accounts[name].recovery))
    return True


def _report(ledger: SigningOptions, path: Path, name: str, recoverable: bool) -> None:
    from artel.ledger.store import keyfiles

    if ledger.as_json:
        return
    print(f"{path} holds the new key of account {name[:12]}")
    for old in keyfiles.retired(path)[-1:]:
        print(f"the last one before it is kept in {old}; it speaks for nobody any more")
    if not recoverable:
        print("there is no recovery key: see artel ledger key new --recovery")
    print("a node that runs goes on as it is; keep a copy of the new key elsewhere")
