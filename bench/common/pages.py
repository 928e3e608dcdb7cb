"""The parts of bench/pages that committed results write: what stands between a part's two markers."""

from __future__ import annotations

import pathlib
import re

from bench import PAGES


def markers(part: str) -> tuple[str, str]:
    """The lines around a part.

    >>> markers("cases")
    ('<!-- cases:begin -->', '<!-- cases:end -->')
    """
    return f"<!-- {part}:begin -->", f"<!-- {part}:end -->"


def shown(page: str, part: str = "table", folder: pathlib.Path = PAGES) -> str:
    """What a page shows of a part."""
    begin, end = markers(part)
    return (folder / f"{page}.md").read_text().partition(begin)[2].partition(end)[0].strip()


def update(page: str, text: str, part: str = "table", folder: pathlib.Path = PAGES) -> None:
    """Put a part between its markers."""
    begin, end = markers(part)
    file = folder / f"{page}.md"
    before = file.read_text()
    if begin not in before or end not in before:
        raise SystemExit(f"{file.name}: expected the lines {begin} and {end} where that part belongs; put them in")
    file.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.DOTALL))


def markdown(heads: tuple[str, ...], rows: list) -> str:
    """A table; a row is a sequence of cells."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, ("---",) * len(heads), *rows))


def keep_json(folder: pathlib.Path) -> None:
    """Remove what a run drew beside its JSON: figures and a report that the command draws again."""
    for file in folder.iterdir():
        if file.suffix != ".json":
            file.unlink()


def select(names: list[str], known, what: str = "name") -> list[str]:
    """The names asked for, in their order; all of them if none is.

    >>> select([], ["a", "b"]), select(["b"], ["a", "b"])
    (['a', 'b'], ['b'])

    Raises:
        ValueError: naming the first that is unknown and what was expected.
    """
    from fastkoop.checks import InputError

    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{what}: expected one of {', '.join(known)}, got {unknown[0]!r}")
    return list(names or known)
