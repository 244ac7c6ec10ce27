"""A real run in which some send what they did not train: who is paid, and what people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.protocol import identity
from artel.protocol.round_state import COPIED
from benchmarks.swarm import Swarm
from swarm_world import assert_all_signed_every_state, lazy, ledger_of, write_run

ROUNDS = 6


@pytest.mark.slow
async def test_who_sends_zeros_or_copies_is_not_paid_for_it_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"total": ROUNDS, "min_nodes": 5, "max_nodes": 8, "inner_steps": 60, "quorum": 0.6}
    async with Swarm(tmp_path, write_run(tmp_path, **rules)) as swarm:
        await swarm.start(nodes=3)
        async with lazy(swarm, "zeros"), lazy(swarm, "copier"):
            await swarm.wait_for(finished, "the run is finished")
            await swarm.wait_finished()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    assert_all_signed_every_state(decoded)
    closed = [e.body for e in decoded if isinstance(e.body, entries.RoundClosed)]
    peers = {
        kind: identity.load(tmp_path / kind / "node.key").peer_id for kind in ("zeros", "copier")
    }
    whole = fold.work.tokens(60)
    for kind, peer in peers.items():
        paid = fold.node_tokens.get(peer, 0)
        with capsys.disabled():
            print(f"{kind}: paid for {paid // whole} rounds, left out {fold.rejected.get(peer)}")
    assert fold.node_tokens.get(peers["zeros"], 0) == 0
    assert fold.rejected[peers["zeros"]] == {reasons.EMPTY: ROUNDS}
    assert fold.node_tokens.get(peers["copier"], 0) <= whole
    assert fold.rejected[peers["copier"]][COPIED] >= 2
    honest = [fold.node_tokens[peer] for peer in fold.node_tokens.keys() - peers.values()]
    assert honest == [ROUNDS * whole] * 3
    assert all(body.accepted for body in closed), "no attempt failed"
    index = next(i for i, e in enumerate(decoded) if e.body in closed and COPIED in str(e.body))
    assert cli.main(["ledger", "explain", str(index), "--home", str(tmp_path / "coordinator")]) == 0
    told = capsys.readouterr().out
    assert COPIED in told
    assert peers["copier"][-6:] in told
