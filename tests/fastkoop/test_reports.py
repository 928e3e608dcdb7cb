"""Reports are the caller's: changing one changes no prediction and no other report."""

import numpy as np
import pytest
import torch
from cases import orbit

import fastkoop as fk

NAMES = (
    "rank", "threshold", "condition", "edge", "route", "spectral_radius", "eigenvector_condition", "residual",
    "holdout", "eigenvalues", "modes",
)  # fmt: skip
OPTIONS = ({}, {"observables": fk.Affine(), "out_of_span": "carry"}, {"stabilize": "clip"}, {"stabilize": "project"})


def overwrite(report):
    """Every entry of a report, where it can be written to at all."""
    if isinstance(report, np.ndarray) and not report.flags.writeable:
        return
    report[...] = "gone" if getattr(report, "dtype", None) is not None and str(report.dtype).startswith("<U") else 0


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(9, 4), (4, 9), (120, 100)], ids=str)
def test_overwriting_a_report_changes_nothing(make, options, size, dtype, rng):
    X = make(orbit(rng, *size, dtype, batch=(2,), decay=1.01))
    op = fk.fit(X, cutoff=1e-3, **options)
    before = {name: np.asarray(getattr(op, name)).copy() for name in NAMES}
    states, walk = np.asarray(op.predict([0, 1, 5])).copy(), op.walk()
    first = np.asarray(walk.step()).copy()
    for name in NAMES:
        overwrite(getattr(op, name))
    overwrite(op.matrix())
    overwrite(walk.coordinates)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(op, name), before[name], err_msg=name)
    np.testing.assert_array_equal(op.predict([0, 1, 5]), states)
    np.testing.assert_array_equal(op.walk().step(), first)
    coordinates = np.asarray(walk.coordinates).copy()
    walk.resume(1, coordinates)
    overwrite(coordinates)
    np.testing.assert_array_equal(walk.step(), op.walk().step(2))


def test_a_state_that_is_overwritten_is_the_caller_s_too(rng):
    X = orbit(rng, 9, 4, np.float64, batch=(2,))
    op = fk.fit(X)
    expected = op.predict(0)
    op.predict(0)[...] = 0.0
    np.testing.assert_array_equal(op.predict(0), expected)
    walk, other = op.walk(), op.walk()
    for _ in range(6):
        walk.step(1, ahead=3)[...] = 0.0
        state = other.step(1)
    walk.restart()
    np.testing.assert_array_equal(walk.step(6), state)
