"""What was measured of states: what is taken, when the loss jumps, and when training diverged."""

from __future__ import annotations

import pytest

from artel.coordinator.divergence import Divergence
from artel.ledger import entries
from artel.ledger.entries.kinds.diverged import in_micro, loss_message
from artel.protocol.identity import Identity
from artel.protocol.messages import MAX_LOSS, Validation
from artel.protocol.run_config import RoundsSection
from ledger_world import World, digest, outcomes

WORLD = World(nodes=3, ownership={"vesting_rounds": 1})
ROUNDS = 10
RULES = RoundsSection(total=60, mirror_every=4)
FOLD, _ = outcomes(
    [*WORLD.start, *(entry for number in range(ROUNDS) for entry in WORLD.round(number))]
)


def measured(node: Identity, number: int, loss: float, signed: float | None = None) -> Validation:
    said = loss_message(
        WORLD.run, number, digest(f"state {number}"), in_micro(loss if signed is None else signed)
    )
    return Validation(round=number, loss=loss, signature=node.sign(said).hex())


def watching(*losses: float, last: int = ROUNDS, everybody: bool = True) -> Divergence:
    """Of the newest states these losses, the last one of the state ``last``."""
    watch = Divergence(WORLD.run, RULES)
    for number, loss in enumerate(losses, last - len(losses) + 1):
        for node in WORLD.members if everybody else WORLD.members[:1]:
            assert watch.heard(FOLD, node.peer_id, measured(node, number, loss))
    return watch


FALLING = (3.6, 3.5, 3.4, 3.3)


def test_two_states_in_a_row_that_are_far_worse_have_diverged_from_the_best_one() -> None:
    assert watching(*FALLING, 6.0).found(FOLD) is None
    found = watching(*FALLING, 6.0, 7.0).found(FOLD)
    assert found is not None
    number, better, losses = found
    assert (number, better) == (ROUNDS, ROUNDS - 2)
    assert {told.node for told in losses} == {node.peer_id for node in WORLD.members}
    roots = {"root": FOLD.states[number], "better_root": FOLD.states[better]}
    said = {"state": number, "better": better, "losses": losses} | roots
    entry = entries.decode(entries.diverged(WORLD.coordinator, WORLD.run, **said).encode())
    assert callable(entry.body.rule(FOLD, entry))  # type: ignore[union-attr]


def test_what_is_no_number_decides_at_once() -> None:
    found = watching(*FALLING, MAX_LOSS).found(FOLD)
    assert found is not None
    assert found[:2] == (ROUNDS, ROUNDS - 1)


def test_one_spike_has_all_members_measure_and_what_comes_right_again_has_not_diverged() -> None:
    assert watching(*FALLING, 6.0).everybody(FOLD)
    calm = watching(*FALLING, 6.0, 3.3)
    assert (calm.found(FOLD), calm.everybody(FOLD)) == (None, False)
    assert Divergence(WORLD.run, RULES).everybody(outcomes(WORLD.start)[0])


def test_all_members_measure_the_states_that_the_run_can_go_back_to() -> None:
    for every, everybody in ((5, True), (4, False), (0, False)):
        rules = RoundsSection(total=60, mirror_every=every)
        assert Divergence(WORLD.run, rules).everybody(FOLD) == everybody


def test_what_one_member_measured_decides_nothing() -> None:
    assert watching(*FALLING, 6.0, 7.0, everybody=False).found(FOLD) is None


@pytest.mark.parametrize("losses", [(3.3, 3.4, 3.3, 3.5, 3.4), (2.0, 2.0, 2.0, 2.1), (9.0, 3.0)])
def test_noise_is_no_spike(losses: tuple[float, ...]) -> None:
    assert not watching(*losses).alarmed(FOLD)


def test_who_signs_another_loss_or_speaks_twice_is_not_heard() -> None:
    watch, node = Divergence(WORLD.run, RULES), WORLD.members[0]
    assert not watch.heard(FOLD, node.peer_id, measured(node, 5, 3.0, signed=4.0))
    assert not watch.heard(FOLD, node.peer_id, measured(WORLD.members[1], 5, 3.0))
    assert not watch.heard(FOLD, node.peer_id, Validation(round=5, loss=3.0))
    assert not watch.heard(FOLD, node.peer_id, measured(node, ROUNDS + 1, 3.0))
    assert watch.heard(FOLD, node.peer_id, measured(node, 5, 3.0))
    assert not watch.heard(FOLD, node.peer_id, measured(node, 5, 9.0))
