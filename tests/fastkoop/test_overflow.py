"""States, inverses and matrices that no longer fit their dtype: said at the line that called, or welcome."""

import numpy as np
import pytest
import torch

import fastkoop as fk


class TestOverflow:
    def test_is_reported_with_the_first_block(self):
        X = np.array([[[1.0, 1.0, 1.0]], [[1.0, 4.0, 16.0]], [[1.0, 5.0, 25.0]]], np.float32)
        with pytest.warns(RuntimeWarning, match=r"block \(1,\) and 1 more grew beyond what float32 holds.*stabilize"):
            states = fk.predict(X, 200)
        assert states[0] == 1.0 and np.isinf(states[1:]).all()
        op = fk.fit(X)
        with pytest.warns(RuntimeWarning, match=r"block \(1,\) and 1 more"):
            assert np.isfinite(op.predict([1, 2, 200])[:, :, :2]).all()
        assert np.isfinite(fk.fit(X, stabilize="clip").predict(200)).all()

    def test_is_reported_by_walks(self):
        """When it happens, and at every step from there on."""
        X = np.array([[[1.0, 1.0, 1.0]], [[1.0, 4.0, 16.0]]], np.float32)
        for ahead in (1, 3):
            walk = fk.fit(X).walk()
            assert np.isfinite(walk.step(50, ahead=ahead)).all()
            for count in (150, 1):
                with pytest.warns(RuntimeWarning, match=r"block \(1,\) grew beyond what float32 holds"):
                    states = walk.step(count, ahead=ahead)
                assert states[0] == 1.0 and not np.isfinite(states[1])
        assert np.isfinite(fk.fit(X, stabilize="clip").walk().step(200)).all()

    def test_at_the_line_that_called(self):
        X = np.array([[1.0, 4.0, 16.0]], np.float32)
        op = fk.fit(X)
        calls = (
            lambda: fk.predict(X, 200), lambda: op.predict(200), lambda: op.predict([1, 200]),
            lambda: op.walk().step(200), lambda: fk.pinv(X * 1e-41),
            lambda: torch.ops.fastkoop.predict(torch.from_numpy(X), 200, "jax", 1, True),
        )  # fmt: skip
        for call in calls:
            with pytest.warns(RuntimeWarning) as found:
                call()
            assert [warning.filename for warning in found] == [__file__]
            assert found[0].lineno == call.__code__.co_firstlineno

    def test_is_silent_where_infinities_are_welcome(self):
        X = np.array([[1.0, 4.0, 16.0]], np.float32)
        assert np.isinf(fk.predict(X, 200, check_finite=False)).all()
        op = fk.fit(X, check_finite=False)
        assert np.isinf(op.predict(200)).all() and np.isinf(op.walk().step(200)).all()
        assert np.isinf(op.walk().step(200, ahead=3)).all()
        assert np.isinf(fk.pinv(X * 1e-41, check_finite=False)).any()

    def test_of_a_matrix(self):
        op = fk.fit(np.array([[[1.0, 0.5]], [[1e-20, 1e20]]], np.float32))
        with pytest.warns(RuntimeWarning, match=r"matrix: block \(1,\) has an operator that float32 does not hold"):
            assert np.isinf(op.matrix()).ravel().tolist() == [False, True]
        assert np.isinf(fk.fit(np.array([[1e-20, 1e20]], np.float32), check_finite=False).matrix())

    @pytest.mark.parametrize(("n", "m"), [(5, 3), (3, 5), (110, 100)])
    @pytest.mark.parametrize(("kind", "tiny"), [(np.float32, 1e-41), (np.float64, 1e-310)])
    def test_an_inverse_that_does_not_exist_in_the_dtype(self, n, m, kind, tiny, rng):
        """As in SciPy it is infinite; unlike there, that is said."""
        F = rng.normal(size=(3, n, m))
        F[1] *= tiny
        F = F.astype(kind)
        with pytest.warns(RuntimeWarning, match=r"pinv: block \(1,\) is so small that float\d\d does not hold"):
            inverses = fk.pinv(F)
        assert np.isinf(inverses[1]).any() and not np.isnan(inverses[1]).any()
        np.testing.assert_array_equal(inverses[::2], fk.pinv(F[::2]))

    def test_a_sum_that_overflows_is_no_overflow(self):
        X = np.full((4, 3), 3e38, np.float32)
        assert np.array_equal(fk.predict(X, 5), X[:, 0])

    @pytest.mark.parametrize("X", [
        np.array([[1e-10, 1e300]]), np.array([[1e-30, 1e30]], np.float32), np.array([[1e-10, 1e-10, 1e300]]),
        np.array([[1e-20, 1e20], [2e-20, 1e20]], np.float32), np.array([[[1.0, 1.0]], [[1e-200, 1e200]]]),
    ], ids=str)  # fmt: skip
    def test_of_a_single_step(self, X):
        for call in (lambda: fk.predict(X, 1), lambda: fk.fit(X).predict(1), lambda: fk.fit(X).predict([0, 1])):
            with pytest.warns(RuntimeWarning, match=r"grew beyond what float\d\d holds"):
                assert np.isinf(call()).any()
        with pytest.warns(RuntimeWarning, match="grew beyond"):
            fk.predict(torch.from_numpy(X), 1)
        assert np.isinf(fk.predict(X, 1, check_finite=False)).any() and np.isfinite(fk.predict(X, 0)).all()
