"""A real coordinator without a network: nodes are called by name, time stands until it is moved."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from artel.coordinator.desk import Desk
from artel.coordinator.metrics import Metrics
from artel.coordinator.sequencer import Sequencer
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.peers import HEADS, ask_files
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import add_lines, cosign, witness_name
from artel.protocol import content, dsse, messages, model, round_state
from artel.protocol.errors import Unreachable
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.codec import codec
from artel.protocol.exchange.pseudogradient import Header, IndexItem
from artel.protocol.fingerprints import PLACES, ROW
from artel.protocol.identity import Identity
from artel.protocol.manifest import Manifest, sign
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.state import Layout
from trainer_world import World, make_world

ORGANISER = Identity.from_seed(b"\7" * 32)
"""Also the coordinator, as :mod:`trainer_world` has it."""
RULES = {
    "total": 3,
    "min_nodes": 3,
    "max_nodes": 8,
    "quorum": 0.6,
    "deadline_s": 100.0,
    "grace_s": 10.0,
    "reveal_s": 20.0,
    "settle_s": 30.0,
    "heartbeat_timeout_s": 600.0,
}


def run_of(
    home: Path,
    rounds: Mapping[str, Any] | None = None,
    exchange: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> tuple[Manifest, Layout]:
    """The manifest of a tiny run with plain fp32 contributions, and its layout.

    :param rounds: further settings of ``[rounds]``; ``exchange``: of ``[exchange]``; likewise
        ``sections``
    """
    world: World = make_world(home)
    config = world.run.config
    config = config.model_copy(
        update={
            "rounds": config.rounds.model_copy(update={**RULES, **(rounds or {})}),
            "exchange": config.exchange.model_copy(update={"codec": "fp32", **(exchange or {})}),
        }
        | {
            name: getattr(config, name).model_copy(update=changes)
            for name, changes in sections.items()
        }
    )
    manifest = world.run.model_copy(update={"config": config})
    module = model.build(config.model, manifest.tokenizer.vocab_size, config.run.seed)
    return manifest, model.layout_of(module)


HARDWARE = "cpu/native/fp32/t1/2"


def rows_of(name: str, steps: int) -> bytes:
    """Fingerprints of steps that each move the weights another way, others for each name."""
    source = np.random.default_rng(list(name.encode()))
    walk = source.normal(0, 1e-3, (steps, PLACES)).cumsum(axis=0)
    seen = source.uniform(2, 4, (steps, ROW - PLACES))
    return np.concatenate((seen, 0.03 + walk), axis=1).astype("<f4").tobytes()


async def refused(work: Any) -> str:
    """The code of the refusal that this must end in."""
    with pytest.raises(wire.Refused) as error:
        await work
    return error.value.code


class Nowhere:
    """A host that reaches nobody."""

    peer_id = ORGANISER.peer_id

    async def dial_back(self, peer: str, addresses: list[str]) -> bool:
        return False

    @contextlib.asynccontextmanager
    async def open(self, peer: str, service: str) -> AsyncIterator[None]:
        raise Unreachable(f"peer {peer} does not answer")
        yield


def known_by(*blobs: bytes) -> str:
    """The digest of the numbers in these blobs."""
    digests = [IndexItem.of(blob).payload for blob in blobs]
    return digests[0] if len(digests) == 1 else pseudogradient.joined_digest(digests)


class Office:
    """A coordinator and its desk in a home; :meth:`reopen` is a restart."""

    def __init__(self, home: Path, manifest: Manifest, layout: Layout) -> None:
        self.home, self.manifest, self.layout = home, manifest, layout
        self.now = 1000.0
        self.genesis = sign(manifest, ORGANISER)
        self.run = hashlib.sha256(self.genesis.payload).hexdigest()
        self.store: LedgerStore | None = None
        self.heads: HeadStore | None = None

    async def open(self) -> Office:
        """Start as the daemon does."""
        self.store = LedgerStore.open(self.home / DATABASE_NAME, create=True, run=self.run)
        self.heads = HeadStore(self.home / HEADS_NAME)
        sequencer = Sequencer(self.store, ORGANISER, self.run)
        if not self.store.size:
            await sequencer.append(self.genesis)
        self.blobs = BlobStore(self.home / "blobs")
        self.core = Coordinator(
            manifest=self.manifest,
            run=self.run,
            layout=self.layout,
            identity=ORGANISER,
            host=Nowhere(),  # type: ignore[arg-type]
            sequencer=sequencer,
            heads=self.heads,
            blobs=self.blobs,
            fingerprints=BlobStore(self.home / "fingerprints"),
            metrics=Metrics(self.home / "metrics.jsonl"),
            clock=lambda: self.now,
        )
        # Nodes sign what roots they like here, and nobody serves states.
        self.core.rules = replace(self.core.rules, checked=False)
        self.desk = Desk(self.core)
        return self

    async def reopen(self) -> Office:
        """The same home after the process was killed."""
        self.close()
        return await self.open()

    def close(self) -> None:
        if self.store is not None and self.heads is not None:
            self.store.close()
            self.heads.close()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        await self.core.feed(round_state.Tick(self.now))

    def bodies(self, kind: str) -> list[Any]:
        """Bodies of this kind in the ledger, oldest first."""
        assert self.store is not None
        decoded = map(entries.decode, self.store.leaves())
        return [entry.body for entry in decoded if entry.kind == kind]

    def rejected(self) -> dict[str, str]:
        """Peer id to reason code in the newest ``round_closed``."""
        return {item.node: item.reason for item in self.bodies("round_closed")[-1].rejected}

    @property
    def tokens(self) -> int:
        """Tokens of a whole assignment in a round without a time box."""
        return self.core.work.tokens(self.core.work.inner_steps)

    @property
    def credits(self) -> str:
        """The credit root that the next state has to name."""
        attempt = self.core.ledger.state.attempt
        return "" if attempt is None else attempt.credits.root

    def accepted(self) -> list[str]:
        return [item.node for item in self.bodies("round_closed")[-1].accepted]


class Line:
    """One stream between a node and the desk, in memory."""

    def __init__(self, data: bytes, network: str = "") -> None:
        self.network = network
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(data)
        self.reader.feed_eof()
        self.read = 0
        self.written = b""

    async def read_exactly(self, count: int) -> bytes:
        data = await self.reader.readexactly(count)
        self.read += count
        return data

    async def write(self, data: bytes) -> None:
        self.written += data

    def replies(self) -> Iterator[messages.Message]:
        rest = self.written
        while rest:
            (length,) = struct.unpack(">I", rest[:4])
            yield wire.decode(rest[4 : 4 + length])
            rest = rest[4 + length :]


class Shown(NamedTuple):
    """The newest heads that the coordinator shows; "" where there is none."""

    certified: str
    newest: str


class Member:
    """A node; each method says one thing to the desk, right unless told otherwise."""

    def __init__(self, office: Office, name: str) -> None:
        self.office = office
        self.identity = Identity.from_seed(hashlib.sha256(b"node " + name.encode()).digest())
        self.owner = Identity.from_seed(hashlib.sha256(b"owner " + name.encode()).digest())
        self.salt = hashlib.sha256(name.encode()).digest()
        seed = int.from_bytes(self.salt[:4], "big")
        count = office.layout.parameters
        self.vector = np.random.default_rng(seed).normal(size=count).astype(np.float32)
        self.root = office.manifest.initial_state
        self.last: Line | None = None
        self.network = ""
        """Where its streams come from."""

    @property
    def peer(self) -> str:
        return self.identity.peer_id

    async def say(
        self, message: messages.Message, raw: bytes = b"", *, to: str = wire.CONTROL
    ) -> messages.Message:
        """One request, and the raw bytes after it; the last reply, a refusal as its error."""
        desk = self.office.desk
        handlers = {wire.CONTROL: desk._control, wire.CONTENT: desk._puts.answer}
        handler = handlers.get(to, desk._ledger.answer)
        line = self.last = Line(wire.encode(message) + raw, self.network)
        await wire.answer(self.peer, line, handler)
        *_, reply = line.replies()
        if isinstance(reply, messages.Refusal):
            raise wire.Refused(reply.message, reply.hint, reply.code)
        return reply

    def statements(self, seq: int = 1) -> list[bytes]:
        """Both entries of a registration."""
        run = self.office.run
        account = entries.account(self.owner, run)
        return [account.encode(), entries.node(self.identity, self.owner, run, seq=seq).encode()]

    async def hello(self, **changes: Any) -> messages.Message:
        fields = {
            "run": self.office.run,
            "statements": self.statements(),
            "addresses": ["/ip4/127.0.0.1/tcp/1"],
        }
        return await self.say(messages.Hello.model_validate(fields | changes))

    async def files(self, request: messages.Message, *paths: str) -> list[bytes | None]:
        """The files with which the ledger service answers."""
        line = self.last = Line(wire.encode(request))
        await wire.answer(self.peer, line, self.office.desk._ledger.answer)
        return await ask_files(Line(line.written), request, paths)

    async def cosign(self, signed: str = "", *, time: int = 1_700_000_000) -> Shown:
        """Cosign a head of the coordinator, its newest by default, and send that."""
        assert self.office.store is not None
        parsed = note.parse(signed or self.office.store.latest_note)
        line = cosign(self.identity, witness_name(self.peer), parsed.text, time)
        text = add_lines(parsed, [line]).encode()
        message = messages.Cosigned(run=self.office.run, note=text)
        return Shown(*((data or b"").decode() for data in await self.files(message, *HEADS)))

    async def submit(self, envelope: dsse.Envelope) -> int:
        """Hand in an entry; returns its index."""
        assert self.office.store is not None
        message = messages.Submit(run=self.office.run, statement=envelope.encode())
        assert isinstance(await self.say(message, to=wire.LEDGER), messages.Ok)
        index = self.office.store.index_of(entries.entry_id(envelope.encode()))
        assert index is not None
        return index

    async def beat(self, *, leaving: bool = False, **changes: Any) -> messages.Directive:
        report = messages.Report(state_round=0, state_root=self.root, phase="x", leaving=leaving)
        fields = {
            "run": self.office.run,
            "instance": "0" * 32,
            "seen": 0,
            "patience": 0.0,
            "report": report,
            "addresses": ["/ip4/127.0.0.1/tcp/1"],
        }
        reply = await self.say(messages.Heartbeat.model_validate(fields | changes))
        assert isinstance(reply, messages.Directive)
        return reply

    def blobs(self) -> list[bytes]:
        """The right blobs for the round under way, the one that is committed to first."""
        core = self.office.core
        shape = core.shape(len(core.state.members))
        fixed = {"round": core.state.round, "base": core.state.base, "codec": FP32}
        vector = self.vector * np.float32(1 + core.state.round)
        if not shape.slices:
            return [Header(**fixed).pack(shape.part.layout, shape.part.take(vector))]
        pieces = [Header(**fixed).pack(piece.layout, piece.take(vector)) for piece in shape.slices]
        listed = [IndexItem.of(piece) for piece in pieces]
        return [pseudogradient.pack_index(core.state.round, core.state.base, listed), *pieces]

    def blob(self) -> bytes:
        """What is committed to."""
        return self.blobs()[0]

    async def commit(self, **changes: Any) -> messages.Message:
        state = self.office.core.state
        fields = {
            "run": self.office.run,
            "round": state.round,
            "attempt": state.attempt,
            "commitment": self.commitment(content.content_id(self.blob())),
        }
        return await self.say(messages.Commit.model_validate(fields | changes))

    def commitment(self, blob: str) -> str:
        state = self.office.core.state
        return content.commitment(
            self.office.run, state.round, state.attempt, self.peer, blob, self.salt
        )

    async def put(self, data: bytes | None = None, **changes: Any) -> messages.Message:
        data = self.blob() if data is None else data
        fields = {"id": content.content_id(data), "size": len(data)}
        return await self.say(messages.Put.model_validate(fields | changes), data, to=wire.CONTENT)

    def statement(self, signer: Identity | None = None, **changes: Any) -> dsse.Envelope:
        core = self.office.core
        state, data = core.state, self.blobs()
        span = core.work.goes_on(state.round, core.ledger.state.spans.get(self.peer))
        begins = core.work.span > 0 and span is None
        tail = 0 if begins else core.ledger.state.tails.get(self.peer, 0)
        head = core.work.head(state.round, core.assigned(self.peer) or core.work.inner_steps)
        fields = {
            "round": state.round,
            "attempt": state.attempt,
            "base": state.base,
            "blob": content.content_id(data[0]),
            "size": sum(map(len, data)),
            "payload": known_by(*data[1:] or data),
            "salt": self.salt,
            "chain": content.content_id(self.rows(tail + head)),
            "hardware": HARDWARE,
            "tail": tail,
            "head": head,
            "span": state.round if begins else span or 0,
        } | changes
        fields.setdefault("tokens", core.work.tokens(fields["tail"] + fields["head"]))
        return entries.contribution(signer or self.identity, self.office.run, **fields)

    async def reveal(self, statement: bytes | None = None) -> messages.Message:
        data = self.statement().encode() if statement is None else statement
        return await self.say(messages.Reveal(run=self.office.run, statement=data))

    async def show(self) -> None:
        """Put what is not there yet, as of an attempt before, and reveal."""
        for data in self.blobs():
            if not self.office.blobs.has(content.content_id(data)):
                await self.put(data)
        if self.office.core.ledger.state.founded.audits:
            await self.put_rows()
        await self.reveal()

    def rows(self, steps: int) -> bytes:
        """Fingerprints of so many steps that it makes in this round."""
        return rows_of(f"{self.peer} {self.office.core.state.round}", steps)

    async def put_rows(self, data: bytes | None = None) -> None:
        """Put the right fingerprints, where they are not there yet, or others."""
        body = entries.decode(self.statement().encode()).body
        assert isinstance(body, entries.Contribution)
        right = self.rows(body.tail + body.head)
        if data is not None or not self.office.core.fingerprints.has(body.chain):
            await self.put(right if data is None else data, fingerprints=True)

    def slice_blob(self, number: int, scale: float = 1.0) -> bytes:
        """A result for one slice of the round that is applied; another ``scale``, another one."""
        core = self.office.core
        piece = core.shape(len(core.state.members)).slices[number]
        update = np.full(piece.parameters, scale, np.float32)
        return Header(core.state.round, core.state.base, FP32, pseudogradient.SLICE_MAGIC).pack(
            piece.layout, update
        )

    async def aggregated(
        self, number: int, data: bytes | None = None, **changes: Any
    ) -> messages.Message:
        """Say that this node combined a slice; its blob has been put."""
        core = self.office.core
        data = self.slice_blob(number) if data is None else data
        fields = {
            "round": core.state.round,
            "attempt": core.state.attempt,
            "slice": number,
            "slices": len(core.shape(len(core.state.members)).slices),
            "blob": content.content_id(data),
            "size": len(data),
        }
        signed = entries.aggregate(self.identity, self.office.run, **fields | changes)
        return await self.say(messages.Aggregated(run=self.office.run, statement=signed.encode()))

    async def combine(self, number: int, data: bytes | None = None) -> None:
        """Put a slice and say so."""
        await self.put(self.slice_blob(number) if data is None else data)
        await self.aggregated(number, data)

    async def accuse(self, number: int, blob: str) -> messages.Message:
        state = self.office.core.state
        signed = entries.slice_wrong(
            self.identity,
            self.office.run,
            round=state.round,
            attempt=state.attempt,
            slice=number,
            blob=blob,
        )
        return await self.say(messages.Accuse(run=self.office.run, statement=signed.encode()))

    async def sign_state(
        self,
        root: str,
        *,
        signer: Identity | None = None,
        round: int | None = None,
        wrong: tuple[int, ...] = (),
        accused: tuple[int, ...] | None = None,
        credits: str = "",
    ) -> messages.Message:
        """Vote for a root; ``accused`` is what it knows to be called wrong, all unless told."""
        number = self.office.core.state.round + 1 if round is None else round
        statement = entries.state_vote(
            signer or self.identity,
            self.office.run,
            round=number,
            attempt=self.office.core.state.attempt,
            root=root,
            credits=credits or self.office.credits,
            wrong=wrong,
        )
        state = self.office.core.state
        known = sorted(state.accused if accused is None else accused)
        reply = await self.say(
            messages.SignedState(
                run=self.office.run,
                statement=statement.encode(),
                accused=known,
            )
        )
        self.root = root
        return reply


FP32 = codec("fp32")
