"""The pages: the README is short, links lead somewhere, names exist, figures are those of the committed results."""

import importlib.util
import json
import pathlib
import re
import statistics
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"\bfastkoop(?:\.[a-z_]\w*)+")
FILE = re.compile(r"`((?:fastkoop|kernels|tests|bench)/[\w./-]*)`")


def pages():
    """Every committed page of the checkout, or every page beside the sources where there is no git."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]
    folders = (ROOT / name for name in ("fastkoop", "kernels", "tests", "bench"))
    return [README, *(path for folder in folders for path in sorted(folder.rglob("*.md")))]


PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(page):
    """The anchors of a page's headings, as they are derived from the text."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def resolved(dotted):
    """Whether a dotted name is a module, or something that a module has."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        if spec is None:
            continue
        value = importlib.import_module(".".join(parts[:count]))
        for name in parts[count:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def test_pages_are_seen():
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "fastkoop/CHANGELOG.md", "fastkoop/guide/arrays.md", "tests/README.md"} <= names


def test_the_readme_is_read_to_its_end():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 9 * 1024


@pytest.mark.parametrize("name", ["frameworks", "lightning", "huggingface", "accelerate"])
def test_a_framework_s_page_has_at_most_40_lines_and_an_example_that_runs(name):
    text = (ROOT / "fastkoop" / "guide" / f"{name}.md").read_text()
    assert len(text.splitlines()) <= 40
    assert ">>> koopman = Koopman(" in text or ">>> callback = KoopmanCallback(" in text


def test_the_verdict_is_what_the_pages_say():
    text, guide = (page.read_text() for page in (README, ROOT / "fastkoop" / "guide" / "pays.md"))
    begin, end = "<!-- verdict:begin -->", "<!-- verdict:end -->"
    verdict, theirs = (page.partition(begin)[2].partition(end)[0].strip() for page in (text, guide))
    assert verdict == theirs and sum(line.startswith("- ") for line in verdict.splitlines()) == 3
    verdict = " ".join(verdict.split())
    forecast, smooth = ((ROOT / "bench" / "pages" / f"{name}.md").read_text() for name in ("forecast", "smooth"))
    assert re.search(r"right on \d+% of \d+ recordings", verdict).group() in forecast
    ahead = re.search(r"\*\*L-BFGS ends below Koopman\*\* on (\d of \d)", smooth).group(1)
    assert f"L-BFGS, where you can use it, is ahead on {ahead} such problems" in verdict


@every_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


NAMING = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names what was removed, too


@pytest.mark.parametrize("page", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_exist(page):
    text = page.read_text()
    for dotted in set(MODULE.findall(text)):
        assert resolved(dotted), f"{page.name} names {dotted}"
    for path in FILE.findall(text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_caption_is_what_the_results_say():
    runs = json.loads((ROOT / "bench/results/report/node-T2-jax/results.json").read_text())["runs"]
    curves = [(run["koopman"]["test_loss"], run["optimizer"]["test_loss"], run["average"]["test_loss"]) for run in runs]
    start, koopman, adadelta, mean = (
        statistics.median(values)
        for values in zip(*((k[0], k[-1], o[-1], average) for k, o, average in curves), strict=True)
    )
    caption = " ".join(README.read_text().split())
    assert f"grows from {start:.3f} to {koopman:.3f} in two epochs" in caption
    assert (
        f"AdaDelta ends at {adadelta:.3f}; the mean of the recorded weights, which is free, has {mean:.3f}" in caption
    )
    assert len(runs) == 3 and "medians of three seeds" in caption
