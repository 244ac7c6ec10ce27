"""What the commands that write to the ledger share: whose key speaks, how a statement is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.cli.opening import LedgerOptions, SigningOptions
from artel.protocol.errors import EXIT_OK, ArtelError, CheckFailed, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries import Body
    from artel.ledger.entries.records import Account
    from artel.ledger.sync.client import LedgerView
    from artel.protocol.dsse import Envelope
    from artel.protocol.identity import Identity

Make = Callable[["LedgerView", str, "Account"], tuple[dict[str, Any], str]]
"""From the ledger, and the name and the state of the account that speaks: the fields of the
statement, and a sentence that says what it does."""


def stated(ledger: SigningOptions, schema: type[Body], make: Make) -> int:
    """Run a command that makes one statement of one account; returns the exit code."""
    from artel.ledger import entries
    from artel.protocol import identity

    owner = identity.load(ledger.key_file)
    with ledger.opened() as view:
        name, account = speaker(view, owner, ledger.key_file)
        fields, saying = make(view, name, account)
        envelope = entries.by_account(schema, owner, view.state.run, account=name, **fields)
        send(ledger, view, saying, envelope)
    return EXIT_OK


def send(ledger: LedgerOptions, view: LedgerView, saying: str, envelope: Envelope) -> None:
    """Say what is about to happen, check it here, hand it in, and say where it stands.

    :param saying: what the statement does, a sentence for a person
    :raises CheckFailed: when the ledger would ignore it, or it is refused
    :raises Unreachable: when nobody takes it
    """
    from artel.ledger import entries
    from artel.ledger.entries import reasons
    from artel.ledger.fold import labels
    from artel.ledger.fold.shares import check

    entry = entries.decode(envelope.encode())
    if reason := check(view.state, entry):
        other = "" if view.holder is not None else "; with --from another copy is asked"
        raise CheckFailed(
            f"the ledger would ignore this: {reasons.explain(reason)} ({reason})",
            f"nothing was sent; {view.where} has {view.log.size:,} entries{other}",
        )
    if not ledger.as_json:
        print(saying, flush=True)
    try:
        index, note = view.submit(envelope)
    except ArtelError as error:
        code = str(getattr(error, "code", ""))
        sentence = reasons.explain(code)
        if sentence == code or sentence in error.message:
            raise
        message = f"refused: {sentence} ({code}): {error.message}"
        raise CheckFailed(message, error.hint) from error
    facts = {
        "run": view.state.run,
        "index": index,
        "id": entry.id,
        "statement": entry.body.to_dict(),
        "signers": list(envelope.signers),
        "final": False,
        "witnesses": view.needed,
        "note": note,
    }
    ledger.show(facts, [f"it is entry {index} of the ledger, {labels.pending(view.needed)}"])


def organiser(ledger: LedgerOptions, key: Path | None) -> Identity:
    """The organiser's key: of a file that a person names, or else of the home.

    :raises UsageError: there is none
    """
    from artel.ledger.store.keyfiles import ORGANISER_KEY, require_home_of
    from artel.protocol import identity
    from artel.protocol.paths import expanded

    file = expanded(key) if key else ledger.folder / ORGANISER_KEY
    if not file.exists():
        hint = f"name the home with {ORGANISER_KEY}, or that file: --key FILE"
        require_home_of("coordinator", ledger.folder, hint)
    return identity.load(file)


def speaker(view: LedgerView, key: Identity, path: Path) -> tuple[str, Account]:
    """The account that a key speaks for: its name and what the ledger says about it.

    :param path: where the key was found
    :raises CheckFailed: when it speaks for none
    """
    from artel.ledger.store import keyfiles
    from artel.protocol import identity

    name = view.state.keys.get(key.key)
    if name is not None:
        return name, view.state.accounts[name]
    following = keyfiles.next_file(path)
    for file in (following, *reversed(keyfiles.retired(path))):
        if file.exists() and identity.load(file).key in view.state.keys:
            raise CheckFailed(
                f"as of checkpoint {view.log.size}, the ledger knows {file}, not {path}",
                "finish the change of keys: artel ledger key rotate"
                if file == following
                else f"wait until this copy of the ledger is newer, or give --key {file}",
            )
    raise CheckFailed(
        f"as of checkpoint {view.log.size}, the key {key.key[:12]}… speaks for no account",
        "an account is registered when its node first joins the run; if its key was replaced, "
        "use the new one, or artel ledger key recover",
    )


def recovered(view: LedgerView, recovery: Identity, wanted: str | None = None) -> str:
    """The account that has registered a recovery key.

    :param wanted: which, where several have
    :raises CheckFailed: none has, or the wanted one has another
    :raises UsageError: several have, and none is wanted
    """
    from artel.ledger.entries import recovery_digest

    digest = recovery_digest(recovery.public)
    fitting = [name for name, owner in view.state.accounts.items() if owner.recovery == digest]
    if not fitting:
        raise CheckFailed(
            f"as of checkpoint {view.log.size}, no account has registered this recovery key",
            "an account's newest registration or change of keys decides which one it is",
        )
    if wanted is None and len(fitting) > 1:
        raise UsageError(
            f"{len(fitting)} accounts have registered this recovery key",
            f"say which: --account with one of {', '.join(sorted(fitting))}",
        )
    name = wanted or fitting[0]
    if name not in fitting:
        raise CheckFailed(f"account {name[:12]} has registered another recovery key")
    return name


def ask(question: str, yes: bool) -> None:
    """Ask a person; with --yes nobody is asked.

    :raises UsageError: when the answer is no, or there is nobody to ask
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this has to be agreed to, and nobody is there to ask", "add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was sent")
