"""What the organiser may change in a run that goes on, from which round on, and what follows."""

from __future__ import annotations

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.protocol.amending import AMENDABLE, amended, value_of
from artel.protocol.dsse import Envelope
from ledger_world import World, forged, key, outcomes
from log_world import Log
from manifest_world import config

WORLD = World(rounds={"max_nodes": 8})
FIRST = [*WORLD.start, *WORLD.round(0)]
"""Round 1 comes next, and none of it was opened."""


def last(*envelopes: Envelope) -> str:
    """What became of the last one."""
    seen = outcomes(envelopes)[1][-1]
    return seen.reason or seen.status


def test_the_organiser_alone_changes_rules_and_each_amendment_counts_once() -> None:
    slower = WORLD.amended(1, 3, optimizer__lr="0.001", rounds__min_nodes="2")
    state, seen = outcomes([*FIRST, slower])
    assert seen[-1].status == "recorded"
    assert state.changes_at(2) == {}
    assert state.changes_at(3) == {"optimizer.lr": "0.001", "rounds.min_nodes": "2"}
    assert (state.rules_at(2).min_nodes, state.rules_at(3).min_nodes) == (1, 2)
    assert last(*FIRST, forged(slower, WORLD.coordinator)) == reasons.WRONG_SIGNERS
    assert last(*FIRST, forged(slower, WORLD.organiser, key("other"))) == reasons.WRONG_SIGNERS
    assert last(*FIRST, slower, slower) == reasons.WRONG_SEQUENCE
    assert last(*FIRST, WORLD.amended(2, 3, optimizer__lr="0.001")) == reasons.WRONG_SEQUENCE
    other = World(name="another", rounds={"max_nodes": 8}).amended(1, 3, optimizer__lr="0.001")
    assert last(*FIRST, other) == reasons.WRONG_RUN


def test_what_was_said_last_counts_whatever_was_said_of_later_rounds_before() -> None:
    said = [
        WORLD.amended(1, 5, optimizer__lr="0.5"),
        WORLD.amended(2, 3, optimizer__lr="0.3", optimizer__schedule="constant"),
        WORLD.amended(3, 5, optimizer__lr="0.6"),
        WORLD.amended(4, 4, rounds__deadline_s="60"),
    ]
    state, _ = outcomes([*FIRST, *said])
    rates = [state.changes_at(round).get("optimizer.lr") for round in range(2, 7)]
    assert rates == [None, "0.3", "0.3", "0.6", "0.6"]
    state, _ = outcomes([*FIRST, *said, WORLD.amended(5, 4, optimizer__lr="0.4")])
    rates = [state.changes_at(round).get("optimizer.lr") for round in range(2, 7)]
    assert rates == [None, "0.3", "0.4", "0.4", "0.4"]
    assert state.changes_at(9)["optimizer.schedule"] == "constant"


def test_what_a_round_that_was_opened_is_made_of_does_not_change() -> None:
    one = {"optimizer__lr": "0.001"}
    assert last(*FIRST, WORLD.amended(1, 0, **one)) == reasons.OUT_OF_ORDER
    assert last(*FIRST, WORLD.amended(1, 1, **one)) == "recorded"
    opened = [*FIRST, WORLD.opened(1)]
    assert last(*opened, WORLD.amended(1, 1, **one)) == reasons.OUT_OF_ORDER
    assert last(*opened, WORLD.amended(1, 2, **one)) == "recorded"
    assert last(*FIRST, WORLD.amended(1, 60, **one)) == "recorded"
    assert last(*FIRST, WORLD.amended(1, 61, **one)) == reasons.OUT_OF_ORDER


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model__type", "gpt2"),
        ("rounds__inner_steps", "5"),
        ("exchange__codec", "fp32"),
        ("ownership__vesting_rounds", "0"),
        ("optimizer__lr", "0"),
        ("optimizer__lr", "1.5"),
        ("optimizer__lr", "nan"),
        ("optimizer__lr", "007"),
        ("optimizer__schedule", "steep"),
        ("rounds__total", "1"),
        ("rounds__total", "70.0"),
        ("rounds__total", "1000001"),
        ("rounds__min_nodes", "9"),
        ("rounds__max_nodes", "9"),
        ("rounds__quorum", "0"),
        ("rounds__deadline_s", "86401"),
        ("paused", "maybe"),
    ],
)
def test_what_cannot_be_changed_and_what_it_cannot_be(setting: str, value: str) -> None:
    assert last(*FIRST, WORLD.amended(1, 2, **{setting: value})) == reasons.NOT_AMENDABLE


def test_no_later_round_is_left_with_fewer_seats_than_it_needs() -> None:
    small = WORLD.amended(1, 9, rounds__max_nodes="2")
    assert last(*FIRST, small, WORLD.amended(2, 3, rounds__min_nodes="3")) == reasons.NOT_AMENDABLE
    room = WORLD.amended(2, 9, rounds__max_nodes="3")
    assert last(*FIRST, small, room, WORLD.amended(3, 3, rounds__min_nodes="3")) == "recorded"


def test_a_paused_run_opens_no_round_until_it_is_resumed() -> None:
    paused = [*FIRST, WORLD.amended(1, 1, paused="true", why="the data is being looked at")]
    assert last(*paused, WORLD.opened(1)) == reasons.RUN_PAUSED
    resumed = [*paused, WORLD.opened(1), WORLD.amended(2, 1, paused="false")]
    assert last(*resumed, WORLD.opened(1)) == "recorded"


def test_a_run_ends_earlier_or_later_than_it_was_to() -> None:
    world = World(total=3, exchange={"overlap_steps": 1})
    first = [*world.start, *world.round(0)]
    stopped = [*first, world.amended(1, 2, rounds__total="2"), *world.round(1)]
    assert last(*stopped, world.opened(2)) == reasons.OUT_OF_ORDER
    assert last(*stopped, world.run_closed(2)) == "recorded"
    ended = [*first, *world.round(1), *world.round(2)]
    assert last(*ended, world.opened(3)) == reasons.OUT_OF_ORDER
    longer = [*ended, world.amended(1, 3, rounds__total="5")]
    assert last(*longer, world.run_closed(3)) == reasons.OUT_OF_ORDER
    assert last(*longer, world.opened(3)) == "recorded"
    closed = [*ended, world.run_closed(3)]
    assert last(*closed, world.amended(1, 3, rounds__total="5")) == reasons.OUT_OF_ORDER


def test_the_tail_of_what_was_the_last_round_is_by_the_rules_of_its_own_time() -> None:
    world = World(total=2, exchange={"overlap_steps": 1})
    longer = world.amended(1, 2, rounds__total="4")
    state, _ = outcomes([*world.start, *world.round(0), longer, *world.round(1)])
    assert (state.round, state.founded.total, state.tails) == (2, 4, {})
    assert state.rules_at(1).work.tail(1, 4) == 0
    assert state.rules_at(2).work.tail(2, 4) == 1


def test_the_ledger_says_what_was_changed_and_why() -> None:
    said = [
        WORLD.amended(1, 1, optimizer__lr="0.001", why="the loss climbs"),
        WORLD.amended(2, 2, optimizer__lr="0.0005", paused="true"),
    ]
    history = read(Log([*FIRST, *said]))
    newest = history.log.size - 1
    facts = [fact.text for fact in explain(history, newest).facts]
    assert "optimizer.lr: 0.001 before round 2, 0.0005 from it on" in facts
    assert "paused: false before round 2, true from it on" in facts
    assert "because: the loss climbs" in [f.text for f in explain(history, newest - 1).facts]
    body = history.entry(newest).body
    assert isinstance(body, entries.Amended)
    assert body.says() == "from round 2 on: optimizer.lr = 0.0005, no round is opened"


def test_every_setting_that_can_be_amended_changes_the_configuration() -> None:
    before = config()
    values = {"paused": "true", "optimizer.schedule": "wsd", "rounds.total": "77"}
    for setting in AMENDABLE:
        share = setting.endswith(("quorum", "fraction", "lr"))
        text = values.get(setting, "1" if share else "5")
        value_of(setting, text)
        assert (amended(before, {setting: text}) == before) == (setting == "paused"), setting
