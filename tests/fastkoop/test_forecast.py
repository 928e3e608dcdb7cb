"""Forecasts against dense NumPy: a fit of the first part, and every guess by itself."""

import tracemalloc

import numpy as np
import pytest
import torch
from cases import orthogonal

import fastkoop as fk
from fastkoop.cutoff import resolve
from fastkoop.forecast import RULE, guesses, judge, overall
from fastkoop.kernels import reference

SIZES = ((30, 11), (5, 40), (200, 24), (12, 15), (120, 100))


def descent(rng, n, columns, rates=(0.99, 0.95, 0.8, 0.5), noise=0.0, settled=3.0):
    """Gradient descent on a quadratic: a settled state and a few modes that decay at these rates."""
    Q = np.linalg.qr(rng.normal(size=(n, len(rates))))[0] if n >= len(rates) else rng.normal(size=(n, len(rates)))
    X = (Q * rng.uniform(0.5, 1.0, len(rates))) @ np.array([np.power(rate, np.arange(columns)) for rate in rates])
    return settled * rng.normal(size=(n, 1)) + X + noise * rng.normal(size=X.shape)


def slow(block, split, cutoff, delay=1, affine=False, carry=False, project=False):
    """Error, baseline and `apart` of one block, in float64 NumPy."""
    X = np.asarray(block, np.float64)
    columns = X.shape[1]
    k = round(split * columns)
    first, last, ahead = X[:, :k], X[:, -1], columns - k
    rule = resolve(cutoff, len(X) * delay, k - delay - affine, block.dtype)
    options = {"delay": delay, "affine": affine, "carry": carry, "project": project}
    predicted = reference.predict_observed(np.asarray(block[:, :k]), ahead, rule, **options)
    far, of_all = 4 * (columns - 1), resolve(cutoff, len(X) * delay, columns - 1 - delay - affine, block.dtype)
    there = reference.predict_observed(np.asarray(block[:, :k]), far + ahead, rule, **options)
    whole = reference.predict_observed(np.asarray(block), far, of_all, **options)
    t = np.arange(k)
    slope, offset = np.polyfit(t, first.T, 1)
    secant = first[:, -1] + (first[:, -1] - first[:, 0]) * ahead / (k - 1)
    moved = np.linalg.norm(last - first[:, -1])
    others = (first.mean(axis=1), offset + slope * (columns - 1), secant)
    errors = [np.linalg.norm(guess - last) / moved for guess in others]
    apart = np.linalg.norm(whole - there) / max(np.linalg.norm(whole - last), moved)
    return np.linalg.norm(predicted - last) / moved, min(1.0, *errors), apart


OPTIONS = {
    "plain": {}, "affine": {"affine": True}, "carry": {"carry": True}, "delay": {"delay": 3},
    "delay, affine, carry": {"delay": 2, "affine": True, "carry": True}, "project": {"project": True},
}  # fmt: skip


def public(delay=1, affine=False, carry=False, project=False):
    parts = (*((fk.Delay(delay),) if delay > 1 else ()), *((fk.Affine(),) if affine else ()))
    return {
        "observables": parts or "identity", "out_of_span": "carry" if carry else "drop",
        "stabilize": "project" if project else None,
    }  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("n", "m"), SIZES, ids=str)
@pytest.mark.parametrize("split", [2 / 3, 0.5])
def test_is_that_of_a_fit_to_the_first_part(name, n, m, split, dtype, rng):
    X = np.array([descent(rng, n, m + 1), descent(rng, n, m + 1, noise=0.02), rng.normal(size=(n, m + 1))], dtype)
    op = fk.fit(X, cutoff=fk.Rank(3), **public(**OPTIONS[name]))
    told = op.forecast(split)
    assert told.error.shape == told.baseline.shape == told.pays.shape == (3,) and told.pays.dtype == bool
    tolerance = 2e-3 if dtype == np.float32 else 1e-6
    for b in range(3):
        error, baseline, apart = slow(X[b], split, fk.Rank(3), **OPTIONS[name])
        np.testing.assert_allclose(told.error[b], error, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(told.baseline[b], baseline, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(told.apart[b], apart, rtol=20 * tolerance, atol=20 * tolerance)
        if min(abs(error - 0.3), abs(error - 0.5 * baseline), abs(apart - 0.25)) > 0.01:
            assert told.pays[b] == (error < 0.5 * baseline and error < 0.3 and apart < 0.25)


@pytest.mark.parametrize("stabilize", ["clip", 0.9])
def test_clipped_operators_are_judged_clipped(stabilize, dtype, rng):
    X = descent(rng, 30, 19, rates=(1.05, 0.9, 0.5), settled=0.0).astype(dtype)
    told, first = fk.fit(X, stabilize=stabilize).forecast(), fk.fit(X[:, :13], stabilize=stabilize).predict(6)
    moved = np.linalg.norm(X[:, -1].astype(float) - X[:, 12])
    expected = np.linalg.norm(first.astype(float) - X[:, -1]) / moved
    np.testing.assert_allclose(told.error, expected, rtol=1e-3 if dtype == np.float32 else 1e-6)


def test_velocities_are_not_judged(dtype, rng):
    weights, velocities = descent(rng, 20, 16), rng.normal(size=(20, 16))
    X = np.concatenate([weights, velocities]).astype(dtype)
    told = fk.fit(X, observables=(fk.Momentum(), fk.Affine()), cutoff=fk.Rank(4)).forecast()
    first = fk.fit(X[:, :11], observables=(fk.Momentum(), fk.Affine()), cutoff=fk.Rank(4)).predict(5)
    moved = np.linalg.norm(weights[:, -1] - weights[:, 10])
    np.testing.assert_allclose(told.error, np.linalg.norm(first - weights[:, -1]) / moved, rtol=1e-3)
    np.testing.assert_allclose(told.baseline, fk.fit(weights.astype(dtype)).forecast().baseline, rtol=1e-3)


class TestVerdicts:
    @pytest.mark.parametrize(("noise", "pays"), [(0.0, True), (1e-4, False)])
    def test_the_end_of_a_recording_alone_does_not_tell(self, noise, pays):
        """A little noise spoils no prediction of the end, and leads two operators to different places."""
        X = descent(np.random.default_rng(1), 30, 13, rates=(0.99, 0.9), noise=noise)
        told = fk.fit(X, observables=fk.Affine(), cutoff=fk.Rank(2), stabilize="clip").forecast()
        assert told.error < 0.05 < 0.8 < told.baseline
        assert (told.apart < 0.01 if pays else told.apart > 0.4) and told.overall.pays is pays

    def test_descent_pays_and_noise_does_not(self, dtype, rng):
        for n, m in ((40, 23), (6, 29)):
            smooth = descent(rng, n, m + 1, rates=(0.97, 0.8)).astype(dtype)
            noisy = rng.normal(size=(n, m + 1)).astype(dtype)
            for options in ({"cutoff": fk.Rank(2)}, {"cutoff": fk.Rank(2), "stabilize": "clip"}):
                yes, no = (fk.fit(X, observables=fk.Affine(), **options).forecast() for X in (smooth, noisy))
                assert bool(yes.pays) and yes.overall.pays and yes.overall.error < 0.1
                assert not bool(no.pays) and not no.overall.pays

    def test_overall_sums_blocks(self, rng):
        X = np.array([descent(rng, 20, 16), 100 * rng.normal(size=(20, 16))])
        op = fk.fit(X, observables=fk.Affine(), cutoff=fk.Rank(4))
        told, squares = op.forecast(), op.misses()
        assert told.overall == overall(squares) and bool(told.pays[0]) and not told.overall.pays
        assert [type(part) for part in told.overall] == [float, float, bool]
        total = squares.sum(axis=0)
        assert told.overall.error == pytest.approx(np.sqrt(total[0] / total[4]))
        parts = [fk.fit(x, observables=fk.Affine(), cutoff=fk.Rank(4)).misses() for x in X]
        np.testing.assert_allclose(np.concatenate(parts), squares, rtol=1e-6)

    def test_the_rule(self):
        assert (RULE.share, RULE.largest, RULE.apart) == (0.5, 0.3, 0.25)
        error, baseline, pays, apart = judge(np.array([
            [1, 9, 9, 9, 100.0, 4, 400], [1, 9, 9, 9, 100, 64, 400], [1, 9, 9, 9, 100, 4, 1],
            [4, 9, 9, 9, 100, 4, 400], [36, 400, 400, 400, 100, 0, 100], [0] * 7, [np.nan] * 7,
        ]))  # fmt: skip
        np.testing.assert_allclose(error[:5], [0.1, 0.1, 0.1, 0.2, 0.6])
        np.testing.assert_allclose(baseline[:5], [0.3, 0.3, 0.3, 0.3, 1.0])
        np.testing.assert_allclose(apart[:5], [0.1, 0.4, 0.2, 0.1, 0.0])  # what comes back is judged by its path
        assert pays.tolist() == [True, False, True, False, False, False, False]

    @pytest.mark.parametrize(("first", "columns"), [(2, 3), (6, 9), (13, 40)])
    def test_guesses_are_exact_on_lines(self, first, columns):
        mean, line, secant, staying = guesses(first, columns)
        X = 2.0 + 3.0 * np.arange(columns)
        assert abs(line @ X) < 1e-10 * columns and abs(secant @ X) < 1e-10 * columns
        assert staying @ X == pytest.approx(-3.0 * (columns - first))
        assert mean @ X == pytest.approx(X[:first].mean() - X[-1])

    @pytest.mark.parametrize("columns", [2, 3, 4])
    @pytest.mark.parametrize("observables", ["identity", fk.Affine(), (fk.Delay(2), fk.Affine())], ids=str)
    def test_too_few_snapshots_say_no(self, columns, observables, rng):
        X = rng.normal(size=(2, 6, columns))
        if columns < fk.observables.resolve(observables).observed.delay + 2:
            return
        told = fk.fit(X, observables=observables).forecast()
        few = round(2 / 3 * columns) < max(2, fk.observables.resolve(observables).observed.delay + 1)
        assert not told.pays.any() or not few
        if round(2 / 3 * columns) == columns or few:
            assert np.isnan(told.error).all() and np.isnan(told.overall.error) and not told.overall.pays

    def test_blocks_that_stand_still_or_are_not_finite_say_no(self, dtype, rng):
        X = np.array([np.ones((8, 12)), np.zeros((8, 12)), descent(rng, 8, 12), descent(rng, 8, 12)]).astype(dtype)
        assert not fk.fit(X[:2]).forecast().pays.any() and not fk.fit(X[:2]).forecast().overall.pays
        X[3, 1, 2] = np.inf
        told = fk.fit(X, observables=fk.Affine(), cutoff=fk.Rank(4), check_finite=False).forecast()
        assert told.pays.tolist() == [False, False, True, False] and np.isnan(told.error[3])
        assert not told.overall.pays

    def test_overshoot(self, dtype, rng):
        Q = orthogonal(rng, 6)
        A = Q @ np.diag([0.9, -0.8, -0.6, 0.3, -0.4, 0.1]) @ Q.T
        X = [rng.normal(size=6)]
        for _ in range(20):
            X.append(A @ X[-1])
        op = fk.fit(np.array(X).T.astype(dtype), cutoff=1e-9 if dtype == np.float64 else 1e-4)
        assert op.overshoot == pytest.approx(2 / float(op.rank)) and op.forecast().overshoot == op.overshoot
        assert fk.fit(np.zeros((3, 4), dtype)).overshoot == 0


class TestKinds:
    def test_torch_and_jax(self, rng):
        X = descent(rng, 20, 16).astype(np.float32)[None]
        expected = fk.fit(X, observables=fk.Affine(), cutoff=fk.Rank(4)).forecast()
        jax = pytest.importorskip("jax")
        for make in (torch.from_numpy, jax.numpy.asarray):
            told = fk.fit(make(X), observables=fk.Affine(), cutoff=fk.Rank(4)).forecast()
            for name in ("error", "baseline", "pays", "apart", "overshoot"):
                assert type(getattr(told, name)) is type(make(X))
                np.testing.assert_allclose(getattr(told, name), getattr(expected, name), rtol=1e-6)
            assert told.overall == expected.overall

    def test_batches_and_no_blocks(self, rng):
        X = np.array([[descent(rng, 9, 15) for _ in range(3)] for _ in range(2)])
        told = fk.fit(X, cutoff=fk.Rank(3)).forecast()
        assert told.error.shape == told.pays.shape == told.overshoot.shape == (2, 3)
        none = fk.fit(np.zeros((0, 5, 9))).forecast()
        assert none.error.shape == (0,) and not none.overall.pays

    def test_refined_operators_are_judged_refined(self, rng):
        X = descent(rng, 30, 16)
        for options in ({}, {"observables": fk.Affine()}):
            told = fk.fit(X, refine=True, cutoff=1e-9, **options).forecast()
            first = fk.fit(X[:, :11], refine=True, cutoff=1e-9, **options).predict(5)
            moved = np.linalg.norm(X[:, -1] - X[:, 10])
            np.testing.assert_allclose(told.error, np.linalg.norm(first - X[:, -1]) / moved, rtol=1e-6, atol=1e-9)

    def test_large_weights_that_hardly_move(self, dtype, rng):
        """A Gram matrix of the snapshots themselves would lose it all; their own digits tell."""
        X = (1e3 + 1e-3 * descent(rng, 60, 19, settled=0.0)).astype(dtype)
        for options in ({}, {"observables": fk.Affine()}):
            op = fk.fit(X, cutoff=fk.Rank(3), **options)
            error, baseline, _ = slow(X, 2 / 3, fk.Rank(3), affine=bool(options))
            loose = 2e-2 if dtype == np.float32 else 1e-3
            np.testing.assert_allclose(op.forecast().baseline, baseline, rtol=loose)
            if options:
                np.testing.assert_allclose(op.forecast().error, error, rtol=loose, atol=loose)

    @pytest.mark.parametrize("split", [0, 1, -0.5, 1.5, np.nan, "half", True, None], ids=str)
    def test_split_is_refused(self, split, rng):
        with pytest.raises((ValueError, TypeError), match=r"^split: expected a share of the snapshots"):
            fk.fit(rng.normal(size=(4, 9))).forecast(split)


def test_a_kept_gram_matrix_changes_no_bit(dtype, rng):
    """What is kept for forecasts is what the fit makes anyway."""
    from fastkoop.backends import kernels, observed
    from fastkoop.fitting import kept_of
    from fastkoop.options import Options

    for n, m in ((80, 6), (1200, 120)):
        X = np.ascontiguousarray(np.moveaxis(np.array([descent(rng, n, m + 1) for _ in range(3)], dtype), -1, 0))
        S = kept_of(kernels, X, Options()).gram
        assert S.shape == (3, m + 1, m + 1)
        plain, known = kernels.fit(X, ("relative", 1e-6)), kernels.fit(X, ("relative", 1e-6), known=S)
        for name in plain._fields:
            np.testing.assert_array_equal(getattr(known, name), getattr(plain, name), err_msg=name)
        affine = observed.Observed(1, True)
        S = kept_of(kernels, X, Options(observables=fk.Affine()))
        plain, known = (observed.fit(kernels, X, ("relative", 1e-6), affine, known=known) for known in (None, S))
        np.testing.assert_array_equal(known.factors.operator, plain.factors.operator)
        np.testing.assert_array_equal(known.drift, plain.drift)
    assert kept_of(kernels, np.zeros((30, 2, 40), dtype), Options()) is None  # more to keep than the snapshots


SMOOTH = {"observables": fk.Affine(), "cutoff": fk.Rank(8), "stabilize": "clip"}


def recordings(rng, dtype, count=3, n=2000, columns=13):
    """Smooth ones, which no Gram matrix settles."""
    rates = np.linspace(0.8, 0.995, 8)
    return np.array([descent(rng, n, columns, rates) for _ in range(count)]).astype(dtype)


@pytest.mark.parametrize("options", [SMOOTH, SMOOTH | {"observables": (fk.Delay(2), fk.Affine())}], ids=str)
def test_a_forecast_does_not_read_the_recording_again(options, dtype, rng):
    """It takes what the fit has kept, also of blocks that their Gram matrices do not settle."""
    X = recordings(rng, dtype)
    expected = fk.fit(X.copy(), **options).forecast()
    op = fk.fit(X, **options)
    assert (op.route == "svd").all()
    X[:] = np.nan
    told = op.forecast()
    for name in ("error", "baseline", "apart", "pays"):
        np.testing.assert_array_equal(getattr(told, name), getattr(expected, name))
    assert np.isfinite(told.error).all()


@pytest.mark.parametrize("split", [2 / 3, 0.4])
def test_what_is_kept_tells_as_much_as_the_recording(split, dtype, rng):
    """Triangles, those of the first snapshots made again where they are less a later one."""
    X = recordings(rng, dtype)
    for options in (SMOOTH, SMOOTH | {"out_of_span": "carry"}):
        told, alone = fk.fit(X, **options).forecast(split), fk.fit(X, **options)
        alone._kept = None
        expected = alone.forecast(split)
        tolerance = 1e-3 if dtype == np.float32 else 1e-6
        for name in ("error", "baseline", "apart"):
            np.testing.assert_allclose(getattr(told, name), getattr(expected, name), rtol=tolerance, atol=tolerance)


def test_a_fit_of_smooth_recordings_takes_little_memory(rng):
    """Strips of a block, not fifteen times the recording."""
    X = recordings(rng, np.float32, count=1, n=60000)
    fk.fit(X[..., :9], **SMOOTH).forecast()
    tracemalloc.start()
    try:
        op = fk.fit(X, **SMOOTH)
        fitted = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        op.forecast()
        told = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (op.route == "svd").all() and fitted < 4 * X.nbytes and told < X.nbytes / 4
