"""Errors over movements, drift and costs, against figures worked out by hand."""

import math

import numpy as np
import pytest
import torch

from fastkoop.experiments.problems.movement import authors_measure, compared, costs, drift, layers, words


def weights(*values):
    """Two layers of two weights and a bias each."""
    values = torch.tensor(values)
    return {"a.weight": values[None, :2], "a.bias": values[2:3], "b.weight": values[None, 3:5], "b.bias": values[5:]}


START = weights(0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
TRUE = weights(3.0, 0.0, 4.0, 1.0, 1.0, 13.0)


def test_a_layer_is_its_weights_and_its_bias():
    assert {name: own.tolist() for name, own in layers(TRUE).items()} == {"a": [3, 0, 4], "b": [1, 1, 13]}


def test_errors_are_in_units_of_the_true_movement():
    found = compared({"start": START, "optimizer": TRUE, "koopman": START, "half": weights(1.5, 0, 2, 1, 1, 7)})
    assert found["movement"] == {"all": 13.0, "a": 5.0, "b": 12.0}
    assert found["error"]["koopman"] == {"all": 1.0, "a": 1.0, "b": 1.0}  # not moving
    assert found["error"]["half"] == {"all": 0.5, "a": 0.5, "b": 0.5}
    assert found["weights"]["a"] == {"movement": [3.0, 0.0, 4.0], "error": [-3.0, 0.0, -4.0]}


def test_nothing_that_moved_has_no_error():
    found = compared({"start": START, "optimizer": START, "koopman": TRUE})
    assert all(math.isnan(error) for error in found["error"]["koopman"].values())


@pytest.mark.parametrize(("back", "ahead", "share"), [(10, 10, 1.0), (10, 5, 0.5), (4, 8, 2.0)])
def test_drift_goes_on_as_before(back, ahead, share):
    gone = drift(START, TRUE, back, ahead)
    assert layers(gone)["a"] == pytest.approx((1 + share) * np.array([3.0, 0.0, 4.0]))
    assert {name: value.tolist() for name, value in drift(START, START, 0, 0).items()} == {
        name: value.tolist() for name, value in START.items()
    }


def entry(errors, movements):
    return {"weights": {"0": {"error": errors[:2], "movement": movements[:2]},
                        "2": {"error": errors[2:], "movement": movements[2:]}}}  # fmt: skip


def test_the_authors_measure_pools_moduli_over_networks():
    good, bad = entry([0.1, -0.3, 0.2], [1.0, -2.0, 3.0]), entry([-5.0, 6.0, 7.0], [1.0, 1.0, 1.0])
    assert authors_measure([good]) == pytest.approx(0.2 / 2.0)
    assert authors_measure([bad, good], best=1) == pytest.approx(0.2 / 2.0)
    assert authors_measure([bad, good]) == pytest.approx(np.median([0.1, 0.3, 0.2, 5, 6, 7]) / 1.0)
    assert math.isnan(authors_measure([entry([0.0] * 3, [0.0] * 3)]))


def test_costs_count_recording_and_fit_in_optimizer_steps():
    koopman = {"step_seconds": [1.0, 2.0, 9.0], "record_seconds": 20.0, "fit_seconds": 6.0, "jump_seconds": 4.0}
    found = costs({"optimizer": {"step_seconds": [2.0, 2.0, 8.0]}, "koopman": koopman}, recorded=10)
    assert found["seconds"] == {
        "optimizer_step": 2.0, "optimizer_phase": 12.0, "koopman_step": 2.0, "record": 2.0, "fit": 6.0, "walk": 12.0,
        "jump": 4.0, "walked": 38.0, "jumped": 30.0,
    }  # fmt: skip
    assert found["optimizer_steps"]["walked"] == 19.0 and found["optimizer_steps"]["jumped"] == 15.0
    assert found["replaced"] == 3


def test_nothing_is_said_where_nothing_was_measured():
    assert words([], "adam") == [] and words([{"replaced": 0}], "adam") == []
