"""The OpenAPI document of a server (spec.openapis.org/oas/v3.1.0), made of its routes.

A handler says beside itself what it answers (:func:`says`); the document lists the routes that the
application really has, so that it can neither name one that is gone nor leave out a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web
from pydantic import TypeAdapter

from artel import __version__
from artel.ledger.web.answers import MAX_NUMBER, json_text
from artel.protocol.schema import Record

PATH = "/api/v1/openapi.json"
NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
TEXT = {"type": "string"}
JSON, HTML, PLAIN, BYTES = (
    "application/json",
    "text/html",
    "text/plain",
    "application/octet-stream",
)
NOTE = "operation"
"""Attribute of a handler with what it says."""
_MODELS = "#/components/schemas/{model}"

H = TypeVar("H", bound=Callable[..., Any])


class ErrorFacts(Record):
    """Every answer that says what is wrong; ``code`` is for programs."""

    error: str
    hint: str
    code: str = ""


@dataclass(frozen=True)
class Operation:
    """What a handler answers.

    :param summary: one line
    :param answer: the type of its JSON; None where it is something else
    :param media: content types of the answers with 200
    :param asked: name to JSON schema of what stands in path and query
    :param errors: content type of its errors
    :param takes: content type of the body that it wants; "" for none
    """

    summary: str
    answer: Any = None
    media: tuple[str, ...] = (JSON,)
    asked: tuple[tuple[str, dict[str, Any]], ...] = ()
    errors: str = JSON
    takes: str = ""


SILENT = Operation("")


def says(
    summary: str,
    answer: Any = None,
    *media: str,
    errors: str = JSON,
    takes: str = "",
    **asked: dict[str, Any],
) -> Callable[[H], H]:
    """Say of a handler what it answers; see :class:`Operation`."""
    operation = Operation(summary, answer, media or (JSON,), (*asked.items(),), errors, takes)

    def said(handler: H) -> H:
        setattr(handler, NOTE, operation)
        return handler

    return said


def add_openapi(app: web.Application, title: str) -> None:
    """Serve the document of an application that has all its other routes.

    A route whose handler says nothing is there without a summary, which a test refuses.
    """

    @says("This document.", dict[str, Any])
    async def answer(request: web.Request) -> web.Response:
        return json_text(data)

    app.router.add_get(PATH, answer)
    data = json.dumps(document(app, title)).encode()


def document(app: web.Application, title: str) -> dict[str, Any]:
    """All routes of an application, with the schemas of what they answer."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for method, path, operation in routes(app):
        paths.setdefault(path, {})[method] = _described(path, operation, schemas)
    info = {"title": title, "version": __version__}
    found = {"openapi": "3.1.0", "info": info, "paths": paths}
    return found | {"components": {"schemas": schemas}}


def routes(app: web.Application) -> Iterator[tuple[str, str, Operation]]:
    """Method (small letters), path and what is said of each route; HEAD goes with GET."""
    for resource in app.router.resources():
        for route in resource:
            if route.method != "HEAD":
                path = resource.canonical
                yield route.method.lower(), path, getattr(route.handler, NOTE, SILENT)


def _described(path: str, operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    places = ((name, "path" if f"{{{name}}}" in path else "query") for name, _ in operation.asked)
    asked = [
        {"name": name, "in": place, "required": place == "path", "schema": schema}
        for (name, place), (_, schema) in zip(places, operation.asked, strict=True)
    ]
    good: dict[str, Any] = {kind: {} for kind in operation.media}
    if operation.answer is not None:
        good[JSON] = {"schema": _schema(operation.answer, schemas)}
    wrong: dict[str, Any] = {operation.errors: {}, JSON: {"schema": _schema(ErrorFacts, schemas)}}
    responses = {
        "200": {"description": operation.summary, "content": good},
        "3XX": {"description": "What was meant is elsewhere."},
        "default": {"description": "What is wrong.", "content": wrong},
    }
    found = {"summary": operation.summary, "parameters": asked, "responses": responses}
    if operation.takes:
        found["requestBody"] = {"required": True, "content": {operation.takes: {}}}
    return found


def _schema(answer: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type; what it consists of goes into ``schemas``."""
    found = TypeAdapter(answer).json_schema(ref_template=_MODELS)
    schemas.update(found.pop("$defs", {}))
    return found
