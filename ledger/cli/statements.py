"""``artel ledger admit | dispute | transfer | rule | alias | split-view``: signed statements.

Each command says what it is about to do, signs with the account's key, hands the entry in and
prints where it stands in the ledger.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from artel.ledger.cli import sending
from artel.ledger.cli.meant import account_named, contribution_of, digest_of, read
from artel.ledger.cli.opening import LedgerOptions, SigningOptions
from artel.protocol import options
from artel.protocol.commandline import Count, File, value, values
from artel.protocol.errors import EXIT_OK, ArtelError, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.entries.records import Account
    from artel.ledger.sync.client import LedgerView
    from artel.protocol.dsse import Envelope

_REASON = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
REASONS = ("copied", "wrong_result", "wrong_data", "harmful")
_CODES = f"one of {', '.join(REASONS)}, or a code of your own; it is public"


def _account_key(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text.lower(), re.ASCII):
        raise ValueError(f"{text[:80]!r} is not the key of an account: it has 64 hex digits")
    return text.lower()


def _reason(text: str) -> str:
    if not _REASON.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a reason code: up to 32 of a-z, 0-9 and _, beginning with a letter\n"
            f"{_CODES}"
        )
    return text


# --- the statements -------------------------------------------------------------------------------


def admit(
    account: Annotated[str, value(_account_key, "KEY")],
    /,
    *,
    key: File | None = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Let an account register in a run whose [trust] says admission = "list", as its organiser.

    example: artel ledger admit KEY --home my-home

    :param account: the key that names it, all 64 digits: a node that is refused prints its own
    :param key: the organiser's key file; otherwise HOME/organiser.key
    """
    from artel.ledger import entries

    with ledger.opened() as view:
        if view.state.founded.trust.admission == "open":
            raise UsageError(
                "admission to this run is open: anybody may register, and nobody need be let in",
                'only a run whose [trust] says admission = "list" has a list to add to',
            )
        organiser = sending.organiser(ledger, key)
        envelope = entries.admitted(organiser, view.state.run, account)
        sending.send(ledger, view, f"account {account[:12]} may take part in the run", envelope)
    return EXIT_OK


ContributionName = Annotated[
    str, Parameter(metavar="INDEX|ID", help="the contribution, as in `log`")
]
Evidence = Annotated[
    str,
    value(
        digest_of, "FILE", help="only its SHA-256 goes into the ledger; keep the file to show it"
    ),
]


def dispute(
    entry: ContributionName,
    /,
    *,
    reason: Annotated[str | None, value(_reason, "CODE")] = None,
    evidence: Evidence = "",
    ledger: SigningOptions = SigningOptions(),
) -> int:
    """Freeze a contribution's pending credit until an arbiter has ruled on it.

    example: artel ledger dispute 412 --reason copied --evidence report.txt

    :param reason: copied, wrong_result, wrong_data, harmful, or a short code of your own; needed,
        and public
    """
    from artel.ledger.entries import Dispute

    if reason is None:
        raise UsageError("say why, with --reason CODE", _CODES)

    def make(view: LedgerView, name: str, _account: Account) -> tuple[dict[str, Any], str]:
        index, contribution = contribution_of(view, entry)
        fields = {"contribution": contribution, "reason": reason, "evidence": evidence}
        return fields, (
            f"account {name[:12]} disputes contribution {index} ({reason}); its credit "
            "stays pending until an arbiter rules, or nobody has when its time is over"
        )

    return sending.stated(ledger, Dispute, make)


def transfer(
    to: Annotated[str, Parameter(metavar="ACCOUNT")],
    amount: Annotated[Count, Parameter(metavar="AMOUNT")],
    /,
    *,
    yes: bool = False,
    ledger: SigningOptions = SigningOptions(),
) -> int:
    """Give vested credit to another account, where the run allows it.

    example: artel ledger transfer 6f1c… 120000

    :param to: account that receives it: its name or its key, or 16 or more digits of either
    :param amount: credit, a whole number
    :param yes: do not ask: a transfer cannot be taken back
    """
    from artel.ledger.entries import Transfer

    if not amount:
        raise UsageError("there is nothing to transfer", "give an amount of 1 or more")

    def make(view: LedgerView, name: str, account: Account) -> tuple[dict[str, Any], str]:
        receiver = account_named(view, to, 16)
        saying = (
            f"account {name[:12]} gives {amount:,} of its {account.vested:,} vested "
            f"credit to account {receiver}, for good"
        )
        sending.ask(f"{saying}.\nGo on?", yes)
        return {"to": receiver, "amount": amount, "seq": account.seq + 1}, saying

    return sending.stated(ledger, Transfer, make)


def split_view(file: File, /, *, ledger: SigningOptions = SigningOptions()) -> int:
    """Enter the proof that somebody signed two histories.

    example: artel ledger split-view split-view.json

    :param file: evidence that `compare` wrote
    """
    from artel.ledger.entries import SplitSeen
    from artel.ledger.entries.evidence import check
    from artel.ledger.entries.kinds.split_seen import signers_of
    from artel.ledger.sync import offline

    evidence, _ = offline.read_evidence(read(file))

    def make(view: LedgerView, name: str, _account: Account) -> tuple[dict[str, Any], str]:
        culprit = check(evidence, signers_of(view.state, evidence))
        return {"evidence": evidence.to_dict()}, (
            f"account {name[:12]} shows that {culprit.name} signed two histories, of "
            f"{evidence.sizes[0]} and {evidence.sizes[1]} entries"
        )

    return sending.stated(ledger, SplitSeen, make)


def rule(
    entry: ContributionName,
    decision: Literal["dismissed", "soft", "hard"],
    /,
    *,
    key: Annotated[tuple[Path, ...], values(options.path, "FILE")],
    statement: File | None = None,
    evidence: Evidence = "",
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Rule on a contribution, as an arbiter of the run.

    example: artel ledger rule 412 soft --key alice.key --statement ruling-412.json

    :param decision: dismissed: it counts; soft: its credit goes; hard: all of the account that is
        pending goes, and it earns no more
    :param key: key file of an arbiter; may be given several times
    :param statement: collects the signatures of several arbiters, who pass it on to each other
    """
    from artel.ledger import entries
    from artel.protocol import dsse, identity

    signers = [identity.load(expanded(path)) for path in key]
    with ledger.opened() as view:
        rules = view.state.rules
        assert rules is not None
        for signer, path in zip(signers, key, strict=True):
            if signer.key not in rules.arbiters:
                raise UsageError(
                    f"{path} is not the key of an arbiter of this run",
                    f"arbiters: {', '.join(sorted(rules.arbiters))}",
                )
        index, contribution = contribution_of(view, entry)
        envelope = entries.ruling(
            view.state.run,
            *signers,
            contribution=contribution,
            decision=decision,
            evidence=evidence,
        )
        if statement is not None and statement.exists():
            earlier = dsse.decode(read(statement).strip())
            earlier.verify()
            # A stranger's signature would make the whole ruling void.
            entitled = tuple(pair for pair in earlier.signatures if pair[0] in rules.arbiters)
            envelope = envelope.merged(replace(earlier, signatures=entitled))
        saying = f"ruling on contribution {index}: {decision}"
        quorum = rules.ownership.arbiter_quorum
        if len(envelope.signers) < quorum:
            return _collect(ledger, statement, envelope, saying, quorum)
        sending.send(ledger, view, saying, envelope)
    return EXIT_OK


def _collect(
    ledger: LedgerOptions, file: Path | None, envelope: Envelope, saying: str, quorum: int
) -> int:
    """Keep a ruling that other arbiters still have to sign."""
    from artel.ledger.sync.export import write_file

    have = len(envelope.signers)
    if file is None:
        raise UsageError(
            f"{have} of the {quorum} arbiters that this run asks for have signed",
            "add --statement FILE, and let the others run the same command with that file",
        )
    write_file(file, envelope.encode() + b"\n", durable=True)
    facts = {"index": None, "signers": list(envelope.signers), "quorum": quorum, "file": str(file)}
    return ledger.show(
        facts,
        (
            f"{saying}: {have} of {quorum} arbiters have signed",
            f"pass {file} on; the last one to sign it hands it in",
        ),
    )


def alias(
    name: str | None = None,
    /,
    *,
    forget: bool = False,
    team: str = "",
    yes: bool = False,
    ledger: SigningOptions = SigningOptions(),
) -> int:
    """Be shown under a name, or no longer; the name never enters the ledger.

    example: artel ledger alias "Ada" --team "Night shift"

    :param name: 1 to 40 characters, public
    :param forget: erase the name and the team
    :param team: 1 to 40 characters, public
    :param yes: agree to publish it without being asked
    """
    from artel.ledger.fold.alias import alias
    from artel.protocol import identity

    path, shown = ledger.key_file, name or ""
    if forget and (team or shown):
        raise UsageError("--forget erases the name and the team", "leave them out")
    if not forget and not shown:
        raise UsageError("a name has 1 to 40 characters", "to erase it: alias --forget")
    owner = identity.load(path)
    with ledger.opened() as view:
        account, _ = sending.speaker(view, owner, path)
        fields = {"account": account, "alias": shown, "team": team}
        now = int(time.time())
        # Made now, so that what cannot be shown is refused before anybody is asked.
        envelope = alias(owner, view.state.run, time=now, **fields)
        saying = f"account {account[:12]} is no longer shown under a name"
        if not forget:
            saying = _consent(account, shown, team)
            sending.ask(f"{saying}\nPublish it?", yes)
        body = {"run": view.state.run, **fields, "time": now}
        try:
            view.set_alias(envelope)
        except ArtelError as error:
            if getattr(error, "code", "") == "stale" and not error.hint:
                error.hint = "wait a second, check this machine's clock, and run it again"
            raise
    done = f"{saying}\ndone; who keeps a copy of the table hears of it with the next update"
    return ledger.show(body, [done])


def _consent(account: str, shown: str, team: str) -> str:
    of_team = f' of team "{team}"' if team else ""
    return (
        f'Account {account[:12]} will be shown as "{shown}"{of_team} to everybody, on pages and '
        "in lists of\nshares. The name is kept beside the ledger, not in it, and artel ledger "
        "alias --forget erases it\nthere; what others have copied until then nobody can take "
        "back. Leave out what must stay private."
    )
