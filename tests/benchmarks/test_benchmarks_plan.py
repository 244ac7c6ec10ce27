"""What ``artel plan`` computes stays as near to published numbers as its document says."""

from __future__ import annotations

import pytest

from benchmarks.plan import Row, every_row, summary, table
from places import ROOT

ROWS = every_row()
DOCUMENT = (ROOT / "docs" / "results" / "plan.md").read_text()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_not_further_off_than_it_may_be(row: Row) -> None:
    assert row.holds, row


def test_all_sizes_and_kinds_are_there() -> None:
    names = [f"{row.part}: {row.name}" for row in ROWS]
    assert len(set(names)) == len(names) > 60
    for word in ("GPT-3", "7B", "13B", "32.76B", "70B", "304B", "405B", "int4", "fp32", "measured"):
        assert any(word in name for name in names), word


@pytest.mark.parametrize("part", dict.fromkeys(row.part for row in ROWS))
def test_the_document_has_the_tables_of_today(part: str) -> None:
    assert table(ROWS, part) in DOCUMENT
    assert summary(ROWS) in DOCUMENT
