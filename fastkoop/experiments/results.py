"""What `fastkoop.compare` returns: results in Python, in a notebook, in files, and back from them."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..checks import InputError
from ..files import plain, read_json

REQUIRED = ("config", "machine", "runs")


class Results(Mapping):
    """A comparison's results: a mapping as results.json has it, with its table, its verdict and its report.

    >>> from fastkoop.experiments.results import Results
    >>> Results({"config": {}, "machine": {}, "runs": []}).as_dict()["runs"]
    []
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @classmethod
    def read(cls, path: str | pathlib.Path) -> Results:
        """From results.json, or the folder that holds it.

        Raises:
            ValueError: there is no such file, or it is not a comparison's.
        """
        path = pathlib.Path(path)
        path = path / "results.json" if path.is_dir() else path
        values = read_json(path)
        if not isinstance(values, dict) or not set(REQUIRED) <= set(values):
            raise InputError(f"{path}: expected a comparison's results with {', '.join(REQUIRED)}")
        results = cls(values | {"runs": _restored(values["runs"])})
        try:
            if not values["runs"]:
                raise InputError(f"{path}: it holds no run")
            _ = results.table(), results.verdict
        except InputError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: it is damaged ({type(error).__name__}: {error}); run the comparison again"
            ) from None
        return results

    @property
    def verdict(self) -> str:
        """Whether the phase paid, in a few sentences."""
        from .verdict import verdict

        return " ".join(verdict(self))

    def table(self, details: bool = False) -> str:
        """The table, in lines of 80 columns.

        Args:
            details: all baselines, costs and words, as `--details` prints them.
        """
        from .terminal import details_lines, table_lines

        return "\n".join(details_lines(self) if details else table_lines(self))

    def report(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write report.html, self-contained, to a file or into a folder. Returns its path."""
        from .report import write_report

        return write_report(self, pathlib.Path(path))

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as results.json has them: None for what is not finite."""
        return plain(self._values)

    def __str__(self) -> str:
        return f"{self.verdict}\n{self.table()}"

    def __repr__(self) -> str:
        config, count = self.get("config", {}), len(self.get("runs", ()))
        return f"Results({config.get('dataset')!r}, {count} run{'s' * (count != 1)})"

    def _repr_html_(self) -> str:
        """Verdict and table for a notebook."""
        from .report import fragment

        return fragment(self)

    def to_json(self) -> str:
        """The text of results.json."""
        return json.dumps(self.as_dict(), allow_nan=False)


def _restored(value):
    """None, which JSON has for what is not finite, as a number again; an accuracy that is None was never there."""
    if isinstance(value, dict):
        return {name: item if name == "test_accuracy" else _restored(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return math.nan if value is None else value
