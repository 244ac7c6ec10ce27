"""How ledger facts are written for a person: short names, counts, who signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artel.protocol.identity import peer_id_of
from artel.protocol.terminal import printable as printable

if TYPE_CHECKING:
    from artel.ledger.entries import Entry
    from artel.ledger.entries.fold_state import FoldState


@dataclass(frozen=True)
class Role:
    """What a key stands for, in words, and the node or the account that it speaks for."""

    name: str
    node: str = ""
    account: str = ""


def signers(entry: Entry, state: FoldState) -> dict[str, list[Role]]:
    """Who signed an entry: each key, ascending, and what it stands for as of ``state``; nothing for
    a key that speaks for nobody now."""
    return {key: _roles(key, entry, state) for key in sorted(entry.signers)}


def _roles(key: str, entry: Entry, state: FoldState) -> list[Role]:
    peer, named = peer_id_of(bytes.fromhex(key)), getattr(entry.body, "node", None)
    roles = []
    if key in state.leaders():
        roles.append(Role("coordinator"))
    if key == state.organiser:
        roles.append(Role("organiser"))
    if peer == named or (named is None and peer in state.nodes):
        roles.append(Role("node", peer, state.account_of(peer)))
    if key in state.keys:
        roles.append(Role("account", account=state.keys[key]))
    elif key in state.accounts:
        roles.append(Role("former key of account", account=key))
    arbiters = state.rules.arbiters if state.rules is not None else ()
    if entry.kind == "ruling" and key in arbiters:
        roles.append(Role("arbiter"))
    return roles


UNITS = {
    "compute": ("token", "tokens"),
    "data": ("token of text", "tokens of text"),
    "audit": ("token trained again", "tokens trained again"),
    "witness": ("entry cosigned", "entries cosigned"),
}


def units(count: int, kind: str) -> str:
    """Work of a kind."""
    return plural(count, *UNITS[kind])


def short_key(key: str) -> str:
    """An account, a root or another hex name."""
    return key[:12]


def differs(error: float) -> str:
    """How far what was sent is from what its repetition came to, as in "by 43.08 %".

    :param error: relative, as a verdict has it
    """
    if not error:
        return "not at all"
    return f"by {100 * error:,.4g} %" if error < 1e4 else "beyond measure"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def counts(tally: dict[str, int]) -> str:
    """Reason codes with how often each occurred, as in "2 late, 1 malformed"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(tally.items()))
