"""The model over HTTP, in the form that OpenAI's clients speak, and a page to write with it.

Spec: OpenAI API reference, completions, chat completions and models: the fields that a model which
continues text can honour; of the others unknown ones are passed over, and ``n`` has to be 1. One
thread computes, one text after the other; who would have to wait behind too many is told to come
back. When the home holds a newer agreed state, the next text is that state's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
import secrets
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from artel.ledger.web.answers import body_of
from artel.ledger.web.server import Gate, Limits
from artel.model import generating, pretrained
from artel.model.generating import Sampling
from artel.model.held import held
from artel.model.pretrained import LoadedModel
from artel.protocol.errors import ArtelError, UsageError
from artel.protocol.events import emit

log = logging.getLogger("artel.model")

MAX_BODY_BYTES = 256 << 10
MAX_NEW_TOKENS = 4096
MAX_WAITING = 8
"""Texts that are asked for at the same time, the one under way included."""
ANSWER_S = 600.0
TAKE_S = 30.0
"""In which a reader has to take a piece of a text."""
LOOK_S = 5.0
"""Between two looks for a newer state."""
PAGE = Path(__file__).with_name("templates") / "chat.html"


# --- what is asked --------------------------------------------------------------------------------


class Asked(BaseModel):
    """What both kinds of question have in common."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] = ""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=64)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=4)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None

    def job(self, prompt: str, stop: tuple[str, ...] = ()) -> Continuation:
        """As a piece of work.

        :param stop: where the text ends when nothing is said of that
        """
        ends = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or stop)
        how = Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )
        return Continuation(prompt, self.max_completion_tokens or self.max_tokens or 256, how, ends)


class CompletionAsked(Asked):
    """A text to go on with."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def work(self) -> Continuation:
        """What is to be done."""
        return self.job(self.prompt if isinstance(self.prompt, str) else self.prompt[0])


class TextPart(BaseModel):
    """A part of what somebody said."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: str


class Said(BaseModel):
    """What somebody said in a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def words(self) -> str:
        """All of it."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatAsked(Asked):
    """A conversation to go on with."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=256)]

    def work(self) -> Continuation:
        """What is to be done."""
        prompt = generating.as_text(said.words for said in self.messages)
        return self.job(prompt, (generating.TURN_END,))


# --- what is computed -----------------------------------------------------------------------------


@dataclass
class Continuation:
    """A text to be written, and what became of it."""

    prompt: str
    most: int
    how: Sampling
    stop: tuple[str, ...]
    finish: Literal["stop", "length"] = "stop"
    asked: int = 0
    """Tokens of the prompt."""
    written: int = 0
    """Tokens of the text."""

    def pieces(self, loaded: LoadedModel, given_up: threading.Event) -> Iterator[str]:
        """The text while it comes, without what ends it."""
        ids, spelling = generating.prompt_ids(loaded, self.prompt), generating.Spelling(loaded)
        self.asked, back = len(ids), max(map(len, self.stop), default=1) - 1
        held_back = ""
        for token in generating.tokens(loaded, ids, self.most, self.how):
            if given_up.is_set():
                return
            self.written += 1
            held_back += spelling.add(token)
            if ends := [at for end in self.stop if (at := held_back.find(end)) >= 0]:
                yield held_back[: min(ends)]
                return
            ready = len(held_back) - back  # the rest may be the beginning of what ends it
            if ready > 0:
                yield held_back[:ready]
                held_back = held_back[ready:]
        self.finish = "length" if self.written == self.most else "stop"
        yield held_back + spelling.end()


class Busy(ArtelError):
    """Too many texts are waited for."""


class Engine:
    """The newest state, and the one thread that computes with it. Owned by the event loop."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting = 0

    async def write(self, job: Continuation) -> AsyncGenerator[str, None]:
        """The pieces of a text while they come.

        :raises Busy: too many others are before this one
        """
        if self._waiting >= MAX_WAITING:
            raise Busy("too many texts are being written", "try again in a moment")
        self._waiting += 1
        loop, given_up = asyncio.get_running_loop(), threading.Event()
        pieces = asyncio.Queue[str | None]()  # as long as the text at most
        loaded = self.loaded

        def work() -> None:
            try:
                for piece in job.pieces(loaded, given_up):
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        done = loop.run_in_executor(self._thread, work)
        try:
            while (piece := await pieces.get()) is not None:
                if piece:
                    yield piece
            await done
        finally:
            given_up.set()
            done.cancel()  # where it has not begun
            self._waiting -= 1

    async def follow(self, home: Path) -> None:
        """Take newer states as they are agreed on, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                newer = await asyncio.to_thread(_newer, home, self.loaded.root)
            except ArtelError as error:
                emit(log, "model.not_reloaded", logging.WARNING, reason=error.message)
                continue
            if newer is not None:
                self.loaded = newer
                emit(log, "model.reloaded", round=newer.round, root=newer.root[:12])

    def close(self) -> None:
        """End the thread after the text under way."""
        self._thread.shutdown(cancel_futures=True)


def _newer(home: Path, root: str) -> LoadedModel | None:
    with held(home) as found:
        return None if found.root == root else pretrained.load(found)


# --- how it is answered ---------------------------------------------------------------------------


class ModelServer:
    """The routes of a model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._page = PAGE.read_bytes()
        self._policy = _policy(self._page.decode())

    @property
    def _name(self) -> str:
        return str(self._engine.loaded.manifest.config.run.name)

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve on a listening socket for as long as the context lasts."""
        # Texts take longer than pages.
        limits = Limits(
            connections=64,
            requests=32,
            answer_s=ANSWER_S,
            request_s=ANSWER_S + TAKE_S,
            posts=200,
            posts_per_s=10.0,
        )
        gate = Gate(limits)
        async with gate.listening(self._application(gate), listener):
            yield

    def _application(self, gate: Gate) -> web.Application:
        app = gate.application()
        app.on_response_prepare.append(self._dressed)
        app.router.add_get("/", self._chat_page)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _dressed(self, request: web.Request, response: web.StreamResponse) -> None:
        """The page has one script, which speaks to this server alone."""
        if request.path == "/":
            response.headers["Content-Security-Policy"] = self._policy

    async def _chat_page(self, request: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8")

    async def _models(self, request: web.Request) -> web.Response:
        loaded = self._engine.loaded
        about = {"id": self._name, "object": "model", "created": 0, "owned_by": "artel"}
        about |= {"run": loaded.run, "state": loaded.root, "round": loaded.round}
        return web.json_response({"object": "list", "data": [about]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, CompletionAsked, _COMPLETION)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, ChatAsked, _CHAT)

    async def _answer(
        self, request: web.Request, kind: type[CompletionAsked | ChatAsked], form: Form
    ) -> web.StreamResponse:
        try:
            asked = kind.model_validate_json(await body_of(request, MAX_BODY_BYTES))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"][:3])
            return _refused(400, f"{where or 'the body'}: {first['msg']}")
        except UsageError as error:
            return _refused(413, error.message)
        if asked.model not in ("", self._name):
            return _refused(404, f"there is no model of this name here; it is {self._name}")
        job = asked.work()
        about = {
            "id": f"{form.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self._name,
            "system_fingerprint": f"{self._engine.loaded.round}-{self._engine.loaded.root[:12]}",
        }
        pieces = self._engine.write(job)
        try:
            first_piece = await anext(pieces, "")  # so that who has to wait gets a status
            if asked.stream:
                return await self._streamed(request, form, about, job, pieces, first_piece)
            text = first_piece
            async for piece in pieces:
                text += piece
                if request.transport is None:
                    break  # nobody waits for it any more
        except Busy as error:
            response = _refused(429, f"{error.message}: {error.hint}")
            response.headers["Retry-After"] = "2"
            return response
        finally:
            await pieces.aclose()
        usage = {"prompt_tokens": job.asked, "completion_tokens": job.written}
        usage["total_tokens"] = job.asked + job.written
        choice = form.whole(text) | {"index": 0, "finish_reason": job.finish, "logprobs": None}
        answer = about | {"object": form.object, "choices": [choice], "usage": usage}
        return web.json_response(answer)

    async def _streamed(
        self,
        request: web.Request,
        form: Form,
        about: dict[str, Any],
        job: Continuation,
        pieces: AsyncIterator[str],
        first: str,
    ) -> web.StreamResponse:
        """Server-sent events, one for each piece."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(choice: dict[str, Any], finish: str | None = None) -> None:
            choices = [choice | {"index": 0, "finish_reason": finish, "logprobs": None}]
            event = about | {"object": form.piece_object, "choices": choices}
            await _written(response, json.dumps(event))

        with contextlib.suppress(ConnectionError, TimeoutError):  # nobody reads any more
            if first:
                await send(form.piece(first))
            async for piece in pieces:
                await send(form.piece(piece))
            await send(form.piece(""), job.finish)
            await _written(response, "[DONE]")
            await response.write_eof()
        return response


async def _written(response: web.StreamResponse, data: str) -> None:
    async with asyncio.timeout(TAKE_S):
        await response.write(f"data: {data}\n\n".encode())


def _refused(status: int, message: str) -> web.Response:
    kind = "invalid_request_error" if status < 429 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


@dataclass(frozen=True)
class Form:
    """How one of the two kinds of question is answered."""

    prefix: str
    object: str
    piece_object: str
    chat: bool

    def whole(self, text: str) -> dict[str, Any]:
        """A whole text as a choice."""
        return {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of one."""
        return {"delta": {"role": "assistant", "content": text}} if self.chat else {"text": text}


_COMPLETION = Form("cmpl", "text_completion", "text_completion", chat=False)
_CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", chat=True)


def _policy(page: str) -> str:
    """What the page may do: run its own script, wear its own style, ask this server."""

    def digest(tag: str) -> str:
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
        f"style-src 'sha256-{digest('style')}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
