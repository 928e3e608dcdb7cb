"""The parts of README.md that the committed results write: what stands between a part's two markers."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def markers(part: str) -> tuple[str, str]:
    """The lines around a part.

    >>> markers("bench")
    ('<!-- bench:begin -->', '<!-- bench:end -->')
    """
    return f"<!-- {part}:begin -->", f"<!-- {part}:end -->"


def shown(part: str, readme: pathlib.Path = README) -> str:
    """What the README shows of a part."""
    begin, end = markers(part)
    return readme.read_text().partition(begin)[2].partition(end)[0].strip()


def update(part: str, made: str, readme: pathlib.Path = README) -> None:
    """Put a part between its markers."""
    begin, end = markers(part)
    text = readme.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{readme.name}: expected the lines {begin} and {end} where that part belongs; put them in")
    readme.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{made}\n{end}", text, flags=re.DOTALL))
