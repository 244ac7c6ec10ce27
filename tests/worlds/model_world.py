"""Homes with states of a run that trained nothing, and a ledger that agrees on them."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from artel.ledger import entries
from artel.ledger.entries.genesis import read_genesis
from artel.ledger.fold import shares
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.protocol import dsse, model
from artel.protocol.identity import Identity
from artel.protocol.manifest import open_manifest
from artel.protocol.state import State, write_state
from ledger_world import World as Ledger
from trainer_world import World


def write_states(world: World, folder: Path, rounds: int) -> list[Path]:
    """Files of states with numbers far from the seed's, after round 1, 2 and so on, named by their
    roots."""
    layout = model.layout_of(model.empty(world.run.config.model, world.run.tokenizer.vocab_size))
    random, found = np.random.default_rng(3), list[Path]()
    for number in range(1, rounds + 1):
        noise = random.standard_normal(layout.parameters).astype(np.float32) * 0.1
        root = write_state(
            folder / "new", State(number, layout.digest, noise, np.zeros_like(noise))
        )
        found.append((folder / "new").rename(folder / root))
    return found


def make_home(world: World, home: Path, roots: list[str]) -> Path:
    """A home that joined the run; its ledger agrees on these states, its store holds none of them,
    but the text that is held out."""
    (home / "blobs").mkdir(parents=True)
    envelope = world.manifest.read_bytes()
    (home / "manifest.json").write_bytes(envelope)
    for path, name in world.content.items():
        shutil.copy(path, home / "blobs" / name)
    write_ledger(envelope, roots, home)
    return home


def write_ledger(envelope: bytes, roots: list[str], home: Path) -> None:
    """The ledger of a run of one node in which these states were agreed on."""
    manifest, run = open_manifest(envelope)
    log = Ledger(nodes=1)
    log.coordinator = Identity.from_seed(b"\7" * 32)
    log.genesis, log.run = dsse.decode(envelope), run
    log.work = read_genesis(log.genesis.payload).rules.work
    member, steps = log.members[0], manifest.config.rounds.inner_steps
    windows = steps * manifest.config.optimizer.batch_size
    lines = [log.genesis, *log.introductions()]
    base = manifest.initial_state
    for number, root in enumerate(roots):
        work = {"head": steps, "tail": 0, "tokens": log.work.tokens(steps), "base": base}
        shown = log.contribution(member, number, **work)
        lines += [
            log.opened(number, base=base, cursor=number * windows, steps={member.peer_id: steps}),
            log.committed(number),
            shown,
            log.closed(number, shown={member.peer_id: shown}),
            log.agreed(number + 1, root=root),
        ]
        base = root
    leaves = log.add(*lines)
    assert shares.fold(map(entries.decode, leaves)).states == [manifest.initial_state, *roots]

    sign = partial(sign_checkpoint, log.coordinator, origin_of(run))

    with LedgerStore.open(home / DATABASE_NAME, create=True, run=run) as store:
        store.append(leaves[:1], sign)
        store.append(leaves[1:], sign)
