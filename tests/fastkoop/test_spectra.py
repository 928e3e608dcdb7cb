"""Spectra of training runs: assignment against all permutations, the published figures, what is refused."""

import itertools
import os
import pathlib

import numpy as np
import pytest

import fastkoop
from fastkoop.spectra import distance, draw, permutation_test, rates

BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "redman2024"
PUBLISHED = pathlib.Path(os.environ.get("FASTKOOP_REDMAN_DIR") or BESIDE)
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published eigenvalues: FASTKOOP_REDMAN_DIR")


def networks(width):
    return np.load(PUBLISHED / f"Koopman_eigenvalues_FCN_MNIST_h={width}.npy")


def method(name):
    return np.load(PUBLISHED / f"{name}_eigs.npy")


def slow_distance(a, b):
    """The definition: the cheapest of all k! ways."""
    k = len(a)
    return min(np.mean([abs(a[i] - b[j]) for i, j in enumerate(way)]) for way in itertools.permutations(range(k)))


def complex_sets(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


class TestDistance:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_is_the_cheapest_assignment(self, rng, k):
        a, b = complex_sets(rng, 4, k), complex_sets(rng, 4, k)
        slow = [slow_distance(one, other) for one, other in zip(a, b, strict=True)]
        np.testing.assert_allclose(distance(a, b), slow, rtol=1e-12)

    def test_broadcasts(self, rng):
        a, b = complex_sets(rng, 3, 4), complex_sets(rng, 5, 4)
        every = distance(a[:, None], b[None])
        assert every.shape == (3, 5)
        np.testing.assert_array_equal(every[1], distance(a[1], b))
        assert distance(a, a).shape == (3,) and np.ndim(distance(a[0], b[0])) == 0
        assert distance(a[:0], b[:1]).shape == (0,)

    def test_is_a_metric_that_order_does_not_change(self, rng):
        a, b, c = complex_sets(rng, 3, 6)
        assert distance(a, a[::-1]) == 0
        np.testing.assert_allclose(distance(a, b), distance(b[::-1], a), rtol=1e-14)
        assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12

    def test_takes_real_numbers_lists_and_tensors(self):
        torch = pytest.importorskip("torch")
        assert distance([1, 0], [0, 1]) == 0
        assert distance(torch.tensor([1j, 2.0]), torch.tensor([2.0, 2j], dtype=torch.complex128)) == 0.5

    def test_inputs_stay(self, rng):
        a = complex_sets(rng, 2, 3)
        before = a.copy()
        distance(a, a[::-1]), rates(a), permutation_test([a, a + 1], permutations=3)
        np.testing.assert_array_equal(a, before)

    @pytest.mark.parametrize(
        ("a", "b", "match"),
        [
            ([1.0, 2.0], [1.0], "b: expected 2 eigenvalues a set, as a has, got 1; fit both with the same Rank"),
            (np.ones((3, 2)), np.ones((4, 2)), r"b: expected a batch that broadcasts with a's \(3,\), got \(4,\)"),
            ([[1.0, 2.0], [np.nan, 1.0]], [1.0, 2.0], r"a: expected finite eigenvalues, got .* in set \(1,\)"),
            ([1.0], [complex(0, np.inf)], "b: expected finite eigenvalues, got a NaN or an infinity in the set"),
            ([], [], "a: expected sets of at least 1 eigenvalue"),
            (1.0, 1.0, r"a: expected sets of at least 1 eigenvalue \(..., k\), got shape \(\)"),
            ([[1.0], [1.0, 2.0]], [1.0], "a: expected sets of one size"),
        ],
    )
    def test_refuses_by_value(self, a, b, match):
        with pytest.raises(fastkoop.InputError, match=match):
            distance(a, b)

    @pytest.mark.parametrize("values", [[True, False], ["a", "b"], [None, 1.0]])
    def test_refuses_what_is_no_number(self, values):
        with pytest.raises(TypeError, match="a: expected complex or real numbers, got"):
            distance(values, [1.0, 2.0])


class TestRates:
    def test_are_logarithms_over_time(self, rng):
        values = complex_sets(rng, 3, 4)
        np.testing.assert_allclose(np.exp(rates(values, dt=0.25) * 0.25), values, rtol=1e-12)

    def test_of_an_eigenvalue_that_is_gone_in_a_step(self):
        assert rates([0.0, 1.0]).tolist() == [complex(-np.inf, 0), 0j]

    @pytest.mark.parametrize("dt", [0, -1.0, np.inf, np.nan])
    def test_refuse_times(self, dt):
        with pytest.raises(fastkoop.InputError, match="dt: expected a time > 0"):
            rates([1.0], dt=dt)

    def test_refuse_kinds(self):
        with pytest.raises(TypeError, match="dt: expected a time > 0, got True"):
            rates([1.0], dt=True)


class TestPermutationTest:
    def test_means_and_neighbours_are_those_of_the_definition(self, rng):
        groups = [complex_sets(rng, seeds, 3) for seeds in (3, 4, 2)]
        test = permutation_test(groups, permutations=5)
        every = np.concatenate(groups)
        labels = np.repeat([0, 1, 2], [3, 4, 2])
        pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
        apart = {pair: float(distance(every[pair[0]], every[pair[1]])) for pair in pairs}
        within = np.mean([apart[i, j] for i, j in pairs if labels[i] == labels[j]])
        between = np.mean([apart[i, j] for i, j in pairs if labels[i] != labels[j]])
        closest = [min((j for j in range(9) if j != i), key=lambda j, i=i: apart[i, j]) for i in range(9)]
        np.testing.assert_allclose([test.within, test.between], [within, between], rtol=1e-12)
        assert test.nearest == np.mean(labels[closest] == labels)
        np.testing.assert_allclose(test.distances, test.distances.T)

    def test_all_relabellings_of_four_runs(self):
        """Two runs a group: a third of all relabellings splits them as they are, whatever the order of groups."""
        test = permutation_test([[[0.0], [0.1]], [[1.0], [1.1]]], permutations=3000)
        assert abs(test.exceeded / test.permutations - 1 / 3) < 0.05
        assert test.p == (1 + test.exceeded) / 3001

    def test_rejects_equal_groups_at_its_level(self, rng):
        """Under the null p is uniform: at 5% about one in twenty fires, of 60 no more than 9."""
        fired = sum(
            permutation_test(rng.normal(size=(2, 6, 2)).tolist(), permutations=99, seed=run).p <= 0.05
            for run in range(60)
        )
        assert fired <= 9

    def test_identical_runs_tell_nothing_apart(self):
        test = permutation_test(np.ones((2, 3, 4)).tolist(), permutations=9)
        assert (test.p, test.within, test.between, test.nearest) == (1.0, 0.0, 0.0, pytest.approx(0.4))

    def test_is_repeatable_and_takes_mappings(self, rng):
        named = {"a": complex_sets(rng, 4, 2), "b": complex_sets(rng, 5, 2)}
        first, again = permutation_test(named), permutation_test(list(named.values()))
        assert first.p == again.p and first.p == permutation_test(named, seed=0).p
        stacked = complex_sets(rng, 2, 4, 2)
        assert permutation_test(stacked).between == permutation_test(list(stacked)).between

    @pytest.mark.parametrize(
        ("groups", "match"),
        [
            ([], "groups: expected at least 1 array"),
            ([np.ones((3, 2))], "groups: expected at least 2, got 1; one group has nothing to differ from"),
            ([np.ones((3, 2)), np.ones((1, 2))], "groups: expected at least 2 seeds in each, got 1 in group 1"),
            ([np.ones((3, 2)), np.ones((3, 3))], r"groups\[1\]: expected 2 eigenvalues a set, .* got 3"),
            ([np.ones(3), np.ones(3)], r"groups\[0\]: expected shape \(seeds, k\), got \(3,\)"),
            ({"sgd": np.full((3, 2), np.nan)}, r"groups\[sgd\]: expected finite eigenvalues"),
        ],
    )
    def test_refuses_by_value(self, groups, match):
        with pytest.raises(fastkoop.InputError, match=match):
            permutation_test(groups)

    def test_refuses_kinds(self):
        with pytest.raises(TypeError, match="groups: expected a sequence of arrays"):
            permutation_test("ab")
        with pytest.raises(fastkoop.InputError, match="permutations: expected an integer >= 1, got 0"):
            permutation_test([np.ones((2, 1))] * 2, permutations=0)


class TestDraw:
    def test_shows_the_whole_circle_and_every_run(self, rng, tmp_path):
        pytest.importorskip("matplotlib")
        groups = {name: 0.99 + 0.01 * complex_sets(rng, 4, 3) for name in ("slow", "fast")}
        figure = draw(groups, tmp_path / "spectra.png")
        circle, bulk, matrix, plane, _ = figure.axes
        for low, high in (circle.get_xlim(), circle.get_ylim()):
            assert low < -1 and high > 1
        values = np.concatenate(list(groups.values())).ravel()
        (left, right), (bottom, top) = bulk.get_xlim(), bulk.get_ylim()
        assert left < values.real.min() and right > values.real.max()
        assert bottom < values.imag.min() and top > values.imag.max()
        assert [label.get_text() for label in matrix.get_xticklabels()] == ["slow", "fast"]
        assert sum(len(line.get_xdata()) for line in plane.lines) == 8
        assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")

    def test_the_map_keeps_distances_that_fit_a_plane(self):
        from fastkoop.spectra import _scaled

        points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
        mapped = _scaled(apart)
        np.testing.assert_allclose(np.linalg.norm(mapped[:, None] - mapped[None], axis=-1), apart, atol=1e-12)

    def test_long_names_leave_room_for_the_axes(self, tmp_path):
        pytest.importorskip("matplotlib")
        figure = draw({"a" * 300: [[1.0]], "b" * 300: [[0.5]]}, tmp_path / "a.png")  # Matplotlib would warn
        assert figure.axes[2].get_xticklabels()[0].get_text() == "…" + "a" * 19

    def test_one_run_alone(self):
        pytest.importorskip("matplotlib")
        assert len(draw([[[1.0]]]).axes) == 5


@published
class TestPublishedFigures:
    """Redman et al. 2024, from the eigenvalues that the authors publish."""

    @pytest.mark.parametrize(("a", "b", "mean"), [(5, 10, 0.0065), (5, 40, 0.0070), (10, 40, 0.0047)])
    def test_distances_over_seeds(self, a, b, mean):
        apart = distance(networks(a), networks(b))
        assert apart.shape == (25,) and round(float(apart.mean()), 4) == mean

    def test_distances_between_methods(self):
        mirror, descent, bisection = map(method, ("mirror_descent", "gradient_descent", "bisection_method"))
        assert round(float(distance(mirror, descent)), 4) == 0.0081
        assert round(float(distance(mirror, bisection)), 3) == 0.746
        assert round(float(distance(descent, bisection)), 3) == 0.753

    @pytest.mark.parametrize(
        ("a", "b", "between", "within", "nearest", "exceeded"),
        [(5, 40, 0.0072, 0.0046, 1.00, 0), (5, 10, 0.0065, 0.0047, 0.86, 0), (10, 40, 0.0046, 0.0043, 0.82, 2)],
    )
    def test_permutations(self, a, b, between, within, nearest, exceeded):
        test = permutation_test([networks(a), networks(b)], permutations=500)
        assert (round(test.between, 4), round(test.within, 4), round(test.nearest, 2)) == (between, within, nearest)
        assert abs(test.exceeded - exceeded) <= 3
