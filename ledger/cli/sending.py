"""What the commands that write to the ledger share: whose key signs, how a statement is sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from artel.ledger.cli.opening import LedgerOptions, SigningOptions
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.entries import Body
    from artel.ledger.entries.fold_state import Account
    from artel.ledger.sync.client import LedgerView
    from artel.protocol.dsse import Envelope

Make = Callable[["LedgerView", str, "Account"], tuple[dict[str, Any], str]]
"""From the ledger, and the name and the state of the account that speaks: the fields of the
statement, and a sentence that says what it does."""


def stated(ledger: SigningOptions, schema: type[Body], make: Make) -> int:
    """Run a command that makes one statement of one account; returns the exit code."""
    from artel.ledger import entries
    from artel.ledger.sync.saying import speaker
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
    from artel.ledger.fold import labels
    from artel.ledger.sync.saying import hand_in, require_effect

    entry = entries.decode(envelope.encode())
    require_effect(view, entry)
    if not ledger.as_json:
        print(saying, flush=True)
    index, note = hand_in(view, envelope)
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
