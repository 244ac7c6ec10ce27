"""What a swarm knows about one wanted piece of content and about its holders."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from artel.protocol import content
from artel.protocol.messages import Kind
from artel.protocol.net.download import Counts, Download, Mask
from artel.protocol.net.streams import Stream
from artel.protocol.telling import Tell


@dataclass(frozen=True)
class Wanted:
    """Content to fetch.

    :param holders: peer ids. The first one is believed to have it; those after it may; the last
        one of several (a coordinator, as a rule) is asked only when the others lack it or are slow;
        those that fail or lie are dropped
    :param max_bytes: the most that it may have
    :param kind: what its bytes are counted as, here and when it is served
    """

    blob: str
    holders: Sequence[str]
    max_bytes: int
    kind: Kind = "other"


@dataclass(eq=False)
class Ask:
    """One request to one holder under way: for chunks, or for the index and some chunks."""

    job: Job
    holder: str
    began: float
    chunks: range | None = None
    """None until the index is here."""
    doubles: Ask | None = None
    """The slow request whose chunks this one asks for as well."""
    doubled: bool = False
    silent: bool = False
    task: asyncio.Task[None] | None = None
    stream: Stream | None = None
    before: int | None = None
    """Bytes that the stream had read when the chunks began."""
    used: int = 0
    """Bytes of chunks that were of use."""

    @property
    def got(self) -> int:
        return self.stream.down if self.stream is not None else 0

    @property
    def moved(self) -> float:
        """When it last made progress."""
        return max(self.began, self.stream.moved) if self.stream is not None else self.began

    def same_chunks(self, other: Ask) -> bool:
        """Whether both ask for some of the same."""
        if self.chunks is None or other.chunks is None:
            return self.chunks is other.chunks
        return self.chunks.start < other.chunks.stop and other.chunks.start < self.chunks.stop

    def rest(self) -> range | None:
        """From the first to the last chunk that it still has to bring; None without an index."""
        if self.job.download is None or self.chunks is None:
            return None
        missing = [i for i in self.chunks if not self.job.download.here[i]]
        return range(missing[0], missing[-1] + 1) if missing else self.chunks

    def could_come_from(self, peer: str) -> bool:
        """Whether another holder has, or may have, all that is left."""
        mask, rest = self.job.mask(peer), self.rest()
        return mask is None or (rest is not None and bool(mask[rest.start : rest.stop].all()))

    def bytes_left(self) -> int:
        """Bytes that it still has to bring; those of the whole content while that is unknown."""
        download = self.job.download
        if download is None or self.chunks is None:
            return self.job.wanted.max_bytes
        return sum(download.chunk_bytes(i) for i in self.chunks if not download.here[i])


@dataclass(eq=False)
class Job:
    """One wanted piece of content."""

    wanted: Wanted
    us: str
    began: float
    progress: Tell | None = None
    asked_at: float | None = None
    """When the first request for it began."""
    got: int = 0
    """Bytes that requests which have ended have brought."""
    download: Download | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    """What those said who could not give it."""
    out: set[str] = field(default_factory=set)
    """Holders that are not asked for this content again."""
    lacking: set[str] = field(default_factory=set)
    """Holders that do not have it now."""
    whole: set[str] = field(default_factory=set)
    """Holders that say they have all of it."""
    parts: dict[str, bytes] = field(default_factory=dict)
    """Bit fields of holders that say they have some of it."""
    asks: list[Ask] = field(default_factory=list)
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: asyncio.Future[Download] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def __post_init__(self) -> None:
        seed = hashlib.sha256(f"{self.us} {self.wanted.blob}".encode()).digest()
        self.busy_at = self.began  # when a request for it last ended
        self.chance = int.from_bytes(seed[:8], "big")
        """A number of its own for each node and content, so that nodes ask in different orders."""

    @property
    def blob(self) -> str:
        return self.wanted.blob

    def holders(self) -> list[str]:
        """Those that may be asked, now or when they have it."""
        return [peer for peer in self.wanted.holders if peer not in self.out and peer != self.us]

    def rarity(self) -> tuple[int, int]:
        """Sorts the rarest first: by how many may have it, then by chance."""
        return sum(peer not in self.lacking for peer in self.holders()), self.chance

    def tier(self, peer: str) -> int:
        """0: has it, or should; 1: may have it; 2: to be spared."""
        holders = self.wanted.holders
        if len(holders) > 1 and peer == holders[-1]:
            return 2
        return 0 if peer == holders[0] or peer in self.whole or peer in self.parts else 1

    def mask(self, peer: str) -> Mask | None:
        """Which chunks a holder has; None for all of them."""
        raw = self.parts.get(peer)
        if raw is None or self.download is None:
            return None
        flags: Mask = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").astype(bool)
        count = len(self.download.hashes)
        if len(flags) < count:  # it speaks of other content
            return np.zeros(count, np.bool_)
        return flags[:count]

    def others(self, count: int) -> Counts:
        """How many of those who have parts have each of ``count`` chunks."""
        total = np.zeros(count, np.int32)
        for peer in self.parts:
            mask = self.mask(peer)
            if mask is not None:
                total += mask
        return total

    def note_have(self, peer: str, held: int, bits: bytes) -> None:
        """Take note of what a holder says that it has."""
        self.whole.discard(peer)
        self.parts.pop(peer, None)
        self.lacking.discard(peer)
        if held == 2:
            self.whole.add(peer)
        elif held == 1 and len(bits) <= content.MAX_CHUNKS // 8:
            self.parts[peer] = bits
        else:
            self.lacking.add(peer)

    def lacks(self, peer: str) -> None:
        """A holder was asked and does not have it."""
        if peer in self.whole or peer in self.parts:
            self.drop(peer, "it said that it has the content, and does not give it")
        else:
            self.lacking.add(peer)
            self.reasons[peer] = f"content {self.blob[:12]}… is not here"

    def drop(self, peer: str, reason: str) -> None:
        """Ask this holder no more."""
        self.out.add(peer)
        self.reasons[peer] = reason
