"""``artel ledger key``: make, replace, recover and back up the keys of an account."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.cli import DEFAULT_HOME, Add, opening, print_json, rotation
from artel.ledger.cli.sending import add_signing, home_of, key_path, speaker
from artel.protocol.errors import EXIT_OK, ArtelError, CheckFailed, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.protocol.identity import Identity

_MAX_PASSPHRASE_BYTES = 1024
PUBLIC = """\
The ledger of a run is public and cannot be changed later. It will hold this public key, the peer
ids of your nodes, the numbers of their work, and no name, address or e-mail of yours; whoever knows
that a key is yours can read what it earned. Use a fresh key for each run to keep them apart."""


def register(add: Add) -> None:
    """Add the commands."""
    new = add(
        "key new",
        _new,
        "make an account's key, and a recovery key that can replace it",
        "--recovery",
        target=False,
    )
    _add_home(new)
    new.add_argument(
        "--recovery",
        action="store_true",
        help="make recovery.key, too; move it to another place than this machine",
    )
    show = add("key show", _show, "which account a key speaks for", "--home DIR")
    _add_key(show)

    rotate = add(
        "key rotate",
        rotation.rotate,
        "replace the account's key, for example because somebody may have seen it",
        "--home DIR",
    )
    add_signing(rotate)
    recover = add(
        "key recover",
        rotation.recover,
        "replace a lost or stolen account key with the help of the recovery key",
        "--recovery-key /media/usb/recovery.key",
    )
    recover.add_argument(
        "--recovery-key", required=True, type=Path, metavar="FILE", help="recovery.key"
    )
    recover.add_argument(
        "--account", metavar="ACCOUNT", help="needed when several accounts have this recovery key"
    )
    add_signing(recover)

    backup = add(
        "key backup",
        _backup,
        "write the account's key into a file that is encrypted with a passphrase",
        "-o account-backup.pem",
        target=False,
    )
    _add_home(backup)
    backup.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    _add_passphrase(backup)
    restore = add(
        "key restore",
        _restore,
        "read an account's key out of a backup",
        "account-backup.pem --home DIR",
        target=False,
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="what `key backup` wrote")
    _add_home(restore)
    _add_passphrase(restore)


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        default=DEFAULT_HOME,
        metavar="DIR",
        help=f"home of the node (default: {DEFAULT_HOME})",
    )
    _add_key(parser)


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, metavar="FILE", help="the key file (HOME/account.key)")


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="read the passphrase from the first line of a file; otherwise you are asked",
    )


# --- made here ------------------------------------------------------------------------------------


def _new(arguments: argparse.Namespace) -> int:
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path, home = key_path(arguments), home_of(arguments)
    recovery: Identity | None = None
    with keyfiles.locked(path.parent):
        made = not (arguments.recovery and path.exists())
        # An account key that is there already, as `artel node start` makes one, gets its
        # recovery key later.
        owner = keyfiles.create(path) if made else identity.load(path)
        if arguments.recovery:
            recovery = keyfiles.create_recovery(home)
    digest = keyfiles.recovery_of(home)
    if arguments.json:
        facts = {"account": owner.key, "key": str(path), "made": made, "recovery": digest}
        print_json(facts | {"recovery_key": str(home / keyfiles.RECOVERY_KEY) if recovery else ""})
        return EXIT_OK
    print(f"account {owner.key}")
    print(f"key     {path}{'' if made else ' (was there already)'}")
    if recovery is not None:
        print(f"recovery key {home / keyfiles.RECOVERY_KEY}")
        print(
            "\nMove recovery.key off this machine NOW, for example to a USB stick in a drawer: it "
            "replaces\nthe account's key when that is lost or stolen, for you and for a thief. "
            "recovery.pub stays here."
        )
        if not made:
            print("If the account is registered already, enter it with: artel ledger key rotate")
    elif not digest:
        print("\nWithout a recovery key, a lost key is a lost account: see key new --recovery")
    print(f"\n{PUBLIC}")
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path = key_path(arguments)
    owner = identity.load(path)
    facts: dict[str, Any] = {
        "key": owner.key,
        "file": str(path),
        "unfinished_rotation": keyfiles.next_file(path).exists(),
        "retired": [str(file) for file in keyfiles.retired(path)],
        "account": None,
        "as_of": None,
    }
    why = ""
    try:
        with opening.opened(arguments) as view:
            facts["as_of"] = view.log.size
            name, account = speaker(view, owner, path)
            facts |= {
                "account": name,
                "recovery": account.recovery,
                "changes": account.seq,
                "nodes": sorted(node for node, of in view.state.nodes.items() if of == name),
            }
    except ArtelError as error:  # the key can be shown without any ledger
        why = error.message
    if arguments.json:
        print_json(facts)
        return EXIT_OK
    print(f"key      {facts['key']}\nfile     {path}")
    if facts["account"] is None:
        print(f"account  not known: {why}")
    else:
        print(f"account  {facts['account']}, as of checkpoint {facts['as_of']}")
        print(f"recovery {'registered' if facts['recovery'] else 'none: see key new --recovery'}")
        for node in facts["nodes"]:
            print(f"node     {node}")
    if facts["unfinished_rotation"]:
        print(f"a change of keys was begun: {keyfiles.next_file(path)}; finish it with key rotate")
    return EXIT_OK


# --- backups --------------------------------------------------------------------------------------


def _backup(arguments: argparse.Namespace) -> int:
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    path, file = key_path(arguments), expanded(arguments.output)
    owner = identity.load(path)
    if file.exists():
        raise UsageError(f"{file} exists", "name another file; no backup is ever overwritten")
    passphrase = _passphrase(arguments, twice=True)
    keyfiles.write_new(file, keyfiles.encrypt(owner, passphrase))
    if keyfiles.decrypt(file.read_bytes(), passphrase) != owner:
        raise CheckFailed(f"{file} reads back differently", "test this machine's memory and disk")
    if arguments.json:
        print_json({"file": str(file), "key": owner.key})
    else:
        print(f"wrote the key {owner.key[:12]}… to {file}, encrypted, and read it back")
        print("keep it and the passphrase on another machine; both together are the account")
    return EXIT_OK


def _restore(arguments: argparse.Namespace) -> int:
    from artel.ledger.store import keyfiles

    path = key_path(arguments)
    try:
        with expanded(arguments.file).open("rb") as file:
            data = file.read(keyfiles.MAX_BACKUP_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {arguments.file}: {error.strerror}") from None
    with keyfiles.locked(path.parent):
        if path.exists():
            raise UsageError(
                f"{path} exists, and no key is ever overwritten",
                "move it to a safe place first, or name another file with --key",
            )
        owner = keyfiles.decrypt(data, _passphrase(arguments, twice=False))
        keyfiles.write(path, owner)
    if arguments.json:
        print_json({"file": str(path), "key": owner.key})
    else:
        print(f"wrote the key {owner.key[:12]}… to {path}")
    return EXIT_OK


def _passphrase(arguments: argparse.Namespace, *, twice: bool) -> str:
    """From a file, or from a person, whom nobody sees typing it."""
    if arguments.passphrase_file is not None:
        try:
            with expanded(arguments.passphrase_file).open("rb") as file:
                line = file.read(_MAX_PASSPHRASE_BYTES).partition(b"\n")[0]
            found: str = line.decode().rstrip("\r")
        except OSError as error:
            name = arguments.passphrase_file
            raise UsageError(f"cannot read {name}: {error.strerror}") from None
        except UnicodeError:
            raise UsageError(f"{arguments.passphrase_file} is not UTF-8 text") from None
        return found
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask for a passphrase", "add --passphrase-file FILE")
    first = getpass.getpass("passphrase: ")
    if twice and getpass.getpass("once more: ") != first:
        raise UsageError("the two passphrases differ", "try again")
    return first
