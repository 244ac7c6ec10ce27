"""A proxy of the environment: never for this machine, and named where a request by it fails."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from answer_world import COORDINATOR, NODE, answering
from artel import cli
from artel.ledger.sync.source import HttpSource, newest_heads
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.net.http import fetch_object
from benchmarks.swarm import Swarm
from client_world import served, write_tiles
from ledger_world import World

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def use(patch: pytest.MonkeyPatch, proxy: str, **more: str) -> None:
    """An environment with this proxy for everything."""
    for name in VARIABLES:
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    for name in VARIABLES[:3]:
        patch.setenv(name, proxy)
    for name, value in more.items():
        patch.setenv(name, value)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody runs."""
    use(monkeypatch, "http://user:secret@127.0.0.1:9")


def test_status_of_a_node_and_of_a_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(NODE) as url:
        (tmp_path / "api.json").write_text(json.dumps({"url": url}))
        assert cli.main(["node", "status", "--json", "--home", str(tmp_path)]) == 0
    with answering(COORDINATOR) as url:
        (tmp_path / "api.json").write_text(json.dumps({"url": url}))
        assert cli.main(["coordinator", "status", "--home", str(tmp_path)]) == 0
        assert cli.main(["coordinator", "status", "--url", url]) == 0
        named = url.replace("127.0.0.1", "localhost")
        assert cli.main(["coordinator", "status", "--url", named]) == 0
    assert not capsys.readouterr().err


def test_ledger_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world = World()
    world.write(tmp_path / "home", rounds=1)
    write_tiles(tmp_path / "home", tmp_path / "tiles")
    with served(tmp_path / "tiles") as url:
        for command in (
            ("status", "--from", url, "--run", world.run),
            ("audit", url, "--run", world.run),
            ("mirror", str(tmp_path / "mirror"), "--from", url, "--run", world.run),
            ("compare", url, "--home", str(tmp_path / "home")),
        ):
            assert cli.main(["ledger", *command]) == 0, capsys.readouterr().err


async def test_the_swarm_of_a_demo(tmp_path: Path) -> None:
    with answering(COORDINATOR) as url:
        async with Swarm(tmp_path, tmp_path / "RUN.toml") as swarm:
            swarm.http = url
            assert await swarm.status() == json.loads(json.dumps(COORDINATOR))


def test_a_proxy_that_fails_is_named_without_its_password() -> None:
    """192.0.2.0/24 is for documentation: nobody is there, and nobody is asked."""
    for ask in (
        lambda: HttpSource("http://192.0.2.1").get("checkpoint"),
        lambda: HttpSource("http://192.0.2.1").send("submit", "ab" * 32, b"{}"),
        lambda: fetch_object("http://192.0.2.1/api/v1/status"),
        lambda: HttpSource("https://192.0.2.1").get("checkpoint"),
    ):
        with pytest.raises(Unreachable) as failed:
            ask()
        assert "proxy 127.0.0.1:9" in failed.value.message
        assert "no_proxy" in failed.value.hint
        assert "secret" not in failed.value.diagnostics()


@contextmanager
def refusing_proxy(seen: list[str]) -> Iterator[str]:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(503)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_what_a_proxy_answers_is_not_taken_for_the_peers_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    with refusing_proxy(seen) as proxy:
        use(monkeypatch, f"http://{proxy}")
        for ask in (
            lambda: HttpSource("http://192.0.2.1").get("checkpoint"),
            lambda: HttpSource("http://192.0.2.1").send("submit", "ab" * 32, b"{}"),
            lambda: newest_heads(HttpSource("http://192.0.2.1")),
            lambda: fetch_object("http://192.0.2.1/api/v1/status"),
            lambda: fetch_object("https://192.0.2.1/api/v1/status"),
        ):
            with pytest.raises(ArtelError, match=proxy):
                ask()
    assert "http://192.0.2.1/checkpoint" in seen, "others are asked through the proxy"


def test_what_the_environment_excludes_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9", no_proxy="artel.invalid")
    with pytest.raises(Unreachable) as failed:
        HttpSource("http://artel.invalid").get("checkpoint")
    assert "proxy" not in failed.value.diagnostics()


def test_a_proxy_of_a_kind_that_python_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "socks5://127.0.0.1:9")
    with pytest.raises(Unreachable, match="proxy"):
        HttpSource("http://192.0.2.1").get("checkpoint")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_this_machine_has_many_names(host: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable) as failed:
            HttpSource(f"http://{host}:{closed.getsockname()[1]}").get("checkpoint")
    assert "proxy" not in failed.value.diagnostics()


def test_a_redirect_to_this_machine_goes_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy redirects a stranger's URL to here; the second request does not go through it."""
    with answering({"here": True}) as here:

        class Redirect(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(302)
                self.send_header("Location", here)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
            assert fetch_object("http://192.0.2.1/x") == {"here": True}
            server.shutdown()
            thread.join()


def test_garbage_instead_of_http_is_no_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b"\x1b]0;owned\x07 nonsense\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Unreachable):
            fetch_object(f"http://127.0.0.1:{server.getsockname()[1]}/api/v1/status")
        thread.join()
