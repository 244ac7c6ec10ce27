"""Names for people: what an account wants to be shown as, signed, and never part of the ledger.

An alias is personal data in most cases, so it is kept where it can be erased: each holder of a
ledger has a table of them (:mod:`ledger.store.heads`) in which the newest statement of an account
wins, and an empty alias erases it. The statement is a DSSE envelope of canonical JSON, signed by
the account's present key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Count, Digest
from artel.ledger.entries.fold_state import FoldState
from artel.protocol import canonical, dsse
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity
from artel.protocol.schema import Record, checked

ALIAS_TYPE = "application/vnd.artel.alias+json"
MAX_CHARACTERS = 40
MAX_TABLE_BYTES = 1 << 20
MAX_NAMES = 10_000
"""That a reader takes from somebody else's table."""


def _shown(value: str) -> str:
    # Nothing that steers a terminal or turns the direction of the text around it.
    if not value.isprintable() or value != value.strip():
        raise ValueError("holds characters that cannot be shown, or begins or ends with a space")
    return value


Name = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS), AfterValidator(_shown)]


class Alias(Record):
    """``alias`` and ``team`` of an account as of ``time`` (POSIX seconds); "" for none."""

    run: Digest
    account: Digest
    alias: Name
    team: Name
    time: Count


def alias(owner: Identity, run: str, *, account: str, alias: str, team: str, time: int) -> Envelope:
    """State that ``account``, whose present key is ``owner``, wants to be shown as ``alias``.

    :param alias: "" to be forgotten, and then ``team`` is "" too
    :raises DecodeError: when it is too long or cannot be shown
    """
    body = {"run": run, "account": account, "alias": alias, "team": team, "time": time}
    return dsse.sign(ALIAS_TYPE, _validated(body).model_dump(mode="json"), owner)


def open_alias(data: bytes, state: FoldState) -> Alias:
    """Read such a statement and check that the account itself made it; whether it is the newest
    is for the table to decide.

    :raises DecodeError: when it is malformed
    :raises CheckFailed: when it is of another run, or not signed by the account's present key
    """
    envelope = dsse.decode(data)
    if envelope.payload_type != ALIAS_TYPE:
        raise DecodeError(f"{envelope.payload_type[:80]!r} is not the type of an alias")
    body = _validated(canonical.loads(envelope.payload))
    owner = state.accounts.get(body.account)
    if body.run != state.run:
        raise CheckFailed(f"the alias is {reasons.explain(reasons.WRONG_RUN)}")
    if owner is None:
        raise CheckFailed(f"the alias: {reasons.explain(reasons.UNKNOWN_ACCOUNT)}")
    if envelope.verify() != (owner.key,):
        raise CheckFailed(f"the alias is {reasons.explain(reasons.WRONG_SIGNERS)}")
    return body


def write_table(names: Mapping[str, tuple[str, str]]) -> bytes:
    """The table of names as holders serve it over any transport: canonical JSON of at most 1 MiB,
    an object from account to ``{"alias", "team"}``; what does not fit is left out, last keys first.

    :param names: account to (alias, team)
    """
    room, kept = MAX_TABLE_BYTES, {}
    for account, (name, team) in sorted(names.items()):
        item = {"alias": name, "team": team}
        # The braces are those of the whole; a comma goes with each name.
        room -= len(canonical.dumps({account: item})) - 1
        if room < 2:
            break
        kept[account] = item
    return canonical.dumps(kept)


def read_table(value: Any) -> dict[str, tuple[str, str]]:
    """Account to (alias, team) out of such a JSON value; what does not belong there is skipped."""
    names: dict[str, tuple[str, str]] = {}
    for account, item in list(value.items())[:MAX_NAMES] if isinstance(value, dict) else ():
        if not isinstance(item, dict) or set(item) != {"alias", "team"}:
            continue
        name, team = item["alias"], item["team"]
        if all(isinstance(text, str) and len(text) <= MAX_CHARACTERS for text in (name, team)):
            names[str(account)] = (name, team)
    return names


def _validated(value: object) -> Alias:
    body = checked(Alias, value, "alias")
    if body.team and not body.alias:
        raise DecodeError("alias: a team without an alias")
    return body
