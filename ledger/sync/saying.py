"""What an account says to a ledger: whose key speaks, whether it would count, handing it in."""

from __future__ import annotations

from pathlib import Path

from artel.ledger.entries import Entry, reasons, recovery_digest
from artel.ledger.entries.fold_state import Account
from artel.ledger.fold.shares import check
from artel.ledger.store import keyfiles
from artel.ledger.sync.view import LedgerView
from artel.protocol import identity
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.identity import Identity


def speaker(view: LedgerView, key: Identity, path: Path) -> tuple[str, Account]:
    """The account that a key speaks for: its name and what the ledger says about it.

    :param path: where the key was found
    :raises CheckFailed: when it speaks for none
    """
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


def require_effect(view: LedgerView, entry: Entry) -> None:
    """Go on only with a statement that would change something if it came next.

    :raises CheckFailed: when the ledger would ignore it
    """
    reason = check(view.state, entry)
    if reason:
        other = "" if view.holder is not None else "; with --from another copy is asked"
        raise CheckFailed(
            f"the ledger would ignore this: {reasons.explain(reason)} ({reason})",
            f"nothing was sent; {view.where} has {view.log.size:,} entries{other}",
        )


def hand_in(view: LedgerView, envelope: Envelope) -> tuple[int, str]:
    """Submit a statement; returns its index and the checkpoint that covers it.

    :raises CheckFailed: it is refused; the message says why
    :raises Unreachable: nobody takes it
    """
    try:
        index, note = view.submit(envelope)
    except ArtelError as error:
        code = str(getattr(error, "code", ""))
        sentence = reasons.explain(code)
        if sentence == code or sentence in error.message:
            raise
        message = f"refused: {sentence} ({code}): {error.message}"
        raise CheckFailed(message, error.hint) from error
    return index, note
