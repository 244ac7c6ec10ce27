"""What several benchmarks share: checks of options before anything runs, and lines that say how far
they are."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path


def require_folder(parser: argparse.ArgumentParser, file: Path | None) -> None:
    """End with a usage error unless ``file`` (of --json) can be created where it is."""
    if file and not file.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {file.parent}")


def empty_folder(parser: argparse.ArgumentParser, folder: Path | None) -> Path | None:
    """The folder of --keep, made if it is not there; ends with a usage error unless it is empty."""
    if folder is None:
        return None
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--keep: {folder} is not empty")
    return folder


def telling(*, aside: bool = False) -> Callable[[str], None]:
    """Says lines, each with the seconds since this call.

    :param aside: to stderr
    """
    began = time.monotonic()

    def say(text: str) -> None:
        where = sys.stderr if aside else sys.stdout
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=where, flush=True)

    return say
