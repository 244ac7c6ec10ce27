"""A run with three leaders: the first of the manifest, its standby, and one that a node started
when it was chosen. What the first two added at last was given up with their terms."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from artel.ledger import entries
from artel.ledger.fold.effects import Fold
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog.checkpoint import origin_of, parse_checkpoint, sign_checkpoint
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from client_world import cosigned
from ledger_world import Rooted, World, complete, forged, key

WORLD = World(nodes=4, waiting=1, total=200, ledger={"witnesses": 3})
RUN = WORLD.run
FIRST, (SECOND,) = WORLD.coordinator, WORLD.standbys
CHOSEN = min(WORLD.members, key=lambda member: member.peer_id)
"""Of electors with one voice each the first one, who starts a coordinator."""
ELECTED = CHOSEN.elected
LEADERS = {0: FIRST, 1: SECOND, 4: ELECTED}
"""Terms and who leads; in 2 and 3 no coordinator of the manifest came."""
ROUNDS = {0: 27, 1: 30}
"""The first round that was given up with a term: before the first tile is full."""
GIVEN_UP = {0: 33, 1: 34}
"""And the one after the last: each of the three fills that tile with other entries."""
LAST = 36


class Ledger:
    """A home that goes on under whoever leads; a head for each round."""

    def __init__(self, home: Path) -> None:
        self.home, self.term = home, 0
        self.store = LedgerStore.open(home / DATABASE_NAME, create=True, run=RUN)
        self.fold = Fold.open(self.store)
        if self.store.size:
            self.term = self.store.term

    def add(self, *envelopes: Envelope) -> None:
        leader, state = LEADERS[self.term], self.fold.state.copy()
        made = complete((by(leader, each) for each in envelopes), state)
        origin = origin_of(RUN, self.term)
        self.store.append(
            [each.encode() for each in made],
            lambda size, root: sign_checkpoint(leader, origin, size, root),
            self.fold.beside,
        )
        self.fold.settle()

    def rounds(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.add(*WORLD.round(number))

    def certify(self) -> str:
        """The newest head with everybody's cosignatures, which is recorded and kept."""
        note = cosigned(self.store.latest_note, *WORLD.members)
        head = parse_checkpoint(note)
        leaves = list(self.store.bare())
        self.add(WORLD.witnessed(leaves, size=head.size, term=self.term))
        return note

    def keep(self, *notes: str) -> None:
        heads = HeadStore(self.home / HEADS_NAME)
        for note in notes:
            heads.add_note(note)
        heads.close()

    def hand_over(self, term: int, sealed: int = 3) -> None:
        """Three of four have sealed the term before; what is certified is all that is here."""
        head = parse_checkpoint(self.store.latest_note)
        known = {"of": self.term, "size": head.size, "root": head.root.hex()}
        known |= {"next": LEADERS[term].key}
        sealed = (
            entries.seal(each, RUN, term=term - 1, **known) for each in WORLD.members[:sealed]
        )
        seals = [entries.open_seal(each.encode())[1] for each in sealed]
        made = entries.handover(LEADERS[term], RUN, term=term, seals=seals)
        self.store.begin_term(term)
        self.term = term
        self.add(made)

    def copied(self, home: Path) -> Ledger:
        """Another home with the same ledger; this one is closed for a moment."""
        self.store.close()
        shutil.copytree(self.home, home)
        self.store = LedgerStore.open(self.home / DATABASE_NAME, run=RUN)
        self.fold = Fold.open(self.store)
        return Ledger(home)


def by(leader: Identity, envelope: Envelope) -> Envelope:
    """What the first coordinator signed, by this one."""
    alone = isinstance(envelope, Rooted) or [k for k, _ in envelope.signatures] == [FIRST.key]
    return forged(envelope, leader) if alone else envelope


def write(folder: Path) -> tuple[Path, Path, Path]:
    """The homes of the first, the second and the elected coordinator, as each was left."""
    first = Ledger(folder / "first")
    first.add(*WORLD.start)
    first.rounds(range(ROUNDS[0]))
    notes = [first.certify()]
    second = first.copied(folder / "second")
    first.rounds(range(ROUNDS[0], GIVEN_UP[0]))
    first.keep(*notes)
    second.hand_over(1)
    second.rounds(range(ROUNDS[0], ROUNDS[1]))
    notes.append(second.certify())
    third = second.copied(folder / "third")
    second.rounds(range(ROUNDS[1], GIVEN_UP[1]))
    second.keep(*notes)
    third.hand_over(4)
    third.rounds(range(ROUNDS[1], LAST))
    notes.append(third.certify())
    third.add(entries.account(key("late"), RUN))
    notes.append(cosigned(third.store.latest_note, *WORLD.members))
    third.keep(*notes)
    for ledger in (first, second, third):
        assert not ledger.fold.state.ignored
        ledger.store.close()
    return first.home, second.home, third.home
