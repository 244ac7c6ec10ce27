"""The coordinator's API and page, on a real ledger of a small run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from artel.coordinator import api, page
from artel.coordinator.metrics import MemberMetrics, Metrics, Numbers
from artel.coordinator.service import Coordinator
from artel.coordinator.web import RunPage
from artel.ledger.entries import reasons
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.cosignature import add_lines, open_cosigned, witness_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.web import exposition
from artel.ledger.web.chart import SAMPLES
from artel.ledger.web.lists import teams
from artel.ledger.web.server import Gate
from artel.protocol.identity import Identity
from artel.protocol.manifest import Manifest
from artel.protocol.messages import MAX_LOSS, Cosigned, Kind, Report
from ledger_world import CREDIT, TOKENS, World, digest
from page_world import Node, read, runs_ours_alone
from run_page_world import INVITE, NASTY, connect, coordinating, one_round, published


@pytest.fixture
def world() -> World:
    return World(name="web")


@pytest.fixture
async def core(world: World, tmp_path: Path) -> AsyncIterator[Coordinator]:
    """A coordinator in its second round of five, the first one with a late node."""
    manifest, metrics = published(world), numbers(tmp_path, world.members[2].peer_id)
    async with coordinating(world, manifest, tmp_path, one_round(world), metrics) as core:
        yield core


def numbers(folder: Path, late: str) -> Metrics:
    metrics = Metrics(folder / "metrics.jsonl")
    first = metrics.of(0)
    first.members, first.accepted, first.left_out = 3, 2, {"late": 1}
    first.loss, first.validation = 6.1, 6.9
    first.seconds = {"training": 8.0, "revealing": 0.25, "applying": 0.5}
    first.steps, first.tokens, first.computing = (4, 32), 1234, 0.94
    first.up, first.down = {"contribution": 20_000, "control": 4000}, {"slice": 3000}
    first.by_member = MemberMetrics(
        rejected={late: "late"},
        traffic={
            late: {"up": {"control": 1000, "contribution": 20_000}, "down": {"slice": 3000}},
            "b": {"up": {"control": 3000}, "down": {}},
        },
    )
    metrics.of(1).validation = 5.75
    return metrics


@pytest.fixture
async def client(core: Coordinator) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(RunPage(core, INVITE).application(Gate()))) as client:
        yield client


Client = TestClient[web.Request, web.Application]


async def get(client: Client, path: str, status: int = 200) -> dict[str, Any]:
    reply = await client.get(path)
    assert reply.status == status, await reply.text()
    value = await reply.json()
    assert isinstance(value, dict)
    return value


async def test_the_run_is_described_by_its_whole_manifest(
    client: Client, core: Coordinator, world: World
) -> None:
    run = await get(client, "/api/v1/run")
    assert run["run"] == world.run
    assert run["organiser"] == world.organiser.key
    assert run["invite"] == INVITE
    assert run["tokens_per_node_and_round"] == TOKENS
    assert run["exchange"]["overlap"] == "none: nodes wait for the exchange"
    # Whoever reads it here can compute the run id again.
    assert Manifest.model_validate_json(json.dumps(run["manifest"])) == core.manifest


async def test_the_status_shows_round_nodes_and_ledger(
    client: Client, core: Coordinator, world: World
) -> None:
    connect(core, world.members[0].peer_id)
    status = await get(client, "/api/v1/status")
    assert (status["phase"], status["round"], status["total"]) == ("waiting", 1, 5)
    assert status["waiting_for"] == 3
    assert status["state_root"] == digest("state 1")
    assert status["ledger"]["size"] == core.ledger.store.size
    assert status["ledger"]["root"] == core.ledger.store.root.hex()
    assert status["validation"] == {
        "first": {"round": 0, "loss": 6.9},
        "last": {"round": 1, "loss": 5.75},
    }
    assert status["last_round"]["overhead_s"] == 0.75
    assert status["last_round"]["rejected"] == {world.members[2].peer_id: "late"}
    (node,) = status["nodes"]
    assert node["account"] == world.owners[0].key
    assert (node["step"], node["steps"], node["heard_s"]) == (3, 4, 1.5)
    assert (node["bytes_up"], node["tokens"], node["credit"]) == (5_000_000, TOKENS, CREDIT)
    assert node["up_by_kind"] == {"contribution": 4_000_000, "control": 1_000_000}
    assert node["computing"] == 0.9, "what its trainer does, not what it waits for"
    assert (node["round_up"], node["round_down"], node["assigned"]) == (None, None, 0)
    assert status["last_round"]["up"] == {"contribution": 20_000, "control": 4000}
    assert status["last_round"]["down"] == {"slice": 3000}
    assert status["last_round"]["computing"] == pytest.approx(0.94)
    assert status["last_round"]["tokens"] == 1234


async def test_a_node_shows_what_it_carried_in_the_last_round(
    client: Client, core: Coordinator, world: World
) -> None:
    connect(core, world.members[2].peer_id)
    (node,) = (await get(client, "/api/v1/status"))["nodes"]
    assert (node["round_up"], node["round_down"]) == (21_000, 3000)


async def test_shares_add_up_to_exactly_one_and_name_their_checkpoint(
    client: Client, core: Coordinator, world: World
) -> None:
    table = await get(client, "/api/v1/shares")
    assert sum(row["share"] for row in table["shares"]) == 1
    rows = {row["account"]: row for row in table["shares"]}
    first, second, late = (owner.key for owner in world.owners)
    assert {name for name, row in rows.items() if row["share"]} == {first, second}
    assert (rows[first]["vested"], rows[first]["pending"]) == (CREDIT, 0)
    # Who has nothing yet is told why.
    assert (rows[late]["granted"], rows[late]["left_out"]) == (0, {"late": 1})
    assert table["as_of"] == core.ledger.store.size
    assert table["final"] == 0
    assert "pending" in table["label"]


async def test_cosignatures_make_the_ledger_final_on_every_display(
    client: Client, core: Coordinator, world: World
) -> None:
    store = core.ledger.store

    async def cosigned(*members: Identity) -> dict[str, Any]:
        """What is said of the ledger once these have cosigned the newest head."""
        head = world.head(list(store.leaves()))
        for member in members:
            text = with_log_line(world, member, store.latest_note, head)
            await core.witnessing.take(member.peer_id, Cosigned(run=world.run, note=text))
        found: dict[str, Any] = (await get(client, "/api/v1/status"))["ledger"]
        return found

    # The manifest asks for one account, and both that have made the first state are electors.
    size, (first, second, _) = store.size, world.members
    assert (await cosigned(first))["certified_head"] == 0
    assert (await cosigned(second))["certified_head"] == size
    statement = core.witnessing.statement()
    assert statement is not None
    await core.ledger.append(statement)
    ledger = await cosigned(first)
    assert (ledger["certified_head"], ledger["final"]) == (size, 0)
    ledger = await cosigned(second)
    assert (ledger["certified_head"], ledger["final"], ledger["witnesses"]) == (size + 1, size, 2)
    assert (await get(client, "/api/v1/shares"))["final"] == size
    page = await page_of(client)
    assert (await get(client, "/api/v1/shares"))["label"] in page.section("shares").text
    assert "/ledger/certified" in page.links
    entry = read(await (await client.get("/entry/3")).text())
    assert next(entry.section("main").all("span")).attributes["class"] == "pill"
    for path in ("/ledger/certified", "/ledger/checkpoint"):
        signed = await (await client.get(path)).text()
        keys = [VerifierKey(origin_of(world.run), world.coordinator.public)]
        witnesses = [witness_key(member.peer_id) for member in (first, second)]
        checkpoint, times = open_cosigned(signed, keys, witnesses)
        assert (checkpoint.size, len(times)) == (size + 1, 2)


def with_log_line(world: World, member: Identity, signed: str, head: Checkpoint) -> str:
    """The log's note, with a member's cosignature."""
    line = note.parse(world.cosigned(member, head, time=1_700_000_000)).signatures
    return add_lines(note.parse(signed), line).encode()


async def test_the_page_of_a_round_that_is_to_be_opened_is_there(client: Client) -> None:
    reply = await client.get("/round/1")
    assert reply.status == 200, await reply.text()
    assert (await client.get("/round/2")).status == 404


async def test_rounds_are_limited_to_the_newest(client: Client) -> None:
    both = await get(client, "/api/v1/rounds")
    assert [row["round"] for row in both["rounds"]] == [0, 1]
    newest = await get(client, "/api/v1/rounds?last=1")
    assert [row["round"] for row in newest["rounds"]] == [1]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/rounds?last=0",
        "/api/v1/rounds?last=1001",
        "/api/v1/rounds?last=-1",
        "/api/v1/rounds?last=",
        "/api/v1/rounds?last=1&last=2",
        "/api/v1/rounds?last=%D9%A1",
        "/api/v1/rounds?last=1e3",
        "/api/v1/rounds?last=%00",
    ],
)
async def test_numbers_out_of_bounds_are_refused(client: Client, path: str) -> None:
    error = await get(client, path, 400)
    assert "is not a whole number" in error["error"]
    assert error["hint"]


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api", "/../etc/passwd", "/%2e%2e/x"])
async def test_unknown_paths_are_not_found(client: Client, path: str) -> None:
    assert "nothing here" in (await get(client, path, 404))["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_only_reading_is_possible(client: Client, method: str) -> None:
    reply = await client.request(method, "/api/v1/status", data=b"x" * 10_000)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"
    assert (await reply.json())["hint"] == "use GET"


async def test_a_defect_is_told_to_the_operator_and_not_to_the_visitor(
    client: Client, core: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    core.metrics = cast(Metrics, None)
    error = await get(client, "/api/v1/rounds", 500)
    assert error == {"error": "this page is broken", "hint": "tell the organiser"}
    assert "AttributeError" in caplog.text


async def test_the_page_shows_what_the_api_says(
    client: Client, core: Coordinator, world: World
) -> None:
    connect(core, world.members[0].peer_id)
    page = await page_of(client)
    cards = page.cards()
    assert (cards["validation loss"], cards["nodes computing"]) == ("5.750", "94.0 %")
    assert cards["ledger entries"] == str(core.ledger.store.size)
    (node,) = page.section("nodes").rows()
    assert (node["tokens/s"].text, node["sent"].text, node["computing"].text) == (
        *("1,234", "5.00 MB", "90.0 %"),
    )
    assert next(node["sent"].all("span")).attributes["title"] == (
        "contribution 4.00 MB, control 1.00 MB"
    )
    (row,) = page.section("rounds").rows()
    assert (row["steps each"].text, row["sent / node"].text) == ("4 to 32", "7,999 B")
    assert row["left out"].text == "1 late"
    told = list(row["left out"].all("span"))[-1].attributes["title"]
    assert told == reasons.explain(reasons.LATE)
    shares = page.section("shares").rows()
    assert [row["place"].text for row in shares] == ["1", "2", "3"]
    assert [row["share"].text for row in shares] == ["50.000 %", "50.000 %", "0.000 %"]
    exchange = page.section("exchange").facts()
    run = await get(client, "/api/v1/run")
    assert {name: exchange[name].text for name in run["exchange"]} == run["exchange"]
    assert exchange["sent in the last round"].text.startswith("0.02 MB")
    assert INVITE in page.section("join").text
    for target in ("/shares", "/entries", "/round/0", f"/account/{world.owners[0].key}"):
        assert target in page.links, target
    (timed, *_) = page.section("timeline").rows()
    assert (timed["accepted"].text, timed["left out"].text) == (
        "2 of 3",
        f"1 node: {reasons.explain(reasons.LATE)}",
    )
    assert "no verdict yet" in page.section("verdicts").text
    assert "nobody can change" in page.section("health").text
    drawn = page.section("loss")
    assert len(list(drawn.all("polyline"))) == 2


async def page_of(client: Client) -> Node:
    return read(await (await client.get("/")).text())


async def test_nothing_that_a_peer_or_organiser_writes_becomes_markup(
    client: Client, core: Coordinator, world: World
) -> None:
    connect(core, world.members[0].peer_id, phase="<img/src=x onerror=1"[:20])
    core.metrics.of(0).left_out = {NASTY: 1}
    core.metrics.of(0).up = core.metrics.of(0).down = {NASTY: 5}
    report = core.peers[world.members[0].peer_id].report
    core.peers[world.members[0].peer_id].report = report.model_copy(
        update={"up_by_kind": {NASTY: 7}, "down_by_kind": {NASTY: 7}}
    )
    page = await page_of(client)
    assert not list(page.all("img"))
    assert runs_ours_alone(page)
    assert NASTY in next(page.all("header")).text
    (node,) = page.section("nodes").rows()
    assert node["doing"].text.startswith("<img/src=x")
    assert next(node["sent"].all("span")).attributes["title"].startswith(NASTY)
    (row,) = page.section("rounds").rows()
    assert NASTY in row["left out"].text
    connect(core, world.members[0].peer_id, phase='"} 1\nartel_x')
    text = await (await client.get("/metrics")).text()
    assert "\nartel_x" not in text


async def test_the_dashboard_asks_for_nothing_that_a_page_does_not_say(
    client: Client, core: Coordinator, world: World
) -> None:
    connect(core, world.members[0].peer_id)
    dashboard = await get(client, "/static/grafana.json")
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"artel_\w+", target["expr"])
    }
    assert len(asked) > 15
    there = {
        (sample.name, *sample.labels)
        for family in text_string_to_metric_families(await (await client.get("/metrics")).text())
        for sample in family.samples
    }
    assert asked <= {name for name, *_ in there}
    # And for no label that it does not have.
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name,) = set(re.findall(r"artel_\w+", target["expr"]))
            labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert not labels or (name, *labels) in there


async def test_metrics_are_what_the_status_says(
    client: Client, core: Coordinator, world: World
) -> None:
    peer = world.members[0].peer_id
    connect(core, peer)
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(await (await client.get("/metrics")).text()):
        for sample in family.samples:
            samples[" ".join((sample.name, *sample.labels.values()))] = sample.value
    status = await get(client, "/api/v1/status")
    assert samples["artel_round"] == status["round"]
    assert samples["artel_ledger_entries"] == status["ledger"]["size"]
    assert samples["artel_validation_loss"] == 5.75
    assert samples["artel_phase waiting"] == 1
    assert samples["artel_round_seconds training"] == 8
    assert samples[f"artel_sent_bytes_total {peer}"] == 5_000_000
    assert samples["process_resident_memory_bytes"] > 0
    await get(client, "/nothing", 404)
    assert 'status="404"} 1.0' in await (await client.get("/metrics")).text()


async def test_the_page_may_load_and_run_our_own_files_alone(client: Client) -> None:
    for path in ("/", "/api/v1/status", "/nothing"):
        reply = await client.get(path)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    text = await (await client.get("/")).text()
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = (await client.get("/")).headers["Content-Security-Policy"]
    assert f"style-src 'self' 'sha256-{allowed}'" in policy
    # The policy would not apply any other style.
    assert " style=" not in text


async def test_a_run_without_nodes_rounds_or_losses_has_a_page(
    client: Client, core: Coordinator, tmp_path: Path
) -> None:
    core.metrics = Metrics(tmp_path / "none.jsonl")
    text = await (await client.get("/")).text()
    page = read(text)
    for section in ("nodes", "rounds", "loss"):
        assert not list(page.section(section).all("table", "svg"))


async def test_the_worst_that_nodes_may_report_can_still_be_shown(
    client: Client, core: Coordinator, world: World
) -> None:
    most = {"loss": MAX_LOSS, "tokens_per_second": 1e12, "seconds": {"idle": 1e9, "train": 5e-324}}
    peer = world.members[0].peer_id
    connect(core, peer)
    report = core.peers[peer].report
    core.peers[peer].report = Report.model_validate(report.model_dump() | most)
    for loss in (0.0, 5e-324, MAX_LOSS):
        core.metrics.of(1).validation = core.metrics.of(1).loss = loss
        page = await (await client.get("/")).text()
        assert not re.search(r"\b(nan|inf)\b", page)
        text = await (await client.get("/api/v1/status")).text()
        assert json.loads(text, parse_constant=pytest.fail)["nodes"][0]["computing"] == 0.0


async def test_no_document_holds_what_json_has_not(client: Client, core: Coordinator) -> None:
    core.metrics.of(0).loss = math.nan
    await get(client, "/api/v1/rounds", 500)


async def test_members_come_first_and_they_alone_count_for_the_speed(
    client: Client, core: Coordinator, world: World
) -> None:
    first, last = sorted(member.peer_id for member in world.members)[::2]
    connect(core, first)
    connect(core, last)
    core.state = dataclasses.replace(core.state, members=(last,))
    assert [node["node"] for node in (await get(client, "/api/v1/status"))["nodes"]] == [
        last,
        first,
    ]
    page = await (await client.get("/")).text()
    assert "1,234 tokens per second" in page


DOCUMENTS = ("/", "/metrics", "/api/v1/run", "/api/v1/status", "/api/v1/rounds", "/api/v1/shares")


async def test_what_grows_with_members_or_rounds_is_not_made_in_the_event_loop(
    client: Client, core: Coordinator, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(core, world.members[0].peer_id)
    seen: list[str] = []

    def watched(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            assert threading.current_thread() is not threading.main_thread(), name
            seen.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    for name in ("run_facts", "status_facts", "rounds_facts"):
        watched(api, name)
    watched(exposition, "_encoded")
    watched(exposition, "generate_latest")
    for path in DOCUMENTS:
        reply = await client.get(path)
        assert reply.status == 200, path
    assert Counter(seen) == {
        "run_facts": 2,
        "status_facts": 3,
        "rounds_facts": 2,
        "_encoded": 4,
        "generate_latest": 1,
    }


async def sizes(client: Client) -> list[int]:
    paths = ("/api/v1/rounds?last=1000", "/")
    return [len(await (await client.get(path)).read()) for path in paths]


async def test_a_round_of_many_members_is_as_short_in_lists_as_one_of_few(
    client: Client, core: Coordinator
) -> None:
    async def with_members(count: int) -> list[int]:
        core.metrics.path.unlink(missing_ok=True)
        metrics = Metrics(core.metrics.path)
        numbers = Numbers(metrics, lambda: 1.0, None)
        steps = {f"12D3KooW{number:044d}": 100 + number for number in range(count)}
        kinds = dict.fromkeys(get_args(Kind), 1 << 40)
        told = Report(
            **{"state_round": 1, "state_root": "", "phase": "x", "loss": 2.0},
            **{"up_by_kind": kinds, "down_by_kind": kinds, "seconds": {"train": 2.0}},
        )
        for number in range(100):
            numbers.opened(number, steps)
            numbers.phase(number, "training")
            numbers.closed(number, [], dict.fromkeys(steps, "late"))
            numbers.agreed(number, list(steps), dict.fromkeys(steps, told))
        core.metrics = Metrics(metrics.path)
        return await sizes(client)

    few, many = await with_members(2), await with_members(200)
    for small, large in zip(few, many, strict=True):
        assert large < 1.1 * small, "each member would be some 300 bytes"
    detailed = [row for row in core.metrics.rounds.values() if row.by_member != MemberMetrics()]
    assert [row.round for row in detailed] == [98, 99], "nor do they fill the memory"


# --- what follows from the rounds -----------------------------------------------------------------


def agreed(number: int, **more: Any) -> dict[str, Any]:
    """A round of two members that took 100 s, 200 tokens a step."""
    row = {
        "round": number,
        "members": 2,
        "accepted": 2,
        "tokens": 4000,
        "ended": 1e9 + 100 * number,
    }
    row |= {"ended": 1e9 + 100 * number, "loss": 5.0, "validation": 6.0}
    return row | {"up": {"contribution": 500}} | more


def test_the_end_follows_from_the_newest_rounds() -> None:
    rounds = [agreed(0, ended=1.0), *(agreed(number) for number in range(1, 25))]
    found = page.to_go({"total": 100, "round": 25, "phase": "training"}, rounds)
    assert found == {"rounds": 75, "each": 100.0, "seconds": 7500.0, "end": 1e9 + 2400 + 7500}
    for phase in ("waiting", "finished"):
        assert page.to_go({"total": 100, "round": 25, "phase": phase}, rounds) is None
    assert page.to_go({"total": 100, "round": 1, "phase": "training"}, rounds[:1]) is None


def test_data_parallel_training_sends_all_gradients_after_each_step() -> None:
    rounds = [agreed(0), agreed(1), agreed(2, ended=0.0)]
    # 4,000 tokens are ten steps of two nodes of 200 each; in each of them both send 2 x 1/2 x 4 P.
    sent = 2 * 10 * 2 * 4 * 50
    assert page.bandwidth(rounds, parameters=50, step=200) == {
        "sent": 1000,
        "parallel": sent,
        "times": sent / 1000,
    }
    assert page.bandwidth([agreed(0, up={})], parameters=50, step=200) is None


def test_a_state_has_the_tokens_before_it_and_the_loss_of_the_round_that_made_it() -> None:
    first, second, third = page.states([agreed(4), agreed(5, loss=4.0)])
    assert (first["round"], first["tokens"], first["time"], first["training"]) == (4, 0, None, None)
    assert (second["round"], second["tokens"], second["training"]) == (5, 4000, 5.0)
    assert (third["round"], third["tokens"], third["speed"]) == (6, 8000, 40.0)
    assert (third["validation"], third["training"]) == (None, 4.0)
    assert page.states([]) == []
    assert len(page.sampled(page.states([agreed(n) for n in range(5000)]))) <= SAMPLES


def test_teams_are_added_up() -> None:
    rows = [
        {"team": team, "share": share, "granted": 10}
        for team, share in (("b", 0.25), ("", 0.5), ("a", 0.125), ("a", 0.125))
    ]
    assert [(t["team"], t["accounts"], t["share"]) for t in teams(rows)] == [
        ("a", 2, 0.25),
        ("b", 1, 0.25),
    ]


async def test_health_is_plain_text(client: Client) -> None:
    reply = await client.get("/healthz")
    assert (reply.status, await reply.text()) == (200, "ok\n")
