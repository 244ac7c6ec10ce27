"""Three fresh keys for each node that has worked: the run neither stops nor waits for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from artel.protocol.round_state import Phase
from desk_world import RULES, Member, Office, run_of
from witness_world import play_round

ROUNDS = 8
"""Of an attack, and until credit vests: so the fresh keys have no standing all the time."""
KINDS = ("silent", "quick", "dissent")
"""Never commits; commits at once to something and shows nothing; takes part, and signs a root of
its own, which all of them sign. All keep beating."""


@pytest.fixture
def offices(tmp_path: Path) -> Iterator[list[Office]]:
    made: list[Office] = []
    yield made
    for office in made:
        office.close()


async def opened(offices: list[Office], home: Path, founders: int) -> tuple[Office, list[Member]]:
    """A run of two nodes whose accounts have standing."""
    rounds = {"total": 60, "min_nodes": 2, "max_nodes": 8}
    sections = {"ownership": {"vesting_rounds": ROUNDS}, "trust": {"founders": founders}}
    office = Office(home, *run_of(home, rounds=rounds, **sections))
    offices.append(await office.open())
    honest = [Member(office, name) for name in ("a", "b")]
    for member in honest:
        await member.hello()
    for _ in range(ROUNDS + 2):
        await play_round(office, honest)
    assert len(office.core.ledger.state.standings()) == 2
    return office, honest


async def seconds(office: Office, honest: list[Member], fresh: dict[Member, str]) -> float:
    """How long a round takes, attacks included, in steps of a second."""
    core, began, number = office.core, office.now, office.core.state.round
    root = hashlib.sha256(f"state {number + 1}".encode()).hexdigest()
    while core.state.round == number:
        for member in [*fresh, *honest]:
            ahead = member in fresh and core.state.phase is Phase.APPLYING
            member.root = root if ahead else core.state.base  # what they will have to hold
            duty = await member.beat()
            kind = fresh.get(member, "honest")
            if duty.task == "train" and kind != "silent":
                await member.commit()
            elif duty.task == "reveal" and kind not in ("silent", "quick"):
                await member.show()
            elif duty.task == "apply" and kind not in ("silent", "quick"):
                wrong = hashlib.sha256(b"ours").hexdigest()
                await member.sign_state(wrong if kind == "dissent" else root)
        await office.pass_time(1.0)
        assert office.now - began < 600, core.state
        assert core.state.phase in (Phase.TRAINING, Phase.REVEALING, Phase.APPLYING, Phase.WAITING)
    assert core.state.base == root
    return office.now - began


@pytest.mark.parametrize(
    ("founders", "kind"), [(2, kind) for kind in KINDS] + [(4, "silent"), (4, "quick")]
)
async def test_fresh_keys_at_three_to_one_neither_stop_nor_slow_a_run(
    offices: list[Office], tmp_path: Path, founders: int, kind: str
) -> None:
    """Whether it rests on its members already (founders 2) or on its coordinator still."""
    office, honest = await opened(offices, tmp_path, founders)
    usual = await seconds(office, honest, {})
    fresh = {Member(office, f"fresh {number}"): kind for number in range(6)}
    for member in fresh:
        await member.hello()
    first = len(office.bodies("round_opened"))
    for _ in range(ROUNDS):
        assert await seconds(office, honest, fresh) <= usual + RULES["grace_s"] + 1
    seated = [set(body.members) for body in office.bodies("round_opened")[first:]]
    assert all({member.peer for member in honest} <= members for members in seated)
    assert any(members & {member.peer for member in fresh} for members in seated), "they had a try"
    if founders == 2:
        assert all(len(members) <= 3 for members in seated)
    credited = office.core.ledger.state.node_tokens
    assert not credited.keys() & {member.peer for member in fresh if kind != "dissent"}
    assert not office.core.ledger.state.ignored
    closed = office.bodies("round_closed")
    assert all(body.accepted for body in closed), "no attempt failed"
