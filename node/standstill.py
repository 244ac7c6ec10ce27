"""Whether a run stands still although it could go on: who leads answers, and brings no round about.

By the manifest's rules each phase of an attempt has an end, and the next attempt a beginning, as
soon as enough nodes are there that hold the newest state. So an elector needs nobody's word: its
own copy of the ledger says which phase the run is in, its own clock for how long, and the records
in the DHT, which their nodes sign and which end soon after these, who could take part. Whoever
leads has twice as long as the rules allow, since after a restart all waiting begins anew, and twice
as long as it may be silent. Then an elector seals the term (:mod:`.sealing`).

It does so too when many attempts of a round in a row have come to nothing. Whose fault that is
nobody can tell; but where nothing is agreed on, little is lost by trying another coordinator. Each
term in a row without a state is given longer, so that a run that cannot go on changes its
coordinator ever more seldom. One that only its organiser can have go on keeps the one it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.sync.replica import Replica
from artel.node import holders
from artel.protocol.net.dht import LIFETIME_S, HolderRecord
from artel.protocol.net.host import Host
from artel.protocol.pauses import wait_before
from artel.protocol.round_state import RoundRules
from artel.protocol.tasks import end

ATTEMPTS = 8
"""So many of a round may come to nothing in a row; the waits between them take five minutes."""
LEAST_S = 2 * LIFETIME_S
"""However short the phases are: records of nodes that have gone end in this time."""
RETURN_S = 300.0
"""So long a coordinator may compute a state that is called wrong."""
STEP_S = 10.0
"""What counts of the time between two looks, at most: a process that was stopped saw nothing."""
COUNT_S = 4.0
"""So long an answer of the DHT is waited for; one that takes longer is taken at the next look."""


class Standstill:
    """What one elector sees of it; the event loop owns it.

    :param rules: of the run's rounds, as the manifest has them
    :param handover_s: ``coordination.handover_s`` of the run
    :param clock: steady seconds
    """

    def __init__(
        self,
        host: Host,
        run: str,
        replica: Replica,
        rules: RoundRules,
        handover_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._run, self._replica = host, run, replica
        self._written, self._handover_s, self._clock = rules, handover_s, clock
        self.ready: Callable[[], bool] = lambda: False
        """Whether this node itself holds the newest state and would take part in a round."""
        self._round: tuple[int, int] = (-1, -1)  # term, and number of the newest state
        self._first = 0  # number of the first attempt of it that was seen
        self._phase: tuple[int, str] = (-1, "")
        self._looked, self._for = clock(), 0.0  # when; so long the run is in that phase
        self._counted_to = 0.0  # so long the nodes that were counted last are taken to be there
        self._counting: asyncio.Task[dict[str, HolderRecord]] | None = None

    @property
    def _rules(self) -> RoundRules:
        """The rules of the round that is under way or comes next."""
        state = self._replica.state
        return self._written.amended(state.changes_at(state.round))

    def overdue(self, patience: float) -> str:
        """Why somebody else should lead, in words; "" for no reason.

        :param patience: seconds that whoever leads may be silent now
        """
        state = self._replica.state
        self._follow(state)
        rules = self._rules
        if not state.size or state.round >= rules.total or rules.paused or state.stuck:
            return ""
        failed = self._phase[0] - self._first
        if failed * self._handover_s >= ATTEMPTS * patience:
            return f"{failed} attempts of round {state.round} in a row have come to nothing"
        known = bool(self._phase[1]) or self._for < self._counted_to
        if self._for < self._bound(state, patience) or not known:
            return ""
        what = f"the round is {self._phase[1]}" if self._phase[1] else "no round is opened"
        return f"for {self._for:,.0f} s {what}, although it could go on"

    async def look(self, patience: float) -> None:
        """Let the time pass; and count who is there when no round was opened for long. Not called
        while whoever leads does not answer: that is another matter."""
        now, state = self._clock(), self._replica.state
        passed, self._looked = min(now - self._looked, STEP_S), now
        self._follow(state)
        self._for += passed
        if self._phase[1]:
            return
        if not self.ready() or self._rules.paused or state.stuck:
            self._for = self._counted_to = 0.0
            return
        half = self._bound(state, patience) / 2
        if self._for < max(half, self._counted_to):
            return
        if self._counting is None:
            self._counting = asyncio.create_task(holders.records(self._host, self._run))
        await asyncio.wait({self._counting}, timeout=COUNT_S)
        if self._counting.done():
            found, self._counting = self._counting.result(), None
            enough = 1 + self._able(found) >= self._rules.min_nodes
            if not enough:
                self._for = 0.0
            self._counted_to = self._for + half / 4 if enough else 0.0

    async def close(self) -> None:
        """End what is under way."""
        if self._counting is not None:
            await end(self._counting)

    def _follow(self, state: FoldState) -> None:
        """See how far the run is by the ledger."""
        if not state.size:
            return
        attempt, number, phase = state.attempt, state.begun.get(state.round, 0), ""
        if attempt is not None and attempt.round == state.round:
            failed = attempt.phase == "failed"
            number = max(number, attempt.attempt + failed)
            phase = "" if failed else attempt.phase
        where = state.term.number, len(state.states)
        if where != self._round:
            self._round, self._first, self._phase = where, number, (-1, "")
        if self._phase != (number, phase):
            self._phase, self._for, self._counted_to = (number, phase), 0.0, 0.0
            if self._counting is not None:
                self._counting.cancel()  # what it finds is of then
                self._counting = None

    def _bound(self, state: FoldState, patience: float) -> float:
        """How long (seconds) the run may be in the phase that it is in."""
        rules, (number, phase) = self._rules, self._phase
        lasts = {"training": rules.training, "revealing": rules.reveal, "applying": rules.settle}
        longest = lasts.get(phase, rules.grace)
        if not phase:
            longest += wait_before(number - state.begun.get(state.round, 0))
            if any(charge.proven for charge in state.charges.values()):
                longest += max(RETURN_S, sum(lasts.values()))
        return max(2 * (longest + patience), LEAST_S)

    def _able(self, found: Mapping[str, HolderRecord]) -> int:
        """How many other nodes of the run hold the newest state by their records."""
        state = self._replica.state
        hold = (peer for peer, record in found.items() if record.state == state.states[-1])
        return len(state.trusted(hold))
