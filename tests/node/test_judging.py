"""When a node calls a state wrong, and when it answers as one of the jury; the network is left out:
all that is to be fetched lies in its store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.fold.history import read
from artel.node.judging import Judging
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import Unreachable
from artel.protocol.identity import Identity
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from ledger_world import World, complete, digest
from log_world import Log

WORLD = World(nodes=6, ownership={"vesting_rounds": 1})
LIARS, HONEST = WORLD.members[:4], WORLD.members[4:]
RIGHT, RECORDED = digest("right"), digest("state 3")
WRONG_STATE = [
    *WORLD.start,
    *WORLD.round(0),
    *WORLD.round(1),
    *WORLD.until_closed(2),
    WORLD.agreed(3, LIARS),
]
CHARGE = WORLD.state_wrong(HONEST[0], 3, RIGHT)


class Node:
    """One node's judging over a ledger.

    :param found: what it computes the state to be; an error: it cannot
    """

    def __init__(
        self,
        tmp_path: Path,
        member: Identity,
        ledger: Sequence[Envelope],
        found: str | Exception = RIGHT,
        doubts: tuple[int, ...] = (),
    ) -> None:
        history = read(Log(complete(ledger)))
        home = tmp_path / member.peer_id
        home.mkdir()
        held = [digest("state 2"), *(WORLD.blob(2, 0, each)[0] for each in WORLD.members)]
        for name in held:
            (home / name).write_bytes(b"content")
        blobs: Any = BlobStore(home)
        blobs.sound = blobs.path  # nothing here is what its name says
        self.said: list[entries.Entry] = []
        self.refuses = ""
        self.computed = 0
        self.found = found
        owner = WORLD.owners[WORLD.members.index(member)]
        self.meanwhile: Sequence[Envelope] = ()
        """The ledger after it has been computed."""
        self.replica = SimpleNamespace(state=history.state, history=history, growth=asyncio.Event)
        self.petitions = list[Envelope]()
        session: Any = SimpleNamespace(
            sealing=SimpleNamespace(petitions=SimpleNamespace(add=self.petitions.append)),
            replica=self.replica,
            link=SimpleNamespace(coordinator="coordinator", tell=self.tell),
            identity=member,
            account_name=owner.key,
            run=WORLD.run,
            host=SimpleNamespace(peer_id=member.peer_id),
            blobs=blobs,
            home=tmp_path,
            state_bytes=1 << 20,
        )
        states = SimpleNamespace(spare_none=lambda: None)
        worker: Any = SimpleNamespace(doubts=dict.fromkeys(doubts, 0), states=states)
        self.judging = Judging(session, worker, lambda: [], self.recompute)

    async def recompute(self, home: Path, number: int) -> str:
        assert number == 3
        self.computed += 1
        if self.meanwhile:
            self.replica.state = read(Log(complete(self.meanwhile))).state
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def tell(self, message: messages.Accuse, patience: float) -> None:
        if self.refuses:
            raise wire.Refused("no", code=self.refuses)
        self.said.append(entries.decode(message.statement))


async def test_who_computed_another_state_says_so_once(tmp_path: Path) -> None:
    node = Node(tmp_path, HONEST[0], WRONG_STATE, doubts=(3,))
    await node.judging.look()
    await node.judging.look()
    (said,) = node.said
    assert [said.envelope] == node.petitions
    assert isinstance(said.body, entries.StateWrong)
    assert (said.body.state, said.body.recorded, said.body.root) == (3, RECORDED, RIGHT)
    assert said.signers == {HONEST[0].key}


async def test_a_fault_of_its_own_accuses_nobody(tmp_path: Path) -> None:
    node = Node(tmp_path, HONEST[0], WRONG_STATE, found=RECORDED, doubts=(3,))
    await node.judging.look()
    assert (node.said, node.computed) == ([], 1)


@pytest.mark.parametrize("found", [RIGHT, RECORDED])
async def test_who_is_drawn_says_what_it_computed(tmp_path: Path, found: str) -> None:
    node = Node(tmp_path, HONEST[1], [*WRONG_STATE, CHARGE], found=found)
    await node.judging.look()
    await node.judging.look()
    (said,) = node.said
    assert [said.envelope] == node.petitions
    assert isinstance(said.body, entries.JuryAnswer)
    assert said.body.root == found
    assert said.body.charge == entries.entry_id(CHARGE.encode())


async def test_who_is_not_drawn_or_accused_itself_says_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, HONEST[0], [*WRONG_STATE, CHARGE])
    await node.judging.look()
    assert (node.said, node.computed) == ([], 0)


async def test_what_cannot_be_had_is_tried_again_and_what_is_refused_is_not(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, HONEST[1], [*WRONG_STATE, CHARGE], found=Unreachable("nobody has it"))
    await node.judging.look()
    node.found, node.refuses = RIGHT, "not_accused"
    await node.judging.look()
    node.refuses = ""
    await node.judging.look()
    assert (node.said, node.computed) == ([], 2)


@pytest.mark.parametrize(("who", "ledger"), [(0, WRONG_STATE), (1, [*WRONG_STATE, CHARGE])])
async def test_nothing_is_said_of_a_state_that_the_run_went_back_behind(
    tmp_path: Path, who: int, ledger: Sequence[Envelope]
) -> None:
    node = Node(tmp_path, HONEST[who], ledger, doubts=(3,) if who == 0 else ())
    node.meanwhile = [*WORLD.start, *WORLD.round(0), *WORLD.round(1)]
    await node.judging.look()
    await node.judging.look()
    assert (node.said, node.computed) == ([], 1)
