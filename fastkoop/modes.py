"""The operator itself: eigenvalues, modes and the matrix K, in the space of what is observed."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from . import backends, checks
from .interop.traced import in_scope
from .linalg import warn_of_overflow
from .reports import Reports


class Modes(Reports):
    """The part of `KoopmanOperator` that looks at K: its spectrum, its modes, and itself where it is asked for."""

    def _augmented(self, carry: bool):
        """The factors with the constant, and, if it is to be carried, what they do not represent of the last state."""
        return backends.observed.augmented(
            self.backend, self._lifted, self._pairs, self.options.observables.observed, carry
        )

    @functools.cached_property
    def _linear(self):
        """Factors of the operator itself, a constant that it observes included."""
        affine = self.options.observables.observed.affine
        return self._augmented(False) if affine else self._lifted.factors

    @functools.cached_property
    def _spectrum(self) -> tuple:
        return self.backend.modes(self._linear)

    @property
    @in_scope
    def eigenvalues(self) -> Any:
        """Eigenvalues of K (after clipping, if any): (..., r) complex128, largest modulus first.

        r is the largest rank in the batch, one more if a constant is observed, whose eigenvalue is 1 exactly; a
        block's values past its own are zero, as are all further eigenvalues of its K.
        """
        values = self._known(self._spectrum[0].copy())
        return self._source.wrap(values.reshape(*self._batch, values.shape[1]))

    @property
    @in_scope
    def modes(self) -> Any:
        """Exact modes Phi, eigenvectors of K in the order of `eigenvalues`: (..., rows, r) complex128.

        Rows are what `matrix` acts on. Scaled as Phi = Fp V S^-1 p / lambda with unit p (Tu et al. 2014, definition 1).
        """
        vectors = self._spectrum[1].swapaxes(1, 2)
        real, imaginary = (self._states_of(part) for part in (vectors.real, vectors.imag))
        return self._source.wrap((real + 1j * imaginary).reshape(*self._batch, *real.shape[1:]))

    def _states_of(self, y):
        """Observables (B, rows, k) float64 a step after those with coordinates y (B, k, r)."""
        y = self._xp.ascontiguousarray(y)
        rows = self._observables_of(self._linear.readout, y, after=True)
        if self.options.observables.observed.affine:
            rows = self._xp.concatenate([rows, y[:, :, :1].swapaxes(1, 2)], axis=1)
        return rows

    def _observables_of(self, readout, y, after: bool):
        """(B, delay n, k) float64 from coordinates y: Fp (if `after`, else F) readout y, or of wide ones readout y."""
        rows = self._combine(readout.transpose(2, 0, 1), y)
        if not self._tall:
            return rows
        coefficients = self._xp.ascontiguousarray(rows.swapaxes(1, 2))
        delay = self.options.observables.observed.delay
        first = [delay - 1 - k + after for k in range(delay)]
        return self._xp.concatenate(
            [self._combine(self._X[at : at + self._pairs], coefficients) for at in first], axis=1
        )

    def _combine(self, snapshots, coefficients):
        """(B, n, k) float64 sums over snapshots, with bits that do not depend on a small block's neighbours."""
        rows = self.backend.combine(snapshots.astype(np.float64, order="C"), coefficients, products=self._large)
        return rows.transpose(1, 2, 0)

    def _mean(self, after: bool):
        """Means over the columns of Fp (if `after`) or of F: (B, delay n) float64."""
        if self._pool is not None:
            return self._pool.mean(after)
        delay, shape = self.options.observables.observed.delay, (math.prod(self._batch), self._X.shape[-1])
        first = (delay - 1 - k + after for k in range(delay))
        shares = self._xp.full((shape[0], 1, self._pairs), 1.0 / self._pairs)
        parts = (self._combine(self._X[at : at + self._pairs], shares) for at in first)
        return self._xp.concatenate([part.reshape(shape) for part in parts], axis=1)

    @in_scope
    def matrix(self) -> Any:
        """K itself, (..., rows, rows) in X's dtype, formed only on request; a RuntimeWarning if it does not fit that.

        Its rows are the weights, n of them; with `Momentum` weights, then velocities; with `Delay` those of all d
        iterates, the newest first; with `Affine` a 1 comes last, K = [[A, b], [0, 1]].
        """
        xp, own = self._xp, self._lifted.factors
        identity = xp.broadcast_to(xp.eye(own.operator.shape[1]), own.operator.shape)
        left = self._observables_of(own.readout, identity, after=True)
        right = self._observables_of(own.basis, identity, after=False)
        K = left @ right.swapaxes(1, 2)
        if self.options.observables.observed.affine:
            A, rows = K, K.shape[1]
            K = xp.zeros((len(A), rows + 1, rows + 1))
            K[:, :rows, :rows], K[:, rows, rows] = A, 1.0
            K[:, :rows, rows] = self._mean(after=True) - xp.einsum("bij,bj->bi", A, self._mean(after=False))
        with np.errstate(over="ignore"):
            K = self._known(K.astype(self._X.dtype))
        if self._check_finite and self._source.place.on_host:
            numbers = K.reshape(len(K), K.shape[1] ** 2)
            warn_of_overflow(numbers, self._published.route, self._batch, self._source, checks.matrix_overflow)
        return self._source.wrap(K.reshape(*self._batch, *K.shape[1:]))
