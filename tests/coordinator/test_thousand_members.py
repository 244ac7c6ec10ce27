"""A round of a thousand members by the coordinator's own desk, and every copy of its ledger."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from artel.ledger import entries
from artel.ledger.entries.documents import MAX_DOCUMENT_BYTES
from artel.ledger.fold.effects import Fold
from artel.ledger.store.database import SIDE_FILES
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.audit import audit_log
from artel.ledger.sync.mirror import mirror
from artel.ledger.sync.signed_tree import offered, take_over
from artel.ledger.sync.source import FolderSource
from artel.ledger.sync.view import LedgerView
from artel.protocol import messages, round_state
from artel.protocol.dsse import Envelope, Leaf
from desk_world import Member, Office, run_of

MEMBERS = 1000
NEXT = "ab" * 32


async def admitted(office: Office) -> list[Member]:
    """Members whose account and node are in the ledger; a minute takes 10 entries of strangers."""
    members = [Member(office, f"{number}") for number in range(MEMBERS)]
    said: list[Envelope] = []
    for member in members:
        said.append(entries.account(member.owner, office.run))
        said.append(entries.node(member.identity, member.owner, office.run))
    for first in range(0, len(said), 256):
        await office.core.ledger.append(*said[first : first + 256])
    return members


@pytest.mark.slow
async def test_a_round_of_a_thousand_members_from_opening_to_every_copy(tmp_path: Path) -> None:
    rounds = {"min_nodes": MEMBERS, "max_nodes": MEMBERS, "grace_s": 1.0, "inner_steps": 1}
    manifest, layout = run_of(tmp_path, rounds, {"topology": "gather"})
    optimizer = manifest.config.optimizer.model_copy(update={"batch_size": 1})
    config = manifest.config.model_copy(update={"optimizer": optimizer})
    office = Office(tmp_path, manifest.model_copy(update={"config": config}), layout)
    await office.open()
    took: dict[str, float] = {}
    try:
        members = await admitted(office)

        async def timed(what: str, step: str) -> None:
            began = time.perf_counter()
            for member in members:
                await getattr(member, step)()
            took[what] = time.perf_counter() - began

        await timed("heartbeats", "beat")
        await office.pass_time(2)
        assert len(office.core.state.members) == MEMBERS
        await timed("commitments", "commit")
        await timed("contributions", "show")
        assert office.core.state.phase is round_state.Phase.APPLYING
        began = time.perf_counter()
        for member in members:
            await member.sign_state(NEXT)
        took["votes"] = time.perf_counter() - began
        state = office.core.ledger.state
        assert (state.round, state.states[-1], dict(state.ignored)) == (1, NEXT, {})
        assert len(state.recent) == MEMBERS
        store = office.core.ledger.store
        sizes = {
            entries.decode(leaf).kind: (len(leaf), len(leaf.document))
            for leaf in store.leaves(1 + 2 * MEMBERS)
            if isinstance(leaf, Leaf)
        }
        assert set(sizes) == {"round_opened", "round_committed", "round_closed", "state_agreed"}
        assert max(leaf for leaf, _ in sizes.values()) < messages.KIB
        assert max(document for _, document in sizes.values()) < MAX_DOCUMENT_BYTES // 4
        copies(office, tmp_path / "copies", took)
    finally:
        office.close()
    began = time.perf_counter()
    assert verify_home(tmp_path).verified
    took["verify"] = time.perf_counter() - began
    bytes_held = sum(
        path.stat().st_size
        for path in (tmp_path / f"{DATABASE_NAME}{suffix}" for suffix in ("", *SIDE_FILES))
        if path.exists()
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(sizes, took, f"{bytes_held:,} bytes on disk, {memory:,} KiB of memory at most")
    assert max(took.values()) < 200


def copies(office: Office, folder: Path, took: dict[str, float]) -> None:
    """A mirror, an audit of it, and a replica of that carry every list."""
    core, began = office.core, time.perf_counter()
    view = LedgerView(core.ledger.store, "office", heads=core.heads)
    mirror(view, folder / "mirror")
    took["mirror"] = time.perf_counter() - began
    began = time.perf_counter()
    _, found = audit_log(FolderSource(folder / "mirror"), [], office.run, full=True)
    assert found is not None
    assert (found.unsigned, found.state.total) == (0, core.ledger.state.total)
    took["audit"] = time.perf_counter() - began
    began = time.perf_counter()
    offer = offered(FolderSource(folder / "mirror"), run=office.run)
    with LedgerStore.open(folder / "replica" / DATABASE_NAME, create=True) as store:
        fold = Fold.open(store)
        take_over(store, offer.source, offer.head, fold)
        fold.settle()
        assert store.root == core.ledger.store.root
        assert fold.state.total == core.ledger.state.total
    took["replica"] = time.perf_counter() - began
