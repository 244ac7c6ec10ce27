"""The ledger on the web: tiles, proofs, pages, and a server that does not let itself be held."""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import html
import io
import json
import re
import shlex
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.entries import Witnessed, documents, reasons
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account
from artel.ledger.fold.alias import read_table, write_table
from artel.ledger.fold.dates import Dates
from artel.ledger.fold.shares import SHARE_SCALE, shares
from artel.ledger.sync.client import home_view
from artel.ledger.sync.offline import verify
from artel.ledger.sync.serving import LedgerService
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import open_checkpoint, parse_checkpoint
from artel.ledger.tlog.cosignature import open_cosigned, witness_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import TlogProof
from artel.ledger.tlog.tiles import ENTRIES, encode_bundle, level_tiles, tiles_of
from artel.ledger.web import chart, pages, server
from artel.ledger.web.answers import body_of
from artel.ledger.web.render import date
from artel.ledger.web.server import Gate, Limits, claimed
from artel.ledger.web.site import LedgerSite
from artel.node import status
from artel.node.control import OwnerOrder
from artel.node.settings import OwnerSettings
from artel.protocol import canonical, messages
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError, Unreachable, UsageError
from artel.protocol.identity import short_peer
from artel.protocol.listing import ListingRecord
from artel.protocol.merkle import leaf_hash, root, verify_inclusion
from artel.protocol.net.doors import Directory
from artel.protocol.net.limits import network_of
from artel.protocol.net.wire import Refused
from artel.protocol.options import Endpoint
from command_world import group
from explorer_world import NASTY, TURNED, Shown, shown
from ledger_world import CREDIT, TIME, World, key
from listing_world import WAY, public_manifest, record
from log_world import replay
from page_world import Node, node_status, numbers, read, runs_ours_alone

main = group("ledger")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Shown]:
    async with shown(tmp_path) as found:
        yield found


# --- the C2SP log ---------------------------------------------------------------------------------


async def test_every_tile_and_bundle_is_the_one_that_its_entries_give(ledger: Shown) -> None:
    leaves = ledger.world.leaves
    hashes = [leaf_hash(leaf) for leaf in leaves]
    for tile in tiles_of(len(leaves)):
        span = 256**tile.level
        first = tile.index * 256
        expected = b"".join(
            root(hashes[n * span : (n + 1) * span]) for n in range(first, first + tile.width)
        )
        assert await ledger.bytes(f"/ledger/{tile.path}") == expected, tile.path
    for tile in level_tiles(ENTRIES, len(leaves)):
        expected = encode_bundle(leaves[tile.start : tile.end])
        assert await ledger.bytes(f"/ledger/{tile.path}") == expected


async def test_partial_tiles_of_older_checkpoints_are_still_there(ledger: Shown) -> None:
    leaves = ledger.world.leaves
    old = await ledger.bytes("/ledger/tile/0/000.p/7")
    assert old == b"".join(map(leaf_hash, leaves[:7]))


async def test_bundles_are_compressed_for_whoever_asks(ledger: Shown) -> None:
    size = len(ledger.world.leaves)
    path = f"/ledger/tile/entries/000.p/{size}"
    headers = {"Accept-Encoding": "gzip"}
    async with ledger.client.get(path, headers=headers) as reply:
        assert reply.headers["Content-Encoding"] == "gzip"
        assert reply.headers["Vary"] == "Accept-Encoding"
        packed = await reply.read()
    assert gzip.decompress(packed) == encode_bundle(ledger.world.leaves)
    assert len(packed) < len(encode_bundle(ledger.world.leaves))


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/001",  # outside of the tree
        "tile/0/000",  # not full yet
        "tile/0/000.p/86",
        "tile/1/000.p/1",
        "tile/entries/000.p/200",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/07",
        "tile/00/000.p/7",
        "tile/0/0",
        "tile/0/x000/000.p/7",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/000.p/7/",
        "tile/entries/../0/000.p/7x",
        "tile/" + "x999/" * 12 + "999",
        "certified",
        "leaf/85",
        "proof/85",
        "nothing",
    ],
)
async def test_what_is_outside_of_the_tree_is_not_found(ledger: Shown, path: str) -> None:
    body = json.loads(await ledger.get(f"/ledger/{path}", 404))
    assert body["error"]
    assert body["hint"]


async def test_a_tile_has_one_spelling(ledger: Shown) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ledger.client.port)
    for path, code in (("000.p/7", b"200"), ("00%30.p/7", b"404"), ("000.p/7?a", b"200")):
        writer.write(f"HEAD /ledger/tile/0/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == code, path
    writer.close()


async def test_headers_let_caches_keep_what_never_changes(tmp_path: Path) -> None:
    async with shown(tmp_path) as ledger:
        expected = {
            "/ledger/checkpoint": ("text/plain; charset=utf-8", "max-age=2"),
            "/ledger/tile/0/000.p/7": ("application/octet-stream", "max-age=86400"),
            "/ledger/leaf/3": ("application/octet-stream", "immutable"),
            "/ledger/run": ("application/json; charset=utf-8", "max-age=2"),
            "/shares": ("text/html; charset=utf-8", "no-store"),
        }
        for path, (content_type, cache) in expected.items():
            for method in ("GET", "HEAD"):
                async with ledger.client.request(method, path) as reply:
                    assert reply.status == 200
                    assert reply.headers["Content-Type"] == content_type
                    assert cache in reply.headers["Cache-Control"]
                    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
                    public = path.startswith("/ledger/")
                    allowed = reply.headers.get("Access-Control-Allow-Origin")
                    assert allowed == ("*" if public else None)


async def test_a_stranger_needs_the_tiles_alone_to_check_an_entry(ledger: Shown) -> None:
    world = ledger.world
    head = open_checkpoint(
        await ledger.get("/ledger/checkpoint"), world.origin, [world.coordinator.key]
    )
    assert head.size == len(world.leaves)
    proof = TlogProof.parse(await ledger.get("/ledger/proof/17"))
    leaf = await ledger.bytes("/ledger/leaf/17")
    assert hashlib.sha256(leaf).hexdigest() in await ledger.get("/entry/17")
    checkpoint = open_checkpoint(proof.checkpoint, world.origin, [world.coordinator.key])
    verify_inclusion(leaf_hash(leaf), 17, checkpoint.size, proof.hashes, checkpoint.root)
    with pytest.raises(CheckFailed):
        verify_inclusion(leaf_hash(leaf), 18, checkpoint.size, proof.hashes, checkpoint.root)


async def test_the_run_is_named_with_its_keys(ledger: Shown) -> None:
    run = json.loads(await ledger.get("/ledger/run"))
    world = ledger.world
    assert (run["run"], run["origin"], run["size"]) == (world.run, world.origin, len(world.leaves))
    key = VerifierKey.parse(run["vkey"])
    assert (key.name, key.public) == (world.origin, world.coordinator.public)
    assert run["accepts"] == []


async def test_final_is_what_is_certified_when_a_certified_head_covers_its_record(
    ledger: Shown,
) -> None:
    world = ledger.world
    # Entry 62 records that three accounts cosigned the first 62 entries.
    assert "final up to entry" not in await ledger.get("/shares")
    ledger.cosign(70, 0)
    await ledger.get("/ledger/certified", 404)
    ledger.cosign(70, 1)  # two accounts are asked for, but these have 4 of 7 parts of all standing
    await ledger.get("/ledger/certified", 404)
    ledger.cosign(70, 2)
    signed = await ledger.get("/ledger/certified")
    witnesses = [witness_key(member.peer_id) for member in world.members]
    log = [VerifierKey(world.origin, world.coordinator.public)]
    checkpoint, times = open_cosigned(signed, log, witnesses)
    assert (checkpoint.size, len(times)) == (70, 3)
    assert "final up to entry 61" in await ledger.get("/shares")
    for index, wait in ((61, False), (62, True)):
        pill = next(read(await ledger.get(f"/entry/{index}")).section("main").all("span"))
        assert (pill.attributes["class"] == "pill wait") == wait
    # The proof is under the certified head where there is one.
    assert TlogProof.parse(await ledger.get("/ledger/proof/69")).checkpoint == signed
    newest = TlogProof.parse(await ledger.get("/ledger/proof/70"))
    assert note.parse(newest.checkpoint).text.split("\n")[1] == str(len(world.leaves))


async def test_the_cosignature_of_a_barred_account_makes_nothing_final(ledger: Shown) -> None:
    ledger.cosign(70, 0, 1, 3)  # the fourth one has signed two histories
    await ledger.get("/ledger/certified", 404)
    assert "somebody provably signed two histories" in await ledger.get("/shares")


async def test_a_downloaded_proof_is_what_the_command_writes_and_verifies_offline(
    ledger: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home, newest = ledger.store.path.parent, len(ledger.world.leaves)

    async def same(index: int, size: int, cosigners: int) -> None:
        path = tmp_path / f"entry-{index}.tlog-proof"
        prove = ["prove", str(index), "-o", str(path)]
        assert await asyncio.to_thread(main, [*prove, "--home", str(home)]) == 0
        proof, leaf = path.read_bytes(), path.with_suffix(".json").read_bytes()
        assert await ledger.bytes(f"/ledger/proof/{index}") == proof
        assert await ledger.bytes(f"/ledger/leaf/{index}") == leaf
        url = str(ledger.client.make_url("/"))
        assert await asyncio.to_thread(main, [*prove, "--from", url]) == 0
        assert path.read_bytes() == proof
        if (beside := documents.beside(path.with_suffix(".json"))).exists():
            leaf = Leaf(leaf, beside.read_bytes())
            shown = await ledger.bytes("/ledger/" + documents.path_of(documents.document_of(leaf)))
            assert shown == leaf.document
        found = verify(proof, leaf, run=ledger.world.run)
        assert (found.index, found.checkpoint.size) == (index, size)
        assert (found.pinned, len(found.unknown_cosigners)) == (False, cosigners)
        page = html.unescape(await ledger.get(f"/entry/{index}"))
        (line,) = re.findall(r"artel (ledger verify .*)", page)
        command = shlex.split(line)
        assert ("--policy" in command) == (index == 69), "the one that is certified"
        monkeypatch.chdir(tmp_path)
        assert cli.main(command) == 0

    await same(0, newest, 0)
    await same(newest - 1, newest, 0)
    ledger.cosign(newest, 3)  # of a barred account
    await same(5, newest, 0)
    ledger.cosign(70, 0, 1, 2)
    await same(69, 70, 3)
    await same(70, newest, 0)
    ledger.cosign(newest, 1)
    await same(69, 70, 3)
    await same(70, newest, 2)  # the barred account's line stays on the note


async def test_pages_and_commands_say_the_same_of_what_is_final(
    ledger: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    newest = len(ledger.world.leaves)
    steps = ((70, ()), (70, (0,)), (70, (1, 2)), (newest, (2, 3)), (newest, (0, 1)))
    for size, members in steps:
        if members:
            ledger.cosign(size, *members)
        page = await asyncio.to_thread(ledger.site.look, lambda page: page)
        with home_view(ledger.store.path.parent) as view:
            assert page.standing["final"] == view.final_size
            assert page.standing["witnesses_wanted"] == view.needed
            assert page.finality.head == (
                parse_checkpoint(view.certified_note).size if view.certified_note else 0
            )
            assert page.trust == view.label
            if (size, members) == (newest, (2, 3)):
                assert page.finality.head == 70, "a line of a barred account hides none"
            accounts = {item.account for item in view.witnesses()}
            assert set(page.standing["witnesses"]) == (accounts or set(view.state.cosigners))
        foot = next(read(await ledger.get("/shares")).all("footer")).text
        assert page.standing["label"] in foot
        assert page.trust in foot
    assert (page.finality.head, page.standing["final"]) == (newest, 62)


async def test_names_have_one_form_over_http_and_libp2p(ledger: Shown) -> None:
    ada, bob = (owner.key for owner in ledger.world.owners[:2])
    ledger.heads.set_alias(ada, "Ada", "Engine", 1)
    ledger.heads.set_alias(bob, "Bob \u00e4", "", 1)
    served = await ledger.bytes("/ledger/aliases")
    expected = {
        ada: {"alias": "Ada", "team": "Engine"},
        bob: {"alias": "Bob \u00e4", "team": ""},
    }
    assert served == canonical.dumps(expected)
    service = LedgerService(ledger.store, ledger.heads, ledger.world.run, FoldState)
    told = _Told()
    request = messages.Get(run="", paths=["aliases"])
    await service.answer("somebody", request, told)
    assert told.data.endswith(served)
    assert read_table(json.loads(served)) == ledger.heads.aliases()


class _Told:
    """The other end of a stream; keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    async def read_exactly(self, count: int) -> bytes:
        raise Unreachable("nothing comes")

    async def write(self, data: bytes) -> None:
        self.data += data


def test_a_table_of_names_is_bounded_and_read_strictly() -> None:
    names = {f"{number:064x}": ("A" * 40, "T" * 40) for number in range(8000)}
    table = write_table(names)
    found = read_table(json.loads(table))
    assert (1 << 20) - 200 < len(table) <= 1 << 20
    assert list(found) == sorted(names)[: len(found)]
    good = {"alias": "Ada", "team": ""}
    strange = {
        "a": ["Ada", ""],
        "b": {"alias": "Ada"},
        "c": good | {"more": ""},
        "d": good | {"team": 1},
        "e": {"alias": "A" * 41, "team": ""},
        "f": "Ada",
        "g": good,
    }
    assert read_table(strange) == {"g": ("Ada", "")}
    assert read_table([strange]) == {}


# --- what may be sent -----------------------------------------------------------------------------


async def test_where_nothing_can_be_sent_the_answer_says_so(ledger: Shown) -> None:
    for path in ("submit", "alias"):
        async with ledger.client.post(f"/ledger/{path}", data=b"{}") as reply:
            assert reply.status == 404
            assert (await reply.json())["hint"]


class Clerk:
    """Takes entries as a coordinator does, or refuses as it is told to."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, str]] = []
        self.refusal: Exception | None = None

    async def submit(self, leaf: bytes, who: str) -> tuple[int, str]:
        if self.refusal is not None:
            raise self.refusal
        self.taken.append((leaf, who))
        return 7, "the note"

    async def set_alias(self, statement: bytes, who: str) -> None:
        await self.submit(statement, who)


async def test_a_submitted_entry_comes_back_with_its_place(tmp_path: Path) -> None:
    clerk = Clerk()
    async with shown(tmp_path, submit=clerk.submit, set_alias=clerk.set_alias) as ledger:
        async with ledger.client.post("/ledger/submit", data=b"leaf") as reply:
            assert reply.status == 200
            assert await reply.json() == {"index": 7, "note": "the note"}
            assert "Access-Control-Allow-Origin" not in reply.headers
        async with ledger.client.post("/ledger/alias", data=b"alias") as reply:
            assert reply.status == 200
        assert clerk.taken == [(b"leaf", "127.0.0.1"), (b"alias", "127.0.0.1")]
        run = json.loads(await ledger.get("/ledger/run"))
        assert run["accepts"] == ["submit", "alias"]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refused("no", code="wrong_signers"), 403),
        (Refused("no", code="duplicate"), 409),
        (Refused("no", code="wrong_sequence"), 409),
        (Refused("no", code="not_pending"), 400),
        (Refused("no", "later", code="busy"), 429),
        (CheckFailed("a signature does not verify"), 403),
        (DecodeError("no entry"), 400),
        (ResourceError("the disk is full"), 503),
    ],
)
async def test_each_refusal_has_its_status(tmp_path: Path, refusal: Exception, status: int) -> None:
    clerk = Clerk()
    clerk.refusal = refusal
    async with (
        shown(tmp_path, submit=clerk.submit) as ledger,
        ledger.client.post("/ledger/submit", data=b"leaf") as reply,
    ):
        assert reply.status == status
        found = await reply.json()
        assert found["error"]
        assert found["code"]
        assert ("Retry-After" in reply.headers) == (status == 429)


async def test_a_body_beyond_the_limit_is_never_handed_on(tmp_path: Path) -> None:
    clerk = Clerk()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    async with shown(tmp_path, submit=clerk.submit) as ledger:
        for body in (b"x" * 8193, chunks()):
            async with ledger.client.post("/ledger/submit", data=body) as reply:
                assert reply.status == 400
                assert "longer than 8,192 bytes" in (await reply.json())["error"]
        async with ledger.client.post("/ledger/submit", data=b"x" * 8192) as reply:
            assert reply.status == 200
    assert [len(leaf) for leaf, _ in clerk.taken] == [8192]


async def test_an_address_that_sends_too_much_has_to_wait(tmp_path: Path) -> None:
    clerk = Clerk()
    limits = Limits(posts=3, posts_per_s=0.001)
    async with shown(tmp_path, limits, submit=clerk.submit) as ledger:
        found = []
        for _ in range(5):
            async with ledger.client.post("/ledger/submit", data=b"leaf") as reply:
                found.append(reply.status)
        assert found == [200, 200, 200, 429, 429]
        await ledger.get("/shares")  # reading is not counted


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}, {"Origin": "null"}],
)
async def test_a_page_of_another_site_cannot_send_anything(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    clerk = Clerk()
    async with (
        shown(tmp_path, submit=clerk.submit) as ledger,
        ledger.client.post("/ledger/submit", data=b"x", headers=headers) as reply,
    ):
        assert reply.status == 403
    assert not clerk.taken


def test_all_addresses_of_an_ipv6_network_are_one_visitor() -> None:
    assert {network_of(f"2001:db8::{n}") for n in range(3)} == {"2001:db8::/64"}
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")


# --- the pages ------------------------------------------------------------------------------------


def links_of(page: str) -> list[str]:
    """Where a page leads to on this server, without the places on a page."""
    found = (link.partition("#")[0] for link in read(page).links)
    return [link for link in found if link.startswith("/")]


@pytest.mark.parametrize("certified", [False, True])
async def test_every_link_of_every_page_leads_somewhere(ledger: Shown, certified: bool) -> None:
    if certified:
        ledger.cosign(70, 0, 1, 2)
    waiting, seen = ["/shares", "/entries", "/round/0"], set()
    while waiting:
        path = waiting.pop()
        if path in seen or path == "/":  # the front page is the daemon's own
            continue
        seen.add(path)
        async with ledger.client.get(path) as reply:
            assert reply.status == 200, path
            if reply.content_type != "text/html":
                continue
            page = await reply.text()
        assert runs_ours_alone(read(page))
        assert " style=" not in page
        assert "javascript:" not in page
        waiting += links_of(page)
    size = len(ledger.world.leaves)
    assert {f"/entry/{index}" for index in range(size)} <= seen
    assert {f"/round/{number}" for number in range(9)} <= seen
    assert {f"/account/{owner.key}" for owner in ledger.world.owners} <= seen
    assert {"/shares.csv", "/ledger/checkpoint"} <= seen
    assert ("/ledger/certified" in seen) == certified


async def test_places_on_a_page_exist(ledger: Shown) -> None:
    for path in ("/shares", "/entry/15", "/round/3", "/entries"):
        for link in set(read(await ledger.get(path)).links):
            target, _, place = link.partition("#")
            if target and place:
                assert place in read(await ledger.get(target)).ids, (path, link)


async def test_nothing_that_anybody_writes_becomes_markup(ledger: Shown) -> None:
    owner = ledger.world.owners[0].key
    ledger.heads.set_alias(owner, NASTY, TURNED, 1)
    for path in ("/shares", f"/account/{owner}", "/entry/1", "/round/0"):
        page = await ledger.get(path)
        assert runs_ours_alone(read(page))
        assert NASTY in read(page).text
        assert not any(mark in page for mark in ("\u202e", "\u200f", "\x1b"))
    ledger.heads.forget_alias(owner)
    assert "alert(1)" not in await ledger.get("/shares")
    host = {"Host": 'x"><script>alert(2)</script>'}
    async with ledger.client.get("/entry/1", headers=host) as reply:
        assert "alert(2)" not in await reply.text()


async def test_commands_name_no_address_but_our_own(
    ledger: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = ["/dns4/run.example.org/tcp/4200/p2p/x", "/ip4/203.0.113.7/tcp/4200/p2p/x"]
    monkeypatch.setattr(ledger.site, "_info", lambda: {"addresses": announced})
    port = ledger.client.port
    for host, ours in (
        (f"127.0.0.1:{port}", True),
        (f"localhost:{port}", True),
        ("run.example.org", True),
        ("203.0.113.7:8080", True),
        (f"rebound.example:{port}", False),
        ("evil.example", False),
        ("run.example.org.evil.example", False),
        ("run.example.org@evil.example", False),
        ("203.0.113.8", False),
    ):
        for path in ("/entry/1", "/shares"):
            async with ledger.client.get(path, headers={"Host": host}) as reply:
                page = read(await reply.text()).text
            assert (f"--from http://{host}" in page) == ours, (path, host)
            assert ("--from http://HOST:PORT" in page) != ours
            assert ours or host not in page


@pytest.mark.parametrize(
    "path",
    [
        "/entry/85",
        "/entry/-1",
        "/entry/1e3",
        "/entry/%D9%A1",
        "/entry/99999999999999999999",
        "/entry/abcdef",
        "/entry/" + "0" * 63 + "g",
        "/entry/" + "ab" * 32,
        "/account/" + "ab" * 32,
        "/account/x",
        "/account/%3Cscript%3E",
        "/round/9",
        "/round/-1",
        "/round/123456789012345678",
        "/entries?kind=nothing",
        "/entries?before=x",
        "/entries?round=-1",
        "/entry/",
    ],
)
async def test_pages_that_do_not_exist_say_so(ledger: Shown, path: str) -> None:
    async with ledger.client.get(path) as reply:
        assert reply.status in (400, 404)
        assert "<script>" not in await reply.text()


async def test_an_entry_is_found_by_its_id_too(ledger: Shown) -> None:
    entry = hashlib.sha256(ledger.world.leaves[17]).hexdigest()
    for prefix in (entry, entry[:12]):
        async with ledger.client.get(f"/entry/{prefix}", allow_redirects=False) as reply:
            assert (reply.status, reply.headers["Location"]) == (302, "/entry/17")


async def test_an_account_is_found_by_the_beginning_of_its_name(ledger: Shown) -> None:
    account = ledger.world.owners[0].key
    for prefix in (account[:8], account[:12]):
        async with ledger.client.get(f"/account/{prefix}", allow_redirects=False) as reply:
            assert (reply.status, reply.headers["Location"]) == (302, f"/account/{account}")
    async with ledger.client.get(f"/account/{account[:7]}", allow_redirects=False) as reply:
        assert reply.status == 404


async def test_an_entry_page_says_what_it_did_and_how_to_check_it(ledger: Shown) -> None:
    world = ledger.world
    agreed = next(
        index
        for index, leaf in enumerate(world.leaves)
        if entries.decode(leaf).kind == "state_agreed"
    )
    page = read(await ledger.get(f"/entry/{agreed}"))
    did = page.section("did")
    assert f"128 × 100 + 128 × 100 + 128 × 100 = {3 * CREDIT:,} credit" in did.text
    assert [numbers(row["credit"]) for row in did.rows()] == [[CREDIT]] * 3
    assert "4 inner steps × 2 sequences × 16 tokens = 128 tokens" in did.text
    assert "/round/0" in did.links
    place = page.section("place").facts()
    assert place["leaf hash"].text == leaf_hash(world.leaves[agreed]).hex()
    url = f"http://127.0.0.1:{ledger.client.port}"
    size = len(world.leaves)
    for command in (
        f"artel ledger prove {agreed} --from {url}",
        f"artel ledger verify entry-{agreed}.tlog-proof entry-{agreed}.json",
        f"artel ledger audit {url}/ledger --vkey '{world.origin}+",
        f"curl -s {url}/ledger/checkpoint",
        f"curl -s {url}/ledger/tile/entries/000.p/{size}",
    ):
        assert command in page.section("verify").text, command
    late = entries_of(world, "dispute")[-1]
    ignored = read(await ledger.get(f"/entry/{late}")).section("did")
    assert next(ignored.all("code")).text == reasons.NOT_PENDING
    assert reasons.explain(reasons.NOT_PENDING) in ignored.text


async def test_signers_are_shown_with_their_roles(ledger: Shown) -> None:
    world = ledger.world

    async def roles(index: int) -> dict[str, Node]:
        rows = read(await ledger.get(f"/entry/{index}")).section("signers").rows()
        return {
            next(row["key"].all("span")).attributes["title"]: row["who that is"] for row in rows
        }

    (organiser,) = (await roles(0)).values()
    assert "organiser" in organiser.text
    former = world.owners[1].key
    assert "former" in (await roles(2))[former].text  # the key was replaced later
    for who in (await roles(entries_of(world, "ruling")[0])).values():
        assert "arbiter" in who.text
    account, peer = world.owners[0].key, world.members[0].peer_id
    bound = await roles(entries_of(world, "node")[0])
    links = [link for who in bound.values() for link in who.links]
    assert {f"/account/{account}", f"/account/{account}#{peer}"} <= set(links)


def entries_of(world: World, kind: str) -> list[int]:
    return [i for i, leaf in enumerate(world.leaves) if entries.decode(leaf).kind == kind]


async def test_an_account_page_leads_from_each_number_to_its_entries(ledger: Shown) -> None:
    state = replay(ledger.world.leaves)
    for owner in ledger.world.owners:
        account = state.accounts[owner.key]
        page = read(await ledger.get(f"/account/{owner.key}"))
        cards = page.cards()
        assert (cards["vested"], cards["pending"]) == (
            f"{account.vested:,}",
            f"{account.pending:,}",
        )
        work = page.section("work").rows()
        assert sum(numbers(row["granted"])[0] for row in work) == account.granted
        for name in ("vested", "pending", "invalidated"):
            listed = read(await ledger.get(f"/account/{owner.key}?state={name}")).section("credit")
            rows = listed.rows() if list(listed.all("table")) else []
            moved = account.sent - account.received + account.staked if name == "vested" else 0
            moved -= account.staked if name == "invalidated" else 0
            expected = getattr(account, name) + moved
            assert sum(numbers(row["credit"])[0] for row in rows) == expected, (owner.key, name)


async def test_credit_is_listed_in_pages(ledger: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 3)
    path, seen = f"/account/{ledger.world.owners[0].key}", []
    while path:
        credit = read(await ledger.get(path)).section("credit")
        seen += [row["for"].text for row in credit.rows()]
        older = [link for link in credit.links if "before=" in link]
        path = older[0] if older else ""
    whole = ledger.history.credits_of(ledger.world.owners[0].key)
    assert len(set(seen)) == len(seen) == len(whole) > 6


async def test_an_account_is_found_by_its_present_key(ledger: Shown) -> None:
    world = ledger.world
    state = replay(world.leaves)
    name = world.owners[1].key
    present = state.accounts[name].key
    assert present != name
    facts = read(await ledger.get(f"/account/{present}")).section("identity").facts()
    assert (facts["name"].text, facts["present key"].text) == (name, present)


async def test_a_round_page_tells_who_counts_and_who_was_left_out(ledger: Shown) -> None:
    world = ledger.world

    async def outcomes(path: str, attempt: int = 0) -> dict[str, Node]:
        page = read(await ledger.get(path))
        rows = page.section(f"members-{attempt}").rows()
        return {next(row["node"].all("a")).attributes["title"]: row["outcome"] for row in rows}

    *members, late = (member.peer_id for member in world.members)
    first = await outcomes("/round/0")
    assert reasons.explain(reasons.LATE) in first[late].text
    for peer in members:
        assert numbers(first[peer])[0] == CREDIT
        assert first[peer].links[0].startswith("/entry/")
    for who in (await outcomes("/round/2")).values():
        assert reasons.explain(reasons.MISSING_REVEAL) in who.text
    assert len(await outcomes("/round/2", 1)) == 4
    frozen = await outcomes("/round/3")
    ruling = entries_of(world, "ruling")[0]
    assert frozen[world.members[2].peer_id].links == [f"/entry/{ruling}"]
    now = read(await ledger.get("/round/8"))
    assert "agreed" not in now.ids
    assert "agreed" in read(await ledger.get("/round/7")).ids


async def test_shares_on_the_page_are_those_of_the_fold(ledger: Shown) -> None:
    state = replay(ledger.world.leaves)
    table = read(await ledger.get("/shares")).section("now").rows()
    assert [row["share"].text for row in table] == [f"{100 * s.share:.3f} %" for s in shares(state)]
    rows = list(csv.DictReader(io.StringIO(await ledger.get("/shares.csv"))))
    assert sum(int(row["share_units"]) for row in rows) == SHARE_SCALE
    for row in rows:
        account = state.accounts[row["account"]]
        assert int(row["vested"]) == account.vested
        assert int(row["granted"]) == account.granted
        assert int(row["as_of"]) == len(ledger.world.leaves)


async def test_entries_are_listed_in_pages_and_by_kind(ledger: Shown) -> None:
    seen: list[int] = []
    path = "/entries"
    while path:
        page = read(await ledger.get(path))
        seen += [numbers(row["entry"])[0] for row in page.rows()]
        older = [link for link in page.all("a") if link.attributes.get("rel") == "next"]
        path = older[0].attributes["href"] if older else ""
    assert seen == list(range(len(ledger.world.leaves)))[::-1]
    listed = read(await ledger.get("/entries?kind=contribution&round=2")).rows()
    assert [numbers(row["round"]) for row in listed] == [[2]] * 4


# --- while it grows -------------------------------------------------------------------------------


async def test_pages_follow_what_is_appended(ledger: Shown) -> None:
    before = await ledger.get("/shares")
    world = ledger.world
    third = world.contribution(world.members[2], 8)
    ledger.append(third)
    after = await ledger.get("/shares")
    size = len(world.leaves)
    assert f"as of checkpoint {size - 1}" in before
    assert f"as of checkpoint {size}" in after
    assert "Contribution" in await ledger.get(f"/entry/{size - 1}")


@dataclass
class Vested:
    """Twelve accounts of which each gets as much in every state."""

    state: FoldState
    first_vested: int = 0

    def vested_at(self, account: str, states: Sequence[int]) -> list[int]:
        owners = [account] if account else list(self.state.accounts)
        newest = self.state.round + 1
        held = sum(self.state.accounts[name].vested for name in owners)
        return [held // newest * (state + 1) for state in states]


def vested(states: int, *amounts: int) -> Any:
    accounts = {f"account {n}": Account("", vested=states * a) for n, a in enumerate(amounts)}
    return Vested(FoldState(states=["root"] * states, accounts=accounts))


def test_the_plot_samples_long_runs_and_names_the_largest() -> None:
    found = chart.history(vested(1000, *(100 * (n + 1) for n in range(12))))
    assert len(found.states) <= chart.SAMPLES + 1
    assert found.states[-1] == 999
    assert len(found.names) == chart.COLOURS
    assert found.names[0] == "account 11"
    assert found.names[-1] == ""
    for row in found.parts:
        assert sum(row) == pytest.approx(1)
    drawn = found.chart()
    assert drawn is not None
    assert len(drawn.areas) == chart.COLOURS
    assert "nan" not in str(drawn)
    assert chart.history(vested(1)).chart() is None
    single = chart.history(vested(1, 5)).chart()
    assert single is not None
    assert len(single.areas) == 1


# --- dates, and words that lead to pages ----------------------------------------------------------


async def test_an_entry_is_dated_by_the_first_head_over_it_that_witnesses_signed(
    ledger: Shown,
) -> None:
    dates = Dates(ledger.history)
    ((witnessed,),) = [ledger.history.chosen(kind="witnessed")]
    body = ledger.history.entry(witnessed.index).body
    assert isinstance(body, Witnessed)
    assert [dates.seen_at(index) for index in (0, body.size - 1, body.size)] == [TIME, TIME, None]
    said = f"{datetime.fromtimestamp(TIME, UTC):%Y-%m-%d %H:%M} UTC"
    assert said in read(await ledger.get("/entry/0")).section("place").facts()["seen by"].text
    rows = read(await ledger.get("/entries?before=9")).section("main").rows()
    assert {row["seen by"].text for row in rows} == {said}
    later = await ledger.get(f"/entry/{body.size}")
    assert read(later).section("place").facts()["seen by"].text == "no witness yet"


def test_a_time_that_no_calendar_has_is_not_known() -> None:
    assert [date(seconds, "%Y") for seconds in (0, 1 << 60, -(1 << 60))] == ["1970", "–", "–"]


async def test_a_word_leads_to_what_it_names(ledger: Shown) -> None:
    world, state = ledger.world, ledger.fold.state
    first, second = (owner.key for owner in world.owners[:2])
    ledger.heads.set_alias(first, "Ada <b>", "engines", 1)
    ledger.heads.set_alias(second, "Charles", "engines", 1)
    peer = world.members[2].peer_id
    entry = ledger.history.entry(17).id
    for word, place in (
        ("ada", f"/account/{first}"),
        (second[:10], f"/account/{second}"),
        (key("explorer new key").key, f"/account/{second}"),
        (peer, f"/account/{world.owners[2].key}#{peer}"),
        (short_peer(peer), f"/account/{world.owners[2].key}#{peer}"),
        (entry, "/entry/17"),
        (entry[:9].upper(), "/entry/17"),
        ("entry 3", "/entry/3"),
        ("#70", "/entry/70"),
        ("Round 5", "/round/5"),
        (state.states[4], "/round/3"),
    ):
        path = f"/search?{urlencode({'q': word})}"
        async with ledger.client.get(path, allow_redirects=False) as reply:
            assert (reply.status, reply.headers.get("Location")) == (302, place), word
    both = read(await ledger.get("/search?q=engines")).section("main")
    assert {f"/account/{first}", f"/account/{second}"} <= set(both.links)
    number = read(await ledger.get("/search?q=3")).section("main")
    assert number.links[:2] == ["/round/3", "/entry/3"]
    for word in ("", "nobody", "f" * 64, "12345678901234567", "%", "x" * 500, NASTY, TURNED):
        page = await ledger.get(f"/search?{urlencode({'q': word})}")
        assert not read(page).section("main").links
        assert "<script>alert" not in page


# --- a node's own server --------------------------------------------------------------------------


async def some_runs() -> list[ListingRecord]:
    said = int(time.time())
    nasty = public_manifest("other", description=NASTY)
    return [record(time=said), record(nasty, time=said), record(by=None, time=said)]


async def test_a_node_serves_its_status_and_the_same_ledger(tmp_path: Path) -> None:
    async with shown(tmp_path) as ledger:
        site = LedgerSite(ledger.store, ledger.heads, lambda: ledger.fold.state)
        world = ledger.world
        now = node_status(world, reason=NASTY)
        listener = server.bind()
        async with status.serving(
            tmp_path, lambda: now, site, listener, Directory(some_runs), nobody
        ) as url:
            assert await asyncio.to_thread(status.read, tmp_path) == now | {"page": url}
            async with ledger.client.session.get(f"{url}/") as reply:
                page = await reply.text()
            assert NASTY in read(page).section("now").facts()["doing"].text
            assert runs_ours_alone(read(page))
            told = read(page).section("now").facts()
            assert told["speed"].text == "12 tokens/s", "its owner is told all"
            elsewhere = {"Host": "rebound.example"}
            async with ledger.client.session.get(f"{url}/", headers=elsewhere) as reply:
                told = read(await reply.text()).section("now").facts()
            assert set(told) == {"node", "account", "doing", "coordinator"}
            for link in links_of(page):
                async with ledger.client.session.get(f"{url}{link}") as reply:
                    assert reply.status == 200, link
            async with ledger.client.session.get(f"{url}/runs") as reply:
                page = await reply.text()
            assert page.count("<section") == 2
            assert NASTY in read(page).text
            assert runs_ours_alone(read(page))
            assert f" --bootstrap {url}" in read(page).text
            async with ledger.client.session.get(f"{url}/api/v1/runs") as reply:
                rows = (await reply.json())["runs"]
            assert {row["name"] for row in rows} == {"tiny", "other"}
            async with ledger.client.session.get(f"{url}/bootstrap") as reply:
                assert await reply.text() == f"{WAY}\n"
            async with ledger.client.session.get(f"{url}/ledger/checkpoint") as reply:
                assert await reply.text() == await ledger.get("/ledger/checkpoint")
            async with ledger.client.session.get(f"{url}/metrics") as reply:
                numbers_now = (await reply.text()).splitlines()
            assert "artel_round 8.0" in numbers_now
            assert 'artel_credit{state="vested"} 100.0' in numbers_now
            assert 'artel_received_bytes_total{kind="slice"} 9.0' in numbers_now
            assert not any(line.startswith("artel_loss ") for line in numbers_now), "not known"
            port = listener.getsockname()[1]
            for asked, answer in (
                ({"Host": f"localhost:{port}"}, 200),
                ({"Host": f"[::1]:{port}"}, 200),
                ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, 200),
                ({"Host": f"rebound.example:{port}"}, 403),
                ({"Host": "127.0.0.1.rebound.example"}, 403),
                ({"Host": "203.0.113.5"}, 403),
                ({"Host": "["}, 403),
                ({"Origin": "http://rebound.example"}, 403),
                ({"Host": "rebound.example", "Origin": "http://rebound.example"}, 403),
                ({"Sec-Fetch-Site": "cross-site"}, 403),
                ({"X-Forwarded-For": "203.0.113.5"}, 403),
            ):
                for path in status.PRIVATE:
                    headers = asked | {"Accept-Encoding": "gzip"}
                    async with ledger.client.session.get(f"{url}{path}", headers=headers) as reply:
                        assert reply.status == answer, (path, asked)
                async with ledger.client.session.get(f"{url}/shares", headers=asked) as reply:
                    assert reply.status == 200, asked
    with pytest.raises(Unreachable, match="no node is running"):
        status.read(tmp_path)


async def nobody(order: OwnerOrder) -> str:
    raise AssertionError(order)


async def test_the_owner_controls_a_node_from_its_page_and_nobody_else(tmp_path: Path) -> None:
    orders: list[OwnerOrder] = []

    async def obey(order: OwnerOrder) -> str:
        if order.settings.quota == 1:
            raise UsageError(NASTY, "give it more")
        orders.append(order)
        return "done"

    async with shown(tmp_path) as ledger:
        site = LedgerSite(ledger.store, ledger.heads, lambda: ledger.fold.state)
        now = node_status(ledger.world)
        runs = Directory(some_runs)
        async with status.serving(tmp_path, lambda: now, site, server.bind(), runs, obey) as url:

            async def send(form: dict[str, str], **headers: str) -> tuple[int, str]:
                asked = {name.replace("_", "-"): said for name, said in headers.items()}
                async with ledger.client.session.post(
                    f"{url}/control", data=form, headers=asked, allow_redirects=False
                ) as reply:
                    return reply.status, await reply.text()

            async with ledger.client.session.get(f"{url}/") as reply:
                controls = read(await reply.text()).section("controls")
            fields = {one.attributes["name"] for one in controls.all("input", "select", "button")}
            assert fields == {"do", *OwnerSettings.__dataclass_fields__}
            values = {
                one.attributes["name"]: one.attributes["value"] for one in controls.all("input")
            }
            assert (await send({"do": "set", "battery": "no", **values, "uplink": "2.5"}))[0] == 303
            assert (await send({"hours": "9-12, 18-24"}, Origin=url))[0] == 303
            assert (await send({"do": "finish"}, Sec_Fetch_Site="same-origin"))[0] == 303
            assert orders == [
                OwnerOrder("set", OwnerSettings(threads=2, uplink=2.5, battery="no")),
                OwnerOrder("set", OwnerSettings(hours="9-12,18-24")),
                OwnerOrder("finish"),
            ]
            for headers in (
                {"Origin": "http://rebound.example"},
                {"Origin": "null"},
                {"Host": "rebound.example"},
                {"Host": "rebound.example", "Origin": "http://rebound.example"},
                {"Sec_Fetch_Site": "cross-site"},
                {"X_Forwarded_For": "203.0.113.5"},
            ):
                assert (await send({"paused": "true"}, **headers))[0] == 403, headers
            for form in ({"uplink": "-1"}, {"hours": "25-1"}, {"do": "dance"}, {"more": "1"}):
                code, page = await send(form)
                assert (code, "Not done" in page) == (400, True), form
            code, page = await send({"quota": "1"})
            assert code == 400
            assert NASTY in read(page).text
            assert len(orders) == 3
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("psutil.Process.uids", lambda _: SimpleNamespace(real=54321))
                assert (await send({"paused": "true"}))[0] == 403, "another user of this machine"


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port}") as found:
            server.bind("127.0.0.1", port)
    assert "--http" in found.value.hint


@pytest.mark.parametrize("given", ["8080", ":8080", "x:", "x:99999", "x:-1", "x:٣"])
def test_an_address_that_is_none_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node", "start", "--http", given]) == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


# --- what nobody may take -------------------------------------------------------------------------


class Door:
    """A gate on a real port, with handlers that wait until they are told."""

    def __init__(
        self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.gate = Gate(limits, clock)
        self.waiting = 0
        self.go = asyncio.Event()

    def application(self) -> Any:
        from aiohttp import web

        async def slow(request: web.Request) -> web.Response:
            self.waiting += 1
            await self.go.wait()
            return web.Response(text="done")

        async def quick(request: web.Request) -> web.Response:
            return web.Response(text="done")

        async def large(request: web.Request) -> web.Response:
            return web.Response(body=bytes(64 << 20))

        async def post(request: web.Request) -> web.Response:
            return web.Response(text=str(len(await body_of(request, 100))))

        app = self.gate.application()
        app.router.add_get("/slow", slow)
        app.router.add_get("/quick", quick)
        app.router.add_get("/large", large)
        app.router.add_post("/post", post)
        return app

    async def connect(
        self, visitor: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(visitor, 0))

    async def ask(self, path: str, visitor: str = "127.0.0.1") -> bytes:
        """The first line of an answer on a connection of its own; empty when it is refused."""
        reader, writer = await self.connect(visitor)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return await reader.readline()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends this connection."""
    try:
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


async def test_more_requests_than_the_cap_are_asked_to_come_back() -> None:
    door = Door(Limits(requests=3))
    async with door.gate.listening(door.application(), door.listener):
        slow = [asyncio.create_task(door.ask("/slow", f"127.0.0.{n}")) for n in range(2, 5)]
        while door.waiting < 3:
            await asyncio.sleep(0.01)
        assert b"503" in await door.ask("/quick")
        door.go.set()
        assert all(b"200" in line for line in await asyncio.gather(*slow))
        assert b"200" in await door.ask("/quick")


async def test_one_address_leaves_half_of_the_requests_to_others() -> None:
    door = Door(Limits(requests=8))
    async with door.gate.listening(door.application(), door.listener):
        greedy = [asyncio.create_task(door.ask("/slow")) for _ in range(4)]
        while door.waiting < 4:
            await asyncio.sleep(0.01)
        assert b"503" in await door.ask("/quick")
        second = [asyncio.create_task(door.ask("/slow", "127.0.0.2")) for _ in range(2)]
        while door.waiting < 6:
            await asyncio.sleep(0.01)
        assert b"503" in await door.ask("/quick", "127.0.0.2")
        assert b"200" in await door.ask("/quick", "127.0.0.3")
        door.go.set()
        assert all(b"200" in line for line in await asyncio.gather(*greedy, *second))
        assert not door.gate._active


async def test_a_slow_client_does_not_keep_its_connection() -> None:
    door = Door(Limits(first_request_s=0.3, request_s=0.6))
    async with door.gate.listening(door.application(), door.listener):
        silent, writer = await door.connect()
        half, half_writer = await door.connect()
        half_writer.write(b"GET /quick HTTP/1.1\r\nHost: ")  # and never the rest
        stuck, stuck_writer = await door.connect()
        stuck_writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")  # and never reads it all
        async with asyncio.timeout(20):
            assert await ended(silent)
            assert await ended(half)
            while door.gate._deadlines:
                await asyncio.sleep(0.05)
        for each in (writer, half_writer, stuck_writer):
            each.close()
        assert stuck
        assert b"200" in await door.ask("/quick")


async def test_answers_that_nobody_takes_are_bounded() -> None:
    door = Door(Limits(untaken_bytes=160 << 20))
    async with door.gate.listening(door.application(), door.listener):
        greedy = []

        async def begun(visitor: str) -> bytes:
            """The first line of a large answer of which no more is taken."""
            reader, writer = await door.connect(visitor)
            greedy.append(writer)
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            return await reader.readline()

        assert b"200" in await begun("127.0.0.2")
        assert b"200" in await begun("127.0.0.2")
        assert b"503" in await begun("127.0.0.2"), "it has more than a quarter of them"
        assert b"200" in await door.ask("/quick", "127.0.0.2")
        assert b"200" in await begun("127.0.0.3")
        assert b"503" in await begun("127.0.0.4"), "nothing is left"
        assert b"200" in await door.ask("/quick", "127.0.0.4")
        for writer in greedy:
            writer.transport.abort()
        async with asyncio.timeout(20):
            while b"200" not in await door.ask("/large", "127.0.0.2"):
                await asyncio.sleep(0.05)


async def test_a_body_that_never_comes_is_the_senders_fault() -> None:
    door = Door(Limits(answer_s=0.3))
    async with door.gate.listening(door.application(), door.listener):
        reader, writer = await door.connect()
        writer.write(b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nten bytes.")
        async with asyncio.timeout(20):
            assert b" 408 " in await reader.readline()
            assert await ended(reader)
        writer.close()
        assert b" 503 " in await door.ask("/slow"), "this is ours"


def test_a_start_that_fails_leaves_no_new_home(tmp_path: Path) -> None:
    home, there = tmp_path / "new", tmp_path / "there"
    there.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = [
            (Endpoint("127.0.0.1", port), []),
            (Endpoint("127.0.0.1", 0), [f"/ip4/127.0.0.1/tcp/{port}"]),
        ]
        for http, listen in busy:
            for folder in (home, there):
                with pytest.raises(ResourceError, match="in use"), claimed(folder, http, listen):
                    pass
            assert not home.exists()
    assert there.exists(), "it was somebody's before"
    with claimed(home, Endpoint("127.0.0.1", 0), []):
        pass
    assert home.exists()


async def test_one_address_cannot_take_all_connections() -> None:
    door = Door(Limits(connections=8))
    async with door.gate.listening(door.application(), door.listener):
        held = [await door.connect() for _ in range(8)]
        while len(door.gate._deadlines) < 8:
            await asyncio.sleep(0.05)
        # Those that have waited longest make room.
        for _ in range(4):
            assert b"200" in await door.ask("/quick")
        async with asyncio.timeout(20):
            assert await ended(held[0][0])
        for _, writer in held:
            writer.close()


async def test_a_burst_of_connections_stays_below_the_cap() -> None:
    door = Door(Limits(connections=16))
    async with door.gate.listening(door.application(), door.listener):
        sockets = []
        for _ in range(100):
            each = socket.socket()
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", door.port))
            sockets.append(each)
        async with asyncio.timeout(20):
            while not 0 < len(door.gate._deadlines) <= 16:
                await asyncio.sleep(0.05)
        assert b"200" in await door.ask("/quick")
        for each in sockets:
            each.close()
        assert b"200" in await door.ask("/quick")


POST = b"POST /post HTTP/1.1\r\nHost: x\r\n"
MALFORMED = {
    "no line": b"\x00\xff\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "long line": b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET /quick HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    "version": b"GET /quick HTTP/9.9\r\n\r\n",
    "address": b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    "length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc",
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_what_is_no_request_is_refused_counted_and_not_printed(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    async with door.gate.listening(door.application(), door.listener):
        reader, writer = await door.connect()
        writer.write(MALFORMED[what])
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.split()[1] == b"400"
    assert b"aiohttp" not in head
    assert b"Content-Security-Policy" in head
    assert json.loads(body)["error"]
    assert door.gate.answers == {"400": 1}
    assert [record.message for record in caplog.records] == ["web.malformed"]


async def test_a_storm_of_malformed_requests_is_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    door = Door(clock=lambda: now[0])
    async with door.gate.listening(door.application(), door.listener):
        for now[0] in (0.0, 1.0, 59.0, 61.0):
            reader, writer = await door.connect()
            writer.write(MALFORMED["no line"])
            assert await ended(reader)
            writer.close()
    assert [record.fields["times"] for record in caplog.records] == [1, 3]  # type: ignore[attr-defined]
    assert door.gate.answers == {"400": 4}


@pytest.mark.parametrize(
    "body", [b"Content-Length: 30\r\n\r\na", b"Transfer-Encoding: chunked\r\n\r\n3\r\na"]
)
async def test_whoever_goes_away_before_the_body_is_here_is_no_defect(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    async with door.gate.listening(door.application(), door.listener):
        _, writer = await door.connect()
        writer.write(POST + body)
        while not door.gate._active:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while door.gate._active:
            await asyncio.sleep(0.01)
    assert [record.message for record in caplog.records] == ["web.malformed"]


async def test_what_comes_compressed_is_not_unpacked(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    async with door.gate.listening(door.application(), door.listener):
        for packed in (b"abc", gzip.compress(bytes(1000))):
            reader, writer = await door.connect()
            length = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(packed)
            writer.write(POST + length + b"Connection: close\r\n\r\n" + packed)
            assert (await reader.read()).endswith(b"\r\n\r\n%d" % len(packed))
            writer.close()
    assert not caplog.records
