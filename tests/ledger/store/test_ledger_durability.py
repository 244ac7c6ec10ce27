"""A fault at every write: nothing that was acknowledged is lost, nothing is doubled.

After Tessera's ``integration/fault/posix``: each single call that changes a file of the home is
made to fail (I/O error, full disk, half a write) or to be the last thing that the process does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.store import database
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.protocol import merkle
from artel.protocol.errors import ArtelError, CheckFailed
from ledger_world import World, key
from places import ROOT, WORLDS

KINDS = {
    "e": "one I/O error",
    "d": "a disk that has died",
    "s": "a full disk",
    "h": "half a write",
    "k": "killed before the call",
    "K": "killed after it, or in the middle of a write",
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults are injected by a library in C, and there is no compiler `cc`")
    library = tmp_path_factory.mktemp("shim") / "fault.so"
    source = WORLDS / "fault_shim.c"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be: a killed process needs no disk, and thousands of syncs do."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="artel-fault-", dir=base) as name:
        yield Path(name)


def faults(
    shim: Path, folder: Path, kinds: str, first: int, step: int, timeout: float
) -> list[dict[str, Any]]:
    """What came of each fault (see ``fault_driver.py``), checked."""
    done = subprocess.run(
        [sys.executable, WORLDS / "fault_driver.py", folder, kinds, str(first), str(step)],
        env=os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": f"{ROOT}{os.pathsep}{WORLDS}"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [result for result in results if result["problems"]]
    assert not wrong, wrong
    for kind in kinds:
        mine = [result for result in results if result["kind"] == kind]
        last = mine.pop()
        assert not last["call"], "the last run was without a fault"
        assert last["acknowledged"] == 13
        assert not last["errors"]
        assert mine, KINDS[kind]
        if kind in "ds":
            assert mine[0]["acknowledged"] < 13
            assert mine[0]["errors"], "a failure that lasts is said"
        if kind in "kK":
            assert mine[0]["acknowledged"] == 0
    return results


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("kinds", "first"), [("kK", 1), ("ed", 4), ("sh", 2)])
def test_a_fault_at_any_write_loses_and_doubles_nothing(
    shim: Path, folder: Path, kinds: str, first: int
) -> None:
    faults(shim, folder, kinds, first, step=9, timeout=200)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fault_at_every_write_loses_and_doubles_nothing(shim: Path, folder: Path) -> None:
    results = faults(shim, folder, "".join(KINDS), first=1, step=1, timeout=1100)
    calls = Counter(result["call"].split(" ")[0] for result in results if result["kind"] == "k")
    assert calls.keys() == {"open", "write", "pwrite", "fsync", "ftruncate", "rename", "unlink", ""}
    assert calls["pwrite"] > 30


# --- flipped bytes --------------------------------------------------------------------------------


def flipped_bytes(home: Path, name: str, offsets: list[int], rng: random.Random) -> None:
    """A change that is not found means nothing, and whoever opens it can sign no wrong thing."""
    path = home / name
    sound = path.read_bytes()
    world = World()
    note = (home / CHECKPOINT_NAME).read_text()
    with LedgerReader.of(home) as store:
        size, root, leaves = store.size, store.root, list(store.leaves())
    new = entries.account(key("new"), world.run).encode()
    right = merkle.root([merkle.leaf_hash(leaf) for leaf in (*leaves, new)])
    for offset in offsets:
        changed = bytearray(sound)
        changed[offset] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        result = verify_home(home)
        assert all(len(check.detail) > 10 for check in result.checks if not check.ok)
        intact = result.verified
        signed: list[bytes] = []

        def sign(covered: int, top: bytes, signed: list[bytes] = signed) -> str:
            signed.append(top)
            return world.sign(covered, top)

        try:
            with LedgerStore.open(home / DATABASE_NAME) as store:
                # The change is in bytes that mean nothing. What is signed is still the truth.
                assert (store.size, store.root, list(store.leaves())) == (size, root, leaves)
                assert store.latest_note == note
                try:
                    store.append([new], sign)
                except ArtelError:
                    # Where writing comes upon it, the head was signed, and says nothing wrong.
                    assert signed in ([], [right])
                else:
                    assert store.root_at(size) == root
        except ArtelError:
            assert not signed
            assert not intact, f"byte {offset} of {name}"
        finally:
            for file in home.iterdir():
                if file.name not in (name, CHECKPOINT_NAME):
                    file.unlink()
            path.write_bytes(sound)
            (home / CHECKPOINT_NAME).write_text(note)
    assert verify_home(home).verified


@pytest.fixture(scope="module")
def tiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a full tile."""
    home, world = tmp_path_factory.mktemp("tiled"), World()
    world.write(home)
    new = [entries.account(key(f"new {number}"), world.run).encode() for number in range(250)]
    with LedgerStore.open(home / DATABASE_NAME) as store:
        store.append(new, world.sign)
    return home


@pytest.mark.parametrize(
    "count", [40, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_flipped_byte_is_named_and_nothing_wrong_is_signed(tiled_home: Path, count: int) -> None:
    rng = random.Random(count)
    size = (tiled_home / DATABASE_NAME).stat().st_size
    offsets = [rng.randrange(size) for _ in range(count)]
    # The file's header, and the headers of pages, where a change means most.
    offsets += [rng.randrange(100) for _ in range(count // 4)]
    offsets += [4096 * rng.randrange(size // 4096) + rng.randrange(12) for _ in range(count // 4)]
    flipped_bytes(tiled_home, DATABASE_NAME, offsets, rng)


@pytest.mark.parametrize("read", [False, True])
def test_what_comes_to_nothing_takes_no_room_on_the_disk(tmp_path: Path, read: bool) -> None:
    """Nor does it wait for somebody who reads meanwhile."""
    path = tmp_path / DATABASE_NAME
    connection, log = database.connect(path, database.tables()), path.with_name(f"{path.name}-wal")
    with closing(connection):
        for reader in (True, False) if read else (False,):
            with database.reading(path, database.tables()) if reader else nullcontext():
                began = time.monotonic()
                with pytest.raises(CheckFailed), database.transaction(connection):
                    for number in range(64):
                        row = (number, bytes(1 << 17))
                        connection.execute("INSERT INTO entries VALUES (?, ?)", row)
                    assert log.stat().st_size > 4 << 20
                    raise CheckFailed("the last of it is wrong")
                assert time.monotonic() - began < database.LOCK_WAIT_S / 2
        assert log.stat().st_size == 0
