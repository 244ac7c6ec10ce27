"""``artel ledger compare`` with holders that show heads of one history and the tree of another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.offline import verify_evidence
from artel.ledger.sync.source import CERTIFIED_PATH
from artel.ledger.tlog.checkpoint import parse_checkpoint, sign_checkpoint
from artel.protocol.errors import CheckFailed, UsageError
from client_world import served, write_tiles
from command_world import group
from ledger_world import World

main = group("ledger")

OLDER, NEWER = 38, 50
"""The log was put back to OLDER entries when it had NEWER, and went on from there."""

Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def world() -> World:
    world = World(ledger={"witnesses": 2})
    world.add(*world.start)
    for number in range(8):
        world.add(*world.round(number))
    return world


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def history(world: World, home: Path, leaves: list[bytes]) -> Path:
    with LedgerStore.open(home / DATABASE_NAME, create=True) as store:
        for leaf in leaves:
            store.append([leaf], world.sign)
    return home


def note_of(home: Path, size: int) -> str:
    with LedgerReader.of(home) as store:
        return store.note_at(size)


@pytest.fixture
def member(world: World, tmp_path: Path) -> Path:
    """The home of somebody who saw all of the first history."""
    return history(world, tmp_path / "member", world.leaves[:NEWER])


@pytest.fixture
def equivocating(world: World, tmp_path: Path) -> Path:
    """The home of the log after it went on from the backup: three entries of its own."""
    owner, other = world.owners[0], world.earned(world.members[1], 3)
    leaves = [world.dispute(owner, other, f"reason_{i}").encode() for i in range(3)]
    return history(world, tmp_path / "log", [*world.leaves[:OLDER], *leaves])


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    def compare(*targets: object, code: int = 1) -> dict[str, Any]:
        with ExitStack() as stack:
            urls = [
                target
                if isinstance(target, str)
                else stack.enter_context(served(Path(str(target))))
                for target in targets
            ]
            assert main(["compare", *urls]) == code
            capsys.readouterr()
            Path("split-view.json").unlink(missing_ok=True)
            assert main(["compare", *urls, "--json"]) == code
            facts: dict[str, Any] = json.loads(capsys.readouterr().out)
            return facts

    return compare


Answer = Callable[[str], bytes | None]
"""The content of a path; None: the connection ends without an answer."""


@contextmanager
def lying(answer: Answer) -> Iterator[str]:
    """A web server that says what it wants, which may be another thing each time."""

    class Liar(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            data = answer(self.path.removeprefix("/ledger/"))
            if data is None:
                self.close_connection = True
                return
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(folder: Path, path: str) -> bytes:
    file = folder / path
    return file.read_bytes() if file.is_file() else b""


def convicted(world: World) -> tuple[int, int]:
    """The sizes of the two heads in the evidence that was written."""
    found, culprit = verify_evidence(Path("split-view.json").read_bytes())
    assert culprit.name == world.origin
    return found.sizes


@pytest.mark.parametrize("shown", [OLDER, 40, NEWER])
def test_heads_of_one_history_beside_the_tree_of_another_are_found_out(
    world: World, member: Path, equivocating: Path, tmp_path: Path, compare: Compare, shown: int
) -> None:
    # Its newest head is its own, the final one is from before; of that it has no tree any more.
    mixed = write_tiles(equivocating, tmp_path / "mixed")
    (mixed / CERTIFIED_PATH).write_text(note_of(member, NEWER))
    # What others show ends before the fork, in it, or has all of it.
    other = write_tiles(member, tmp_path / "other", note_of(member, shown))
    facts = compare(mixed, other)
    sizes = [(head["size"], head["tree"]) for head in facts["heads"]]
    assert (NEWER, False) in sizes or shown == NEWER
    if shown == OLDER:  # nobody shows the tree that would tell
        assert (facts["consistent"], facts["evidence"]) == (None, None)
        assert NEWER in {parse_checkpoint(note).size for note in facts["notes"]}
        assert not Path("split-view.json").exists()
    else:
        assert facts["consistent"] is False
        assert convicted(world) == tuple(sorted((OLDER + 3, shown)))


def test_a_signed_head_beside_a_tree_that_is_not_its_own_is_found_out(
    world: World, member: Path, equivocating: Path, tmp_path: Path, compare: Compare
) -> None:
    # The head that it shows as its newest has the size of another one.
    tiles = write_tiles(equivocating, tmp_path / "mixed")
    (tiles / "checkpoint").write_text(note_of(member, OLDER + 3))
    (tiles / CERTIFIED_PATH).write_text(note_of(equivocating, OLDER + 3))
    other = write_tiles(member, tmp_path / "other", note_of(member, OLDER))
    facts = compare(tiles, other)
    assert facts["consistent"] is False
    assert convicted(world) == (OLDER + 3, OLDER + 3), "two notes of one size need no tree"


def test_a_head_whose_tree_nobody_has_is_compared_with_all_that_others_show(
    world: World, member: Path, equivocating: Path, tmp_path: Path, compare: Compare
) -> None:
    # Only a head of the second history is left, and a member's tree is longer.
    mixed = write_tiles(member, tmp_path / "mixed", note_of(member, OLDER))
    (mixed / CERTIFIED_PATH).write_text(note_of(equivocating, OLDER + 3))
    other = write_tiles(member, tmp_path / "other")
    facts = compare(mixed, other)
    assert facts["consistent"] is False
    assert facts["evidence"] is None, "others could not check it without the tree behind that head"
    assert facts["reason"]
    assert {parse_checkpoint(note).size for note in facts["notes"]} == {OLDER + 3, NEWER}
    # Whoever has a head of the same size completes it.
    third = write_tiles(member, tmp_path / "third", note_of(member, OLDER + 3))
    assert compare(mixed, other, third)["evidence"]
    assert convicted(world) == (OLDER + 3, OLDER + 3)


def test_heads_of_one_history_are_no_fork(
    world: World, member: Path, tmp_path: Path, compare: Compare
) -> None:
    ahead = write_tiles(member, tmp_path / "ahead", note_of(member, OLDER))
    (ahead / CERTIFIED_PATH).write_text(note_of(member, NEWER))  # the files of it are late
    behind = write_tiles(member, tmp_path / "behind")
    (behind / CERTIFIED_PATH).write_text(note_of(member, 7))
    assert compare(ahead, behind, code=0)["consistent"] is True


def test_missing_tiles_are_no_split_view(member: Path, tmp_path: Path, compare: Compare) -> None:
    one, other = (write_tiles(member, tmp_path / name) for name in ("one", "other"))
    (other / f"tile/0/000.p/{NEWER}").unlink()
    facts = compare(one, other, code=0)
    assert [head["tree"] for head in facts["heads"]] == [True, False]


def test_a_head_that_the_log_never_signed_convicts_nobody(
    world: World, member: Path, tmp_path: Path
) -> None:
    stranger = World(name="stranger")
    forged = sign_checkpoint(stranger.coordinator, world.origin, NEWER, b"\1" * 32)
    mixed = write_tiles(member, tmp_path / "mixed", note_of(member, OLDER))
    (mixed / CERTIFIED_PATH).write_text(forged)
    other = write_tiles(member, tmp_path / "other")
    with pytest.raises(CheckFailed, match="sign"):
        main(["compare", str(mixed), str(other)])
    assert not Path("split-view.json").exists()


@pytest.mark.parametrize("certified", [b"garbage", b"\xff\xfe", b"forged"])
def test_a_head_that_says_nothing_hides_no_fork(
    world: World,
    member: Path,
    equivocating: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    certified: bytes,
) -> None:
    if certified == b"forged":
        stranger = World(name="stranger").coordinator
        certified = sign_checkpoint(stranger, world.origin, NEWER, b"\1" * 32).encode()
    mine = write_tiles(equivocating, tmp_path / "mine")
    other = write_tiles(member, tmp_path / "other")

    def answer(path: str) -> bytes:
        return certified if path == CERTIFIED_PATH else read(mine, path)

    with lying(answer) as liar, served(other) as honest:
        assert main(["compare", liar, honest]) == 1
    assert "evidence written to split-view.json" in capsys.readouterr().out
    assert convicted(world) == (OLDER + 3, NEWER)


def test_a_server_that_shows_a_head_of_each_history_in_turn_is_found_out_by_asking_it_twice(
    world: World, member: Path, equivocating: Path, tmp_path: Path
) -> None:
    tiles = [write_tiles(member, tmp_path / "one"), write_tiles(equivocating, tmp_path / "other")]
    asked: list[str] = []

    def answer(path: str) -> bytes:
        if path == "checkpoint":
            asked.append(path)
        if path == CERTIFIED_PATH:
            return b""
        # The tiles of both have names of their own, but for those that are alike.
        turn = tiles[(len(asked) + 1) % 2]
        return read(turn, path) or read(tiles[len(asked) % 2], path)

    with lying(answer) as liar:
        assert main(["compare", liar, liar]) == 1
    assert convicted(world) == (OLDER + 3, NEWER)


def test_who_shows_a_head_and_then_no_tree_is_compared_by_that_head(
    world: World, member: Path, equivocating: Path, tmp_path: Path, compare: Compare
) -> None:
    mine = write_tiles(equivocating, tmp_path / "mine")
    other = write_tiles(member, tmp_path / "other")

    def answer(path: str) -> bytes | None:
        return None if path.startswith("tile/0") else read(mine, path)

    with lying(answer) as liar:
        facts = compare(liar, other)
    assert facts["consistent"] is False
    assert facts["evidence"] is None, "nobody shows the tree behind that head"
    assert {parse_checkpoint(note).size for note in facts["notes"]} == {OLDER + 3, NEWER}


def test_every_head_that_a_home_has_seen_is_compared(
    world: World, member: Path, equivocating: Path, tmp_path: Path
) -> None:
    with closing(HeadStore(member / HEADS_NAME)) as heads:  # not the newest one that it keeps
        heads.add_note(note_of(equivocating, OLDER + 3))
        heads.add_note(note_of(member, NEWER))
    other = write_tiles(member, tmp_path / "other")
    assert main(["compare", str(member), str(other)]) == 1
    assert convicted(world) == (OLDER + 3, OLDER + 3)


def test_one_target_is_compared_with_the_home_if_there_is_one(
    member: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(write_tiles(member, tmp_path / "one"))
    with pytest.raises(UsageError, match="name two or more targets"):
        main(["compare", one, "--home", str(tmp_path / "nothing")])
    assert main(["compare", one, "--home", str(member)]) == 0
    assert "2 holders show one history" in capsys.readouterr().out
