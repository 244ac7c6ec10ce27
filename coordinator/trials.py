"""Trials: what a newcomer has to repeat before anything of it gets into the ledger.

A key costs nothing, so once two accounts have standing, a node of an account without any first
repeats the beginning of a contribution that began a span. All that this takes is public, but
for the answer: the fingerprints of the steps, which their maker has sent to the coordinator alone.
Their comparison (:func:`protocol.fingerprints.repeats`) is arithmetic on a few kilobytes.

Who asks costs nothing either: what was handed out is not remembered but signed, in a ticket that
holds for one peer, account and contribution, and for some time. The first who answers rightly takes
the contribution; whoever else was given it gets another one. So keys cannot share an answer, and
who never answers takes nothing. Which contributions were taken is on the disk before anybody is let
in; who passed, and who failed, this process alone remembers.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import random
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.fold.attempts import newest_attempt
from artel.ledger.fold.history import History
from artel.protocol import fingerprints, repeated_work
from artel.protocol.events import emit
from artel.protocol.fingerprints import ROW_BYTES, Rows
from artel.protocol.identity import short_peer
from artel.protocol.net import wire
from artel.protocol.net.limits import RateLimits, network_of
from artel.protocol.repeated_work import TRIAL_STEPS
from artel.protocol.round_state import NO_NUMBERS

log = logging.getLogger("artel.coordinator")

Key = TypeVar("Key")
Value = TypeVar("Value")

ANSWER_S = 1800.0
"""For an answer: a state and some shards are fetched for it."""
PASSED_S = 600.0
"""In which whoever has passed may register."""
KNOWN = 2
"""Accounts with standing from which on newcomers have to repeat something; one, where a run rests
on one. Whoever is alone at first could give all others the wrong answers, and so stay alone."""
USES = 4
"""Newcomers that one contribution lets in at most: a second one only when no other is left."""
HELD, READ = 512, 4096
"""The newest contributions that are kept in mind; and of how many the ledger is asked at once, so
that nobody waits for long: the next look goes on from there."""
REMEMBERED = 4096
"""Who passed, and who failed: of each so many, the newest."""
EACH_MINUTE, EACH_AT_ONCE = 4, 9
"""Trials for one address, as for its entries (:mod:`coordinator.submission`)."""
PAUSE_S, LONGEST_S = 5.0, 300.0
"""After a wrong answer, and twice as long after each further one."""
_TICKET = struct.Struct(">dB32s")
"""When it was handed out, uses of the contribution until then, account; a MAC follows."""


@dataclass
class Piece:
    """A contribution that began a span, by its entry's id."""

    source: str
    round: int
    account: str
    chain: str
    steps: int
    """To be repeated."""
    uses: int = 0
    handed_out: int = 0
    failed: int = 0
    """Wrong answers since the last right one: its own fingerprints may be the wrong ones."""


@dataclass
class Failed:
    """Wrong answers of a peer or an address."""

    times: int
    last: float


class Trials:
    """Of one coordinator; the event loop owns it."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._core = coordinator
        self._secret = os.urandom(32)
        self._pieces: dict[int, tuple[str, list[Piece]]] = {}
        """Round to the root of the state that it made, and its contributions; the newest first."""
        self._looking = asyncio.Lock()
        self._repeated = coordinator.heads.repeated()
        """Contribution to how many it let in, of all that may still be among the pieces."""
        self._passed: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._failed: OrderedDict[str, Failed] = OrderedDict()
        self._each = RateLimits(EACH_MINUTE, EACH_AT_ONCE, clock=coordinator.clock)

    def passed(self, peer: str, account: str) -> bool:
        """Whether a node has passed a moment ago."""
        since = self._passed.get((peer, account))
        return since is not None and self._core.clock() - since <= PASSED_S

    async def asked(self, peer: str, account: str, source: str) -> repeated_work.Trial | None:
        """What a node has to do before it is registered; None: nothing.

        :param source: what it is counted by (:func:`wire.source_of`)
        :raises Refused: not now (``busy``)
        """
        core, fold = self._core, self._core.ledger.state
        trust = fold.founded.trust
        begins = len(fold.standings()) < min(KNOWN, trust.founders)
        if (
            trust.admission != "open"
            or begins
            or fold.standings().get(account)
            or self.passed(peer, account)
        ):
            return None
        self._require_patience(peer, source)
        if wait := self._each.take(network_of(source)):
            raise wire.Refused("too many trials", _again(wait), code="busy")
        await self._look()
        others = [piece for piece in self._all() if piece.account != account]
        if not others:
            return None
        usable = [piece for piece in others if piece.uses < USES and self._sound(piece)]
        if not usable:
            raise wire.Refused(
                "all work that newcomers could repeat was repeated",
                "it is tried again by itself: each round brings more",
                code="busy",
            )
        piece = min(usable, key=self._rank)
        piece.handed_out += 1
        said = _TICKET.pack(core.clock(), piece.uses, bytes.fromhex(account))
        return repeated_work.Trial(
            contribution=piece.source,
            steps=piece.steps,
            ticket=said + self._mac(said, peer, piece.source),
        )

    async def answered(self, peer: str, given: repeated_work.Repeated, source: str) -> None:
        """Take an answer.

        :raises Refused: it is wrong (``trial_failed``), or cannot count any more (``trial_over``)
        """
        said, mac = given.ticket[: _TICKET.size], given.ticket[_TICKET.size :]
        if not hmac.compare_digest(mac, self._mac(said, peer, given.contribution)):
            raise _over("this trial was not given to this node by this coordinator")
        handed_out, uses, key = _TICKET.unpack(said)
        seconds, account = self._core.clock() - handed_out, key.hex()
        piece = next((one for one in self._all() if one.source == given.contribution), None)
        known = await asyncio.to_thread(self._known, piece) if piece is not None else None
        if self.passed(peer, account):
            return  # the first reply got lost
        self._require_patience(peer)
        failed = self._failed.get(peer)
        if seconds > ANSWER_S or (failed is not None and failed.last >= handed_out):
            raise _over("this trial is over")
        if piece is None or known is None or piece.uses != uses:
            raise _over("somebody else has repeated this work before")
        node, whole = short_peer(peer), len(given.rows) % ROW_BYTES == 0
        if not whole or not fingerprints.repeats(known, fingerprints.rows_in(given.rows)):
            piece.failed += 1
            emit(log, "trial.failed", node=node, round=piece.round)
            pause = self._note_failure(peer, source)
            raise wire.Refused(
                f"what this node made of these {piece.steps} steps is not what they came to before",
                f"another trial can be had in {pause:.0f} seconds",
                code=repeated_work.TRIAL_FAILED,
            )
        piece.uses, piece.failed = piece.uses + 1, 0
        await asyncio.to_thread(self._note_repeated, piece)
        self._failed.pop(peer, None)
        _remember(self._passed, (peer, account), self._core.clock())
        # A lower bound, downloads included: said to people, and nothing is assigned by it.
        speed = self._core.work.tokens(piece.steps) / max(seconds, 1e-3)
        said_of = {"node": node, "round": piece.round, "seconds": seconds}
        emit(log, "trial.passed", **said_of, tokens_per_second=speed)

    # --- what there is to repeat ------------------------------------------------------------------

    def _all(self) -> Iterator[Piece]:
        return (piece for _, pieces in self._pieces.values() for piece in pieces)

    def _sound(self, piece: Piece) -> bool:
        """Whether nothing speaks against its maker now."""
        fold = self._core.ledger.state
        owner, audit = fold.accounts.get(piece.account), fold.audits.get(piece.source)
        doubted = audit is not None and audits.doubts(audit)
        return owner is not None and not owner.barred and not doubted

    def _rank(self, piece: Piece) -> tuple[float, ...]:
        """Fresh ones first, whose answer nobody has missed, then those that have vested."""
        pending = piece.source in self._core.ledger.state.pending
        return piece.uses, piece.failed, pending, piece.handed_out, random.random()

    async def _look(self) -> None:
        """Know what there is: of the rounds whose states auditors still get."""
        ledger = self._core.ledger
        async with self._looking:
            fold = ledger.state
            history = History(ledger.store, ledger.store.query, fold)
            self._pieces = await asyncio.to_thread(self._found, history)

    def _found(self, history: History) -> dict[int, tuple[str, list[Piece]]]:
        fold, found, held, read = history.state, dict[int, tuple[str, list[Piece]]](), 0, 0
        kept = audits.rounds_kept(fold.founded)
        for number in range(fold.round - 1, max(-1, fold.round - kept), -1):
            root, pieces = self._pieces.get(number, ("", []))
            if root != fold.states[number + 1]:
                if read >= READ:
                    break
                trail = newest_attempt(history, number)
                pieces = list(self._of_round(history, trail))
                read += len(trail.weights)
            found[number] = fold.states[number + 1], pieces
            held += len(pieces)
            if held >= HELD:
                break
        return found

    def _of_round(self, history: History, trail: AttemptTrail) -> Iterator[Piece]:
        for node in trail.weights:
            entry = history.entry(trail.shown[node])
            body = entry.body
            assert isinstance(body, entries.Contribution)
            steps = min(TRIAL_STEPS, body.head)
            held = self._core.fingerprints.size_of(body.chain) == ROW_BYTES * body.head
            begins = body.span == body.round and not body.tail and body.payload != NO_NUMBERS
            if begins and steps > 1 and held:
                account = trail.accounts[node]
                uses = self._repeated.get(entry.id, 0)
                yield Piece(entry.id, body.round, account, body.chain, steps, uses)

    def _note_repeated(self, piece: Piece) -> None:
        heads, fold = self._core.heads, self._core.ledger.state
        oldest = fold.round - audits.rounds_kept(fold.founded)
        heads.note_repeated(piece.source, piece.round, oldest)
        self._repeated = heads.repeated()

    def _known(self, piece: Piece) -> Rows | None:
        """The answer; None where it is gone."""
        path = self._core.fingerprints.sound(piece.chain)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                return fingerprints.rows_in(file.read(ROW_BYTES * piece.steps))
        except FileNotFoundError:
            return None

    # --- who asks ---------------------------------------------------------------------------------

    def _mac(self, said: bytes, peer: str, source: str) -> bytes:
        return hmac.digest(self._secret, said + peer.encode() + source.encode(), "sha256")

    def _require_patience(self, *names: str) -> None:
        for name in map(network_of, names):
            failed = self._failed.get(name)
            if failed is None:
                continue
            wait = failed.last + _pause(failed.times) - self._core.clock()
            if wait > 0:
                raise wire.Refused("the last trial was failed", _again(wait), code="busy")

    def _note_failure(self, *names: str) -> float:
        """Seconds to wait from now on."""
        now, longest = self._core.clock(), 0
        for name in set(map(network_of, names)):
            before = self._failed.get(name)
            times = before.times + 1 if before is not None else 1
            _remember(self._failed, name, Failed(times, now))
            longest = max(longest, times)
        return _pause(longest)


def _remember(where: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    where[key] = value
    where.move_to_end(key)
    if len(where) > REMEMBERED:
        where.popitem(last=False)


def _pause(times: int) -> float:
    return min(PAUSE_S * (1 << min(times - 1, 16)), LONGEST_S)


def _again(wait: float) -> str:
    return f"try again in {wait + 1:.0f} seconds"


def _over(why: str) -> wire.Refused:
    return wire.Refused(why, "ask for another one", code=repeated_work.TRIAL_OVER)
