"""What a coordinator tells a URL of its organiser, and that no receiver can hold it up."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artel.coordinator import webhook
from artel.coordinator.peer import say_whether_it_goes_on
from artel.protocol.events import emit
from artel.protocol.round_state import Phase, Presence, RoundRules, RunState

log = logging.getLogger("artel.coordinator")
RUN = "ab" * 32
RULES = RoundRules(10, 2, 8, 0.6, 100.0, 10.0, 20.0, 30.0, 60.0)
SOON_S = 30.0


@contextmanager
def receiving(
    got: queue.Queue[tuple[str, bytes]], answers: list[int], held: threading.Event | None = None
) -> Iterator[str]:
    """A receiver that gives these answers first, and then 200; with ``held`` none before that."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.put((self.headers[webhook.SIGNATURE], body))
            if held is not None:
                held.wait(SOON_S)
            self.send_response(answers.pop(0) if answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "artel")
    monkeypatch.setattr(webhook, "BACKOFF_S", 0.01)


def test_a_receiver_knows_what_happened_and_who_says_so(tmp_path: Path) -> None:
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()
    # It fails twice, and is asked again.
    with receiving(got, [500, 503]) as url, webhook.posting(url, tmp_path, RUN):
        emit(log, "head.cosigned", size=3)  # of no interest
        emit(log, "state.agreed", round=7, root="ab12", signers=3)
        emit(log, "run.rolled_back", logging.WARNING, round=5, undone=2, grounds="")
        found = [got.get(timeout=SOON_S) for _ in range(4)]
    key = (tmp_path / webhook.KEY_FILE).read_text().strip()
    assert ((tmp_path / webhook.KEY_FILE).stat().st_mode & 0o777) == 0o600
    for signature, body in found:
        right = hmac.new(key.encode(), body, hashlib.sha256).hexdigest()
        assert signature == f"sha256={right}"
    bodies = [json.loads(body) for _, body in found]
    assert [one["event"] for one in bodies] == ["state.agreed"] * 3 + ["run.rolled_back"]
    assert (bodies[0]["run"], bodies[0]["fields"]["round"]) == (RUN, 7)
    assert abs(bodies[0]["time"] - time.time()) < 600


def test_the_key_stays_from_start_to_start(tmp_path: Path) -> None:
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()
    keys = []
    with receiving(got, []) as url:
        for _ in range(2):
            with webhook.posting(url, tmp_path, RUN):
                emit(log, "run.closed", disputed=0)
            keys.append((tmp_path / webhook.KEY_FILE).read_text())
    assert keys[0] == keys[1]
    assert got.qsize() == 2, "what waits at the end is posted"


def test_a_receiver_that_does_not_answer_holds_nobody_up_and_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "LAST_S", 0.1)
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()
    held = threading.Event()
    with receiving(got, [], held) as url, webhook.posting(url, tmp_path, RUN):
        (hook,) = [h for h in logging.getLogger("artel").handlers if type(h) is webhook.Webhook]
        emit(log, "state.agreed", round=-1)
        got.get(timeout=SOON_S)  # it is being answered
        for number in range(10 * webhook.MOST_WAITING):
            emit(log, "state.agreed", round=number)
        assert hook._waiting.qsize() == webhook.MOST_WAITING
        assert got.empty(), "nobody has waited for it"
        held.set()
        rounds = [json.loads(got.get(timeout=SOON_S)[1])["fields"]["round"] for _ in range(100)]
    # The oldest ones were let go.
    first = 9 * webhook.MOST_WAITING
    assert rounds == list(range(first, first + 100))
    assert not [h for h in logging.getLogger("artel").handlers if type(h) is webhook.Webhook]


def test_a_run_is_paused_by_its_organiser_by_who_is_away_and_by_a_state_that_is_called_wrong(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("artel"), "propagate", True)

    def of(here: int, *, halted: bool = False, phase: Phase = Phase.WAITING) -> RunState:
        peers = {str(number): Presence(0.0, "") for number in range(here)}
        return RunState(phase, 1, 0, "", 0.0, peers=peers, halted=halted)

    stands, paused = True, replace(RULES, paused=True)
    for rules, state in (
        (RULES, of(1)),
        (RULES, of(2)),
        (RULES, of(2, halted=True)),
        (RULES, of(2)),
        (paused, of(2)),
        (paused, of(1)),
        (RULES, of(2)),
        (RULES, of(0, phase=Phase.FINISHED)),
    ):
        stands = say_whether_it_goes_on(stands, rules, state)
    runs = (r for r in caplog.records if r.message.startswith("run."))
    said = [(r.message, r.fields["organiser"]) for r in runs]  # type: ignore[attr-defined]
    goes_on = "run.goes_on", False
    assert said == [goes_on, ("run.paused", False), goes_on, ("run.paused", True), goes_on]
