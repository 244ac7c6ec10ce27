"""A tiny run for tests that start real processes: seconds of training on a little real text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from artel.coordinator.local_run import LOOPBACK
from artel.ledger import entries
from artel.ledger.fold.shares import FoldState
from artel.ledger.store.reader import LedgerReader
from artel.protocol import identity
from benchmarks.swarm import Swarm
from ledger_world import folded
from places import WORLDS

RUN = """\
[run]
name = "tiny"
seed = 7

[model]
type = "llama"
[model.config]
hidden_size = {hidden}
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64

[tokenizer]
kind = "bytes"

[data]
sources = [{{kind = "text", path = "text"}}]
seq_len = 32
validation_windows = 16
shard_tokens = 16384

[optimizer]
batch_size = 4
warmup_steps = 5

[rounds]
total = {total}
inner_steps = {inner_steps}
span = {span}
min_nodes = {min_nodes}
max_nodes = {max_nodes}
box_s = {box_s:.1f}
quorum = {quorum}
deadline_s = {deadline_s:.1f}
grace_s = {grace_s:.1f}
heartbeat_timeout_s = {silence_s:.1f}
settle_s = {apply_s:.1f}
reveal_s = {apply_s:.1f}
mirror_every = {mirror_every}

{exchange}
[ownership]
vesting_rounds = 1
closing_s = 0.0

[ledger]
witnesses = {witnesses}

[trust]
audit_rate = {audit_rate}
founders = {founders}
"""


def write_run(
    folder: Path,
    *,
    total: int,
    inner_steps: int = 150,
    min_nodes: int = 2,
    deadline_s: float = 60.0,
    quorum: float = 0.66,
    witnesses: int = 1,
    max_nodes: int = 4,
    box_s: float = 0.0,
    span: int = 0,
    audit_rate: float = 0.0,
    exchange: str = "",
    hidden: int = 32,
    founders: int = 4,
    patience: float = 1.0,
    mirror_every: int = 10,
) -> Path:
    """Write RUN.toml and its text below ``folder``; returns the file.

    :param exchange: lines of the table [exchange]
    :param patience: by how much all waiting for one another is longer, for more nodes than cores

    The text is the standard library's own, so that it is real and everywhere the same.
    """
    source = Path(json.__file__).parent.parent
    text = folder / "text"
    text.mkdir(parents=True)
    for module in sorted(source.glob("*.py"))[:60]:
        data = module.read_bytes()[:60_000]
        (text / module.name).write_bytes(data.decode("utf-8", "ignore").encode())
    path = folder / "RUN.toml"
    path.write_text(
        RUN.format(
            total=total,
            inner_steps=inner_steps,
            min_nodes=min_nodes,
            deadline_s=deadline_s,
            quorum=quorum,
            witnesses=witnesses,
            max_nodes=max_nodes,
            box_s=box_s,
            span=span,
            audit_rate=audit_rate,
            hidden=hidden,
            founders=founders,
            mirror_every=mirror_every,
            grace_s=3 * patience,
            silence_s=6 * patience,
            apply_s=20 * patience,
            exchange=f"[exchange]\n{exchange}\n" if exchange else "",
        )
    )
    return path


def open_to_others(folder: Path) -> list[Path]:
    """What other users of the machine could read in or below a folder."""
    paths = [folder, *folder.rglob("*")]
    return [path for path in paths if not path.is_socket() and path.lstat().st_mode & 0o077]


def ledger_of(home: Path) -> tuple[list[entries.Entry], FoldState]:
    """All entries of a home's ledger, and what they amount to."""
    with LedgerReader.of(home) as store:
        return folded(store.leaves())


def node_named(status: dict[str, Any], peer: str) -> dict[str, Any] | None:
    """The row of one node in a coordinator's status."""
    return next((node for node in status["nodes"] if node["node"] == peer), None)


def round_at_least(number: int) -> Callable[[dict[str, Any]], bool]:
    """A condition on a status: so many rounds are over."""
    return lambda status: status["round"] >= number


def assert_all_signed_every_state(decoded: list[entries.Entry]) -> None:
    """Everybody whose contribution counted came to the agreed root."""
    accepted: set[str] = set()
    for entry in decoded:
        if isinstance(entry.body, entries.RoundClosed):
            accepted = {identity.public_of(item.node).hex() for item in entry.body.accepted}
        elif isinstance(entry.body, entries.StateAgreed):
            assert accepted <= entry.signers
            assert entry.body.wrong == ()


def lazy_home(folder: Path, kind: str, number: int = 0) -> Path:
    """Where :func:`lazy` has its node."""
    return folder / (f"{kind}-{number}" if number else kind)


@contextlib.asynccontextmanager
async def lazy(swarm: Swarm, kind: str, number: int = 0) -> AsyncIterator[None]:
    """A node of a kind of ``lazy_node.py``, in a home that is called after it."""
    home = lazy_home(swarm.folder, kind, number)
    home.mkdir()
    with (home / "console.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, str(WORLDS / "lazy_node.py"), kind, "node", "start"),
            *("--join", swarm.invite, "--home", str(home), "--threads", "1"),
            *("--listen", LOOPBACK),
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )
    try:
        yield
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await child.wait()
