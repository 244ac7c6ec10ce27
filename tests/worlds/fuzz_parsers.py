"""Mutated inputs for every parser of the ledger, and for the codec ``sparse``.

A parser may refuse with our own error and nothing else, and what it accepts it must write again as
it was. Run alone it feeds each parser a million inputs and shows its progress and its memory:

    PYTHONPATH=tests/worlds python tests/worlds/fuzz_parsers.py
    PYTHONPATH=tests/worlds python tests/worlds/fuzz_parsers.py --inputs 20000 --parsers note,entry
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import rfc8785

from artel.ledger import entries
from artel.ledger.entries.documents import divide
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.evidence import check as check_evidence
from artel.ledger.tlog import note, tiles
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint
from artel.ledger.tlog.cosignature import (
    CosignerKey,
    open_cosigned,
    time_of,
    witness_key,
    witness_name,
)
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import TlogProof
from artel.ledger.tlog.tiles import Tile, decode_bundle, encode_bundle
from artel.protocol import canonical, dsse, messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError
from artel.protocol.exchange.codec import codec
from artel.protocol.merkle import inclusion
from artel.protocol.net import wire
from artel.protocol.state import Layout
from codec_world import vector_of
from ledger_world import World, complete, digest, key
from tlog_world import LOG, LOG_KEY, ORIGIN, cosigned, leaves_of, signed, tree_of

INPUTS = 1_000_000
MEMORY_BYTES = 24 << 20
"""What the process may grow by after the first tenth of the inputs."""
_BUNDLE = 7  # entries of the bundle that is mutated

TOKENS = (
    *(b"\n", b"\n\n", b" ", b"+", b"-", b"0", b"00", b"1e9", b"-0", b"1.0", b"NaN", b"null"),
    *(b"{}", b"[]", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xe2\x80\x94 ", b"\xc2\xa0", b"\xff"),
    *(b"\xef\xbb\xbf", b"\x00", b"=", b"==", b"A", b"9007199254740993", b"9" * 400, b"[" * 40),
    *(b"/", b"../", b".p/", b"x000/", b"tile/", b"entries", b"\x1b[2J", b"\xe2\x80\xae", b"\r\n"),
    *(b"\x93\x02", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xc4\x00", b"\x80", b"\x90", b"old "),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, (1 << 53) - 1, -(1 << 53), "", "a", "é", "\x00", "\x1b[31m"),
    *([], {}, [[]], {"": {}}, "0" * 64, "f" * 64, "G" * 64, [1, "x"], {"kind": "account"}),
)


@dataclass(frozen=True)
class Parser:
    """``parse`` reads an input and raises, or returns what writing it again gives."""

    name: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], bytes | None]
    json: bool = False  # whether inputs are (mostly) JSON, so that values can be changed too


@dataclass
class Result:
    """How many inputs were accepted, and how much the process grew."""

    accepted: int = 0
    grown: int = 0
    seconds: float = 0.0


def fuzz(
    parser: Parser, inputs: int, seed: int, progress: Callable[[int, Result], None] | None = None
) -> Result:
    """Feed ``inputs`` mutations of the seeds to a parser.

    :raises AssertionError: when it breaks its promise; the message has the input
    """
    rng = random.Random(f"{parser.name} {seed}")
    result, began, process = Result(), time.perf_counter(), psutil.Process()
    start = 0
    for number in range(inputs):
        if number == inputs // 10:
            start = process.memory_info().rss
        data = mutated(rng, parser)
        try:
            again = parser.parse(data)
        except ArtelError:
            continue
        except BaseException as error:
            raise AssertionError(f"{parser.name}: {error!r} escapes on {data!r}") from error
        if again is not None:
            assert again == data, f"{parser.name}: {data!r} is written again as {again!r}"
        result.accepted += 1
        if progress is not None and number % 10_000 == 0:
            progress(number, result)
    result.grown = max(0, process.memory_info().rss - start)
    result.seconds = time.perf_counter() - began
    return result


def mutated(rng: random.Random, parser: Parser) -> bytes:
    """A seed with one to four changes; now and then no change at all."""
    data = rng.choice(parser.seeds)
    if parser.json and rng.random() < 0.5:
        return _changed_value(rng, data)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3, 4))):
        data = _changed(rng, data, parser.seeds)
    return data


def _changed(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
    match rng.randrange(8):
        case 0:  # a bit
            at = min(at, max(0, len(data) - 1))
            return (
                data[:at]
                + bytes([byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]])
                + data[at + 1 :]
            )
        case 1:  # a byte
            return data[:at] + rng.randbytes(1) + data[at + 1 :]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at] + data[at:end] + data[at:end] + data[end:]
        case 4:
            return data[:at] + rng.choice(TOKENS) + data[at:]
        case 5:
            return data[:at] + rng.choice(TOKENS) + data[end:]
        case 6:  # the end of another one
            other = rng.choice(seeds)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case _:
            return data[:at]


def _changed_value(rng: random.Random, data: bytes) -> bytes:
    """Another value somewhere, in the right encoding, so that the schemas are reached."""
    value = json.loads(data)
    if isinstance(value, dict) and "payloadType" in value and rng.random() < 0.7:
        inner = json.loads(base64.b64decode(value["payload"]))
        value["payload"] = note.encode_base64(_dumps(_replaced(rng, inner)))
        return _dumps(value)
    return _dumps(_replaced(rng, value))


def _replaced(rng: random.Random, value: Any) -> Any:
    places: list[tuple[Any, Any]] = []
    nodes = [value]
    while nodes:
        node = nodes.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, child in list(items):
            places.append((node, name))
            if isinstance(child, (dict, list)):
                nodes.append(child)
    if not places:
        return rng.choice(VALUES)
    node, name = rng.choice(places)
    match rng.randrange(4):
        case 0 if isinstance(node, dict):
            node[rng.choice(("", "kind", "run", "more", "é", "round"))] = node.pop(name)
        case 1:
            del node[name]
        case 2:
            other, key_ = rng.choice(places)
            if isinstance(other, dict) == (key_ in other if isinstance(other, dict) else False):
                node[name] = json.loads(json.dumps(other[key_]))
        case _:
            node[name] = rng.choice(VALUES)
    return value


def _dumps(value: Any) -> bytes:
    try:
        return rfc8785.dumps(value)
    except (ValueError, UnicodeError):
        return json.dumps(value).encode()


# --- the parsers ----------------------------------------------------------------------------------


def parsers() -> list[Parser]:
    """All of them, with inputs that they accept."""
    world = World()
    facts = complete([*world.start, *world.round(0), *world.round(1)])
    owner = world.owners[0]
    tree = tree_of(leaves_of(300))
    held = [envelope.encode() for envelope in facts]
    facts += [
        world.witnessed(held),
        world.split_seen(owner, world.split_view(held[:3], held[1:9])),
        world.aggregate(1, 2),
        world.slice_wrong(world.members[0], 1, 2),
        world.agreed(2, wrong=[0, 2], credits=digest("credits")),
        world.transfer(owner, world.owners[1].key, 5),
        world.dispute(owner, digest("contribution")),
        *world.verdicts(world.members[0], digest("contribution")),
        world.ruling(digest("contribution"), "soft", world.organiser),
        world.run_closed(2, credits=digest("credits")),
        world.state_wrong(world.members[0], 1),
        world.jury_answer(world.members[1], world.state_wrong(world.members[0], 1), digest("x")),
        world.rotated(owner, key("new"), owner),
    ]
    leaves = tuple(envelope.encode() for envelope in facts)
    payloads = tuple(envelope.payload for envelope in facts)
    documents = tuple(envelope.document for envelope in facts if envelope.document)
    witnesses = [(member, witness_name(member.peer_id)) for member in world.members]
    plain = tuple(signed(tree, size) for size in (1, 7, 256, 300))
    with_lines = tuple(cosigned(text, *witnesses) for text in plain)
    notes = _bytes(*plain, *with_lines)
    bodies = _bytes(
        *(note.parse(text).text for text in plain),
        Checkpoint(ORIGIN, 0, bytes(32), ("x",)).encode(),
    )
    keys = [witness_key(member.peer_id) for member in world.members]
    proofs = _bytes(
        *(TlogProof(i, tuple(inclusion(tree, i, 300)), with_lines[3]).encode() for i in (0, 299)),
        TlogProof(5, tuple(inclusion(tree, 5, 7)), plain[1], b"extra").encode(),
    )
    views = _views(tree)
    paths = [
        tile.path for tile in (Tile(0, 0), Tile(-1, 1234067, 9), Tile(3, 1), Tile(0, 999, 255))
    ]
    return [
        Parser("note", notes, lambda data: note.parse(data).encode().encode()),
        Parser("open note", notes, lambda data: _none(note.open_note(data, [LOG_KEY]))),
        Parser("checkpoint", bodies, lambda data: _data(Checkpoint.parse(_text(data)).encode())),
        Parser(
            "open checkpoint", notes, lambda data: _none(open_checkpoint(data, ORIGIN, [LOG.key]))
        ),
        Parser(
            "verifier key",
            _bytes(LOG_KEY.encode()),
            lambda data: VerifierKey.parse(_text(data)).encode().encode(),
        ),
        Parser(
            "cosigner key",
            _bytes(keys[0].encode()),
            lambda data: CosignerKey.parse(_text(data)).encode().encode(),
        ),
        Parser("cosignatures", notes, lambda data: _cosignatures(data, keys)),
        Parser(
            "canonical JSON",
            (*payloads[1:], *leaves, b'["\xc3\xa9",-1,{"a":{}}]'),
            _canonical,
            json=True,
        ),
        Parser("canonical JSON with floats", (payloads[0], b"[1e+21,0.5,-1.5e-7]"), _with_floats),
        Parser("envelope", leaves, lambda data: dsse.decode(data).encode(), json=True),
        Parser("entry", leaves, _entry, json=True),
        Parser("document", documents, _document(world), json=True),
        Parser("tile path", _bytes(*paths), lambda data: Tile.parse(_text(data)).path.encode()),
        Parser("tile", (bytes(96),), lambda data: b"".join(tiles.decode_tile(data, 3))),
        Parser(
            "bundle",
            (encode_bundle(leaves[:_BUNDLE]), encode_bundle([b""] * _BUNDLE)),
            lambda data: encode_bundle(decode_bundle(data, _BUNDLE)),
        ),
        Parser("proof", proofs, lambda data: TlogProof.parse(data).encode().encode()),
        Parser(
            "evidence",
            tuple(canonical.dumps(view.to_dict()) for view in views),
            _evidence,
            json=True,
        ),
        Parser(
            "message",
            tuple(wire.encode(message)[4:] for message in _messages(world, plain[0])),
            lambda data: wire.encode(wire.decode(data))[4:],
        ),
        Parser("sparse payload", _sparse_payloads(), _sparse),
    ]


def _none(_result: object) -> None:
    """For what has no encoding of its own."""


def _bytes(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


def _text(data: bytes) -> str:
    """As text, whatever the bytes; surrogates included."""
    return data.decode("utf-8", "surrogateescape")


def _data(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _canonical(data: bytes) -> bytes:
    value = canonical.loads(data)
    # Whichever way the decoder took, the package that defines the form has to agree.
    assert rfc8785.dumps(value) == data
    return canonical.dumps(value)


def _with_floats(data: bytes) -> bytes:
    return canonical.dumps(canonical.loads(data, floats=True))


def _entry(data: bytes) -> bytes:
    entry = entries.decode(data)
    if not isinstance(entry.body, entries.Genesis):
        payload, document = divide(entry.body.to_dict(), entry.body.DOCUMENT)
        assert canonical.dumps(payload) == entry.envelope.payload
        assert document == entry.envelope.document
    return entry.envelope.encode()


def _document(world: World) -> Callable[[bytes], bytes]:
    """Whatever stands in a document, an entry that names it by its hash is read or refused."""
    kinds = {body.DOCUMENT[0].encode(): body for body in entries.BODIES.values() if body.DOCUMENT}
    place = {"run": world.run, "round": 1, "attempt": 0, "base": "0" * 64, "cursor": 0}
    place |= {"root": "0" * 64, "credits": "0" * 64, "wrong": [], "term": 0, "size": 1}
    place |= {"rests_on": "coordinator", "outside": ""}

    def parse(data: bytes) -> bytes:
        body = next(
            (kinds[name] for name in kinds if data.startswith(b'{"' + name)), entries.RoundClosed
        )
        said = {name: value for name, value in place.items() if name in body.model_fields}
        said |= {"kind": body.KIND, "document": hashlib.sha256(data).hexdigest()}
        made = Envelope(entries.ENTRY_TYPE, canonical.dumps(said), (), data)
        entry = entries.decode(made.encode())
        assert not entry.signers
        return entry.envelope.document

    return parse


def _cosignatures(data: bytes, keys: Sequence[CosignerKey]) -> None:
    for line in note.parse(data).signatures:
        time_of(line)
    open_cosigned(data, [LOG_KEY], keys)


def _evidence(data: bytes) -> bytes:
    view = SplitView.from_dict(canonical.loads(data))
    with suppress(ArtelError):
        check_evidence(view, [LOG_KEY])
    return canonical.dumps(view.to_dict())


def _views(tree: Any) -> list[SplitView]:
    from artel.ledger.entries.evidence import build

    other = tree_of(leaves_of(300, "other"))
    pairs = ((300, 300), (7, 300), (256, 299))
    return [build(signed(tree, a), tree, signed(other, b), other) for a, b in pairs]


SPARSE, LAYOUT = codec("sparse", 16), Layout.of([("large", (5000,)), ("small", (7,))])


def _sparse(data: bytes) -> bytes:
    return SPARSE.encode(LAYOUT, vector_of(SPARSE, LAYOUT, data))


def _sparse_payloads() -> tuple[bytes, ...]:
    vector = np.sin(np.arange(LAYOUT.parameters, dtype=np.float32) ** 2)
    few = np.where(np.arange(LAYOUT.parameters) % 999 == 0, vector, np.float32(0))
    return SPARSE.encode(LAYOUT, vector), SPARSE.encode(LAYOUT, few)


def _messages(world: World, text: str) -> list[messages.Message]:
    run, statement = world.run, world.introductions()[0].encode()
    return [
        messages.Get(run=run, paths=["checkpoint", "tile/0/000.p/7"], skip=70),
        messages.File(size=1234),
        messages.Cosigned(run=run, note=text),
        messages.Submit(run=run, statement=statement),
        messages.SetAlias(run=run, statement=statement),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cli.add_argument("--inputs", type=int, default=INPUTS, help="for each parser (default 10^6)")
    cli.add_argument("--parsers", default="", help="names, separated by commas (default: all)")
    cli.add_argument("--seed", type=int, default=1)
    options = cli.parse_args(argv)
    wanted = {name.strip() for name in options.parsers.split(",") if name.strip()}
    chosen = [parser for parser in parsers() if not wanted or parser.name in wanted]
    if unknown := wanted - {parser.name for parser in chosen}:
        cli.error(f"there is no parser {sorted(unknown)}")

    failed = 0
    for parser in chosen:

        def show(number: int, result: Result, name: str = parser.name) -> None:
            share = 100 * number // options.inputs
            print(f"\r{name:28} {share:3} %", end="", file=sys.stderr, flush=True)

        result = fuzz(parser, options.inputs, options.seed, show)
        flat = result.grown <= MEMORY_BYTES
        failed += not flat
        print(
            f"\r{parser.name:28} {options.inputs:9,} inputs, {result.accepted:9,} accepted,"
            f" {1e6 * result.seconds / options.inputs:5.0f} us each, memory +{result.grown >> 10}"
            f" KiB{'' if flat else '  NOT FLAT'}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
