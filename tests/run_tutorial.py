"""Runs the tutorials as a newcomer would: in an empty folder with a wheel in it, block after block.

    python3 tests/run_tutorial.py WHEEL FOLDER [--within SECONDS]

The organiser's, the volunteer's and the auditor's page make one run on this machine. Only the
standard library and the shell are used, so that it runs on a bare image, and of the caller's
environment only how pip finds its registry. A block that is called "a terminal of its own" goes on
until the run is over, or the end; what follows it is tried again until it succeeds, as a person
would. ``--within``: at most so long from `artel runs` to the first contribution that counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

PAGES = ("organiser", "volunteer", "auditor")
DOCUMENTS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
OWN_TERMINAL, WHEN_OVER = "a terminal of its own", "when the run is over"
TITLES = {"", "install", OWN_TERMINAL, WHEN_OVER}
SHOWS = {"artel runs": "my-run", "artel ledger shares": "100"}
"""What a command has to show before it counts as done."""
PAGE = "http://127.0.0.1:8080"
PATIENCE_S, RUN_S = 240, 1800


def blocks(page: str) -> Iterator[tuple[str, list[str]]]:
    """Title and commands of each shell block of a page, in order."""
    text = (DOCUMENTS / f"{page}.md").read_text(encoding="utf-8")
    for title, block in re.findall(r'^```sh(?: title="(.*?)")?\n(.*?)^```', text, re.M | re.S):
        yield title, block.replace("HOST:8080", "127.0.0.1:8080").strip().splitlines()


class Newcomer:
    """Somebody in a folder, with a shell and some terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self.asked = 0.0  # when the volunteer looked for runs
        self.terminals: list[subprocess.Popen[bytes]] = []
        home = folder / "user"
        home.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        path = f"{folder / 'artel-venv/bin'}:/usr/local/bin:/usr/bin:/bin"
        self.environment = kept | {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def types(self, line: str, patience: float) -> None:
        """Run one command, again and again where it may be too early for it."""
        self.say(f"$ {line}")
        if line.startswith("artel runs") and not self.asked:
            self.asked = time.monotonic()
        end = time.monotonic() + patience
        while True:
            done = subprocess.run(
                ["bash", "-ec", line],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=RUN_S,
                check=False,
            )
            out = done.stdout.decode(errors="replace")
            shows = next((word for start, word in SHOWS.items() if line.startswith(start)), "")
            if done.returncode == 0 and shows in out:
                print("".join(f"          {each}\n" for each in out.splitlines()[-12:]), end="")
                return
            if time.monotonic() > end:
                raise SystemExit(f"exit code {done.returncode}: {line}\n{out}")
            time.sleep(1)

    def opens_terminal(self, lines: list[str]) -> None:
        self.say(f"$ {lines[0]} &")
        log = (self.folder / f"terminal-{len(self.terminals) + 1}.log").open("wb")
        self.terminals.append(
            subprocess.Popen(
                ["bash", "-ec", "exec " + lines[0]],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )

    def first_contribution(self, within: float) -> None:
        """Wait until the first round is agreed on, of which the volunteer is the only member."""
        while True:
            with urlopen(f"{PAGE}/api/v1/status", timeout=30) as answer:
                if json.load(answer)["round"] >= 1:
                    break
            if self.terminals[-1].poll() is not None or time.monotonic() - self.asked > RUN_S:
                raise SystemExit(f"no contribution:\n{self.log(len(self.terminals))}")
            time.sleep(0.5)
        took = time.monotonic() - self.asked
        self.say(f"from `artel runs` to the first contribution that counts: {took:.1f} s")
        if took > within:
            raise SystemExit(f"that is more than {within:.0f} s")

    def log(self, number: int) -> str:
        return (self.folder / f"terminal-{number}.log").read_text(errors="replace")[-4000:]

    def waits_for_last(self) -> None:
        code = self.terminals[-1].wait(RUN_S)
        if code:
            raise SystemExit(f"exit code {code}:\n{self.log(len(self.terminals))}")

    def leaves(self) -> None:
        """Ctrl-C in every terminal that is still open."""
        for number, terminal in enumerate(self.terminals, 1):
            if terminal.poll() is None:
                terminal.send_signal(signal.SIGINT)
                try:
                    code = terminal.wait(120)
                except subprocess.TimeoutExpired:
                    terminal.kill()
                    raise
                if code:
                    raise SystemExit(f"exit code {code} after Ctrl-C:\n{self.log(number)}")


def follow(wheel: Path, folder: Path, within: float) -> None:
    """All pages, one after another; raises SystemExit with what went wrong."""
    newcomer = Newcomer(folder)
    shutil.copy(wheel, folder)
    try:
        for page in PAGES:
            newcomer.say(f"--- {page}")
            early = False
            for title, lines in blocks(page):
                if title == OWN_TERMINAL:
                    newcomer.opens_terminal(lines)
                    early = True
                    continue
                if title == WHEN_OVER:
                    newcomer.first_contribution(within)
                    newcomer.waits_for_last()
                for line in lines:
                    newcomer.types(line, PATIENCE_S if early else 0)
    finally:
        newcomer.leaves()
    newcomer.say("all tutorials hold")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--within", type=float, default=float("inf"))
    given = parser.parse_args()
    follow(given.wheel.resolve(), given.folder.resolve(), given.within)
    sys.exit(0)
