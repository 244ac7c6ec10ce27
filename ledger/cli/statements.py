"""``artel ledger dispute | transfer | rule | alias | split-view``: what a person says, signed.

Each command says what it is about to do, signs with the account's key, hands the entry in and
prints where it stands in the ledger. ``--dry-run`` sends nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.cli import Add, count, opening, print_json, sending
from artel.protocol.errors import EXIT_OK, ArtelError, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.entries.state import Account
    from artel.ledger.sync.client import View
    from artel.protocol.dsse import Envelope

_REASON = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_MAX_FILE_BYTES = 64 * 1024


def register(add: Add) -> None:
    """Add the commands."""
    dispute = add(
        "dispute",
        _dispute,
        "freeze a contribution's pending credit until an arbiter has ruled on it",
        "412 --reason copied --evidence report.txt",
    )
    dispute.add_argument("entry", metavar="INDEX|ID", help="the contribution, as in `log`")
    dispute.add_argument(
        "--reason",
        required=True,
        type=_reason,
        metavar="CODE",
        help="a short code of your own, such as copied or wrong_result; it is public",
    )
    _add_evidence(dispute)
    sending.add_signing(dispute)

    transfer = add(
        "transfer",
        _transfer,
        "give vested credit to another account, where the run allows it",
        "6f1c… 120000",
    )
    transfer.add_argument("to", metavar="ACCOUNT", help="account that receives it, or its alias")
    transfer.add_argument("amount", type=count, metavar="AMOUNT", help="credit, a whole number")
    sending.add_signing(transfer)
    sending.add_yes(transfer, "do not ask: a transfer cannot be taken back")

    rule = add(
        "rule",
        _rule,
        "rule on a contribution, as an arbiter of the run",
        "412 soft --key alice.key --statement ruling-412.json",
    )
    rule.add_argument("entry", metavar="INDEX|ID", help="the contribution, as in `log`")
    rule.add_argument(
        "decision",
        choices=("dismissed", "soft", "hard"),
        help="dismissed: it counts; soft: its credit goes; hard: all of the account that is "
        "pending goes, and it earns no more",
    )
    _add_evidence(rule)
    rule.add_argument(
        "--key",
        dest="keys",
        action="append",
        required=True,
        type=Path,
        metavar="FILE",
        help="key file of an arbiter; may be given several times",
    )
    rule.add_argument(
        "--statement",
        type=Path,
        metavar="FILE",
        help="collects the signatures of several arbiters, who pass it on to each other",
    )
    sending.add_dry_run(rule)

    alias = add(
        "alias",
        _alias,
        "be shown under a name, or no longer; the name never enters the ledger",
        '"Ada" --team "Night shift"',
    )
    name = alias.add_mutually_exclusive_group(required=True)
    name.add_argument("alias", nargs="?", metavar="NAME", help="1 to 40 characters, public")
    name.add_argument("--forget", action="store_true", help="erase the name and the team")
    alias.add_argument("--team", default="", metavar="TEAM", help="1 to 40 characters, public")
    sending.add_signing(alias)
    sending.add_yes(alias, "agree to publish it without being asked")

    split = add(
        "split-view",
        _split_view,
        "enter the proof that somebody signed two histories",
        "split-view.json",
    )
    split.add_argument("file", type=Path, metavar="FILE", help="evidence that `compare` wrote")
    sending.add_signing(split)


def _add_evidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="only its SHA-256 goes into the ledger; keep the file to show it",
    )


def _reason(value: str) -> str:
    if not _REASON.fullmatch(value):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a reason code: up to 32 of a-z, 0-9 and _, beginning with a letter"
        )
    return value


def _contribution(view: View, wanted: str) -> tuple[int, str]:
    """Index and id of the contribution that a person means.

    :raises UsageError: when it is none
    """
    from artel.ledger import entries

    if wanted.isascii() and wanted.isdigit() and len(wanted) < 8:
        index = int(wanted)
    else:
        found = view.log.find(wanted)
        if len(found) != 1:
            many = "more than one entry" if found else "no entry"
            raise UsageError(f"{many} has an id that begins with {wanted[:64]}", "see `log`")
        index = found[0]
    entry = entries.decode(view.log.leaf(index))
    if not isinstance(entry.body, entries.Contribution):
        raise UsageError(
            f"entry {index} is no contribution, but {entry.kind}",
            "see artel ledger log --kind contribution",
        )
    return index, entry.id


def _digest(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as data:
            content = data.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{file} is larger than any statement")
    return content


# --- the statements -------------------------------------------------------------------------------


def _dispute(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import Dispute

    evidence = _digest(arguments.evidence)

    def make(view: View, name: str, _account: Account) -> tuple[dict[str, Any], str]:
        index, contribution = _contribution(view, arguments.entry)
        fields = {"contribution": contribution, "reason": arguments.reason, "evidence": evidence}
        return fields, (
            f"account {name[:12]} disputes contribution {index} ({arguments.reason}); its credit "
            "stays pending until an arbiter rules, or nobody has when its time is over"
        )

    return sending.stated(arguments, Dispute, make)


def _transfer(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import Transfer

    if not arguments.amount:
        raise UsageError("there is nothing to transfer", "give an amount of 1 or more")

    def make(view: View, name: str, account: Account) -> tuple[dict[str, Any], str]:
        to = sending.account_named(view, arguments.to)
        saying = (
            f"account {name[:12]} gives {arguments.amount:,} of its {account.vested:,} vested "
            f"credit to account {to}, for good"
        )
        sending.ask(arguments, f"{saying}.\nGo on?")
        return {"to": to, "amount": arguments.amount, "seq": account.seq + 1}, saying

    return sending.stated(arguments, Transfer, make)


def _split_view(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import SplitSeen
    from artel.ledger.entries.evidence import check
    from artel.ledger.entries.kinds.split_seen import signers_of
    from artel.ledger.sync import offline

    evidence, _ = offline.read_evidence(_read(arguments.file))

    def make(view: View, name: str, _account: Account) -> tuple[dict[str, Any], str]:
        culprit = check(evidence, signers_of(view.state, evidence))
        return {"evidence": evidence.to_dict()}, (
            f"account {name[:12]} shows that {culprit.name} signed two histories, of "
            f"{evidence.sizes[0]} and {evidence.sizes[1]} entries"
        )

    return sending.stated(arguments, SplitSeen, make)


def _rule(arguments: argparse.Namespace) -> int:
    from artel.ledger import entries
    from artel.protocol import dsse, identity

    signers = [identity.load(expanded(path)) for path in arguments.keys]
    evidence = _digest(arguments.evidence)
    with opening.opened(arguments) as view:
        rules = view.state.rules
        assert rules is not None
        for signer, path in zip(signers, arguments.keys, strict=True):
            if signer.key not in rules.arbiters:
                raise UsageError(
                    f"{path} is not the key of an arbiter of this run",
                    f"arbiters: {', '.join(sorted(rules.arbiters))}",
                )
        index, contribution = _contribution(view, arguments.entry)
        envelope = entries.ruling(
            view.state.run,
            *signers,
            contribution=contribution,
            decision=arguments.decision,
            evidence=evidence,
        )
        statement: Path | None = arguments.statement
        if statement is not None and statement.exists():
            earlier = dsse.decode(_read(statement).strip())
            earlier.verify()
            # A stranger's signature would make the whole ruling void.
            entitled = tuple(pair for pair in earlier.signatures if pair[0] in rules.arbiters)
            envelope = envelope.merged(replace(earlier, signatures=entitled))
        saying = f"ruling on contribution {index}: {arguments.decision}"
        quorum = rules.ownership.arbiter_quorum
        have = len(envelope.signers)
        if have < quorum and arguments.dry_run:
            saying += f"; {have} of the {quorum} arbiters that it needs have signed"
            sending.dry_run(arguments, saying, entries.decode(envelope.encode()).body.to_dict())
            return EXIT_OK
        if have < quorum:
            return _collect(arguments, envelope, saying, quorum)
        sending.send(arguments, view, saying, envelope)
    return EXIT_OK


def _collect(arguments: argparse.Namespace, envelope: Envelope, saying: str, quorum: int) -> int:
    """Keep a ruling that other arbiters still have to sign."""
    from artel.ledger.sync.export import write_file

    have = len(envelope.signers)
    if arguments.statement is None:
        raise UsageError(
            f"{have} of the {quorum} arbiters that this run asks for have signed",
            "add --statement FILE, and let the others run the same command with that file",
        )
    write_file(arguments.statement, envelope.encode() + b"\n", durable=True)
    if arguments.json:
        facts = {"index": None, "signers": list(envelope.signers), "quorum": quorum}
        print_json(facts | {"file": str(arguments.statement)})
    else:
        print(f"{saying}: {have} of {quorum} arbiters have signed")
        print(f"pass {arguments.statement} on; the last one to sign it hands it in")
    return EXIT_OK


def _alias(arguments: argparse.Namespace) -> int:
    from artel.ledger.fold.alias import alias
    from artel.protocol import identity

    path = sending.key_path(arguments)
    if arguments.forget and arguments.team:
        raise UsageError("--forget erases the team, too", "leave --team out")
    shown = "" if arguments.forget else arguments.alias
    if not arguments.forget and not shown:
        raise UsageError("a name has 1 to 40 characters", "to erase it: alias --forget")
    owner = identity.load(path)
    with opening.opened(arguments) as view:
        name, _ = sending.speaker(view, owner, path)
        fields = {"account": name, "alias": shown, "team": arguments.team}
        now = int(time.time())
        # Made now, so that what cannot be shown is refused before anybody is asked.
        envelope = alias(owner, view.state.run, time=now, **fields)
        saying = f"account {name[:12]} is no longer shown under a name"
        if not arguments.forget:
            saying = _consent(name, shown, arguments.team)
            sending.ask(arguments, f"{saying}\nPublish it?")
        body = {"run": view.state.run, **fields, "time": now}
        if arguments.dry_run:
            sending.dry_run(arguments, saying, body)
            return EXIT_OK
        try:
            view.set_alias(envelope)
        except ArtelError as error:
            if getattr(error, "code", "") == "stale" and not error.hint:
                error.hint = "wait a second, check this machine's clock, and run it again"
            raise
    if arguments.json:
        print_json(body)
    else:
        print(f"{saying}\ndone; who keeps a copy of the table hears of it with the next update")
    return EXIT_OK


def _consent(account: str, shown: str, team: str) -> str:
    of_team = f' of team "{team}"' if team else ""
    return (
        f'Account {account[:12]} will be shown as "{shown}"{of_team} to everybody, on pages and '
        "in lists of\nshares. The name is kept beside the ledger, not in it, and artel ledger "
        "alias --forget erases it\nthere; what others have copied until then nobody can take "
        "back. Leave out what must stay private."
    )
