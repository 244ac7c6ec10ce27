"""A node works for an account whose key never comes to its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.store import keyfiles
from artel.node.account_link import ANSWER, Linked, LinkRequest, answer, ask
from artel.protocol import dsse, identity
from artel.protocol.errors import UsageError
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from ledger_world import World, key

NODE, OWNER = key("linked node"), key("owner far away")


def linked(world: World, seq: int = 1, name: str = "") -> Linked:
    asked = LinkRequest(run=world.run, node=NODE.peer_id, coordinator=NODE.elected.key, seq=seq)
    return Linked.decode(answer(asked, OWNER, "", name))


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_no_answer_is_one_clear_error(world: World) -> None:
    good = linked(world)
    said = {"account": good.account.encode().decode(), "node": good.node.encode().decode()}
    assert Linked.decode(ANSWER.encode(said)) == good
    forged = dsse.Envelope(
        good.node.payload_type,
        good.node.payload,
        ((key("thief").key, good.node.signatures[0][1]),),
    )
    stranger = entries.account(key("thief"), world.run)
    for wrong in (
        said | {"node": forged.encode().decode()},
        said | {"account": stranger.encode().decode()},
        said | {"node": said["account"]},
        said | {"account": said["node"]},
        said | {"node": "{}"},
        said | {"account": entries.account(OWNER, "ab" * 32).encode().decode()},
    ):
        with pytest.raises(UsageError, match="does not hold what it should") as refused:
            Linked.decode(ANSWER.encode(wrong))
        assert "artel account link" in refused.value.hint
    for text in ("", "artelyes1.", ANSWER.encode(said)[:-3], ANSWER.encode(said | {"more": ""})):
        with pytest.raises(UsageError):
            Linked.decode(text)


def test_two_machines_and_two_lines(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = tmp_path / "node", tmp_path / "owner"
    there.mkdir()
    owner = keyfiles.create(there / keyfiles.ACCOUNT_KEY)
    invite = Invite(world.run, (f"/ip4/127.0.0.1/tcp/9/p2p/{world.coordinator.peer_id}",))
    assert cli.main(["account", "link", "--home", str(here)]) == 2
    assert "say which: --run" in capsys.readouterr().err
    assert cli.main(["account", "link", "--home", str(here), "--run", invite.encode()]) == 0
    line = capsys.readouterr().out
    node = identity.load(here / "node.key")
    assert line.strip() == ask(node, world.run, 1)
    monkeypatch.setattr("builtins.input", lambda: "no")
    assert cli.main(["account", "link", line, "--home", str(there)]) == 2
    assert node.peer_id in capsys.readouterr().err
    assert cli.main(["account", "link", line, "--home", str(there), "--yes"]) == 0
    line = capsys.readouterr().out
    (here / keyfiles.ACCOUNT_KEY).write_bytes(Identity.from_seed(bytes(32)).encode())
    assert cli.main(["account", "link", line, "--home", str(here)]) == 2
    assert "an account of its own" in capsys.readouterr().err
    (here / keyfiles.ACCOUNT_KEY).unlink()
    assert cli.main(["account", "link", line, "--home", str(here)]) == 0
    found = Linked.load(here)
    assert found is not None
    assert (found.key, found.asked.node) == (owner.key, node.peer_id)
    assert cli.main(["account", "link", "rubbish", "--home", str(here)]) == 2
