"""``artel chaos``: does a run survive whatever goes wrong? Faults at random in real processes.

The work is done by ``benchmarks/chaos.py`` of a source tree, with the fault tools of its tests.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

from artel.protocol import commandline, files
from artel.protocol.commandline import AsJson, Folder, value
from artel.protocol.errors import ResourceError
from artel.protocol.options import number, whole
from artel.protocol.paths import expanded

TREE = Path(__file__).resolve().parent.parent
NEEDED = ("benchmarks/chaos.py", "tests/worlds/faulty_swarm.py")
MOST_S = 86_400

app = commandline.group(
    "chaos",
    None,
    {
        0: "it survived",
        1: "something that must hold does not",
        2: "wrong input",
        4: "this is no source tree",
        130: "interrupted",
    },
)


@app.default
def chaos(
    *,
    nodes: Annotated[int, value(whole(2, 16), "N")] = 3,
    seed: Annotated[int, value(whole(0, 2**31), "S")] = 1,
    duration: Annotated[float, value(number(5, MOST_S), "SECONDS")] = 120.0,
    mtbf: Annotated[float, value(number(0, MOST_S), "SECONDS")] = 10.0,
    inner_steps: Annotated[int, value(whole(1, 10_000), "H")] = 100,
    keep: Folder | None = None,
    as_json: AsJson = False,
) -> int:
    """Let everything go wrong in a run on this machine, and check that it survives.

    Two coordinators and nodes run as real processes. Programs are killed and frozen, links cut,
    slow and corrupting, disks full, clocks wrong, blobs rotten; the home of whoever leads is put
    back from a backup or deleted, terms end on purpose, nodes come and go. All along and at the end
    everything that must hold is checked, and a table says how soon what was over. The same seed
    makes the same faults. Needs a source tree.

    example: artel chaos --nodes 3 --duration 120 --mtbf 10 --seed 7

    example: artel chaos --nodes 8 --duration 900 --mtbf 20 --json

    :param nodes: how many
    :param seed: of the faults: what, to whom, when
    :param duration: so long faults come
    :param mtbf: mean time between faults; at 0 nothing goes wrong, and memory and open files of
        every process are measured
    :param inner_steps: training steps of each node in a round
    :param keep: an empty or new folder for all homes and logs; otherwise they are kept only when
        something does not hold
    :param as_json: print one JSON object at the end; progress goes to stderr
    """
    missing = [name for name in NEEDED if not (TREE / name).is_file()]
    if missing:
        raise ResourceError(
            f"this command needs a source tree of Artel, and {TREE} has no {missing[0]}",
            "clone the repository and run it there: make demo, then .venv/bin/artel chaos",
        )
    if keep is not None:
        files.require_empty(keep := expanded(keep))
    sys.path[:0] = [str(TREE), str(TREE / "tests" / "worlds")]
    program = importlib.import_module("benchmarks.chaos")
    options = program.Options(nodes, seed, duration, mtbf, inner_steps, keep, as_json)
    code: int = program.survive(options)
    return code
