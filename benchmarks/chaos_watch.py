"""What has to hold in a chaos run, whatever goes wrong: looked for all along, and once more at the
end, when everybody is asleep.

All of it is read from what the processes leave on their disks, not from what they say.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artel.ledger import entries
from artel.ledger.entries import entry_id
from artel.ledger.fold import claims
from artel.ledger.fold.recheck import RIGHT, WRONG
from artel.ledger.fold.recheck_states import recheck_states
from artel.ledger.fold.shares import FoldState, apply, fold
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.client import home_view
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.protocol import identity
from artel.protocol.errors import ArtelError
from benchmarks.chaos_plan import COORDINATOR, STANDBY
from ledger_world import folded

COORDINATORS = (COORDINATOR, STANDBY)
LOGS = ("console.log", "node.log", "trainer.log")
DEFECTS = re.compile(rb"Traceback \(most recent call last\)|error: unexpected |\bstate\.wrong\b")
"""What no log may hold; nobody in the run computes anything wrong."""
CACHES = re.compile(r"artel-kernels-\d+|torchinductor_\w+")
"""What may stay in the folder for temporary files: it is used again."""
STATES = 6
"""So many of the newest states are computed once more at the end."""


@dataclass
class Watch:
    """Everything that was seen of a run so far.

    :param homes: party to its home
    """

    homes: dict[int, Path] = field(default_factory=dict)
    history: list[bytes] = field(default_factory=list)
    """The longest ledger of the latest term that any home ever had. Within a term nothing of it may
    be lost or changed again; with a handover what was not final may be, and nothing else."""
    there: set[int] = field(default_factory=set)
    """Parties that were there until the end; others may hold what was given up since."""
    term: int = 0
    """That of the history."""
    accepted: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Node to the newest round in which its work counted."""
    _same: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Party to how many entries of its ledger are known to be those ..."""
    _terms: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """... in which term."""
    _fold: FoldState = field(default_factory=FoldState)
    _read: dict[Path, int] = field(default_factory=lambda: defaultdict(int))

    def look(self, homes: Mapping[int, Path], *, whole: bool = False) -> list[str]:
        """All that is wrong now, in words.

        :param whole: read every ledger from its beginning, and miss none
        """
        self.homes.update(homes)
        found: list[str] = []
        if whole:
            self._same.clear()
        for party, home in homes.items():
            try:
                found += self._ledger(party, home, whole and party in self.there)
            except ArtelError as error:
                # It is put back from a backup at this moment, or has none yet.
                if whole:
                    found.append(f"the ledger of {home.name}: {error.message}")
            found += self._logs(home)
            if (home / SPLIT_VIEW_FILE).exists():
                found.append(f"{home.name} holds a proof of two histories")
        return found

    def _ledger(self, party: int, home: Path, at_the_end: bool) -> Iterator[str]:
        with LedgerReader.of(home) as ledger:
            terms = ledger.terms()
            term = terms[-1].number if terms else 0
            same = term == self._terms[party] and ledger.size >= self._same[party]
            start = self._same[party] if same else 0
            held = list(ledger.leaves(start))
        pairs = enumerate(zip(held, self.history[start:], strict=False), start)
        other = next((index for index, (a, b) in pairs if a != b), None)
        if other is not None:
            if term < self.term:  # what it holds was given up, and it will hear of it
                final = fold(map(entries.decode, [*self.history[:start], *held])).final
            else:
                final = self._fold.final
            if term == self.term or other < final:
                which = f"in term {term}" if term == self.term else "which was final"
                yield f"{home.name} holds another entry {other} than others, {which}: two histories"
                return
            if term < self.term:
                if at_the_end:
                    yield f"{home.name} still holds what was given up with term {term}"
                return
            self._give_up(other)
        for leaf in held[len(self.history) - start :]:
            self._add(leaf)
        self.term = max(self.term, term)
        self._same[party], self._terms[party] = start + len(held), term

    def _add(self, leaf: bytes) -> None:
        entry = entries.decode(leaf)
        self.history.append(leaf)
        apply(self._fold, entry)
        if isinstance(entry.body, entries.RoundClosed):
            self.accepted.update({item.node: entry.body.round for item in entry.body.accepted})

    def _give_up(self, size: int) -> None:
        """Forget all but the first entries: a later term goes on from there."""
        kept = self.history[:size]
        self.history, self._fold = [], FoldState()
        for leaf in kept:
            self._add(leaf)
        self._same = defaultdict(int, {p: min(n, size) for p, n in self._same.items()})

    def _logs(self, home: Path) -> Iterator[str]:
        for path in (home / name for name in LOGS):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read[path])
                new = file.read()
            end = new.rfind(b"\n") + 1
            self._read[path] += end
            for match in DEFECTS.finditer(new[:end]):
                line = new[match.start() : match.start() + 2000].decode(errors="replace")
                yield f"{home.name}/{path.name} says:\n    " + "\n    ".join(line.splitlines()[:24])


@dataclass
class Accounts:
    """What a ledger amounts to, counted by other means than its fold.

    :param attempts: of rounds, by outcome: "agreed", "failed", or "open" for the last one
    :param absences: of members in attempts, by reason
    """

    attempts: Counter[str] = field(default_factory=Counter)
    absences: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    right: int = 0
    """States that came out the same when they were computed once more."""

    @property
    def committed(self) -> float:
        """Part of all attempts that led to a state."""
        over = self.attempts["agreed"] + self.attempts["failed"]
        return self.attempts["agreed"] / over if over else 0.0


def settled(watch: Watch, temporary: Path) -> Accounts:
    """The last word on a run whose processes have all ended."""
    found = Accounts()
    found.problems += watch.look(watch.homes, whole=True)
    for home in watch.homes.values():
        result = verify_home(home)
        broken = [check for check in result.checks if not check.ok]
        found.problems += [f"{home.name}: {each.name}: {each.detail}" for each in broken]
    coordinator, leaves = longest([watch.homes[party] for party in COORDINATORS])
    if len(leaves) < len(watch.history):
        lost = len(watch.history) - len(leaves)
        found.problems.append(f"the coordinators' ledgers lack {lost} entries that were signed")
    count(leaves, found)
    found.problems += _unexplained(leaves, watch.homes)
    with home_view(coordinator) as view:
        for state in recheck_states(view.history, STATES, list(watch.homes.values())):
            found.right += state.status == RIGHT
            if state.status == WRONG:
                found.problems.append(state.line())
    left = [path.name for path in temporary.iterdir() if not CACHES.fullmatch(path.name)]
    if left:
        found.problems.append(f"left in the folder for temporary files: {', '.join(sorted(left))}")
    return found


def longest(homes: Sequence[Path]) -> tuple[Path, list[bytes]]:
    """The home with the most entries of the latest term, and its entries."""

    def held(home: Path) -> tuple[int, list[bytes]]:
        with LedgerReader.of(home) as ledger:
            return max((term.number for term in ledger.terms()), default=0), list(ledger.leaves())

    found = {home: held(home) for home in homes}
    best = max(homes, key=lambda home: (found[home][0], len(found[home][1])))
    return best, found[best][1]


def count(leaves: Sequence[bytes], found: Accounts) -> None:
    """Attempts, absences and credit, from the entries alone, beside what the fold makes of them
    (and what whoever has only ``docs/ledger.md`` makes of them)."""
    paid: Counter[str] = Counter()
    members: tuple[str, ...] = ()
    committed: set[str] = set()
    closed: entries.RoundClosed | None = None
    running = False
    decoded, state = folded(leaves)
    for index, entry in enumerate(decoded):
        body = entry.body
        if isinstance(body, entries.RoundOpened):
            found.attempts["failed"] += running
            members, committed, running = body.members, set(), True
        elif isinstance(body, entries.RoundCommitted):
            committed = set(body.commitments)
        elif isinstance(body, entries.RoundClosed):
            closed = body
            fates = {item.node: item.reason for item in body.rejected}
            silent = set(members) - {item.node for item in body.accepted} - fates.keys()
            found.absences.update(fates.values())
            # An attempt that comes to nothing, with a coordinator that is killed, does so for all.
            found.absences["not counted" if body.accepted else "nobody counted"] += len(silent)
            if body.accepted and committed & silent:
                found.problems.append(f"entry {index} says nothing of some who committed")
        elif isinstance(body, entries.StateAgreed) and closed is not None:
            found.attempts["agreed"] += 1
            running = False
            paid.update({item.node: item.weight for item in closed.accepted})
        elif isinstance(body, entries.StateWrong | entries.SplitSeen | entries.RolledBack):
            found.problems.append(f"entry {index} is a {body.KIND}: nobody did anything wrong")
    found.attempts["open"] += running
    if state.node_tokens != dict(paid):
        found.problems.append("the tokens that nodes are paid for are not those of agreed rounds")
    for reason, count in state.ignored.items():
        found.problems.append(f"{count} entries without effect: {reason}")
    if any(account.barred for account in state.accounts.values()):
        found.problems.append("an account is convicted, and nobody did anything wrong")


def _unexplained(leaves: Sequence[bytes], homes: Mapping[int, Path]) -> Iterator[str]:
    """Work that nodes noted before they showed it: it is in the ledger once, or the attempt says
    why not, or came to nothing for all."""
    bodies = [entries.decode(leaf).body for leaf in leaves]
    seen = Counter(map(entry_id, leaves))
    ends = {(b.round, b.attempt): b for b in bodies if isinstance(b, entries.RoundClosed)}
    committed = {
        (b.round, b.attempt): b.commitments for b in bodies if isinstance(b, entries.RoundCommitted)
    }
    for name, count in seen.items():
        if count > 1:
            yield f"the entry {name[:8]} is there {count} times"
    for home in (home for party, home in homes.items() if party not in COORDINATORS):
        peer = identity.load(home / NODE_KEY).peer_id
        noted = claims.read(home)
        counted = {(claim.round, claim.attempt) for claim in noted if seen[claim.entry]}
        for claim in noted:
            place = claim.round, claim.attempt
            end = ends.get(place)
            # What was given up with a term may have been shown to an attempt of the same number.
            if place in counted or peer not in committed.get(place, {}):
                continue
            if end is None or not end.accepted:
                continue
            if peer not in {item.node for item in end.rejected}:
                yield f"what {home.name} showed in round {claim.round} is lost without a word"
