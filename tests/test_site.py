"""The site builds strictly from docs/, has every page, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

FETCHED = re.compile(r'<(?:script|img|iframe)[^>]*?\ssrc="([^"]+)"|<link[^>]*?\shref="([^"]+)"')
MENTIONED = re.compile(
    r"`((?:tests|docs|benchmarks|protocol|ledger|node)/[\w/.-]+\.(?:py|md|toml))`"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_document_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")}
    documents = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    assert pages - {Path("404.md")} == documents
    fetched = {
        "".join(found)
        for page in site.rglob("*.html")
        for found in FETCHED.findall(page.read_text())
    }
    assert any(name.endswith(".css") for name in fetched)
    assert any(name.endswith("round.svg") for name in fetched)
    assert [name for name in fetched if "//" in name] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_file_that_a_page_names_is_there(page: Path) -> None:
    for name in MENTIONED.findall(page.read_text()):
        assert (ROOT / name).exists(), name
