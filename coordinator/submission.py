"""Takes entries that people sign into the ledger, and the names that they want to be shown under.

An entry is taken only when the fold says that it would count now; what it would ignore never enters
the log. So whoever holds no key of this run cannot write anything, except for new accounts, whose
number is bounded together with the admission of nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from artel.coordinator import intake
from artel.coordinator.sequencer import Sequencer
from artel.coordinator.verdicts import Verdicts
from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.fold import alias
from artel.ledger.fold.submitted import SUBMITTED, is_strangers, speaker
from artel.ledger.store.heads import HeadStore
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.net import wire
from artel.protocol.net.limits import RateLimits, network_of
from artel.protocol.tasks import uninterrupted

log = logging.getLogger("artel.coordinator")

PER_PEER_MINUTE, PER_PEER_AT_ONCE = 60, 20
"""Of one source (:func:`wire.source_of`), whatever it sends: bounds the work of looking at it."""
PER_KEY_MINUTE, PER_KEY_AT_ONCE = 20, 20
"""Entries of one speaker that count. Only what every copy of the ledger shows uses this up: were
an entry refused for anything else, electors would hold it for left out (:mod:`node.petitions`)."""
BESIDE_MINUTE, BESIDE_AT_ONCE = 20, 20
"""What one speaker signs that may leave nothing in the ledger: aliases, and verdicts before they
are compared with what was shown."""
WAITING_AT_MOST = 1024
"""Entries on their way into the ledger, well below what the sequencer takes: the rounds go on
however much is submitted."""
ALIAS_AHEAD_S = 3600
"""How far the clock of whoever signed an alias may be ahead of ours."""
STRANGERS_MINUTE, STRANGERS_AT_ONCE = 5, 5
"""Entries of accounts without accepted work, of all together, so never more than 10 in a minute.
Whoever makes keys could make millions, and an entry stays for ever."""
PASSED_MINUTE, PASSED_AT_ONCE = 5, 5
"""Of those who have passed a trial (:mod:`coordinator.trials`): so they wait for nobody else, and
each two of theirs have cost some training."""
EACH_MINUTE, EACH_AT_ONCE = 4, 9
"""The same of one source: an account and eight nodes at once."""
FREE_ADMISSIONS = 64
"""The first accounts and nodes of a ledger are not counted in the sum: those who wait for a run to
begin come all at once."""


class Submissions:
    """Submitted entries and aliases of one run; the event loop owns it.

    :param clock: steady seconds
    """

    def __init__(
        self,
        ledger: Sequencer,
        heads: HeadStore,
        run: str,
        verdicts: Verdicts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._heads, self._run, self._verdicts = ledger, heads, run, verdicts
        self._peers = RateLimits(PER_PEER_MINUTE, PER_PEER_AT_ONCE, clock=clock)
        self._greetings = RateLimits(PER_PEER_MINUTE, PER_PEER_AT_ONCE, clock=clock)
        self._keys = RateLimits(PER_KEY_MINUTE, PER_KEY_AT_ONCE, clock=clock)
        self._beside = RateLimits(BESIDE_MINUTE, BESIDE_AT_ONCE, clock=clock)
        self._adding = WeakValueDictionary[str, asyncio.Lock]()  # by speaker
        self._strangers_each = RateLimits(EACH_MINUTE, EACH_AT_ONCE, clock=clock)
        self._strangers = RateLimits(STRANGERS_MINUTE, STRANGERS_AT_ONCE, clock=clock)
        self._passed = RateLimits(PASSED_MINUTE, PASSED_AT_ONCE, clock=clock)

    async def submit(self, data: bytes, who: str) -> tuple[int, str]:
        """Put a person's entry into the ledger.

        :param data: the leaf, as it came from outside
        :param who: the address or, without one, the network peer that it came from
        :returns: its index, and a signed tree head that covers it; the same for what is there
            already
        :raises DecodeError: it is malformed
        :raises Refused: it would change nothing (the code says why), or there is too much of it
        """
        self._spend(self._peers, who)
        if self._ledger.waiting > WAITING_AT_MOST:
            raise wire.Refused(
                "too many entries are waiting", "send it again in a few seconds", code="busy"
            )
        if len(data) > MAX_ENVELOPE_BYTES:
            raise wire.Refused(
                f"an entry of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} allowed",
                code="too_large",
            )
        # What is there already costs no signature check: sending it again is the cheapest flood.
        index = self._ledger.store.index_of(entries.entry_id(data))
        if index is None:
            index = await self._append(await intake.opened(data), who)
        return index, self._ledger.store.latest_note

    def greet(self, who: str) -> None:
        """Note a registration that is to be looked at; apart from what its source submits.

        :raises Refused: there were too many
        """
        self._spend(self._greetings, who)

    async def _append(self, entry: Entry, who: str) -> int:
        """Index of a new entry, when it counts and its signer has not said too much."""
        if not isinstance(entry.body, SUBMITTED):
            raise wire.Refused(f"{entry.kind} entries are not submitted by people", code="unknown")
        if isinstance(entry.body, entries.Verdict):
            intake.require(self._ledger.state, entry)
            self._spend(self._beside, speaker(entry))
            await self._verdicts.require_shown(entry.body)
        await self.add(entry, who)
        index = self._ledger.store.index_of(entry.id)
        assert index is not None
        emit(log, "entry.submitted", kind=entry.kind, index=index)
        return index

    async def add(self, entry: Entry, who: str, *, passed: bool = False) -> None:
        """Append an entry, if it would count and there are not too many: of its speaker and,
        without accepted work, of strangers. One that is there already changes nothing.

        :param passed: whoever it is about has passed a trial
        :raises Refused: it changes nothing, or too many in a minute: of this speaker, of this
            address or of all strangers
        :raises ResourceError: the disk is full or does not work; nothing was appended
        """
        # One of a speaker at a time: of several at once that exclude each other, or are the same,
        # all but one would take a place in its budget and leave nothing that counts.
        async with self._adding.setdefault(speaker(entry), asyncio.Lock()):
            # Whoever goes away in between must not get, or lose, a place for that.
            await uninterrupted(self._add(entry, who, passed))

    async def _add(self, entry: Entry, who: str, passed: bool) -> None:
        if self._ledger.store.index_of(entry.id) is not None:
            return
        intake.require(self._ledger.state, entry)
        self._spend(self._keys, speaker(entry))
        try:
            self._spend_strangers(entry, who, passed)
            await intake.append(self._ledger, entry)
        except ArtelError:
            self._keys.give_back(network_of(speaker(entry)))
            raise

    def _spend_strangers(self, entry: Entry, who: str, passed: bool) -> None:
        fold, body = self._ledger.state, entry.body
        if not is_strangers(fold, entry):
            return
        self._spend(self._strangers_each, who)
        if passed:
            self._spend(self._passed, "")
            return
        node = body.node if isinstance(body, entries.Node) else ""
        account = getattr(body, "account", "")
        adds = node not in fold.nodes if node else account not in fold.accounts  # no mere change
        if not adds or len(fold.accounts) + len(fold.nodes) >= FREE_ADMISSIONS:
            self._spend(self._strangers, "")

    def _spend(self, limits: RateLimits, key: str) -> None:
        wait = limits.take(network_of(key))
        if wait:
            raise wire.Refused(
                "too much at once", f"try again in {wait + 1:.0f} seconds", code="busy"
            )

    async def set_alias(self, data: bytes, who: str) -> None:
        """Show an account under a name, or no longer; kept beside the ledger, never in it.

        :raises DecodeError: it is malformed
        :raises CheckFailed: it is for another run, or not by the account's present key
        :raises Refused: older than what is known, or there is too much of it
        """
        self._spend(self._peers, who)
        wish = alias.open_alias(data, self._ledger.state)
        if wish.time > time.time() + ALIAS_AHEAD_S:
            raise wire.Refused(
                "the alias was signed in the future",
                "set the clock and sign it again",
                code="stale",
            )
        self._spend(self._beside, wish.account)
        heads, account = self._heads, wish.account
        shown = (account, wish.alias, wish.team, wish.time)
        if not await asyncio.to_thread(heads.set_alias, *shown):
            raise wire.Refused("a newer statement of this account is known", code="stale")
        if not wish.alias:
            await asyncio.to_thread(heads.forget_alias, account)
        emit(log, "alias.set" if wish.alias else "alias.forgotten", account=account[:12])
