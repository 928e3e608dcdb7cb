"""The monitor's numbers against operators fitted to the snapshots themselves; when it looks, what it logs."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastkoop  # noqa: E402
from fastkoop import Affine, Rank  # noqa: E402
from fastkoop.adapter.monitor import SpectrumMonitor  # noqa: E402


class Walk:
    """A model whose optimizer puts given states into it, one a step."""

    def __init__(self, states):
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.states = iter(states)

    def step(self, count=1):
        for _ in range(count):
            flat = torch.as_tensor(next(self.states))
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            torch.nn.utils.vector_to_parameters(flat, self.model.parameters())
            self.optimizer.step()


SIZE = 4 * 3 + 3 + 3 * 2 + 2


def decays(rng, rates, steps):
    shares = rng.normal(size=(len(rates), SIZE))
    return np.stack([1.0 + (np.array(rates)[:, None] ** t * shares).sum(axis=0) for t in range(steps)])


class TestNumbers:
    def test_are_those_of_operators_on_the_snapshots(self, rng):
        states = rng.normal(size=(40, SIZE)).cumsum(axis=0)
        walk = Walk(states)
        monitor = SpectrumMonitor(walk.model, walk.optimizer, window=8, cutoff=Rank(4))
        walk.step(9)
        places = {"0": slice(0, 15), "1": slice(15, 23)}
        for name, layer in monitor.latest.layers.items():
            X = states[:9, places[name]].T
            op = fastkoop.fit(X, observables=Affine(), cutoff=Rank(4))
            values = op.eigenvalues
            values = np.delete(values, np.abs(values - 1).argmin())
            np.testing.assert_allclose(layer.eigenvalues[0], values, rtol=1e-6, atol=1e-6)
            assert layer.rank == 4
            np.testing.assert_allclose(layer.spectral_radius, np.abs(values).max(), rtol=1e-6)
            np.testing.assert_allclose(layer.from_one, np.abs(values - 1).mean(), rtol=1e-6)
            np.testing.assert_allclose(layer.residual, op.residual, rtol=1e-6)
            part = fastkoop.fit(X[:, :6], observables=Affine(), cutoff=Rank(4))
            missed = np.linalg.norm(part.predict(3) - X[:, -1]) / np.linalg.norm(X[:, -1] - X[:, 5])
            np.testing.assert_allclose(layer.forecast, missed, rtol=1e-6)

    def test_find_the_rates_of_a_decay(self, rng):
        walk = Walk(decays(rng, [0.9, 0.5], 9))
        monitor = SpectrumMonitor(walk.model, walk.optimizer, window=8, cutoff=Rank(2), partition="network")
        walk.step(9)
        [layer] = monitor.latest.layers.values()
        np.testing.assert_allclose(np.sort(layer.eigenvalues[0].real), [0.5, 0.9], atol=1e-6)
        assert layer.forecast < 1e-6 and layer.residual < 1e-6
        np.testing.assert_allclose(layer.from_one, 0.3, atol=1e-6)

    def test_of_a_model_that_rests(self):
        walk = Walk([np.ones(SIZE)] * 40)
        monitor = SpectrumMonitor(walk.model, walk.optimizer, window=4, report=1, patience=2)
        walk.step(5)
        assert monitor.latest.at_one and not monitor.stop
        layer = monitor.latest.layers["0"]
        assert (layer.rank, layer.from_one) == (0, 0) and math.isnan(layer.forecast)
        walk.step()
        assert monitor.stop

    def test_of_a_run_that_went_wrong_are_not_logged_as_numbers(self):
        states = np.ones((5, SIZE)) + np.arange(5)[:, None]
        states[3, 0] = np.nan
        walk, said = Walk(states), {}
        monitor = SpectrumMonitor(
            walk.model, walk.optimizer, window=4, log=lambda name, value, step: said.update({name: value})
        )
        walk.step(5)
        assert math.isnan(monitor.latest.layers["0"].spectral_radius) and not monitor.latest.at_one
        assert "koopman/0/residual" not in said and "koopman/1/spectral_radius" in said
        assert all(math.isfinite(value) for value in said.values())


class TestLooks:
    @pytest.mark.parametrize(("every", "report"), [(1, 1), (1, 4), (1, 50), (3, 1), (3, 7), (3, 40)])
    def test_come_when_the_window_is_full_and_see_the_newest(self, rng, every, report):
        states = rng.normal(size=(130, SIZE)).cumsum(axis=0)
        walk = Walk(states)
        monitor = SpectrumMonitor(
            walk.model, walk.optimizer, window=5, every=every, report=report, cutoff=Rank(2), partition="network"
        )
        walk.step(6 * every - 1)
        assert monitor.latest is None
        walk.step()
        due = 6 * every
        while due <= 130 - report:
            assert monitor.latest.step == due
            last = due // every * every  # snapshots are taken at multiples of `every`, save after a pause
            if report >= 6 * every:
                last = due
            X = states[last - 1 - 5 * every : last : every].T
            values = fastkoop.fit(X, observables=Affine(), cutoff=Rank(2)).eigenvalues
            values = np.delete(values, np.abs(values - 1).argmin())
            [layer] = monitor.latest.layers.values()
            np.testing.assert_allclose(layer.eigenvalues[0], values, rtol=1e-5, atol=1e-5)
            walk.step(report)
            due += report

    def test_record_nothing_that_no_look_sees(self, rng):
        walk = Walk(rng.normal(size=(100, SIZE)))
        monitor = SpectrumMonitor(walk.model, walk.optimizer, window=4, report=45)
        walk.step(95)
        assert monitor.latest.step == 95 and monitor._phase.parts.recorder.taken == 3 * 5

    def test_log_names_and_steps(self, rng):
        walk, said = Walk(decays(rng, [0.9], 12)), []
        SpectrumMonitor(walk.model, walk.optimizer, window=4, report=7, log=lambda *call: said.append(call))
        walk.step(12)
        assert {step for _, _, step in said} == {5, 12}
        kinds = ("rank", "from_one", "spectral_radius", "residual", "forecast")
        names = {f"koopman/{layer}/{kind}" for layer in "01" for kind in kinds}
        assert {name for name, _, _ in said} == names | {"koopman/from_one", "koopman/stop"}
        assert all(type(value) is float for _, value, _ in said)

    def test_observed_vectors_are_a_layer_of_their_own(self, rng):
        walk = Walk(rng.normal(size=(10, SIZE)).cumsum(axis=0))
        seen = iter(0.8 ** np.arange(20)[:, None] * [1.0, 2.0, 3.0])
        monitor = SpectrumMonitor(
            walk.model, walk.optimizer, window=6, cutoff=Rank(1), observe=lambda: torch.from_numpy(next(seen))
        )
        walk.step(7)
        np.testing.assert_allclose(monitor.latest.layers["observed"].eigenvalues[0, 0], 0.8, rtol=1e-9)

    def test_close_stops_them(self, rng):
        walk = Walk(rng.normal(size=(20, SIZE)))
        monitor = SpectrumMonitor(walk.model, walk.optimizer, window=4, report=1)
        walk.step(6)
        monitor.close()
        walk.step(5)
        assert monitor.steps == 6 and monitor.latest.step == 6

    def test_leave_training_as_it_is(self, rng):
        states = rng.normal(size=(12, SIZE))
        walk = Walk(states)
        SpectrumMonitor(walk.model, walk.optimizer, window=4, report=1)
        walk.step(12)
        at = torch.nn.utils.parameters_to_vector(walk.model.parameters()).detach().numpy()
        np.testing.assert_array_equal(at, states[-1])


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"window": 2}, "window: expected an integer >= 3, got 2"),
            ({"report": 0}, "report: expected an integer >= 1, got 0"),
            ({"every": 0}, "every: expected an integer >= 1, got 0"),
            ({"patience": 0}, "patience: expected an integer >= 1, got 0"),
            ({"threshold": -1.0}, "threshold: expected a distance from 1, > 0, got -1"),
            ({"threshold": math.nan}, "threshold: expected a distance from 1, > 0, got nan"),
            ({"include": "conv*"}, r"include: the pattern 'conv\*' matches no parameter"),
        ],
    )
    def test_values(self, options, match):
        walk = Walk([])
        with pytest.raises(fastkoop.InputError, match=match):
            SpectrumMonitor(walk.model, walk.optimizer, **options)

    @pytest.mark.parametrize("name", ["log", "observe"])
    def test_kinds(self, name):
        walk = Walk([])
        with pytest.raises(TypeError, match=f"{name}: expected a function, got int"):
            SpectrumMonitor(walk.model, walk.optimizer, **{name: 3})

    def test_vectors_that_change_their_length(self, rng):
        walk, sizes = Walk(rng.normal(size=(9, SIZE))), iter(range(2, 9))
        SpectrumMonitor(walk.model, walk.optimizer, window=4, observe=lambda: np.ones(next(sizes)))
        with pytest.raises(fastkoop.InputError, match=r"observe: expected 2 numbers, as before, got shape \(3,\)"):
            walk.step(2)
