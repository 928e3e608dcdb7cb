"""Routes and costs: pure arithmetic."""

import sys

import numpy as np
import pytest
from cases import EPS64, kernel_eigh, with_singular_values

from fastkoop import kernels
from fastkoop.kernels import ROUTES, plan

arithmetic = sys.modules["fastkoop.kernels.plan"]


@pytest.mark.parametrize(
    ("n", "m", "side", "engine"),
    [(10, 4, "snapshots", "kernel"), (4, 10, "weights", "kernel"), (5, 5, "weights", "kernel"),
     (1000, 96, "snapshots", "kernel"), (1000, 97, "snapshots", "library"), (97, 97, "weights", "library"),
     (1, 1, "weights", "kernel"), (10**8, 1, "snapshots", "kernel")],
)  # fmt: skip
def test_sides_and_engines(n, m, side, engine, dtype):
    got = plan(3, n, m, dtype)
    assert (got.side, got.engine, got.order) == (side, engine, min(n, m))


def test_the_route_depends_on_the_block_alone():
    assert plan(1, 50, 8, "float32")[:3] == plan(10**6, 50, 8, "float32")[:3]


def test_costs(dtype):
    one, many = plan(1, 785, 32, dtype), plan(2000, 785, 32, dtype)
    assert many.bytes == 2000 * one.bytes == 2000 * 785 * 34 * dtype.itemsize
    assert many.flops == 2000 * one.flops
    assert one.flops > 785 * 32 * 33  # the Gram matrix alone, by symmetry
    assert plan(0, 785, 32, dtype).flops == 0
    assert plan(1, 20, 40, dtype, steps=2).flops > 40 * 20 * 21


def test_route_words():
    assert len(set(ROUTES)) == len(ROUTES)
    assert [ROUTES[getattr(arithmetic, name)] for name in ("ZERO", "CONSTANT", "CHOLESKY", "EIGEN", "SVD")] == [
        "zero", "constant", "cholesky", "eigen", "svd",
    ]  # fmt: skip


class TestResolution:
    def test_grows_with_the_sums_and_is_far_below_one(self, dtype):
        small, large = arithmetic.resolution(10, 4, dtype), arithmetic.resolution(10**6, 4, dtype)
        assert small.gram < large.gram < 1e-12
        assert small.svd == large.svd
        assert large.least == large.gram / arithmetic.TOLERANCE[dtype]

    @pytest.mark.parametrize(("n", "m"), [(40, 6), (785, 8), (5000, 5), (24, 24), (6, 500), (785, 96), (300, 120)])
    @pytest.mark.parametrize("data", ["normal", "positive", "all weights equal"])
    def test_the_gram_bound_holds(self, n, m, data, dtype, rng):
        """Against extended precision: the worst case is data whose rounding errors all point one way."""
        X = {
            "normal": lambda: rng.normal(size=(m + 1, n)),
            "positive": lambda: rng.uniform(0.5, 1, size=(m + 1, n)),
            "all weights equal": lambda: np.repeat(rng.uniform(0.5, 1, size=(m + 1, 1)), n, axis=1),
        }[data]().astype(dtype)
        order = min(n, m)
        G = kernels.gram(X[:, None])[0][:order, :order]
        F = X[:-1].astype(np.longdouble)
        exact = F @ F.T if n > m else F.T @ F
        error = np.linalg.norm((G - exact).astype(float), 2)
        assert error <= arithmetic.resolution(n, m, dtype).gram * np.linalg.norm(exact.astype(float), 2)

    @pytest.mark.parametrize("n", [2**24, 2**26])
    def test_the_gram_bound_holds_for_very_long_sums(self, n):
        """Equal weights, by a stride of zero: errors of the tiles' sums add up instead of averaging out."""
        worst = 0.0
        for seed in range(3):
            x = np.random.default_rng(seed).uniform(0.5, 1, size=(3, 1))
            G = kernels.gram(np.broadcast_to(x, (3, n))[:, None])[0][:2, :2]
            exact = n * (x[:2].astype(np.longdouble) @ x[:2].T.astype(np.longdouble))
            error = np.linalg.norm((G - exact).astype(float), 2)
            worst = max(worst, error / np.linalg.norm(exact.astype(float), 2))
        assert worst <= arithmetic.resolution(n, 2, np.float64).gram

    @pytest.mark.parametrize("n", [12, 48, 96])
    @pytest.mark.parametrize("rest", [1.0, 0.5, 1e-12])
    def test_the_eigensolver_stays_within_it(self, n, rest):
        """Clusters are the worst case; values known by construction in extended precision."""
        values = np.r_[1.0, np.full(n - 1, rest)]
        for seed in range(8):
            rng = np.random.default_rng(seed)
            A = np.diag(values).astype(np.longdouble)
            for _ in range(6):
                v = rng.normal(size=n).astype(np.longdouble)
                v /= np.sqrt((v * v).sum())
                A -= 2 * np.outer(v, v @ A)
                A -= 2 * np.outer(A @ v, v)
            A = ((A + A.T) / 2).astype(np.float64)
            d, _ = kernel_eigh(A)
            assert np.abs(d - values).max() <= arithmetic.resolution(n, n, np.float64).gram

    @pytest.mark.parametrize(("n", "m"), [(30, 6), (6, 30), (20, 20)])
    def test_the_svd_bound_holds(self, n, m, rng):
        import mpmath

        F = with_singular_values(rng, n, m, np.geomspace(1, 1e-12, min(n, m)))
        with mpmath.workdps(60):
            M = mpmath.matrix((F if n <= m else F.T).tolist())
            squares = mpmath.eigsy(M * M.T, eigvals_only=True)
            exact = sorted((float(mpmath.sqrt(abs(v))) for v in squares), reverse=True)
        s = np.linalg.svd(F, compute_uv=False)
        assert np.abs(s - exact).max() <= arithmetic.resolution(n, m, np.float64).svd * exact[0]
        assert arithmetic.resolution(n, m, np.float64).svd < 20 * EPS64
