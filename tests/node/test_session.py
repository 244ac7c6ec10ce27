"""What a node says when it registers: only what the ledger lacks, with the present key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import recovery_digest
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold import shares
from artel.node.account_link import FILE, Linked, LinkRequest, Owner, answer
from artel.node.session import Session
from artel.protocol.dsse import Envelope
from artel.protocol.errors import UsageError
from artel.protocol.identity import Identity
from audit_world import Run, honest
from ledger_world import World, key


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def state(world: World) -> FoldState:
    state = FoldState()
    say(state, world.genesis, *world.introductions())
    return state


def say(state: FoldState, *envelopes: Envelope) -> None:
    """Put entries into the ledger; each one has to count."""
    for envelope in envelopes:
        outcome = shares.apply(state, entries.decode(envelope.encode()))
        assert outcome.status != "ignored", outcome.reason


def session(world: World, state: FoldState, node: Identity, owner: Owner, **more: Any) -> Session:
    """A session of which only the ledger and the keys are real."""
    parts: dict[str, Any] = dict.fromkeys(Session.__dataclass_fields__)
    parts |= {"run": world.run, "identity": node, "account": owner, "home": Path(), "recovery": ""}
    return Session(**parts | {"replica": SimpleNamespace(state=state)} | more)


def registered(session: Session) -> list[str]:
    """Kinds of the statements, each of which counts when it is said."""
    decoded = [entries.decode(statement) for statement in session.registration()]
    say(session.replica.state, *(entry.envelope for entry in decoded))
    return [entry.kind for entry in decoded]


def test_a_newcomer_sends_both_and_then_nothing(world: World, state: FoldState) -> None:
    mine = session(world, state, key("new node"), key("new owner"))
    assert registered(mine) == ["account", "node"]
    assert registered(mine) == []


def test_another_node_of_an_account_sends_its_binding_alone(world: World, state: FoldState) -> None:
    assert registered(session(world, state, key("second node"), world.owners[0])) == ["node"]


def test_a_node_that_moves_and_comes_back_counts_its_bindings(
    world: World, state: FoldState
) -> None:
    node, first, other = world.members[0], world.owners[0], world.owners[1]
    assert registered(session(world, state, node, first)) == []
    assert registered(session(world, state, node, other)) == ["node"]
    assert state.account_of(node.peer_id) == other.key
    assert registered(session(world, state, node, first)) == ["node"]
    assert state.node_seq[node.peer_id] == 3


def test_a_node_does_not_move_while_its_account_would_lose_credit() -> None:
    run = Run(total=90).play(25, honest())
    world, state = run.world, run.state
    node, before = world.members[1], world.owners[1]
    with pytest.raises(UsageError, match="would lose") as refused:
        session(world, state, node, world.owners[0]).registration()
    assert "an empty folder" in refused.value.hint
    assert session(world, state, node, before).registration() == []


def test_the_present_key_speaks_for_the_account_and_the_old_one_does_not(
    world: World, state: FoldState
) -> None:
    old, new = world.owners[0], key("next key")
    say(state, entries.key_rotated(old, new, world.run, account=old.key, seq=1))
    mine = session(world, state, key("second node"), new)
    assert mine.account_name == old.key
    assert registered(mine) == ["node"]
    assert state.account_of(key("second node").peer_id) == old.key
    with pytest.raises(UsageError, match="was replaced"):
        session(world, state, key("third node"), old).registration()


def test_the_recovery_key_is_registered_by_its_digest(world: World, state: FoldState) -> None:
    owner, recovery = key("careful owner"), key("recovery")
    digest = recovery_digest(recovery.public)
    assert registered(session(world, state, key("n"), owner, recovery=digest)) == [
        "account",
        "node",
    ]
    assert state.accounts[owner.key].recovery == digest
    recovered = entries.key_rotated(recovery, key("fresh"), world.run, account=owner.key, seq=1)
    say(state, recovered)


# --- a node of an account elsewhere ---------------------------------------------------------------

LINKED, OWNER = key("linked node"), key("owner far away")


def linked(world: World, seq: int = 1) -> Linked:
    asked = LinkRequest(run=world.run, node=LINKED.peer_id, coordinator=LINKED.elected.key, seq=seq)
    return Linked.decode(answer(asked, OWNER, "", ""))


def test_what_the_account_signed_and_what_the_node_adds_counts_in_the_ledger(
    world: World, state: FoldState, tmp_path: Path
) -> None:
    linked(world).save(tmp_path)
    owner = Linked.load(tmp_path)
    assert owner == linked(world)
    assert OWNER.seed not in (tmp_path / FILE).read_bytes()
    mine = session(world, state, LINKED, owner)
    assert mine.account_name == OWNER.key
    assert registered(mine) == ["account", "node"]
    assert state.account_of(LINKED.peer_id) == OWNER.key
    assert registered(mine) == [], "once is enough"


def test_an_answer_counts_for_one_node_in_one_run_once(world: World, state: FoldState) -> None:
    other = session(world, state, key("another node"), linked(world))
    with pytest.raises(UsageError, match="another node"):
        other.registration()
    elsewhere = World(name="elsewhere")
    with pytest.raises(UsageError, match="for another run, or was used"):
        session(elsewhere, state, LINKED, linked(world), run=elsewhere.run).registration()
    assert registered(session(world, state, LINKED, linked(world))) == ["account", "node"]
    # It moves away, and cannot be brought back by what was signed before.
    assert registered(session(world, state, LINKED, world.owners[0])) == ["node"]
    with pytest.raises(UsageError, match="was used"):
        session(world, state, LINKED, linked(world)).registration()
    assert registered(session(world, state, LINKED, linked(world, seq=3))) == ["node"]
