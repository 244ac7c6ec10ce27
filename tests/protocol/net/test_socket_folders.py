"""What a killed program leaves in the folder for temporary files, the next one removes."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from artel.protocol import tether
from artel.protocol.errors import ResourceError
from artel.protocol.net.p2pd import SocketFolder

PROGRAM = """
from artel.protocol.net.p2pd import SocketFolder
folder = SocketFolder()
(folder.path / "p2pd").touch()
print(folder.path, flush=True)
input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def other(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another program, and the folder that it uses."""
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tether.environment(),
    )
    assert program.stdout is not None
    yield program, Path(program.stdout.readline().strip())
    program.kill()
    program.communicate()


def test_the_folder_of_a_program_that_was_killed_is_removed_by_the_next_one(
    temporary: Path, other: tuple[subprocess.Popen[str], Path]
) -> None:
    program, left = other
    mine = SocketFolder()
    assert (left / "p2pd").exists(), "it is used"
    program.send_signal(signal.SIGKILL)
    program.wait()
    another = SocketFolder()
    assert not left.exists()
    assert set(temporary.iterdir()) == {mine.path, another.path}
    mine.close()
    another.close()
    another.close()
    assert not list(temporary.iterdir())


def test_what_is_no_folder_of_ours_stays(temporary: Path) -> None:
    target = temporary / "precious"
    target.mkdir()
    (target / "file").touch()
    (temporary / "artel-net-link").symlink_to(target)
    (temporary / "artel-net-file").touch()
    SocketFolder().close()
    assert {path.name for path in temporary.iterdir()} == {
        *("precious", "artel-net-link", "artel-net-file"),
    }
    assert (target / "file").exists()


def test_without_room_there_is_one_clear_error(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "nowhere"))
    with pytest.raises(ResourceError, match="cannot make a folder for temporary files"):
        SocketFolder()
