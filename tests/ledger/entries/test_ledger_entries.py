"""Entries: one spelling each, bounded, and nothing but DecodeError for what is not one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger import entries
from artel.ledger.entries import decode
from artel.ledger.entries.documents import (
    MAX_DOCUMENT_BYTES,
    MissingDocument,
    attached,
    divide,
    document_of,
)
from artel.ledger.entries.kinds.handover import Sealed, handover, open_seal, seal
from artel.protocol import canonical, dsse
from artel.protocol.assignment import Work
from artel.protocol.dsse import Envelope, Leaf
from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity
from ledger_world import (
    BATCH_SIZE,
    INNER_STEPS,
    SEQ_LEN,
    TOKENS,
    World,
    complete,
    digest,
    key,
    manifest,
)

WORLD = World()


def sealed(
    nodes: Iterable[Identity], term: int = 1, size: int = 7, to: str = WORLD.coordinator.key
) -> list[Sealed]:
    """What a handover to this term lists: these nodes have sealed the one before."""
    known = {"term": term - 1, "next": to, "size": size, "root": "ab" * 32}
    said = [seal(node, WORLD.run, **known) for node in nodes]
    return [open_seal(each.encode())[1] for each in said]


A, B, _ = WORLD.members
OWNER, OTHER, _ = WORLD.owners
EARNED = WORLD.earned(A, 0)
LEAVES = [envelope.encode() for envelope in (WORLD.genesis, *WORLD.introductions())]
SAMPLES = [
    WORLD.genesis,
    *WORLD.introductions(),
    entries.admitted(WORLD.organiser, WORLD.run, OTHER.key),
    WORLD.amended(1, 0, optimizer__lr="0.001", why="it climbs"),
    *WORLD.round(0),
    WORLD.aggregate(0, 1),
    WORLD.slice_wrong(A, 0, 1),
    WORLD.rotated(OWNER, key("new key"), OWNER, recovery=entries.recovery_digest(bytes(32))),
    WORLD.run_closed(60),
    WORLD.state_wrong(A, 1),
    WORLD.jury_answer(B, WORLD.state_wrong(A, 1), digest("right 1")),
    WORLD.diverged(1, 0, {A: (5_000_000, 3_000_000), B: (10**12, 3_000_000)}),
    WORLD.rolled_back(WORLD.state_wrong(A, 1), 0),
    WORLD.state_upheld(WORLD.state_wrong(A, 1), digest("state 1")),
    WORLD.witnessed(LEAVES),
    handover(WORLD.coordinator, WORLD.run, term=1, seals=sealed([A, B])),
    *WORLD.verdicts(B, EARNED),
    WORLD.dispute(OTHER, EARNED),
    WORLD.ruling(EARNED, "soft"),
    WORLD.transfer(OWNER, OTHER.key, 7),
    WORLD.split_seen(OWNER, WORLD.split_view(LEAVES[:3], [*LEAVES[:2], b"another", b"one more"])),
]
ONE_OF_EACH = {decode(sample.encode()).kind: sample for sample in complete(SAMPLES)}
FIELDS = {kind: decode(each.encode()).body.to_dict() for kind, each in ONE_OF_EACH.items()}


def test_every_kind_decodes_to_what_was_signed() -> None:
    assert set(ONE_OF_EACH) == {"genesis", *entries.BODIES}
    for kind, envelope in ONE_OF_EACH.items():
        leaf = envelope.encode()
        entry = decode(leaf)
        assert entry.id == entries.entry_id(leaf) == hashlib.sha256(leaf).hexdigest()
        assert (entry.kind, entry.body.run) == (kind, WORLD.run)
        fields = entry.body.DOCUMENT if isinstance(entry.body, entries.Body) else ()
        payload, document = divide(entry.body.to_dict(), fields)
        assert canonical.dumps(payload) == envelope.payload
        assert document == envelope.document
        assert entry.signers >= set(envelope.signers)


def test_genesis_gives_the_rules_of_the_run() -> None:
    body = decode(WORLD.genesis.encode()).body
    assert isinstance(body, entries.Genesis)
    work = Work(60, INNER_STEPS, 0, False, BATCH_SIZE, SEQ_LEN, "auto")
    assert (body.rules.work, body.rules.total, body.name) == (work, 60, "test-run")
    assert work.tokens(work.most) == work.tokens(work.least) == TOKENS
    assert body.rules.rates == {"compute": 100, "data": 10, "audit": 100, "witness": 100}
    assert (body.rules.ownership.vesting_rounds, body.rules.witnesses) == (3, 1)
    assert body.rules.arbiters == {WORLD.organiser.key}
    assert body.rules.data is None
    assert body.organiser == WORLD.organiser.key
    assert body.coordinators == (WORLD.coordinator.key,)
    assert body.initial_state == digest("state 0")


def test_genesis_reads_what_the_organiser_wrote_about_ownership() -> None:
    arbiters = sorted(key(name).key for name in "ab")
    ownership = {"arbiters": arbiters, "arbiter_quorum": 2, "rates": {"data": 7}, "transfers": True}
    world = World(
        ownership=ownership,
        ledger={"witnesses": 4},
        contributed=[(OWNER.key, 3000), ("", 500), (OTHER.key, 1500)],
    )
    body = decode(world.genesis.encode()).body
    assert isinstance(body, entries.Genesis)
    assert body.rules.arbiters == set(arbiters)
    assert body.rules.rates == {"compute": 100, "data": 7, "audit": 100, "witness": 100}
    assert (body.rules.witnesses, body.rules.ownership.transfers) == (4, True)
    assert body.rules.data == entries.DataUse(
        seed=7,
        tokens=5000,
        shard_tokens=1024,
        seq_len=16,
        span_windows=4,
        contributed=((OWNER.key, 3000), ("", 500), (OTHER.key, 1500)),
    )


def test_one_bad_signature_leaves_no_signer() -> None:
    for kind in ("node", "state_agreed"):
        envelope = ONE_OF_EACH[kind]
        (name, good), *rest = envelope.signatures
        bad = ((name, bytes([good[0] ^ 1]) + good[1:]), *rest)
        for signatures in (bad, ()):
            assert decode(replace(envelope, signatures=signatures).encode()).signers == frozenset()


@pytest.mark.parametrize("kind", ["state_agreed", "witnessed", "handover"])
def test_one_bad_signature_in_a_document_leaves_no_signer(kind: str) -> None:
    document = ONE_OF_EACH[kind].document
    other = re.sub(rb'[0-9a-f]{8}(?=")', b"00000000", document, count=1)
    assert decode(resigned(kind, {})).signers >= {WORLD.coordinator.key}
    assert decode(resigned(kind, json.loads(other))).signers == frozenset()


def resigned(kind: str, changes: dict[str, Any]) -> bytes:
    """A sample with fields changed (or, given None, taken away), correctly signed."""
    body = FIELDS[kind] | changes
    body = {name: value for name, value in body.items() if value is not None}
    listed = [name for name in entries.BODIES[kind].DOCUMENT if name in body]
    payload, document = divide(body, listed)
    signed = dsse.sign(entries.ENTRY_TYPE, payload, WORLD.coordinator)
    return replace(signed, document=document).encode()


MEMBERS = sorted(member.peer_id for member in WORLD.members)
REJECTED = {"node": MEMBERS[0], "reason": "late"}
MEASURED = FIELDS["diverged"]["losses"]
COSIGNED = FIELDS["witnessed"]["cosignatures"]
PROOF = FIELDS["split_seen"]["evidence"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("account", {"account": None}),
        ("account", {"account": "AB" * 32}),
        ("account", {"account": "ab" * 31}),
        ("account", {"account": "ab" * 32 + "\n"}),
        ("account", {"extra": 1}),
        ("account", {"kind": "accounts"}),
        ("account", {"kind": ["account"]}),
        ("account", {"run": 7}),
        ("node", {"node": "12D3KooW" + "1" * 44}),
        ("node", {"node": MEMBERS[0] + "1"}),
        # base58 decoders strip white space; a node must not have two names.
        *(("node", {"node": MEMBERS[0] + space}) for space in " \n\t\r"),
        ("node", {"node": " " + MEMBERS[0]}),
        ("node", {"seq": 0}),
        ("account", {"recovery": "ab"}),
        ("account", {"recovery": None}),
        ("key_rotated", {"seq": 0}),
        ("key_rotated", {"key": ""}),
        ("run_closed", {"closing": 0}),
        ("run_closed", {"closing": 3}),
        ("run_closed", {"closing": True}),
        ("run_closed", {"round": 0}),
        ("state_wrong", {"state": 0}),
        ("state_wrong", {"root": ""}),
        ("jury_answer", {"charge": "ab"}),
        ("diverged", {"state": 0}),
        ("diverged", {"losses": []}),
        ("diverged", {"losses": MEASURED[::-1]}),
        ("diverged", {"losses": [MEASURED[0], MEASURED[0]]}),
        ("diverged", {"losses": [MEASURED[0] | {"loss": 10**12 + 1}]}),
        ("diverged", {"losses": [MEASURED[0] | {"better": -1}]}),
        ("diverged", {"losses": [MEASURED[0] | {"loss": "3"}]}),
        ("rolled_back", {"state": -1}),
        ("witnessed", {"size": 0}),
        ("witnessed", {"cosignatures": []}),
        ("witnessed", {"cosignatures": COSIGNED[::-1]}),
        ("witnessed", {"cosignatures": [COSIGNED[0], COSIGNED[0]]}),
        ("witnessed", {"cosignatures": [COSIGNED[0] | {"time": -1}]}),
        ("witnessed", {"cosignatures": [COSIGNED[0] | {"signature": "ab"}]}),
        ("verdict", {"verdict": "perhaps"}),
        ("verdict", {"error": -1}),
        ("verdict", {"overlap": 1_000_001}),
        ("verdict", {"hardware": "two\nlines"}),
        ("verdict", {"rows": "none"}),
        ("verdict", {"differs_step": -1}),
        ("verdict_committed", {"hash": "ab"}),
        ("dispute", {"reason": "Because it is wrong"}),
        ("dispute", {"contribution": ""}),
        ("ruling", {"decision": "accept"}),
        ("transfer", {"amount": 0}),
        ("transfer", {"amount": -1}),
        ("transfer", {"seq": None}),
        ("split_seen", {"evidence": {}}),
        ("split_seen", {"evidence": PROOF | {"index": -1}}),
        ("split_seen", {"evidence": PROOF | {"note": "x"}}),
        ("split_seen", {"evidence": PROOF | {"first": PROOF["second"], "second": PROOF["first"]}}),
        ("round_opened", {"round": -1}),
        ("round_opened", {"round": "1"}),
        ("round_opened", {"round": True}),
        ("round_opened", {"members": []}),
        ("round_opened", {"members": MEMBERS[::-1]}),
        ("round_opened", {"members": [MEMBERS[0], MEMBERS[0]]}),
        ("round_opened", {"members": {}}),
        ("round_opened", {"members": "abc"}),
        ("round_opened", {"steps": None}),
        ("round_opened", {"steps": [4, 4]}),
        ("round_opened", {"steps": [4, 4, 4, 4]}),
        ("round_opened", {"steps": [4, 4, 0]}),
        ("round_opened", {"steps": [4, 4, True]}),
        ("round_opened", {"steps": [4, 4, "4"]}),
        ("round_committed", {"commitments": {MEMBERS[0]: "ab"}}),
        ("round_committed", {"commitments": {"nobody": "ab" * 32}}),
        ("round_committed", {"commitments": []}),
        ("contribution", {"tokens": 0}),
        ("contribution", {"size": 0}),
        ("contribution", {"salt": "ab" * 16}),
        ("contribution", {"head": 0}),
        ("contribution", {"head": None}),
        ("contribution", {"tail": -1}),
        ("contribution", {"tail": None}),
        ("contribution", {"up": -1}),
        ("aggregate", {"slice": -1}),
        ("aggregate", {"slice": 1024}),
        ("aggregate", {"slice": True}),
        ("aggregate", {"slices": 0}),
        ("aggregate", {"slices": 1025}),
        ("aggregate", {"size": 0}),
        ("aggregate", {"blob": ""}),
        ("slice_wrong", {"slice": 1024}),
        ("slice_wrong", {"blob": "x"}),
        ("slice_wrong", {"node": ""}),
        ("round_closed", {"accepted": [{"node": MEMBERS[0], "weight": 1}]}),
        ("round_closed", {"rejected": [REJECTED, REJECTED]}),
        ("round_closed", {"rejected": [REJECTED | {"reason": "\x1b[2J"}]}),
        ("round_closed", {"rejected": [REJECTED | {"note": "x"}]}),
        ("state_agreed", {"round": 0}),
        ("state_agreed", {"root": ""}),
        ("state_agreed", {"credits": ""}),
        ("state_agreed", {"wrong": None}),
        ("state_agreed", {"wrong": [1, 0]}),
        ("state_agreed", {"wrong": [1, 1]}),
        ("state_agreed", {"wrong": [-1]}),
        ("state_agreed", {"wrong": [True]}),
        ("state_agreed", {"wrong": 1}),
        ("state_agreed", {"wrong": list(range(1025))}),
        ("state_agreed", {"signatures": []}),
        ("state_agreed", {"signatures": {"nobody": "ab" * 64}}),
        ("state_agreed", {"signatures": {MEMBERS[0]: "ab" * 63}}),
        ("state_agreed", {"signatures": None}),
    ],
)
def test_bodies_that_break_the_schema_are_refused(kind: str, changes: dict[str, Any]) -> None:
    assert decode(resigned(kind, {})).kind == kind
    with pytest.raises(DecodeError, match="entry"):
        decode(resigned(kind, changes))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"7",
        b'"account"',
        b'{"kind":"account"}',
        ONE_OF_EACH["account"].payload.replace(b":", b": ", 1),
        ONE_OF_EACH["account"].payload.replace(b"{", b'{"account":"","account":', 1),
        ONE_OF_EACH["round_opened"].payload.replace(b'"round":0', b'"round":0.5'),
        ONE_OF_EACH["round_opened"].payload.replace(b'"round":0', b'"round":-0'),
        ONE_OF_EACH["round_opened"].payload.replace(b'"round":0', b'"round":9007199254740993'),
        ONE_OF_EACH["round_opened"].payload.replace(b'"round":0', b'"round":NaN'),
        b"[" * 2000 + b"]" * 2000,
    ],
)
def test_other_spellings_of_a_payload_are_refused(payload: bytes) -> None:
    envelope = Envelope(entries.ENTRY_TYPE, payload, ONE_OF_EACH["account"].signatures)
    with pytest.raises(DecodeError):
        decode(envelope.encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"organiser": "x"},
        {"coordinators": []},
        {"coordinators": "ab" * 32},
        {"initial_state": None},
        {"config": []},
        {"config": {}},
        {"config": {"rounds": {"inner_steps": 0}}},
        {"config": {"rounds": "many", "run": "mine"}},
        {"config": manifest(key("a"), key("b"))["config"] | {"data": {"seq_len": True}}},
        {"config": manifest(key("a"), key("b"))["config"] | {"data": {"seq_len": 2**50}}},
        *(
            {"config": manifest(key("a"), key("b"), exchange=exchange)["config"]}
            for exchange in (
                {"overlap_steps": -1},
                {"overlap_steps": True},
                {"overlap_steps": 1.5},
                {"topology": "star"},
                {"topology": 1},
            )
        ),
        {"config": manifest(key("a"), key("b"), rounds={"box_s": "long"})["config"]},
        {"config": manifest(key("a"), key("b"), rounds={"box_s": True})["config"]},
        {"config": manifest(key("a"), key("b"), rounds={"inner_steps": 2**48})["config"]},
        {"config": manifest(key("a"), key("b"))["config"] | {"ownership": []}},
        {"config": manifest(key("a"), key("b"))["config"] | {"ownership": {"rate": 1}}},
        {"config": manifest(key("a"), key("b"))["config"] | {"ownership": {"rates": {"data": -1}}}},
        {"config": manifest(key("a"), key("b"))["config"] | {"ownership": {"arbiter_quorum": 2}}},
        {"config": manifest(key("a"), key("b"))["config"] | {"ledger": {"witnesses": 25}}},
        {"data": {"train": {"tokens": 10}, "contributed": [{"account": "", "tokens": 9}]}},
        {"data": {"train": {"tokens": 10}, "contributed": [{"account": "x", "tokens": 10}]}},
        {"data": {"contributed": [{"account": "", "tokens": 10}]}},
        {"data": {"train": {"tokens": 10}, "contributed": False}},
    ],
)
def test_a_manifest_without_the_ledger_rules_is_refused(changes: dict[str, Any]) -> None:
    organiser = key("organiser")
    body = manifest(organiser, key("coordinator")) | changes
    with pytest.raises(DecodeError, match="genesis"):
        decode(dsse.sign(entries.MANIFEST_TYPE, body, organiser).encode())


def test_a_run_without_a_name_has_an_empty_one() -> None:
    body = manifest(WORLD.organiser, WORLD.coordinator)
    body["config"]["run"] = "nameless"
    entry = decode(dsse.sign(entries.MANIFEST_TYPE, body, WORLD.organiser).encode())
    assert isinstance(entry.body, entries.Genesis)
    assert entry.body.name == ""


def test_oversized_and_foreign_leaves_are_refused() -> None:
    with pytest.raises(DecodeError, match="8192"):
        decode(b" " * 8193)
    with pytest.raises(DecodeError, match="not a type"):
        decode(dsse.sign("application/x", {"kind": "account"}, key("a")).encode())


def test_as_many_members_as_are_allowed_fit_into_entries_and_documents() -> None:
    """With names and numbers at their longest."""
    members = [Identity.from_seed(i.to_bytes(32, "big")) for i in range(entries.MAX_MEMBERS)]
    world = World()
    world.members = members
    many, last = 2**53 - 1, 2**53 - 2
    names = [m.peer_id for m in members]
    accepted = [entries.Accepted(node=peer, entry="ab" * 32, weight=many) for peer in names]
    rejected = dict.fromkeys(names, "commitment_mismatch")
    sizes = {
        "opened": world.opened(last, last, steps=dict.fromkeys(names, 40_000), cursor=many),
        "committed": world.committed(last, last),
        "accepted": entries.round_closed(
            world.coordinator, world.run, round=last, attempt=last, accepted=accepted
        ),
        "rejected": world.closed(last, last, accepted=[], rejected=rejected),
        "agreed": world.agreed(many, wrong=range(1024), credits=digest("credits")),
        "witnessed": WORLD.witnessed(LEAVES, members, time=2**53 - 1),
        "handover": handover(
            world.coordinator,
            world.run,
            term=many,
            seals=sealed(members, many, many, world.coordinator.key),
        ),
        "aggregate": world.aggregate(last, 1023, last, slices=1024, size=many, by=members[0]),
        "wrong": world.slice_wrong(members[0], last, 1023, last),
        "contribution": world.contribution(
            members[0],
            last,
            last,
            size=many,
            head=40_000,
            tail=20_000,
            hardware="h" * 64,
            up=many,
            down=many,
        ),
    }
    found = {name: len(envelope.encode()) for name, envelope in sizes.items()}
    for envelope in sizes.values():
        assert decode(envelope.encode()).signers
    assert found.pop("agreed") <= 6200, "of 8,192: each slice has a number there"
    assert max(found.values()) <= 1320
    assert found["aggregate"] + found["wrong"] + found["contribution"] < 3020  # many of these
    assert max(len(envelope.document) for envelope in sizes.values()) < MAX_DOCUMENT_BYTES // 3


# --- documents ------------------------------------------------------------------------------------

LISTED = sorted(kind for kind, body in entries.BODIES.items() if body.DOCUMENT)


@pytest.mark.parametrize("kind", LISTED)
def test_an_entry_is_nothing_without_the_document_that_it_names(kind: str) -> None:
    envelope = ONE_OF_EACH[kind]
    leaf = envelope.encode()
    name = hashlib.sha256(envelope.document).hexdigest()
    assert document_of(leaf) == json.loads(envelope.payload)["document"] == name
    with pytest.raises(MissingDocument, match=name):
        decode(bytes(leaf))
    assert decode(next(attached([bytes(leaf)], {name: envelope.document}.__getitem__))).id == (
        entries.entry_id(leaf)
    )
    for other in (envelope.document + b" ", b"{}", ONE_OF_EACH["account"].payload):
        with pytest.raises(DecodeError, match="another"):
            decode(Leaf(leaf, other))


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"{}",
        b"\xff",
        b'{"commitments":{},"round":0}',
        b'{"commitments":{},"kind":"round_committed"}',
        b'{"commitments": {}}',
        b'{"commitments":{},"more":1}',
        b'{"commitments":{"' + MEMBERS[0].encode() + b'":1.5}}',
        b'{"commitments":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"commitments":"' + b"x" * MAX_DOCUMENT_BYTES + b'"}',
    ],
)
def test_documents_that_break_the_schema_are_refused(document: bytes) -> None:
    body = {name: FIELDS["round_committed"][name] for name in ("kind", "run", "round", "attempt")}
    body["document"] = hashlib.sha256(document).hexdigest()
    signed = dsse.sign(entries.ENTRY_TYPE, body, WORLD.coordinator)
    with pytest.raises(DecodeError):
        decode(replace(signed, document=document).encode())


def test_a_list_is_not_both_in_the_entry_and_in_its_document() -> None:
    body = json.loads(ONE_OF_EACH["round_committed"].payload) | {"commitments": {}}
    signed = dsse.sign(entries.ENTRY_TYPE, body, WORLD.coordinator)
    with pytest.raises(DecodeError):
        decode(replace(signed, document=ONE_OF_EACH["round_committed"].document).encode())


@pytest.mark.parametrize("name", ["", "ab", "AB" * 32, 7, None, ["ab" * 32]])
def test_what_names_no_document(name: Any) -> None:
    body = json.loads(ONE_OF_EACH["round_committed"].payload) | {"document": name}
    signed = dsse.sign(entries.ENTRY_TYPE, body, WORLD.coordinator)
    assert document_of(signed.encode()) == ""
    with pytest.raises(DecodeError, match="document"):
        decode(replace(signed, document=ONE_OF_EACH["round_committed"].document).encode())


def test_what_names_a_document_is_found_without_an_error() -> None:
    for kind, envelope in ONE_OF_EACH.items():
        assert bool(document_of(envelope.encode())) == (kind in LISTED)
    for data in (b"", b'{"payload":"', b'{"payload":"!"', b'{"payload":"eyJk"}', b"\xff" * 99):
        assert document_of(data) == ""


def test_constructors_refuse_what_would_not_decode() -> None:
    with pytest.raises(DecodeError):
        WORLD.opened(0, members=[])
    with pytest.raises(DecodeError):
        WORLD.contribution(WORLD.members[0], 0, salt=b"short")
    peers = [Identity.from_seed(i.to_bytes(32, "big")).peer_id for i in range(1025)]
    accepted = [entries.Accepted(node=n, entry="ab" * 32, weight=1) for n in peers]
    with pytest.raises(DecodeError, match="accepted"):
        entries.round_closed(WORLD.coordinator, WORLD.run, round=0, attempt=0, accepted=accepted)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_only_decode_errors(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(entries.BODIES)), st.data())
def test_any_json_in_any_field_gives_an_entry_or_a_decode_error(
    kind: str, data: st.DataObject
) -> None:
    body = FIELDS[kind].copy()
    field = data.draw(st.sampled_from(sorted(body)))
    body[field] = data.draw(JSON)
    payload: Any = None
    with contextlib.suppress(DecodeError):
        payload, document = divide(body, entries.BODIES[kind].DOCUMENT)
    leaf = canonical_leaf(entries.ENTRY_TYPE, payload)
    if leaf is None or payload is None:
        return
    try:
        entry = decode(Leaf(leaf, document))
    except DecodeError:
        return
    assert entry.envelope.encode() == leaf
    assert entry.body.to_dict() == body


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(manifest(key("a"), key("b")))), JSON))
def test_any_manifest_gives_a_genesis_or_a_decode_error(changes: dict[str, Any]) -> None:
    leaf = canonical_leaf(
        entries.MANIFEST_TYPE, manifest(WORLD.organiser, WORLD.coordinator) | changes
    )
    if leaf is None:
        return
    try:
        body = decode(leaf).body
    except DecodeError:
        return
    assert isinstance(body, entries.Genesis)
    assert isinstance(body.name, str)


def canonical_leaf(payload_type: str, body: Any) -> bytes | None:
    """An envelope (with a signature that does not verify) around ``body``, if it has a form."""
    try:
        payload = canonical.dumps(body)
    except DecodeError:
        return None
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": "ab" * 32, "sig": base64.b64encode(bytes(64)).decode()}],
    }
    return canonical.dumps(envelope)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ONE_OF_EACH)), st.integers(0, 5000), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_loses_the_signers(kind: str, offset: int, bit: int) -> None:
    leaf = bytearray(ONE_OF_EACH[kind].encode())
    leaf[offset % len(leaf)] ^= 1 << bit
    with contextlib.suppress(DecodeError):
        flipped = Leaf(bytes(leaf), ONE_OF_EACH[kind].document)
        assert decode(flipped).signers == frozenset()
