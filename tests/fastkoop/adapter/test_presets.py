"""Presets: options by name, and what is given besides wins."""

import pytest

torch = pytest.importorskip("torch")

import fastkoop as fk  # noqa: E402
from fastkoop.adapter.presets import preset_options  # noqa: E402
from fastkoop.options import Options  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


def options(**arguments):
    return KoopmanPhase(torch.nn.Linear(3, 2), **arguments).fits.options


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (None, {}),
        ("published", {}),
        ("noisy", {"observables": fk.Affine(), "cutoff": fk.Rank(1), "stabilize": 0.875}),
        ("smooth", {"observables": fk.Affine(), "cutoff": fk.Rank(8), "stabilize": "clip"}),
    ],
)
def test_what_they_set(preset, expected):
    assert options(preset=preset) == Options(**expected)


def test_explicit_arguments_win():
    assert options(preset="smooth", cutoff="array_api", stabilize=None) == Options(observables=fk.Affine())
    assert options(preset="noisy", window=5).every == 5


@pytest.mark.parametrize(("record", "window"), [(None, 1), (5, 1), (12, 1), (240, 20), (247, 20)])
def test_noisy_trainings_snapshots_are_means(record, window):
    chosen = preset_options("noisy", record)
    assert chosen["window"] == chosen["every"] == window


def test_refusals():
    with pytest.raises(ValueError, match="preset: expected one of 'published', 'noisy', 'smooth', got 'loud'"):
        options(preset="loud")
    with pytest.raises(TypeError, match="unexpected keyword argument 'cut_off'"):
        options(cut_off=0.1)
