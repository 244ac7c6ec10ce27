"""The data that a node is assigned: which shards, from whom, and where they lie on disk."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from artel.node import holders
from artel.node.session import Session
from artel.node.trainer.orders import Window
from artel.protocol import assignment, shards
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.events import emit
from artel.protocol.manifest import SplitFacts
from artel.protocol.net import delivery, dht
from artel.protocol.net.delivery import Wanted
from artel.protocol.shards import ShardIndex
from artel.protocol.tokenizer import MAX_TOKENIZER_BYTES

log = logging.getLogger("artel.node")

COPIES = 3
"""Machines that keep a shard beside the first coordinator, whose disk may be lost: the standbys,
and so many electors as are needed beside those."""
AT_ONCE = 16
"""Shards that an elector fetches together for that."""
LOOK_S = 5.0
"""Between two looks when there is nothing to fetch; and ..."""
PAUSE_S = 1.0
"""... when there is, at least."""
REST = 3.0
"""Between two fetches, in the time that the last one took: the rounds come first."""

Windows = list[Window]
"""In training order: what the trainer reads."""
Known = dict[int, list[str]]
"""Shard to the peers that may have it."""


class Corpus:
    """Fetches the shards that a round needs, verifies each, and keeps them in the cache.

    The coordinator always has everything; it is asked last.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._manifest, self._blobs = session, session.manifest, session.blobs
        self._indexes: dict[str, ShardIndex] = {}
        self._verified: set[str] = set()
        self._pinned: tuple[str, ...] = ()

    async def assigned(
        self,
        steps: Mapping[str, int],
        cursor: int,
        node: str,
        *,
        pin: bool = True,
        first: int | None = None,
    ) -> Windows:
        """The windows of ``node`` in a round, with all their shards on disk.

        :param steps: every member of the round, and its inner steps
        :param pin: keep the shards until others are pinned
        :param first: only so many; all by default
        :raises Unreachable: nobody can give a shard
        """
        config = self._manifest.config
        members = sorted(steps)
        refs = assignment.assign(
            config.run.seed,
            assignment.train_split(self._manifest),
            cursor,
            members,
            [steps[member] for member in members],
            node,
            batch_size=config.optimizer.batch_size,
        )
        return await self._windows(self._manifest.data.train, 0, refs[:first], pin=pin)

    async def validation(self) -> Windows:
        """The windows that an evaluation reads, the same on every node."""
        split = assignment.validation_split(self._manifest)
        refs = assignment.evaluation_windows(split, self._manifest.config.data.validation_windows)
        facts = self._manifest.data
        return await self._windows(facts.validation, facts.train.shards, refs)

    # --- copies -----------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Fetch those shards that fall to this node as an elector, until cancelled: a run without
        its first coordinator has what its members hold."""
        rest, fallen = LOOK_S, dict[tuple[str, ...], list[tuple[SplitFacts, int, int]]]()
        while True:
            await asyncio.sleep(rest)
            began, fetched = time.monotonic(), False
            electors = tuple(self._session.replica.state.electors.present)
            try:
                if electors not in fallen:
                    fallen = {electors: await self._falling_to(electors)}
                missing = [
                    (split, first, number)
                    for split, first, number in fallen[electors]
                    if not self._blobs.has(self._indexes[split.index].shards[number])
                ]
                if missing and self._has_room():
                    await self._fetch(missing[0][0], missing[0][1], missing)
                    fetched = True
            except ArtelError as error:
                emit(log, "shards.not_kept", logging.DEBUG, reason=error.message)
            rest = max(PAUSE_S if fetched else LOOK_S, REST * (time.monotonic() - began))

    async def _fetch(
        self, split: SplitFacts, first: int, missing: Sequence[tuple[SplitFacts, int, int]]
    ) -> None:
        index = self._indexes[split.index]
        some = [number for each, _, number in missing if each == split][:AT_ONCE]
        known = await self._holders(some, index, first)
        wanted = [Wanted(index.shards[n], known[n], index.bytes_in(n), "data") for n in some]
        paths = await delivery.fetch_all(self._session.host, self._blobs, wanted)
        for number, path in zip(some, paths, strict=True):
            await asyncio.to_thread(self._verify, path, index, number)
            self._verified.add(index.shards[number])

    async def _falling_to(self, electors: Sequence[str]) -> list[tuple[SplitFacts, int, int]]:
        """The shards that this node keeps: of which split, behind how many others, and which."""
        facts, me = self._manifest.data, self._session.identity.peer_id
        copies = COPIES - len(self._manifest.config.coordination.standbys)
        found: list[tuple[SplitFacts, int, int]] = []
        if me not in electors or copies <= 0:
            return found
        for split, first in ((facts.train, 0), (facts.validation, facts.train.shards)):
            index = await self._index(split)
            mine = await asyncio.to_thread(falling_to, me, electors, index.shards, copies)
            found += [(split, first, number) for number in mine]
        return found

    def _has_room(self) -> bool:
        """Half of the disk quota at most is for what others may need."""
        quota = self._blobs.quota_bytes
        return quota is None or self._blobs.used < quota // 2

    def held(self) -> bytes:
        """Bit field of the shards in the cache: training shards first, then validation."""
        facts = self._manifest.data
        held = []
        for split, first in ((facts.train, 0), (facts.validation, facts.train.shards)):
            index = self._indexes.get(split.index)
            if index is not None:
                held += [first + i for i, blob in enumerate(index.shards) if self._blobs.has(blob)]
        return dht.shard_bits(held, facts.train.shards + facts.validation.shards)

    async def _windows(
        self,
        split: SplitFacts,
        first: int,
        refs: Sequence[assignment.WindowRef],
        *,
        pin: bool = True,
    ) -> Windows:
        index = await self._index(split)
        needed = assignment.shards_needed(refs)
        missing = [n for n in needed if not self._blobs.has(index.shards[n])]
        known = await self._holders(missing, index, first)
        wanted = [
            Wanted(
                index.shards[n],
                known.get(n, [self._session.link.coordinator]),
                index.bytes_in(n),
                "data",
            )
            for n in needed
        ]
        fetched = await delivery.fetch_all(self._session.host, self._blobs, wanted)
        paths = dict(zip(needed, fetched, strict=True))
        for number, path in paths.items():
            if index.shards[number] not in self._verified:
                await asyncio.to_thread(self._verify, path, index, number)
                self._verified.add(index.shards[number])
        if pin:
            # What a round reads must not be evicted while the trainer has it mapped.
            pinned = tuple(index.shards[number] for number in needed)
            self._blobs.pin(*pinned)
            self._blobs.unpin(*(set(self._pinned) - set(pinned)))
            self._pinned = pinned
        return [(paths[ref.shard], ref.offset) for ref in refs]

    def _verify(self, path: Path, index: ShardIndex, number: int) -> None:
        """Tokens of a cached file, checked once per process: a disk can rot, a model can crash."""
        try:
            vocabulary = self._manifest.tokenizer.vocab_size
            shards.decode_shard(path.read_bytes(), index, number, vocabulary)
        except CheckFailed:
            self._blobs.delete(index.shards[number])
            raise

    async def _index(self, split: SplitFacts) -> ShardIndex:
        known = self._indexes.get(split.index)
        if known is None:
            path = await self._kept(split.index, shards.MAX_INDEX_BYTES)
            known = shards.decode_index(await asyncio.to_thread(path.read_bytes), split)
            self._indexes[split.index] = known
        return known

    async def tokenizer(self) -> Path:
        """The run's tokenizer, for whoever exports the model or lets it write."""
        return await self._kept(self._manifest.tokenizer.id, MAX_TOKENIZER_BYTES)

    async def _kept(self, blob: str, max_bytes: int) -> Path:
        """Content that every node of the run has, and keeps."""
        here = self._blobs.has(blob)
        found = {} if here else await holders.records(self._session.host, self._session.run)
        ranked = holders.ranked(found, blob, [self._session.link.coordinator])
        wanted = Wanted(blob, ranked, max_bytes, "data")
        path = await delivery.fetch(self._session.host, self._blobs, wanted)
        self._blobs.pin(blob)
        return path

    async def _holders(self, missing: Sequence[int], index: ShardIndex, first: int) -> Known:
        """Whom to ask for each missing shard: nodes that say they hold it, then the coordinator."""
        found = await holders.records(self._session.host, self._session.run) if missing else {}
        return {
            number: holders.ranked(
                {p: r for p, r in found.items() if dht.has_shard(r.shards, first + number)},
                index.shards[number],
                [self._session.link.coordinator],
                most=3,
            )
            for number in missing
        }


def falling_to(node: str, nodes: Collection[str], blobs: Sequence[str], copies: int) -> list[int]:
    """Which of these shards (content ids) a node keeps, when each is kept by so many: those for
    which few others have a smaller digest (rendezvous hashing: Thaler, Ravishankar, 1998). So who
    comes or goes moves no more than its own part."""

    def place(peer: str, blob: str) -> bytes:
        return hashlib.sha256(f"{peer} {blob}".encode()).digest()

    found = []
    for number, blob in enumerate(blobs):
        own = place(node, blob)
        if sum(place(peer, blob) < own for peer in nodes if peer != node) < copies:
            found.append(number)
    return found
