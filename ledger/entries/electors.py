"""Electors: the nodes whose cosignatures make a tree head certain, and whose seals end a term.

They are fixed for a stretch of rounds, so that all who look at one head count the same nodes. When
they change, both the former and the new ones have to agree until the change is final by both; so
any quorum that seals a term has a node that holds the certificate of all that is final (joint
consensus: Ongaro, Consensus, 2014, section 4.3). Former ones that are gone would hold the run up
for ever: after a whole stretch, with the next change, or without one after two, nobody asks them
any more, agreed or not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

MOST = 48
"""Electors at a time: what they sign is stored for ever, and asked for in seconds. A note has room
for what two sets sign (:data:`ledger.tlog.note.MAX_SIGNATURE_LINES`)."""
GONE = 3
"""So many stretches after their own, former electors are taken for gone."""
FEW = 3
"""With fewer voices none may be away: such a set grows before its stretch is over."""


@dataclass(frozen=True)
class Electorate:
    """One choice of electors."""

    since: int
    """Index of the entry that it follows from; it counts for heads that cover that entry."""
    stretch: int
    """Of rounds (:func:`.standing.stretch_of`), to whose end nobody takes its place."""
    weights: dict[str, int]
    """Node to what its word weighs."""
    by_standing: bool
    """Whether these are weights by standing; else a node of each account has one voice."""

    def quorum(self, nodes: Collection[str]) -> bool:
        """Whether so many agree that any two such groups share one that is honest: of weights by
        standing more than two thirds; of accounts that nobody knows, more than half, which is all
        that crashes need (Lamport, Shostak, Pease, 1982)."""
        found = sum(weight for node, weight in self.weights.items() if node in nodes)
        whole = sum(self.weights.values())
        return 3 * found > 2 * whole if self.by_standing else 2 * found > whole


@dataclass
class Electors:
    """The electors of a run, as its fold has them. Changed by the owner of the fold's state."""

    sets: list[Electorate] = field(default_factory=list)
    """The present ones; before them the former, as long as these have to agree too."""
    certified: list[tuple[int, int]] = field(default_factory=list)
    """Index of an entry that records a certified head, and the size of that: those that are not
    final, the oldest first."""

    def copy(self) -> Electors:
        """An independent one with the same contents."""
        return Electors(list(self.sets), list(self.certified))

    @property
    def present(self) -> Mapping[str, int]:
        """Node to weight, of the present ones; empty before the first state."""
        return self.sets[-1].weights if self.sets else {}

    def choose(
        self, since: int, round: int, length: int, weights: Mapping[str, int], by: bool
    ) -> None:
        """Let these be the electors from here on, if it is time; the former stay beside them.

        :param round: number of the state that they follow from
        :param length: rounds of a stretch (:func:`.standing.stretch_of`)
        :param weights: node to weight; the heaviest :data:`MOST` are taken, of equal ones the first
        :param by: whether the weights are of standing
        """
        last = self.sets[-1] if self.sets else None
        most = sorted(weights, key=lambda node: (-weights[node], node))[:MOST]
        chosen = {node: weights[node] for node in sorted(most)}
        if not chosen:
            return
        stretch, until = round // length, -(-round // length)
        if last:
            grows = self._grows(chosen, by)
            # Who was asked before ``last`` is asked no more from here on.
            early = grows or (last.by_standing != by and len(self.sets) == 1)
            if last.stretch >= stretch and not early:
                return
            if last.weights == chosen and last.by_standing == by:
                former = [each for each in self.sets[:-1] if stretch - each.stretch < GONE]
                self.sets = [*former, replace(last, stretch=stretch)]
                return
            # The former have a whole stretch to agree, so one that comes late in a stretch lasts
            # to the end of the next; of few voices all agree at once, so they may give way sooner.
            if grows and len(chosen) < FEW:
                until = stretch
            self.sets = [replace(last, stretch=until - 1), Electorate(since, until, chosen, by)]
        else:
            self.sets = [Electorate(since, stretch, chosen, by)]

    def _grows(self, chosen: Mapping[str, int], by: bool) -> bool:
        """Whether a set of few voices becomes a larger one. Of so few all are needed: what those
        who were asked before them have to agree to, they have agreed to, if these are among them.
        Else these are asked for as long as of any other change."""
        *former, last = self.sets
        few = not by and not last.by_standing and len(last.weights) < FEW
        within = all(each.weights.keys() <= last.weights.keys() for each in former)
        return few and within and last.weights.keys() < chosen.keys()

    def quorum(self, nodes: Collection[str], size: int | None = None) -> bool:
        """Whether these nodes can certify a head of ``size`` entries, or without a size seal a
        term. Before there are electors, nobody has to agree (and nobody can seal)."""
        known = [each for each in self.sets if size is None or each.since < size]
        return all(each.quorum(nodes) for each in known or self.sets[:1])

    def certify(self, index: int, size: int) -> int:
        """The entry with this index records that a head is certified.

        :returns: how many entries are final by it, that is, how many a certified head covers whose
            own record this one covers; 0 when it says no more than what was known
        """
        final = self.final_by(size)
        self.certified = [(at, known) for at, known in self.certified if known > final]
        self.certified.append((index, size))
        # Not as soon as a head behind the change is certified by both: of the former ones each
        # knows that it has signed it, and none whether the others have.
        if self.sets and final > self.sets[-1].since:
            self.sets = self.sets[-1:]
        return final

    def final_by(self, size: int) -> int:
        """How many entries are final when a head of ``size`` entries is certified: whoever
        cosigned it holds the certificates that it covers. 0: no more than before."""
        return max((known for at, known in self.certified if at < size), default=0)
