"""``artel ledger key``: make, replace, recover and back up the keys of an account."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import read
from artel.ledger.cli.opening import DEFAULT_HOME, Home, KeyFile, LedgerOptions, key_path
from artel.protocol import commandline
from artel.protocol.commandline import AsJson, File, show
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.paths import expanded

Key = Annotated[KeyFile, Parameter(name="--key")]
PUBLIC = """\
The ledger of a run is public and cannot be changed later. It will hold this public key, the peer
ids of your nodes, the numbers of their work, and no name, address or e-mail of yours; whoever knows
that a key is yours can read what it earned. Use a fresh key for each run to keep them apart."""


key = commandline.group("key", "The key of an account.", None)
for _name in ("rotate", "recover"):
    key.command(f"artel.ledger.cli.rotation:{_name}", name=_name)

PassphraseFile = Annotated[
    File | None,
    Parameter(
        help="read the passphrase from the first line of a file; otherwise you are asked",
    ),
]


# --- made here ------------------------------------------------------------------------------------


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


@key.command(name="show")
def show_key(*, file: Key = None, ledger: LedgerOptions = LedgerOptions()) -> int:
    """Which account a key speaks for.

    example: artel ledger key show --home DIR
    """
    from artel.ledger.store import keyfiles
    from artel.ledger.sync.saying import speaker
    from artel.protocol import identity

    path = key_path(file, ledger.folder)
    owner = identity.load(path)
    facts: dict[str, Any] = {
        "key": owner.key,
        "file": str(path),
        "unfinished_rotation": keyfiles.next_file(path).exists(),
        "retired": [str(old) for old in keyfiles.retired(path)],
        "account": None,
        "as_of": None,
    }
    why = ""
    try:
        with ledger.opened() as view:
            facts["as_of"] = view.log.size
            name, account = speaker(view, owner, path)
            facts |= {
                "account": name,
                "recovery": account.recovery,
                "changes": account.seq,
                "nodes": view.state.nodes_of(name),
            }
    except ArtelError as error:  # the key can be shown without any ledger
        why = error.message
    return ledger.show(facts, _show(facts, why, keyfiles.next_file(path)))


def _show(facts: dict[str, Any], why: str, following: Path) -> Iterator[str]:
    yield f"key      {facts['key']}\nfile     {facts['file']}"
    if facts["account"] is None:
        yield f"account  not known: {why}"
    else:
        yield f"account  {facts['account']}, as of checkpoint {facts['as_of']}"
        yield f"recovery {'registered' if facts['recovery'] else 'none: see key new --recovery'}"
        for node in facts["nodes"]:
            yield f"node     {node}"
    if facts["unfinished_rotation"]:
        yield f"a change of keys was begun: {following}; finish it with key rotate"


# --- backups --------------------------------------------------------------------------------------


@key.command
def backup(
    *,
    output: Annotated[File, Parameter(name=("-o", "--output"))],
    home: Home = DEFAULT_HOME,
    file: Key = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> int:
    """Write the account's key into a file that is encrypted with a passphrase.

    example: artel ledger key backup -o account-backup.pem
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path, copy = key_path(file, expanded(home)), expanded(output)
    owner = identity.load(path)
    if copy.exists():
        raise UsageError(f"{copy} exists", "name another file; no backup is ever overwritten")
    passphrase = _passphrase(passphrase_file, twice=True)
    keyfiles.write_new(copy, keyfiles.encrypt(owner, passphrase))
    if keyfiles.decrypt(copy.read_bytes(), passphrase) != owner:
        raise CheckFailed(f"{copy} reads back differently", "test this machine's memory and disk")
    return show(
        {"file": str(copy), "key": owner.key},
        (
            f"wrote the key {owner.key[:12]}… to {copy}, encrypted, and read it back",
            "keep it and the passphrase on another machine; both together are the account",
        ),
        as_json=as_json,
    )


@key.command
def restore(
    backup: File,
    /,
    *,
    home: Home = DEFAULT_HOME,
    file: Key = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> int:
    """Read an account's key out of a backup.

    example: artel ledger key restore account-backup.pem --home DIR

    :param backup: what `key backup` wrote
    """
    from artel.ledger.store import keyfiles

    path = key_path(file, expanded(home))
    data = read(expanded(backup), keyfiles.MAX_BACKUP_BYTES)
    with keyfiles.locked(path.parent):
        if path.exists():
            raise UsageError(
                f"{path} exists, and no key is ever overwritten",
                "move it to a safe place first, or name another file with --key",
            )
        owner = keyfiles.decrypt(data, _passphrase(passphrase_file, twice=False))
        keyfiles.write(path, owner)
    said = f"wrote the key {owner.key[:12]}… to {path}"
    return show({"file": str(path), "key": owner.key}, [said], as_json=as_json)


def _passphrase(file: Path | None, *, twice: bool) -> str:
    """From a file, or from a person, whom nobody sees typing it."""
    if file is not None:
        try:
            return read(expanded(file)).partition(b"\n")[0].decode().rstrip("\r")
        except UnicodeError:
            raise UsageError(f"{file} is not UTF-8 text") from None
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask for a passphrase", "add --passphrase-file FILE")
    first = getpass.getpass("passphrase: ")
    if twice and getpass.getpass("once more: ") != first:
        raise UsageError("the two passphrases differ", "try again")
    return first
