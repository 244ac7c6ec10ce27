"""How ledger facts are written for a person: short names, counts."""

from __future__ import annotations

from artel.protocol.terminal import printable as printable


def short_key(key: str) -> str:
    """An account, a root or another hex name."""
    return key[:12]


def short_peer(peer: str) -> str:
    """A node; all peer ids begin alike, so the end is shown."""
    return "…" + peer[-8:]


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def counts(tally: dict[str, int]) -> str:
    """Reason codes with how often each occurred, as in "2 late, 1 malformed"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(tally.items()))
