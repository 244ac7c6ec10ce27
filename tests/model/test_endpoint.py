"""The model over HTTP: the wire format of OpenAI's clients, newer states, and hostile requests."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout

from artel.ledger.web.server import address_of, bind
from artel.model import endpoint, generating, pretrained
from artel.model.endpoint import Engine, ModelServer
from artel.model.generating import Sampling
from artel.model.held import held
from artel.protocol.tasks import end
from model_world import make_home, write_states
from trainer_world import World, make_world

GREEDY = {"temperature": 0, "max_tokens": 12}


@dataclass
class Served:
    """A model that is served, the home that it is from, and whoever asks."""

    home: Path
    states: list[Path]
    engine: Engine
    url: str
    client: ClientSession

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with self.client.post(f"{self.url}{path}", data=data, headers=headers) as answer:
            return answer.status, await answer.json()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
async def served(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    monkeypatch.setattr(endpoint, "LOOK_S", 0.1)
    states = write_states(world, tmp_path, 2)
    home = make_home(world, tmp_path / "home", [path.name for path in states])
    shutil.copy(states[0], home / "blobs")
    with held(home) as found:
        engine = Engine(pretrained.load(found))
    listener = bind()
    following = asyncio.create_task(engine.follow(home))
    async with (
        ModelServer(engine).listening(listener),
        ClientSession(timeout=ClientTimeout(300)) as client,
    ):
        yield Served(home, states, engine, address_of(listener), client)
    await end(following)
    engine.close()


async def test_it_speaks_as_openai_does_and_takes_newer_states(served: Served) -> None:
    text = generating.text(served.engine.loaded, "def ", 12, Sampling(temperature=0))
    status, answer = await served.post("/v1/completions", {"prompt": "def ", **GREEDY})
    assert status == 200
    assert answer["object"] == "text_completion"
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}

    question = {"messages": [{"role": "user", "content": "def"}], "stop": ["\0"], **GREEDY}
    status, whole = await served.post("/v1/chat/completions", {"model": "tiny", **question})
    assert (status, whole["object"]) == (200, "chat.completion")
    assert whole["choices"][0]["message"]["role"] == "assistant"
    streamed = question | {"stream": True, "unknown": {"is": "passed over"}}
    async with served.client.post(f"{served.url}/v1/chat/completions", json=streamed) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = (await stream.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    said = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert said == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert len(pieces) > 2

    async with served.client.get(f"{served.url}/v1/models") as models:
        [about] = (await models.json())["data"]
    assert (about["id"], about["round"]) == ("tiny", 1)
    shutil.copy(served.states[1], served.home / "blobs")
    for _ in range(600):
        await asyncio.sleep(0.1)
        async with served.client.get(f"{served.url}/v1/models") as models:
            [about] = (await models.json())["data"]
        if about["round"] == 2:
            break
    assert about["state"] == served.states[1].name
    _, answer = await served.post("/v1/completions", {"prompt": "def ", **GREEDY})
    assert answer["choices"][0]["text"] != text


async def test_a_text_ends_where_it_is_told_to(served: Served) -> None:
    ask = {"prompt": "def ", **GREEDY}
    _, whole = await served.post("/v1/completions", ask)
    text = whole["choices"][0]["text"]
    cut = text[4:6]
    _, answer = await served.post("/v1/completions", ask | {"stop": [cut, "never"]})
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(cut)], "stop")


async def test_the_page_may_run_its_own_script_and_nothing_else(served: Served) -> None:
    async with served.client.get(served.url) as answer:
        page, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\s(src|href|on\w+)=", page)
    async with served.client.get(f"{served.url}/v1/models") as answer:
        assert "script-src 'sha256" not in answer.headers["Content-Security-Policy"]


REFUSED: list[tuple[Any, int]] = [
    (b"", 400),
    (b"[" * 100_000, 400),
    (b"\xff", 400),
    (b" " * (endpoint.MAX_BODY_BYTES + 1), 413),
    ({"prompt": "x", "max_tokens": 10**9}, 400),
    ({"prompt": "x", "max_tokens": "7"}, 400),
    ({"prompt": "x", "n": 100}, 400),
    ({"prompt": ["x"] * 1000}, 400),
    ({"prompt": "x", "temperature": 1e400}, 400),
    ({"prompt": "x", "stop": ["s"] * 100}, 400),
    ({"prompt": "x", "stop": ""}, 400),
    ({"prompt": "x", "top_p": 0}, 400),
    ({"prompt": "x", "seed": -1}, 400),
    ({"prompt": "x", "model": "gpt-4"}, 404),
    ({"prompt": None}, 400),
]


async def test_a_question_that_cannot_be_answered_is_refused(served: Served) -> None:
    for body, status in REFUSED:
        found, answer = await served.post("/v1/completions", body)
        assert (found, answer["error"]["type"]) == (status, "invalid_request_error"), body


async def test_who_would_wait_too_long_is_told_so_and_who_leaves_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_WAITING", 2)
    long = {"prompt": "def ", "temperature": 0, "max_tokens": 4096, "stream": True}
    async with (
        served.client.post(f"{served.url}/v1/completions", json=long) as first,
        served.client.get(f"{served.url}/v1/models"),
    ):
        await first.content.readline()
        second = asyncio.create_task(served.post("/v1/completions", {"prompt": "x", **GREEDY}))
        while served.engine._waiting < 2:
            await asyncio.sleep(0.01)
        status, answer = await served.post("/v1/completions", {"prompt": "x", **GREEDY})
        assert (status, answer["error"]["type"]) == (429, "server_error")
        first.close()  # in the middle of its text
    status, _ = await asyncio.wait_for(second, 200)
    assert status == 200
    for _ in range(100):
        if not served.engine._waiting:
            break
        await asyncio.sleep(0.1)
    assert served.engine._waiting == 0


async def test_a_page_of_another_site_may_not_ask(served: Served) -> None:
    headers = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    body = json.dumps({"prompt": "x", **GREEDY})
    async with served.client.post(
        f"{served.url}/v1/completions", data=body, headers=headers
    ) as answer:
        assert answer.status == 403
