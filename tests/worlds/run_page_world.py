"""A coordinator whose web side is looked at: its ledger is real, the network it never touches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, cast

from artel.coordinator.metrics import METRICS_FILE, MemberMetrics, Metrics
from artel.coordinator.peer import Peer
from artel.coordinator.sequencer import Sequencer
from artel.coordinator.service import Coordinator
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.protocol.dsse import Envelope
from artel.protocol.invite import Invite
from artel.protocol.manifest import (
    DataFacts,
    Manifest,
    ModelFacts,
    SplitFacts,
    TokenizerFacts,
    run_id,
    sign,
)
from artel.protocol.messages import Report
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.run_file import parse_config
from artel.protocol.state import Layout
from ledger_world import BATCH_SIZE, INNER_STEPS, SEQ_LEN, TIME, World, digest, key

LAYOUT = Layout.of([("weight", (4, 4))])
NASTY = '"><script>alert(1)</script>'
PEER = "/ip4/127.0.0.1/tcp/4001/p2p/" + key("web coordinator").peer_id
INVITE = Invite("ab" * 32, (PEER,)).encode()

RUN = f"""
[run]
name = "web-test"
description = '{NASTY} & friends'
[model]
type = "llama"
[model.config]
hidden_size = 16
[tokenizer]
kind = "bytes"
[data]
sources = [{{ kind = "stdlib" }}]
seq_len = {SEQ_LEN}
[optimizer]
batch_size = {BATCH_SIZE}
warmup_steps = 2
[rounds]
total = TOTAL
inner_steps = {INNER_STEPS}
min_nodes = 3
[ownership]
vesting_rounds = 0
"""


def published(world: World, total: int = 5) -> Manifest:
    """A whole manifest for the world's keys; makes it the genesis of the world's ledger."""
    split = SplitFacts(index=digest("index"), root=digest("shards"), shards=1, tokens=10_000)
    manifest = Manifest(
        config=parse_config(RUN.replace("TOTAL", str(total)).encode(), "RUN.toml"),
        organiser=world.organiser.key,
        coordinators=(world.coordinator.key,),
        tokenizer=TokenizerFacts(id=digest("tokenizer"), vocab_size=257),
        data=DataFacts(train=split, validation=split, dtype="uint16"),
        model=ModelFacts(layout=LAYOUT.digest, parameters=LAYOUT.parameters),
        initial_state=digest("state 0"),
    )
    world.genesis = sign(manifest, world.organiser)
    world.run = run_id(world.genesis.payload)
    return manifest


@asynccontextmanager
async def coordinating(
    world: World,
    manifest: Manifest,
    folder: Path,
    batches: Iterable[Iterable[Envelope]],
    metrics: Metrics,
) -> AsyncIterator[Coordinator]:
    """The coordinator of a run of which so much has happened."""
    heads = HeadStore(folder / HEADS_NAME)
    with closing(heads), LedgerStore.open(folder / DATABASE_NAME, create=True) as store:
        sequencer = Sequencer(store, world.coordinator, world.run)
        await sequencer.append(*world.followed(world.genesis))
        for batch in batches:
            await sequencer.append(*world.followed(*batch))
        yield Coordinator(
            heads=heads,
            manifest=manifest,
            run=world.run,
            layout=LAYOUT,
            identity=world.coordinator,
            host=cast(Host, None),
            sequencer=sequencer,
            blobs=BlobStore(folder / "blobs"),
            fingerprints=BlobStore(folder / "fingerprints"),
            metrics=metrics,
            clock=lambda: 100.0,
        )


def connect(core: Coordinator, peer: str, phase: str = "training", **more: Any) -> None:
    """Let a node have reported."""
    said: dict[str, Any] = {
        "state_round": 1,
        "state_root": digest("state 1"),
        "phase": phase,
        "round": 1,
        "step": 3,
        "steps": 4,
        "loss": 5.5,
        "tokens_per_second": 1234.5,
        "bytes_up": 5_000_000,
        "bytes_down": 9_000,
        "up_by_kind": {"contribution": 4_000_000, "control": 1_000_000},
        "down_by_kind": {"state": 9_000},
        "seconds": {"train": 5.0, "tail": 4.0, "idle": 0.5, "merge": 0.5, "fetch": 70.0},
    }
    core.peers[peer] = Peer(Report(**said | more), ["/ip4/10.0.0.9/tcp/1"], heard=98.5)


def numbers_of(folder: Path, world: World, rounds: int) -> Metrics:
    """So many rounds of a minute in which all went well, but that the last member is late now and
    then; the loss falls."""
    metrics = Metrics(folder / METRICS_FILE)
    late = world.members[-1].peer_id
    for number in range(rounds):
        row, missed = metrics.of(number), number % 3 == 0
        row.members, row.accepted = len(world.members), len(world.members) - missed
        row.left_out = {"late": 1} if missed else {}
        row.steps, row.tokens, row.computing = (4, 32), 120_000 + 7000 * (number % 4), 0.9
        row.validation, row.loss = 4.0 + 3 / (number + 1), 4.1 + 3 / (number + 1)
        row.seconds = {"training": 44.0 + number % 5, "revealing": 6.0, "applying": 3.5}
        row.up = {"contribution": 900_000, "control": 40_000, "state": 250_000}
        row.down, row.ended = {"slice": 800_000}, float(TIME + 60 * number)
        row.by_member = MemberMetrics(
            rejected={late: "late"} if missed else {},
            steps={member.peer_id: 12 for member in world.members},
            traffic={
                member.peer_id: {"up": {"contribution": 300_000}, "down": {"slice": 200_000}}
                for member in world.members
            },
            computing={member.peer_id: 0.96 - 0.2 * i for i, member in enumerate(world.members)},
        )
    metrics.of(rounds).validation = 4.0 + 3 / (rounds + 1)
    return metrics


def one_round(world: World) -> tuple[list[Envelope], list[Envelope]]:
    """A ledger's entries up to its first state, for which the third node was late."""
    first, second, late = world.members
    accepted = sorted([first, second], key=lambda member: member.peer_id)
    return (
        list(world.introductions()),
        [
            world.opened(0),
            world.committed(0, members=[first, second]),
            world.contribution(first, 0),
            world.contribution(second, 0),
            world.closed(0, accepted=accepted, rejected={late.peer_id: "late"}),
            world.agreed(1, nodes=[first, second]),
        ],
    )
