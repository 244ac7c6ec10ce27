"""Programs in a terminal of their own, as a person starts them, and the ways in which those end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from artel.protocol import tether


class Terminal:
    """``artel ARGUMENTS`` as the session leader of a fresh pseudo-terminal, in its foreground."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._said = b""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "artel", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=tether.environment(),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self.known: set[psutil.Process] = set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that the program has printed."""
        return self._said.decode(errors="replace")

    def tree(self) -> set[psutil.Process]:
        """The program and everything that it has started, now and at earlier calls."""
        with contextlib.suppress(psutil.NoSuchProcess):
            program = psutil.Process(self.process.pid)
            self.known |= {program, *program.children(recursive=True)}
        return self.known

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 280) -> None:
        """Wait until a condition holds, while the program runs."""
        ends = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"{what}: it ended\n{self.text}"
            assert time.monotonic() < ends, f"{what}: not in {seconds:.0f} s\n{self.text}"
            time.sleep(0.05)

    # --- ways to end it ---

    def press_ctrl_c(self) -> None:
        """The terminal sends SIGINT to all of its foreground group."""
        os.write(self._ours, b"\x03")

    def stop_as_a_service(self) -> None:
        """SIGTERM to everything that it has started, as ``systemctl stop`` does."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)

    def signal_group(self) -> None:
        """SIGTERM to its process group."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def hang_up(self) -> None:
        """Close the terminal: what writes to it fails from now on. A shell repeats the signal."""
        ours, self._ours = self._ours, -1
        self._reader.join()
        os.close(ours)
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGHUP)

    def ended(self, seconds: float) -> int:
        """Wait until it has ended; returns its exit code. Nothing of it may be left then."""
        self.tree()
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(self.known, timeout=5)
        left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"left behind: {left}\n{self.text}"
        assert "Traceback" not in self.text, self.text
        return code

    def close(self) -> None:
        """Kill what is left."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        if self._ours >= 0:
            os.close(self._ours)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while (ours := self._ours) >= 0:
                # A read under way would keep the terminal open when it is closed.
                if select.select([ours], [], [], 0.05)[0]:
                    self._said += os.read(ours, 1 << 14)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    """A program in a terminal; it is killed at the end if it still runs."""
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        opened.close()


def _take_terminal() -> None:
    """In the child: make standard input the controlling terminal, and Ctrl-C mean something."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
