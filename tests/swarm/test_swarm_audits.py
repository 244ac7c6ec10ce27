"""Audits with real processes: who does half of the work is convicted, and all others go on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account, Credit
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import apply
from artel.ledger.store.reader import LedgerReader
from artel.protocol import identity
from benchmarks.swarm import Swarm
from swarm_world import lazy, ledger_of, write_run

ROUNDS, SPAN = 14, 5


async def test_who_makes_half_of_its_steps_is_convicted_while_new_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=ROUNDS, inner_steps=60, min_nodes=3, span=SPAN, audit_rate=0.05)
    home = tmp_path / "half"
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=0)
        async with lazy(swarm, "half"):
            await swarm.wait_for(lambda status: bool(status["nodes"]), "it is there from the start")
            for _ in range(3):
                await swarm.add_node()
            await swarm.wait_for(finished, "the run is finished")
            await swarm.wait_finished()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    cheats = identity.load(home / "node.key").peer_id
    owner = fold.account_of(cheats)
    honest = [identity.load(tmp_path / f"node-{n}" / "node.key").peer_id for n in (1, 2, 3)]
    assert not fold.ignored
    assert [name for name, account in fold.accounts.items() if account.barred] == [owner]
    # It was found out for rounds in which it was new, and nothing of its work vested. On a busy
    # machine these rounds are shorter than it takes to repeat them.
    before, found = FoldState(), list[Credit]()
    for entry in decoded:
        found += [c for c in apply(before, entry).vested if c.account == owner]
        if before.accounts.get(owner, Account("")).barred:
            break
    assert audits.new(before, cheats)
    assert {credit.kind for credit in found} <= {"witness"}
    assert fold.accounts[owner].vested < fold.total_vested / 100
    opened = [e.body for e in decoded if isinstance(e.body, entries.RoundOpened)]
    assert cheats not in opened[-1].members
    made = Counter(e.body.node for e in decoded if isinstance(e.body, entries.Contribution))
    for peer in honest:
        assert peer not in fold.rejected
        assert made[peer] >= ROUNDS - 6, "one of them may come later"
        assert fold.accounts[fold.account_of(peer)].units["audit"] > 0
    # The fingerprints of all that counts lie at the coordinator, and with no node.
    named = {e.body.chain: e.body for e in decoded if isinstance(e.body, entries.Contribution)}
    kept = {
        path.name: path.stat().st_size
        for path in (tmp_path / "coordinator" / "fingerprints").iterdir()
    }
    steps = {chain: made.tail + made.head for chain, made in named.items()}
    assert {chain: kept.pop(chain) for chain in named} == {c: 512 * n for c, n in steps.items()}
    assert {size % 512 for size in kept.values()} <= {32}, "the last of what auditors gave"
    for peer in (home, *(tmp_path / f"node-{number}" for number in (1, 2, 3))):
        assert not named.keys() & {path.name for path in (peer / "blobs").iterdir()}
    verdicts = [e.body for e in decoded if isinstance(e.body, entries.Verdict)]
    about = {e.id: e.body.node for e in decoded if isinstance(e.body, entries.Contribution)}
    judged = [body for body in verdicts if body.node != cheats]
    assert {body.verdict for body in judged if about[body.contribution] != cheats} == {"accept"}
    rejected = [body for body in judged if about[body.contribution] == cheats]
    assert {body.verdict for body in rejected} == {"reject"}
    assert min(body.error for body in rejected) > 250_000
    assert min(body.differs_step for body in rejected) >= 1
    # Whoever asks is told so.
    with LedgerReader.of(tmp_path / "coordinator") as store:
        history = read(store)
        index = next(i for i, e in enumerate(decoded) if e.id == rejected[0].contribution)
        told = "\n".join(explain(history, index).lines())
        assert "reject" in told
        assert "is the first that differs" in told
    assert cli.main(["ledger", "me", "--home", str(home)]) == 0
    assert "convicted" in capsys.readouterr().out
