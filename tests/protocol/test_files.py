"""Files that take the place of others, and what they must not take the place of."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from artel.protocol import files


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """As root a rename would put a file in the place of /dev/null, for every program."""
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, b"what was asked for")
    reader.join(10)
    assert got == [b"what was asked for"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
