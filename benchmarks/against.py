"""Has a change made something slower? One benchmark on two trees, in turns, and the ratios.

The other tree is a commit of this repository, checked out into a temporary folder, or a folder.
Both run with this interpreter and its packages, each from its own root, so that each imports its
own code. They take turns (old, new, new, old, ...), since what else a machine does drifts within
minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.against HEAD~20 ledger --quick
  python -m benchmarks.against v0.1 --turns 5 ledger --only fold --entries 200000
  python -m benchmarks.against ../other-tree overhead --quick

Exit codes: 0 when everything could be measured, whatever the ratios; 1 when a benchmark failed;
2 when a tree does not have it.
"""
ROOT = Path(__file__).resolve().parent.parent

Numbers = dict[str, list[float]]
"""Name of a row to what was measured, one number a turn."""


@contextmanager
def tree_of(other: str) -> Iterator[Path]:
    """The folder, or the commit in a folder of its own while this lasts."""
    if Path(other).is_dir():
        yield Path(other).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-against-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), other], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measure(tree: Path, benchmark: str, arguments: Sequence[str], into: Numbers) -> dict[str, str]:
    """Run the benchmark once; its numbers are added.

    :returns: the unit of each row
    :raises FileNotFoundError: the tree does not have it (what is installed would run instead)
    :raises subprocess.CalledProcessError: it failed
    """
    if not (tree / "benchmarks" / f"{benchmark}.py").is_file():
        raise FileNotFoundError(f"{tree} has no benchmarks/{benchmark}.py")
    with tempfile.TemporaryDirectory(prefix="benchmark-against-") as folder:
        rows = Path(folder) / "rows.json"
        module = f"benchmarks.{benchmark}"
        command = [sys.executable, "-m", module, *arguments, "--json", str(rows)]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(rows.read_text())
    for row in found:
        into[row["name"]].append(row["ours"])
    return {row["name"]: row["unit"] for row in found}


def table(old: Numbers, new: Numbers, units: dict[str, str]) -> str:
    """Medians of both, and new over old with its range over the turns."""
    lines = [f"{'':44}{'old':>12}{'new':>12}  ratio (range over the turns)"]
    for name in (name for name in old if name in new):
        ratios = [b / a for a, b in zip(old[name], new[name], strict=True) if a]
        if not ratios:
            continue
        a, b = statistics.median(old[name]), statistics.median(new[name])
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"{name:44}{a:12.4g}{b:12.4g}  {spread}  {units[name]}")
    for name in sorted(old.keys() ^ new.keys()):
        lines.append(f"{name:44}  only {'old' if name in old else 'new'}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against",
        description="One benchmark on another tree and on this one, in turns.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", help="a commit of this repository, or a folder with another tree")
    parser.add_argument("--turns", type=int, default=3, help="of each (3)")
    parser.add_argument("benchmark", help="as ledger, overhead, codec")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the benchmark")
    options = parser.parse_args(argv)
    old, new = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    units: dict[str, str] = {}
    try:
        with tree_of(options.other) as tree:
            for turn in range(options.turns):
                pair = [(tree, old), (ROOT, new)]
                for side, numbers in pair if turn % 2 == 0 else reversed(pair):
                    print(f"turn {turn + 1} of {options.turns}: {side}", flush=True)
                    units |= measure(side, options.benchmark, options.arguments, numbers)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + table(old, new, units))
    return 0


if __name__ == "__main__":
    sys.exit(main())
