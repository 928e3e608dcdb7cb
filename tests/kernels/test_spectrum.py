"""Eigenvalues and modes of the reduced operators, and their clipping."""

import numpy as np
import pytest

from fastkoop import kernels
from fastkoop.kernels.contract import Factors


def factors_of(*operators):
    """Factors of wide blocks whose basis is the identity: K is the operator itself."""
    n = max(len(A) for A in operators)
    B = len(operators)
    K, basis = np.zeros((B, n, n)), np.zeros((B, n, n))
    for b, A in enumerate(operators):
        K[b, : len(A), : len(A)] = A
        basis[b, : len(A), : len(A)] = np.eye(len(A))
    rank = np.array([len(A) for A in operators])
    ones = np.ones(B)
    start = np.ones((B, n)) * (np.arange(n) < rank[:, None])
    return Factors(basis, K.copy(), K, start, rank, 0 * ones, ones, ones, ones > 1, np.zeros(B, np.int8))


GROWING = np.array([[0.0, -2.0, 0.3], [2.0, 0.0, 0.1], [0.0, 0.0, 0.5]])


def test_order_and_padding():
    values = kernels.eigenvalues(factors_of(GROWING, np.array([[0.25]]), np.zeros((0, 0))))
    np.testing.assert_allclose(values, [[2j, -2j, 0.5], [0.25, 0, 0], [0, 0, 0]], atol=1e-12)


def test_modes_are_eigenvectors(rng):
    A = rng.normal(size=(5, 5))
    values, vectors = kernels.modes(factors_of(A))
    np.testing.assert_allclose(A @ vectors[0], vectors[0] * values[0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(A @ vectors[0], axis=0), 1, atol=1e-12)  # Fp V S^-1 p / l, p of norm 1


def test_a_mode_of_eigenvalue_zero_is_finite():
    values, vectors = kernels.modes(factors_of(np.diag([1.0, 0.0])))
    np.testing.assert_array_equal(values[0], [1, 0])
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("radius", [1.0, 0.75, 1.5])
def test_clip(radius):
    clipped, condition = kernels.clip(factors_of(GROWING, np.diag([0.5, 0.25])), radius)
    values = kernels.eigenvalues(clipped)
    np.testing.assert_allclose(values[0], [radius * 1j, -radius * 1j, 0.5], atol=1e-12)
    assert condition[0] > 1
    assert condition[1] == 1
    l, P = np.linalg.eig(GROWING)  # noqa: E741
    expected = (P * np.where(np.abs(l) > radius, l * radius / np.abs(l), l)) @ np.linalg.inv(P)
    for steps in (1, 2, 7):
        coefficients = kernels.evolve(clipped, np.array([steps]))[0, 0]
        np.testing.assert_allclose(coefficients, np.linalg.matrix_power(expected, steps).real @ np.ones(3), atol=1e-9)


def test_nothing_to_clip_keeps_every_bit():
    plain = factors_of(np.diag([1.0, -1.0, 0.5]))
    clipped, condition = kernels.clip(plain, 1.0)
    for got, expected in zip(clipped, plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert condition.tolist() == [1.0]


def test_a_block_that_is_not_finite_is_left_alone():
    plain = factors_of(GROWING, np.full((3, 3), np.nan))
    clipped, condition = kernels.clip(plain, 1.0)
    assert np.isnan(clipped.operator[1]).all()
    assert np.isfinite(clipped.operator[0]).all()
    assert condition[1] == 1
    assert not kernels.eigenvalues(plain)[1].any()


def test_a_defective_operator_does_not_stop_the_batch():
    """A Jordan block has no eigenvector basis: its condition number says so, the others are clipped as ever."""
    clipped, condition = kernels.clip(factors_of(np.array([[2.0, 1.0], [0.0, 2.0]]), np.diag([3.0, 0.5])), 1.0)
    assert condition[0] > 1e10
    np.testing.assert_allclose(kernels.eigenvalues(clipped)[1], [1, 0.5], atol=1e-12)


def test_eigenvectors_that_say_nothing_lose_a_coordinate():
    """Clipped, its eigenvalues seem to lie on the circle, and its powers grow beyond any dtype all the same."""
    clipped, condition = kernels.clip(factors_of(np.array([[2.0, 1e40], [0.0, 0.5]])), 1.0)
    np.testing.assert_array_equal(clipped.operator[0], [[1.0, 0.0], [0.0, 0.0]])
    assert condition[0] == 1.0 and not clipped.readout[0, :, 1].any()
