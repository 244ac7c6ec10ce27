"""One run to which all kinds of strangers come: what each gets, and what people are told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account
from artel.ledger.fold.history import read
from artel.ledger.store.reader import LedgerReader
from artel.protocol import identity
from artel.protocol.net.http import MAX_OBJECT_BYTES, fetch
from artel.protocol.round_state import COPIED
from benchmarks.swarm import Swarm
from swarm_world import lazy, lazy_home, ledger_of, round_at_least, write_run

HONEST, FRESH, ROUNDS, SPAN, STEPS = 5, 4, 20, 5, 120
KINDS = ("half", "copier", "zeros")
LONG_S = 2400.0
"""For thirteen programs and their trainers on two cores that do other things, too."""


@dataclass(frozen=True)
class Guest:
    """A node of the run, and what the ledger says of it."""

    name: str
    home: Path
    node: str
    owner: Account
    account: str
    seats: int
    accepted: int
    votes: int
    """Agreed states that it signed."""
    share: float
    """Of all credit, with what is pending: most of it still waits for later work to be repeated."""


def guests(folder: Path, decoded: list[Entry], fold: FoldState) -> Iterator[Guest]:
    homes = {f"honest {n}": folder / f"node-{n}" for n in range(1, HONEST + 1)}
    homes |= {kind: lazy_home(folder, kind) for kind in KINDS}
    homes |= {f"voter {n}": lazy_home(folder, "voter", n) for n in range(1, FRESH + 1)}
    bodies = [entry.body for entry in decoded]
    for name, home in homes.items():
        peer = identity.load(home / "node.key").peer_id
        account = fold.account_of(peer)
        owner = fold.accounts[account]
        closed = [b for b in bodies if isinstance(b, entries.RoundClosed)]
        yield Guest(
            name,
            home,
            peer,
            owner,
            account,
            seats=sum(isinstance(b, entries.RoundOpened) and peer in b.members for b in bodies),
            accepted=sum(peer in {item.node for item in body.accepted} for body in closed),
            votes=sum(isinstance(b, entries.StateAgreed) and peer in b.signatures for b in bodies),
            share=fold.credit(account) / fold.total,
        )


def founded(home: Path) -> bool:
    """Whether those with standing carry the run."""
    with LedgerReader.of(home) as store:
        return read(store).state.rests_on == "members"


def judged(folder: Path) -> bool:
    """Whether no fresh key has credit that still waits for somebody to repeat its work."""
    decoded, fold = ledger_of(folder / "coordinator")
    fresh = [each for each in guests(folder, decoded, fold) if each.name.startswith("voter")]
    return all(guest.owner.barred or not guest.owner.pending for guest in fresh)


@pytest.mark.slow
@pytest.mark.timeout(4 * LONG_S)
async def test_strangers_of_every_kind_are_unpaid_and_told_why_and_honest_nodes_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = tmp_path / "coordinator"
    # A round waits for some who are not honest, too: whoever only follows the run is a moment late.
    rules: dict[str, Any] = {"total": 500, "inner_steps": STEPS, "quorum": 0.6, "span": SPAN}
    rules |= {"min_nodes": HONEST + 2, "max_nodes": 12, "exchange": 'topology = "gather"'}
    rules |= {"audit_rate": 0.05, "founders": 4, "patience": 4.0, "deadline_s": 600.0}
    async with Swarm(tmp_path, write_run(tmp_path, **rules)) as swarm, AsyncExitStack() as stack:
        await swarm.start(nodes=0)
        for kind in KINDS:
            await stack.enter_async_context(lazy(swarm, kind))
        for _ in range(HONEST):
            await swarm.add_node()
        await swarm.wait_for(lambda _: founded(coordinator), "the run is founded", LONG_S)
        for number in range(1, FRESH + 1):
            await stack.enter_async_context(lazy(swarm, "voter", number))
        everybody = HONEST + len(KINDS) + FRESH
        came = await swarm.wait_for(
            lambda now: len(now["nodes"]) >= everybody, "fresh keys came", LONG_S
        )
        late = round_at_least(came["round"] + ROUNDS)
        await swarm.wait_for(late, "rounds with all of them", LONG_S)
        await swarm.wait_for(lambda _: judged(tmp_path), "their work was repeated", LONG_S)
        decoded, fold = ledger_of(coordinator)
        pages = {}
        for guest in guests(tmp_path, decoded, fold):
            url = f"{swarm.http}/account/{guest.account}"
            page = await asyncio.to_thread(fetch, url, MAX_OBJECT_BYTES, 60.0)
            pages[guest.name] = page.decode()
    decoded, fold = ledger_of(coordinator)
    found = {guest.name: guest for guest in guests(tmp_path, decoded, fold)}
    closed = [e.body for e in decoded if isinstance(e.body, entries.RoundClosed)]
    with capsys.disabled():
        print(f"\n{len(closed)} rounds, fresh keys from round {came['round']} on")
        for guest in found.values():
            barred = "convicted" if guest.owner.barred else ""
            left = fold.rejected.get(guest.node, {})
            print(
                f"{guest.name}: {guest.seats} seats, accepted {guest.accepted}, votes "
                f"{guest.votes}, {100 * guest.share:.3f} % vested {barred} {left or ''}"
            )

    def told(*command: str) -> str:
        capsys.readouterr()
        assert cli.main(["ledger", *command]) == 0
        said = capsys.readouterr().out
        with capsys.disabled():
            print(f"\n$ artel ledger {' '.join(command)}\n{said}")
        return said

    # The honest ones never stop.
    assert all(body.accepted for body in closed), "no attempt failed"
    honest = [guest for guest in found.values() if guest.name.startswith("honest")]
    for guest in honest:
        assert not guest.owner.barred
        assert guest.accepted >= 0.9 * len(closed), "a busy machine may lose it for a moment"
    signed = [e.body for e in decoded if isinstance(e.body, entries.StateAgreed)]
    assert all(len(body.signatures.keys() & {g.node for g in honest}) >= 3 for body in signed)
    told("verify", "--home", str(coordinator))
    # Half of the work.
    half = found["half"]
    assert half.owner.barred
    assert half.accepted <= 3 * fold.founded.trust.newcomer_rounds
    assert "drawn by lot, repeated its work of round" in pages["half"]
    assert "convicted this account" in told("me", "--home", str(half.home))
    verdict = next(
        index
        for index, entry in enumerate(decoded)
        if isinstance(entry.body, entries.Verdict) and entry.body.verdict == "reject"
    )
    assert "differs from what it came to by" in told(
        "explain", str(verdict), "--home", str(coordinator)
    )
    # Copies, and zeros.
    copier, zeros = found["copier"], found["zeros"]
    assert fold.rejected[copier.node][COPIED] >= 2
    assert copier.accepted <= 1, "before there was anything to copy"
    index = next(
        index
        for index, entry in enumerate(decoded)
        if isinstance(entry.body, entries.RoundClosed)
        and copier.node in {item.node for item in entry.body.rejected}
    )
    why = reasons.explain(COPIED)
    assert why in told("explain", str(index), "--home", str(coordinator))
    assert why in pages["copier"]
    assert zeros.accepted > 0
    assert zeros.node not in fold.node_tokens
    assert "its numbers are all zero" in pages["zeros"]
    assert "its numbers are all zero" in told("me", "--home", str(zeros.home))
    # Keys that nobody knows.
    fresh = [guest for guest in found.values() if guest.name.startswith("voter")]
    assert not any(guest.votes for guest in fresh), "no state that they invented was agreed on"
    assert not fold.standings().keys() & {guest.account for guest in fresh}
    for guest in fresh:
        if guest.owner.barred:
            assert "drawn by lot, repeated its work of round" in pages[guest.name]
        told("me", "--home", str(guest.home))
    for guest in (half, zeros, *fresh):
        assert guest.share <= 0.01
    # Until there was something to copy it worked as others do, and has what they have for that.
    shown = [entry.body for entry in decoded if isinstance(entry.body, entries.Contribution)]
    most = max(body.tokens for body in shown if body.node in {guest.node for guest in honest})
    assert copier.owner.units.get("compute", 0) <= copier.accepted * most
