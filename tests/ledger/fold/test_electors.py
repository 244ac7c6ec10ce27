"""Who the electors are, and for how long those before them have to agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from artel.ledger.entries.electors import MOST, Electors
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.handover import handover, open_seal, seal
from artel.ledger.tlog.note import MAX_SIGNATURE_LINES
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from ledger_world import Rooted, World, encoded, forged, outcomes

# --- who the electors are -------------------------------------------------------------------------


def electors(*sets: dict[str, int], by: bool = True) -> Electors:
    """Chosen one after the other, by entries 10, 20 and so on."""
    found = Electors()
    for number, weights in enumerate(sets, 1):
        found.choose(10 * number, number, 1, weights, by)
    return found


def test_by_standing_more_than_two_thirds_are_a_quorum_and_else_more_than_half() -> None:
    weights = {"a": 4, "b": 3, "c": 2}
    assert electors(weights).quorum("ab")
    assert not electors(weights).quorum("ac")
    assert electors(weights, by=False).quorum("ac")
    assert not electors(weights, by=False).quorum("a")


def test_former_electors_have_to_agree_until_a_quorum_of_them_knows_that_others_follow() -> None:
    found = electors({"a": 1, "b": 1}, {"c": 1})
    assert found.quorum("abc")
    assert not found.quorum("c")
    assert found.quorum("ab", size=20)  # the change is entry 20: not covered
    assert not found.quorum("ab", size=21)
    found.certify(25, 20)
    assert not found.quorum("c")
    # Both certify the change. That the other one has, a node knows once it holds the record.
    found.certify(30, 21)
    assert not found.quorum("c")
    found.certify(40, 30)
    assert not found.quorum("c")
    found.certify(50, 31)
    assert found.quorum("c")
    assert not found.quorum("ab")


def test_those_who_never_agreed_are_dropped_at_the_change_after() -> None:
    found = electors({"a": 1}, {"b": 1}, {"c": 1})
    assert found.quorum("bc")
    assert not found.quorum("c")


def test_nobody_new_changes_nothing_and_a_stretch_has_one_choice() -> None:
    found = electors({"a": 1}, {"a": 1})
    assert [each.since for each in found.sets] == [10]
    found.choose(30, 2, 1, {"z": 1}, True)
    assert found.quorum("a")
    found.choose(30, 2, 1, {"z": 1}, False)  # the run rests on others now
    assert not found.quorum("a")


def test_a_set_of_one_or_two_voices_grows_within_its_stretch() -> None:
    found = Electors()
    for since, there in ((10, "a"), (20, "bc"), (30, "ab"), (40, "b"), (50, "abcd"), (60, "abcde")):
        found.choose(since, since, 64, dict.fromkeys(there, 1), False)
    # Neither without all who are there, nor once three are.
    assert [(each.since, *each.weights) for each in found.sets] == [(30, *"ab"), (50, *"abcd")]
    assert found.quorum("abc")
    assert not found.quorum("bcd"), "the former ones have to agree"
    found.choose(65, 65, 64, dict.fromkeys("cd", 1), False)
    assert not found.quorum("bcd"), "for a whole stretch"
    found.choose(128, 128, 64, dict.fromkeys("ab", 2), True)
    found.choose(130, 130, 64, dict.fromkeys("abc", 1), True)
    assert found.sets[-1].since == 128, "by standing weights are what counts, not heads"


def change(found: Electors, round: int, there: str, by: bool = False) -> list[str]:
    """Choose in stretches of 32 rounds; returned are the present sets."""
    found.choose(10 * round, round, 32, dict.fromkeys(there, 1), by)
    return ["".join(each.weights) for each in found.sets]


def test_a_small_set_grows_only_if_those_before_it_are_asked_no_less() -> None:
    """In two histories those who were cut off for a round, and the rest, both had a quorum."""
    for former, first, more in (
        ("xyz", "ab", "abc"),  # none of the former is there
        ("x", "y", "xyz"),  # one is, but y and z alone would be enough
        ("x", "y", "xy"),
    ):
        found = Electors()
        change(found, 1, former)
        for round, there in ((32, first), (33, more), (63, more)):
            assert change(found, round, there) == [former, first], there
        assert change(found, 64, more) == [first, more], "after a whole stretch"
        found = Electors()
        change(found, 1, former)
        change(found, 32, first)
        found.certify(330, 321)
        found.certify(340, 331)
        assert change(found, 35, more) == [first, more], "the former have agreed to the change"


def test_former_electors_have_a_whole_stretch_wherever_in_one_the_change_comes() -> None:
    # The run comes to rest on its members, and back.
    found = Electors()
    change(found, 1, "abc")
    assert change(found, 31, "def", True) == ["abc", "def"]
    for round in (32, 40, 63):
        assert change(found, round, "abcdef", round != 40) == ["abc", "def"]
    assert change(found, 64, "abcdef", True) == ["def", "abcdef"]
    # Nobody could be chosen before.
    found = Electors()
    change(found, 1, "abc")
    assert change(found, 32, "") == ["abc"]
    assert change(found, 63, "ab") == ["abc", "ab"]
    assert change(found, 64, "def") == ["abc", "ab"]
    assert change(found, 96, "def") == ["ab", "def"]
    # Nobody new comes: two whole stretches.
    found = Electors()
    change(found, 1, "abc")
    assert change(found, 128 + 31, "de") == ["abc", "de"]
    for round in (160, 192, 223):
        assert change(found, round, "de") == ["abc", "de"]
    assert change(found, 224, "de") == ["de"]


def test_nobody_is_no_set_of_electors() -> None:
    found = Electors()
    change(found, 1, "abc")
    assert change(found, 2, "", True) == ["abc"], "accounts with standing and no node"


def test_one_that_came_for_a_round_and_went_holds_nobody_up_for_ever() -> None:
    """Where the others stay the same nothing changed once more, and it was asked for ever."""
    found = Electors()
    for number in range(130):
        there = {0: "a", 1: "ab"}.get(number, "acd")
        found.choose(number, number, 32, dict.fromkeys(there, 1), False)
        assert found.quorum("acd") == (number < 1 or number >= 96)


def test_the_heaviest_are_taken() -> None:
    weights = {f"{number:03}": 1 + number % 7 for number in range(3 * MOST)}
    chosen = electors(weights).present
    assert len(chosen) == MOST
    assert 2 * MOST < MAX_SIGNATURE_LINES, "a note holds what two sets and the leader sign"
    assert min(chosen.values()) >= max(weights[n] for n in weights if n not in chosen)


# --- electors that are cut off --------------------------------------------------------------------


def rounds(world: World, *numbers: int, by: Iterable[Identity]) -> list[Any]:
    """Whole rounds of these members."""
    made: list[Any] = []
    there = list(by)
    for number in numbers:
        made += [world.opened(number, members=[member.peer_id for member in there])]
        made += [world.committed(number, members=there)]
        made += [world.contribution(member, number) for member in there]
        made += [world.closed(number, accepted=there), world.agreed(number + 1, nodes=there)]
    return made


def led_by(world: World, leader: Identity, entry: Any) -> Envelope:
    """What only the leader signs, signed by another one."""
    alone = isinstance(entry, Rooted) or [*entry.signers] == [world.coordinator.key]
    return forged(entry, leader) if alone else entry


def sides(
    world: World, common: list[Any], here: list[Any], cut_off: list[Identity]
) -> tuple[FoldState, FoldState]:
    """Two histories that honest nodes make: those of ``here``, where the leader goes on and all
    members but some cosign; and of these the other one, which have lost it."""
    (standby,), others = world.standbys, [m for m in world.members if m not in cut_off]
    known = {"term": 0, "next": standby.key}
    said = [open_seal(seal(each, world.run, **known).encode())[1] for each in cut_off]
    one, two = [*common, *here], [*common, handover(standby, world.run, term=1, seals=said)]
    for _ in range(2):
        one.append(world.witnessed(encoded(one), others))
        two.append(led_by(world, standby, world.witnessed(encoded(two), cut_off, term=1)))
    return outcomes(one)[0], outcomes(two)[0]


def test_who_is_cut_off_when_a_small_set_takes_its_place_is_not_left_behind() -> None:
    """Electors x, y and z lose the leader in the last round of a stretch. It goes on with two
    others, and then with a third."""
    world = World(nodes=6, waiting=1, name="grown", trust={"standing_rounds": 64, "founders": 1000})
    (x, y, z), (a, b, c) = world.members[:3], world.members[3:]
    common = [*world.start, *rounds(world, 0, 1, 2, by=(x, y, z))]
    here = [*rounds(world, 3, by=(a, b)), *rounds(world, 4, by=(a, b, c))]
    one, two = sides(world, common, here, [x, y, z])
    size = len(encoded(common))
    assert two.final > size
    assert one.final <= size
    assert [len(each.weights) for each in one.electors.sets] == [3, 2]


def test_who_is_cut_off_when_the_run_comes_to_rest_on_its_members_is_not_left_behind() -> None:
    """The same, in the two rounds around the end of a stretch."""
    owned, trust = {"vesting_rounds": 1}, {"standing_rounds": 64}
    world = World(nodes=12, waiting=1, name="flipped", ownership=owned, trust=trust)
    cut_off, others = world.members[:3], world.members[3:]
    common = [*world.start, *rounds(world, 0, by=cut_off)]
    one, two = sides(world, common, rounds(world, 1, 2, 3, 4, by=others), cut_off)
    size = len(encoded(common))
    assert two.final > size
    assert one.final <= size
    assert [each.by_standing for each in one.electors.sets] == [False, True]
