"""Whoever has only ``docs/ledger.md`` comes to the same credit, on ledgers of every make.

The histories of the other tests of the fold are compared where they are folded
(:func:`ledger_world.outcomes`), random ones by the fold's machine, real runs by the swarm's tests.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from artel.ledger.sync.client import home_view
from artel.ledger.sync.mirror import mirror
from explorer_world import busy_world, sharded_world
from ledger_world import World, folded, key
from tests import independent_fold


def with_text() -> World:
    """Text of two people and of nobody; a fast and a slow machine; three epochs."""
    gave = [(key("giver").key, 3000), ("", 1000), (key("reader").key, 2000)]
    world = World(contributed=gave, total=9, exchange={"overlap_steps": 1})
    world.batches(9)
    return world


@pytest.mark.parametrize("made", [busy_world, sharded_world, with_text])
def test_a_ledger_read_by_the_document_alone_gives_the_same_credit(
    made: Callable[[], World],
) -> None:
    folded(made().leaves)


def test_a_mirror_is_enough(tmp_path: Path) -> None:
    world = World(total=200)
    world.write(tmp_path / "home", rounds=40)  # more than one bundle of entries
    with home_view(tmp_path / "home") as view:
        mirror(view, tmp_path / "mirror")
    copy = tmp_path / "mirror"
    leaves = [*independent_fold.leaves_of(copy)]
    assert leaves == world.leaves
    read = independent_fold.Fold(leaves, independent_fold.documents_of(copy))
    assert read.round == 40
    assert not any(read.reasons)


def test_it_is_independent() -> None:
    tree = ast.parse(Path(independent_fold.__file__).read_text())
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert {name.partition(".")[0] for name in named} <= {*sys.stdlib_module_names, "cryptography"}
