"""The benchmarks as programs, and what every row of their results must have."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from places import ROOT


def run(name: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def called(name: str, *arguments: str) -> tuple[int, str, str]:
    """What ``main`` of a benchmark ends with and prints, without the start of a process."""
    main = importlib.import_module(f"benchmarks.{name}").main
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(list(arguments))
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, out.getvalue(), err.getvalue()


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a result, checked for what every row must have."""
    rows = json.loads(file.read_text())
    assert rows
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["unit"]
        assert row["baseline"] > 0
        assert math.isclose(row["ratio"], row["ours"] / row["baseline"])
        assert 0 < row["ours"] < math.inf
        assert row["baseline_is"]
    return rows
