"""Anything at the public door, drawn at random."""

import inspect
import warnings
from typing import ClassVar

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastkoop as fk


class TestFuzz:
    """Whatever comes in at the public door, an answer or one clear error goes out."""

    anything = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 5), st.floats(allow_nan=True), st.text(max_size=4),
        st.lists(st.integers(0, 3), max_size=3), st.builds(object), st.sampled_from([2**40, 2**70, 10**310, -0.5]),
    )  # fmt: skip
    sensible: ClassVar = {
        "cutoff": ["array_api", "jax", "svht", "matlab", "numpy", 1e-3, 0, fk.Rank(2), fk.Rank(99), fk.Energy(0.9)],
        "time_axis": [-1, 0, 1], "out": [None], "stabilize": [None, "clip", 0.9], "observables": ["identity"],
        "check_finite": [True, False], "refine": [True, False], "steps": [0, 1, 3, 300, 2**40],
    }  # fmt: skip
    shapes = st.one_of(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.lists(st.integers(0, 4), max_size=4))
    dtypes = st.sampled_from([*["f4", "f8"] * 12, "f2", "i4", "c8", "O", "U1", "?", ">f4", "M8[s]"])
    finite = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-3, 1e30, 1e-30, 3e38, 1e-45, 0.2, -7.0])
    numbers = st.one_of(finite, finite, finite, st.sampled_from([np.nan, np.inf]))

    def value(self, data, key):
        """Mostly one that makes sense."""
        return data.draw(self.anything if data.draw(st.integers(0, 9)) == 9 else st.sampled_from(self.sensible[key]))

    @staticmethod
    def turned(X, data):
        """The array in another order, backwards, repeated, or as a tensor."""
        for axis in range(X.ndim):
            X = np.flip(X, axis) if data.draw(st.booleans()) else X
        X = X.T if data.draw(st.booleans()) else X
        if data.draw(st.booleans()):
            X = np.broadcast_to(X, (2, *X.shape))
        if X.dtype in ("f4", "f8", "f2", "i4", "c8", "?") and data.draw(st.booleans()):
            X = torch.from_numpy(X.copy())
        return X

    @settings(max_examples=400, deadline=None)
    @given(data=st.data())
    def test_answer_or_clear_error(self, data):
        shape, dtype = tuple(data.draw(self.shapes)), data.draw(self.dtypes)
        X = np.ones(shape, dtype)
        if dtype in ("f4", "f8", "f2"):
            kind = self.finite if data.draw(st.booleans()) else self.numbers
            few = data.draw(st.lists(kind, min_size=1, max_size=7))  # over and over
            with np.errstate(over="ignore"):
                X = np.resize(np.array(few).astype(dtype), shape)
        X = self.turned(X, data)
        function, name = data.draw(st.sampled_from([(fk.predict, "steps"), (fk.pinv, None), (fk.fit, None)]))
        known = inspect.signature(function).parameters
        chosen = [key for key in self.sensible if key in known and key != name and data.draw(st.booleans())]
        options = {key: self.value(data, key) for key in chosen}
        arguments = (self.value(data, name),) if name else ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                result = function(X, *arguments, **options)
                if function is fk.fit:
                    self.look_at(result, self.value(data, "steps"), X)
                else:
                    assert type(result) is type(X) and result.dtype == X.dtype
            except (ValueError, TypeError) as error:
                assert ":" in str(error) and len(str(error)) < 400, error

    @staticmethod
    def look_at(op, steps, X):
        """Everything that an operator says can be said."""
        assert len(repr(op)) < 300 and op.summary()
        assert op.rank.shape == op.residual.shape == op.holdout.shape == op.edge.shape == op.condition.shape
        assert op.modes.shape[-1] == op.eigenvalues.shape[-1] and op.matrix().dtype == X.dtype
        assert op.predict(1).dtype == X.dtype
        op.predict(steps)
