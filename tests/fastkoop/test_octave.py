"""The "array_api" rule on float64 data is that of Octave's pinv; octave/make.m made the reference data."""

import json
import pathlib

import numpy as np
import pytest

import fastkoop as fk

DATA = json.loads((pathlib.Path(__file__).parent / "octave" / "pinv.json").read_text())
CASES = [name for name in DATA if name != "octave"]


def matrix(text):
    """A matrix in Octave's own notation."""
    rows = [[float(number) for number in row.split()] for row in text.strip("[]").split(";")]
    return np.array(rows)


@pytest.mark.parametrize("name", CASES)
def test_pinv_is_octaves(name):
    A, expected = matrix(DATA[name]["A"]), matrix(DATA[name]["pinv"])
    if name == "zero":
        assert not A.any() and not fk.pinv(A).any() and not expected.any()
        return
    found, size = fk.pinv(A), np.abs(expected).max()
    s = np.linalg.svd(A, compute_uv=False)
    kept = s[s > max(A.shape) * 2.0**-52 * s[0]]
    # each inverse is right for a matrix that differs by rounding from A: eps s1 turns into that times |A^+|^2
    allowed = 40 * 2.0**-52 * kept[0] / kept[-1]
    assert np.abs(found / size - expected / size).max() <= allowed
    assert fk.fit(np.c_[A, A[:, :1]]).rank == len(kept)


def test_the_rule_is_put_to_the_test():
    above, below = (
        np.linalg.svd(matrix(DATA[name]["pinv"]), compute_uv=False) for name in ("above the rule", "below the rule")
    )
    assert above[0] > 1e12 and below[0] < 1e3
