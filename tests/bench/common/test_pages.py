"""Parts of pages are written between their markers and nowhere else; names are checked."""

import pytest

from bench import PAGES
from bench.common import pages


def test_a_part_goes_between_its_markers_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n")
    pages.update("page", "new \\1", "x", tmp_path)
    assert page.read_text() == "a\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nb\n"
    assert pages.shown("page", "x", tmp_path) == "new \\1"
    with pytest.raises(SystemExit, match=r"page\.md: expected the lines <!-- y:begin -->"):
        pages.update("page", "new", "y", tmp_path)


def test_figures_beside_the_json_are_removed(tmp_path):
    for name in ("results.json", "loss.png", "report.html"):
        (tmp_path / name).write_text("")
    pages.keep_json(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="setting: expected one of a, b, got 'c'"):
        pages.select(["a", "c"], ["a", "b"], "setting")


def test_every_marker_of_a_page_has_its_end():
    for page in PAGES.glob("*.md"):
        text = page.read_text()
        parts = [line[5:-10] for line in text.splitlines() if line.endswith(":begin -->")]
        assert parts and all(text.count(pages.markers(part)[1]) == 1 for part in parts), page.name
