"""The site of the pages: it builds without a warning, so each link leads somewhere, and has the references."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_site.py"), str(tmp_path)], check=True, timeout=300)
    pages = {page.stem: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog"} <= set(pages)
    assert "fastxfer store verify" in pages["cli"]
    assert "fastxfer.sample_episodes" in pages["api"]
    assert "What an episode is." in pages["api"], "a docstring is there"
    for name, page in pages.items():
        assert "toctree-l1" in page, f"{name} has no way to the others"
