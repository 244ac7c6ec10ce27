"""The OpenAPI document of a coordinator's page, and a page that is asked all that it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS

from artel.coordinator.service import Coordinator
from artel.coordinator.web import RunPage
from artel.ledger.web import openapi, server
from artel.ledger.web.server import Gate, Limits
from artel.node import status
from artel.node.control import OwnerOrder
from artel.protocol.listing import ListingRecord
from artel.protocol.net.doors import Directory
from artel.protocol.net.http import fetch_object
from ledger_world import World
from run_page_world import INVITE, connect, coordinating, numbers_of, one_round, published

EXAMPLES = 5
"""Of each operation, valid ones and others each."""
STREAM = "/live"
"""Goes on for ten minutes."""
NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Coordinator]:
    """A coordinator in its second round."""
    world = World(name="openapi")
    manifest, metrics = published(world), numbers_of(tmp_path, world, 2)
    async with coordinating(world, manifest, tmp_path, one_round(world), metrics) as core:
        for member in world.members:
            connect(core, member.peer_id)
        yield core


@pytest.fixture
def application(core: Coordinator) -> web.Application:
    patient = Gate(Limits(posts=10**6, posts_per_s=1e6))
    return RunPage(core, INVITE).application(patient)


async def test_the_document_names_every_route_and_no_other(application: web.Application) -> None:
    async with TestClient(TestServer(application)) as client:
        found = await (await client.get(openapi.PATH)).json()
    says_all(found)
    said = {(method, path) for path, item in found["paths"].items() for method in item}
    there = {
        (route.method.lower(), route.resource.canonical)
        for route in application.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert said == there
    assert len(said) > 20


async def test_a_node_names_its_routes_too(core: Coordinator, tmp_path: Path) -> None:
    home = tmp_path / "node"
    home.mkdir()
    site = RunPage(core, INVITE).site

    async def obey(order: OwnerOrder) -> str:
        raise AssertionError

    async def none() -> list[ListingRecord]:
        return []

    here = status.serving(home, dict, site, server.bind(), Directory(none), obey)
    async with here as url:
        found = await asyncio.to_thread(fetch_object, f"{url}{openapi.PATH}")
    says_all(found)
    assert {"/control", "/api/v1/status", "/ledger/{path}"} <= set(found["paths"])


def says_all(found: dict[str, Any]) -> None:
    """Every operation of a document is described, and has the parameters of its path."""
    for path, item in found["paths"].items():
        for operation in item.values():
            assert operation["summary"], f"the handler of {path} does not say what it answers"
            placed = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert placed == {part[1:-1] for part in path.split("/") if part[:1] == "{"}


@pytest.mark.parametrize("name", ["run", "status", "rounds", "shares", "runs"])
async def test_the_schemas_fit_what_is_answered_and_nothing_else(
    application: web.Application, name: str
) -> None:
    async with TestClient(TestServer(application)) as client:
        found = await (await client.get(openapi.PATH)).json()
        value = await (await client.get(f"/api/v1/{name}")).json()
    good = found["paths"][f"/api/v1/{name}"]["get"]["responses"]["200"]
    schema = good["content"]["application/json"]["schema"]
    whole = schema | {"components": found["components"]}
    jsonschema.validate(value, whole)
    for wrong in ({}, dict.fromkeys(value, "no")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, whole)


async def test_whatever_is_asked_the_answer_is_one_of_those_that_the_document_names(
    application: web.Application,
) -> None:
    # What strangers may send is found from the document alone, by schemathesis.
    async with TestServer(application) as server:
        asked = await asyncio.to_thread(_ask, str(server.make_url("/")).rstrip("/"))
    assert len({name for _, name in asked}) > 20
    assert ("positive", "POST /ledger/submit") in asked
    wrong = {name for mode, name in asked if mode == "negative"}
    assert {"GET /round/{number}", "GET /entries", "GET /api/v1/rounds"} <= wrong


def _ask(url: str) -> set[tuple[str, str]]:
    schema = schemathesis.openapi.from_url(f"{url}{openapi.PATH}")
    schema.config.base_url = url
    checks = CHECKS.get_by_names(NAMES)
    asked: set[tuple[str, str]] = set()
    for found in schema.exclude(path=STREAM).get_all_operations():
        operation = found.ok()
        modes = [schemathesis.GenerationMode.POSITIVE]
        asked_for = operation.definition.raw["parameters"]
        if any(one["schema"] != openapi.TEXT for one in asked_for):
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode))
            def one(case: schemathesis.Case) -> None:
                case.call_and_validate(checks=checks, timeout=60)
                asked.add((case.meta.generation.mode.value, case.operation.label))

            one()
    return asked
