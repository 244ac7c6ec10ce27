"""What every page needs: the index as of one entry, names, and links to whatever is mentioned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from artel.ledger.entries.state import FoldState
from artel.ledger.entries.words import short_key, short_peer
from artel.ledger.store.reading import LedgerReader
from artel.ledger.tlog.checkpoint import origin_of
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.web import markup
from artel.ledger.web.index import LedgerIndex
from artel.ledger.web.markup import text
from artel.ledger.web.standing import Standing
from artel.protocol.errors import UsageError


@dataclass(frozen=True)
class Context:
    """Made for one page, inside :meth:`ledger.web.index.LedgerIndex.reading`.

    :param url: how the reader reaches this server, without a slash at the end; "" when unknown
    """

    store: LedgerReader
    index: LedgerIndex
    standing: Standing
    url: str
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def state(self) -> FoldState:
        return self.index.state

    @property
    def name(self) -> str:
        """The run's name."""
        return self.store.genesis.name or short_key(self.state.run)

    @property
    def vkeys(self) -> list[str]:
        """Verifier keys of the log in its present term."""
        origin = origin_of(self.state.run, self.store.term)
        return [VerifierKey(origin, bytes.fromhex(k)).encode() for k in self.state.coordinators]

    @property
    def newest_round(self) -> int:
        """The round that is under way or comes next; the last one of a finished run."""
        rules = self.state.rules
        last = rules.total - 1 if rules is not None else 0
        return min(self.state.round, last)

    # --- names that are links ---------------------------------------------------------------------

    def account(self, name: str, *, alias: bool = True) -> str:
        """An account, by its short key and by the alias that it chose."""
        link = markup.account_link(name) if name in self.state.accounts else mono(name)
        chosen = self.aliases.get(name, ("", ""))[0] if alias else ""
        return f"{link} {bidi(chosen)}" if chosen else link

    def node(self, peer: str) -> str:
        """A node, as a link to its line on the page of its account."""
        account = self.state.account_of(peer)
        return markup.node_link(peer, account) if account else mono(peer, short_peer(peer))

    def entry(self, entry: str) -> str:
        """An entry by its id; a link when it is in this ledger."""
        index = self.store.index_of(entry)
        if index is None or index >= self.index.size:
            return mono(entry)
        return f"{markup.entry_link(index)} {mono(entry)}"

    def key(self, key: str) -> str:
        """Any key: of an account if it speaks for one."""
        account = self.state.keys.get(key)
        return self.account(account) if account is not None else mono(key)

    def final(self, index: int) -> str:
        """Whether an entry is final, as a pill."""
        final = self.standing.is_final(index)
        return markup.pill("final" if final else "pending", "" if final else "wait")

    # --- the frame --------------------------------------------------------------------------------

    def page(self, title: str, body: str) -> str:
        """A whole page with the way back on top and the checkpoint at the bottom."""
        links = " · ".join(
            f'<a href="{path}">{words}</a>'
            for path, words in (
                ("/", text(self.name)),
                ("/shares", "shares"),
                ("/entries", "entries"),
                (f"/round/{self.newest_round}", "newest round"),
            )
        )
        top = f'<nav class="small">{links}</nav>\n'
        return markup.document(f"{title} · {self.name}", top + body + self._footer())

    def _footer(self) -> str:
        standing = self.standing
        behind = standing.held - standing.size
        rest = f"; {behind:,} newer entries are still being read" if behind else ""
        return (
            '<footer class="soft small">'
            f"<p>{text(standing.label)}{rest}</p><p>{text(standing.trust)}</p>"
            f'<div>run id <span class="mono">{text(self.state.run)}</span></div>'
            '<p><a href="/ledger/checkpoint">checkpoint</a> · '
            + ('<a href="/ledger/final">final checkpoint</a> · ' if standing.head else "")
            + '<a href="/ledger/run">run</a></p></footer>\n'
        )


def mono(full: str, short: str = "") -> str:
    """A digest or a name that leads nowhere."""
    return markup.plain_name(full, short or short_key(full))


def bidi(alias: str) -> str:
    """A name that a stranger chose: quoted, and kept from turning the text around it."""
    return f"<q><bdi>{text(alias)}</bdi></q>"


def below(index: int, size: int) -> int:
    """The index itself, if an entry is there.

    :raises UsageError: otherwise
    """
    if index >= size:
        raise UsageError(f"there is no entry {index:,}", f"the newest one is {size - 1:,}")
    return index
