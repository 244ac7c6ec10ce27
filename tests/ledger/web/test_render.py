"""Templates: what they are given becomes text, and a name that they misspell is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from artel.coordinator import page as run_page
from artel.ledger.web.render import TEMPLATES, Templates
from artel.node import status
from page_world import read

FOLDERS = (TEMPLATES, run_page.TEMPLATES, status.TEMPLATES)


@pytest.fixture
def written(tmp_path: Path) -> Templates:
    """Templates, and a folder of the test's own."""
    (tmp_path / "one.html").write_text('<p title="{{ given }}">{{ given }}</p>{{ more }}')
    templates = Templates()
    templates.add(tmp_path)
    return templates


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<b>", "<b>"),
        ('"><script>', '"><script>'),
        ("a\u202eb\x1b[2J\x00", "a?b?[2J?"),
        (None, "–"),
        (0, "0"),
    ],
)
def test_whatever_is_given_is_text(written: Templates, given: object, shown: str) -> None:
    page = read(written.render("one.html", given=given, more=""))
    (paragraph,) = page.all()
    assert (paragraph.text, paragraph.attributes["title"]) == (shown, shown)


def test_a_name_that_is_not_given_is_an_error(written: Templates) -> None:
    with pytest.raises(UndefinedError, match="more"):
        written.render("one.html", given="x")


def test_no_template_trusts_what_it_is_given() -> None:
    sources = [path.read_text() for folder in FOLDERS for path in folder.iterdir()]
    assert len(sources) > 10
    for source in sources:
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source
        assert "<script" not in source.replace('<script src="{{ asset(', ""), "only files of ours"
        assert " style=" not in source
