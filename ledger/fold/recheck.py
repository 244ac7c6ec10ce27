"""Recomputes the slices of a sharded round from what its nodes published, offline.

The ledger names each contribution's index by its content id, the index names the blob for each
slice, and the arithmetic is exact: so the right result of a slice follows from the ledger and the
blobs, whoever computes it. A recorded slice with another content id convicts whoever signed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from artel.ledger.entries import Contribution, RoundClosed, RoundOpened
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.entries.words import short_key
from artel.ledger.fold.attempts import attempts
from artel.ledger.fold.history import History
from artel.ledger.fold.layout import layout_of
from artel.protocol import content
from artel.protocol.assignment import aggregator
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.identity import short_peer
from artel.protocol.manifest import open_manifest
from artel.protocol.paths import expanded

RIGHT, WRONG, UNRECORDED, UNCHECKED = "right", "wrong", "not recorded", "not checkable"
BLOBS = "blobs"
"""The content store in a home."""


@dataclass(frozen=True)
class Checked:
    """How one slice came out."""

    slice: int
    status: str
    """right, wrong, not recorded or not checkable."""
    node: str
    """Whose slice it is (peer id)."""
    entry: int | None
    """Index of the entry that records it, if one does."""
    recorded: str
    """Content id, or ""."""
    recomputed: str
    """Content id, or "" where it cannot be checked."""
    accused: tuple[int, ...]
    """Entries that call it wrong."""
    denied: bool | None
    """Whether the agreed state was made without it; None while there is none."""
    why: str = ""
    """What is missing, or what else is the matter."""

    @property
    def holds(self) -> bool:
        """False when the recorded slice is wrong, or the agreed state says so of a right one."""
        return self.status != WRONG and not (self.status == RIGHT and self.denied)

    def line(self) -> str:
        """For people."""
        name, by = f"slice {self.slice:>2}", short_peer(self.node)
        where = f"entry {self.entry}" if self.entry is not None else "no entry"
        if self.status == RIGHT:
            said = f"right: {short_key(self.recorded)} by node {by}, {where}"
            if self.denied:
                said += "; the agreed state denies it all the same"
        elif self.status == WRONG:
            said = (
                f"WRONG (recorded {self.recorded}, recomputed {self.recomputed}, by node "
                f"{self.node}, {where})"
            )
            if self.denied is not None:
                known = "made without it" if self.denied else "MADE WITH IT"
                said += f"; the agreed state was {known}"
        elif self.status == UNRECORDED:
            said = f"not recorded by node {by}; recomputed {short_key(self.recomputed)}"
        else:
            said = f"not checkable: {self.why}"
        return f"{name}  {said}"


def recheck(history: History, round: int, homes: Sequence[Path]) -> Iterator[Checked]:
    """Recompute every slice of a round, in order: of its newest attempt that was closed with
    somebody, whether a state was agreed on or not.

    :param homes: homes of nodes or coordinators, whose content stores hold the blobs
    :raises UsageError: the round was never closed with anybody, or was not sharded
    :raises ResourceError: the model's layout cannot be worked out
    """
    from artel.protocol.exchange import codec, pseudogradient
    from artel.protocol.exchange.aggregate_slice import recompute, round_slices

    trail, opened, closed = _settled(history, round)
    members = len(opened.members)
    if history.genesis.rules.work.topology_of(members) != "sharded":
        raise UsageError(
            f"round {round} was not sharded: every node combined all of it for itself",
            "artel ledger log --kind aggregate shows the rounds that have slices",
        )
    leaf = history.log.leaf(0)
    manifest, _ = open_manifest(leaf)
    layout, exchange = layout_of(leaf, homes), manifest.config.exchange
    parts = round_slices(layout, exchange, round, members)
    chosen = codec.of(exchange)
    sizes = [pseudogradient.max_blob_bytes(part.layout, chosen) for part in parts]
    store = HomeBlobs(homes)
    shown = (history.entry(trail.shown[item.node]).body for item in closed.accepted)
    works = [body for body in shown if isinstance(body, Contribution)]
    inputs = {body.node: sub_blobs(store, body, sizes) for body in works}
    for number, size in enumerate(sizes):
        missing, blobs = _inputs(store, inputs, number, size)
        right = ""
        if not missing:
            try:
                right = content.content_id(
                    recompute(
                        layout,
                        exchange,
                        round=round,
                        members=members,
                        slice=number,
                        base=opened.base,
                        blobs=blobs,
                        tokens={item.node: item.weight for item in closed.accepted},
                    )
                )
            except ArtelError as error:
                missing = error.message
        yield _judged(trail, closed, number, right, missing)


def _settled(history: History, round: int) -> tuple[AttemptTrail, RoundOpened, RoundClosed]:
    for trail in attempts(history, history.of_round(round)):
        # Closed a second time, with nobody: no majority agreed on a state. That may be why.
        if trail.opened is not None and trail.closed and trail.closed[0][1].accepted:
            return trail, trail.opened[1], trail.closed[0][1]
    raise UsageError(
        f"round {round} has not been closed with anybody accepted",
        "artel ledger log --kind round_closed shows those that have",
    )


def _judged(
    trail: AttemptTrail, closed: RoundClosed, number: int, right: str, missing: str
) -> Checked:
    index, recorded = trail.slices.get(number, (None, None))
    blob = recorded.blob if recorded is not None else ""
    if missing:
        status = UNCHECKED
    elif not blob:
        status = UNRECORDED
    else:
        status = RIGHT if blob == right else WRONG
    return Checked(
        slice=number,
        status=status,
        node=aggregator([item.node for item in closed.accepted], trail.round, number),
        entry=index,
        recorded=blob,
        recomputed=right,
        accused=tuple(where for where, _ in trail.accused.get(number, [])),
        denied=number in trail.wrong if trail.agreed is not None else None,
        why=missing,
    )


# --- what the nodes published ---------------------------------------------------------------------


class HomeBlobs:
    """Reads content from homes; nothing in them is touched, and nothing is believed unhashed."""

    def __init__(self, homes: Iterable[Path]) -> None:
        self._folders = [expanded(home) / BLOBS for home in homes]

    def read(self, blob: str, most: int) -> bytes | None:
        """The content with this id, of at most ``most`` bytes, or None."""
        for folder in self._folders:
            try:
                with (folder / blob).open("rb") as file:
                    data = file.read(most + 1)
            except OSError:
                continue
            if len(data) <= most and content.content_id(data) == blob:
                return data
        return None

    def path(self, blob: str) -> Path | None:
        """Where content lies that is too large to be read at once; its bytes are not checked."""
        return next((f / blob for f in self._folders if (f / blob).is_file()), None)

    def require(self, blob: str, most: int) -> bytes:
        """As :meth:`read`.

        :raises CheckFailed: it is gone
        """
        data = self.read(blob, most)
        if data is None:
            raise CheckFailed(f"the blob {blob} is gone")
        return data


def sub_blobs(
    store: HomeBlobs, body: Contribution, sizes: Sequence[int]
) -> Sequence[tuple[str, int]] | str:
    """Content id and size of a contribution's blob for each slice, or why they are not known."""
    from artel.protocol.exchange import pseudogradient

    index = store.read(body.blob, pseudogradient.index_bytes(len(sizes)))
    if index is None:
        return f"no home holds the index {body.blob} of node {body.node}"
    try:
        listed = pseudogradient.open_index(
            index, round=body.round, base=body.base, payload=body.payload, max_sizes=sizes
        )
    except ArtelError as error:
        return f"the index of node {body.node} is malformed: {error.message}"
    return [(piece.blob, piece.size) for piece in listed]


def _inputs(
    store: HomeBlobs,
    inputs: Mapping[str, Sequence[tuple[str, int]] | str],
    number: int,
    most: int,
) -> tuple[str, dict[str, Callable[[], bytes]]]:
    """What is missing to recompute a slice ("" for nothing), and how its inputs are read."""
    blobs: dict[str, Callable[[], bytes]] = {}
    for node, listed in sorted(inputs.items()):
        if isinstance(listed, str):
            return listed, {}
        blob, _ = listed[number]
        if store.read(blob, most) is None:
            return f"no home holds the blob {blob} of node {node}", {}
        blobs[node] = partial(store.require, blob, most)
    return "", blobs
