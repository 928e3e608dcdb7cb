"""What `predict` and `pinv` share: `out`, data that is not finite, the same bits in every call."""

import threading

import numpy as np
import pytest
import torch
from cases import aligned, as_kind, orbit, special_blocks

import fastkoop as fk


@pytest.fixture(params=["numpy", "torch"])
def kind(request):
    """The kind of array that goes in and must come out."""
    return request.param


FUNCTIONS = {
    "predict": (lambda X, **more: fk.predict(X, 2, **more), (6,)),
    "pinv": (lambda X, **more: fk.pinv(X, **more), (4, 6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestOut:
    def test_written_and_returned(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = as_kind(rng.normal(size=(3, 6, 4)).astype(dtype), kind)
        out = as_kind(np.full((3, *shape), np.nan, dtype), kind)
        assert function(X, out=out) is out
        np.testing.assert_array_equal(out, function(X))

    def test_any_strides(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = rng.normal(size=(3, 6, 4)).astype(dtype)
        memory = np.full((3, *(2 * length + 1 for length in shape)), np.nan, dtype)
        view = as_kind(memory, kind)[(slice(None), *(slice(1, None, 2) for _ in shape))]
        function(as_kind(X, kind), out=view)
        np.testing.assert_array_equal(view, function(X))
        assert np.isnan(memory[:, ::2]).all()

    def test_into_the_input_itself(self, name, dtype):
        if name == "predict":
            X = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(dtype)
            expected = fk.predict(X, 2)
            fk.predict(X, 2, out=X[..., -1])
            np.testing.assert_array_equal(X[..., -1], expected)
        else:
            F = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(dtype)
            expected = fk.pinv(F)
            fk.pinv(F, out=F)
            np.testing.assert_array_equal(F, expected)

    def test_refused(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = as_kind(rng.normal(size=(3, 6, 4)).astype(dtype), kind)
        other = np.float64 if dtype == np.float32 else np.float32
        wrong = [
            as_kind(np.zeros((2, *shape), dtype), kind),
            as_kind(np.zeros((3, *shape), other), kind),
            as_kind(np.zeros((3, *shape), dtype), "numpy" if kind == "torch" else "torch"),
            as_kind(np.zeros((3, *shape), np.float16), kind),
            torch.zeros((3, *shape), dtype=torch.bfloat16),
        ]
        for out in wrong:
            with pytest.raises(ValueError, match=r"out: expected a (numpy|torch) array of .* got a"):
                function(X, out=out)
            assert not out.any()
        with pytest.raises(TypeError, match=r"out: expected an array of NumPy, CuPy or JAX.* got list"):
            function(X, out=[0.0])
        with pytest.raises(TypeError, match=r"out: expected float32 or float64 in native byte order, got >f8"):
            function(X, out=np.zeros((3, *shape), ">f8"))
        with pytest.raises(TypeError, match=r"out: the tensor requires grad .* pass out\.detach\(\)"):
            function(X, out=torch.zeros((3, *shape), requires_grad=True))
        if kind == "numpy":
            out = np.zeros((3, *shape), dtype)
            out.flags.writeable = False
            with pytest.raises(ValueError, match="out: expected a writable array"):
                function(X, out=out)

    def test_an_out_that_shares_its_own_memory_is_refused(self, name, rng):
        """Like torch's own out=: an expanded tensor cannot hold the results of several blocks."""
        function, shape = FUNCTIONS[name]
        X = torch.from_numpy(rng.normal(size=(3, 6, 4)))
        out = torch.zeros(1, *shape, dtype=torch.float64).expand(3, *shape)
        with pytest.raises(ValueError, match="out: "):
            function(X, out=out)

    def test_a_negated_view_is_written_or_refused(self, name, rng):
        """torch marks x.conj().imag as negated instead of negating it; resolving that makes a copy."""
        function, shape = FUNCTIONS[name]
        X = torch.from_numpy(rng.normal(size=(3, 6, 4)))
        out = torch.zeros(3, *shape, dtype=torch.complex128).conj().imag
        assert out.is_neg()
        try:
            function(X, out=out)
        except (TypeError, ValueError) as error:
            assert "out" in str(error)
        else:
            np.testing.assert_array_equal(out.resolve_neg(), function(X))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nothing_is_written_on_an_error(self, name, bad, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = rng.normal(size=(3, 6, 4)).astype(dtype)
        X[1, 3, 2] = bad
        out = np.full((3, *shape), 7.0, dtype)
        with pytest.raises(ValueError, match=r"block \(1,\) holds a NaN or an infinity.*check_finite=False"):
            function(as_kind(X, kind), out=as_kind(out, kind))
        assert (out == 7).all()

    def test_alignment(self, name, dtype, kind, rng):
        function, _ = FUNCTIONS[name]
        for B in range(1, 6):
            assert aligned(np.asarray(function(as_kind(rng.normal(size=(B, 6, 4)).astype(dtype), kind))))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (150, 120), (120, 150)], ids=str)
class TestNonFinite:
    @pytest.mark.parametrize("column", [0, 1, -1])
    def test_the_first_bad_block_is_named(self, name, shape, column, dtype, kind, rng):
        function, _ = FUNCTIONS[name]
        X = rng.normal(size=(2, 3, *shape)).astype(dtype)
        X[1, 0, 2, column] = np.inf
        X[1, 2, 0, column] = np.nan
        argument = "X" if name == "predict" else "F"
        with pytest.raises(fk.InputError, match=rf"^{argument}: block \(1, 0\) holds a NaN or an infinity"):
            function(as_kind(X, kind))
        with pytest.raises(fk.InputError, match=rf"^{argument}: its only block holds a NaN or an infinity"):
            function(as_kind(X[1, 0].copy(), kind))

    def test_neighbours_keep_their_bits(self, name, shape, dtype, rng):
        function, _ = FUNCTIONS[name]
        X = rng.normal(size=(4, *shape)).astype(dtype)
        clean = function(X)
        X[2, 1, -1] = np.nan
        got = function(X, check_finite=False)
        assert np.isnan(got[2]).all()
        np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


class TestSameBits:
    def test_every_call_any_batch_any_threads(self, dtype, threads, rng):
        X = np.stack(list(special_blocks(rng, 30, 6, dtype).values()))
        for function, _ in FUNCTIONS.values():
            expected = function(X, cutoff=1e-4)
            for count in (1, 2, 5):
                threads(count)
                np.testing.assert_array_equal(function(X, cutoff=1e-4), expected)
                np.testing.assert_array_equal(function(X[3:4], cutoff=1e-4)[0], expected[3])
            np.testing.assert_array_equal(function(torch.from_numpy(X), cutoff=1e-4), expected)

    def test_concurrent_callers(self, threads):
        """Everything from several threads at once, small blocks and large ones: the bits of one call after another."""
        threads(2)
        rng = np.random.default_rng(0)
        data = [orbit(rng, n, m, dtype, (B,)) for dtype in (np.float32, np.float64)
                for n, m, B in ((30, 9, 200), (9, 30, 200), (130, 110, 2))]  # fmt: skip

        def answers(X):
            op = fk.fit(X, cutoff=1e-6)
            return fk.predict(X, 3), fk.pinv(X), op.predict([2, 5]), op.residual, op.walk().step(2), op.matrix()

        expected, wrong = [answers(X) for X in data], []

        def caller(first):
            for i in range(len(data)):
                at = (first + i) % len(data)
                if not all(map(np.array_equal, answers(data[at]), expected[at])):
                    wrong.append(at)

        callers = [threading.Thread(target=caller, args=(first,)) for first in range(4)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert not wrong
