"""What the public door refuses: one sentence with argument, expected, got and cure, and nothing else."""

import decimal
import fractions
import sys

import numpy as np
import pytest
import scipy.sparse
import torch

import fastkoop as fk

Z = np.random.default_rng(0).normal(size=(3, 4))
T = torch.from_numpy(Z)
CALLS = {"predict": lambda x: fk.predict(x, 1), "pinv": fk.pinv, "fit": fk.fit}


class TestErrors:
    @pytest.mark.parametrize("X", [np.zeros(3), np.float64(1)], ids=["1-D", "0-D"])
    def test_dimensions(self, X):
        X = np.asarray(X)
        with pytest.raises(ValueError, match=r"X: expected at least 2 dimensions \(\.\.\., n, m\+1\), got shape"):
            fk.predict(X, 1)
        with pytest.raises(ValueError, match=r"F: expected at least 2 dimensions \(\.\.\., n, m\), got shape"):
            fk.pinv(X)

    def test_sizes(self):
        with pytest.raises(ValueError, match=r"X: expected at least 2 snapshots along axis 1, got 1 .* one pair"):
            fk.predict(np.zeros((3, 1)), 1)
        with pytest.raises(ValueError, match=r"X: expected at least 2 snapshots along axis 0, got 0"):
            fk.predict(np.zeros((0, 3)), 1, time_axis=0)
        with pytest.raises(ValueError, match=r"X: expected blocks of at least 1 weight, got shape \(2, 0, 3\)"):
            fk.predict(np.zeros((2, 0, 3)), 1)

    @pytest.mark.parametrize("axis", [2, -3, 17])
    def test_time_axis(self, axis):
        with pytest.raises(ValueError, match="time_axis: expected"):
            fk.predict(np.zeros((3, 4)), 1, time_axis=axis)

    @pytest.mark.parametrize(
        ("steps", "error"), [(-1, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)]
    )
    def test_steps(self, steps, error):
        with pytest.raises(error, match="steps: expected an integer"):
            fk.predict(np.ones((3, 4)), steps)

    def test_steps_beyond_the_kernels_integers(self):
        with pytest.raises(ValueError, match="steps: expected"):
            fk.predict(np.ones((3, 4)), 2**70)

    def test_integers_of_every_kind(self):
        X = np.random.default_rng(0).normal(size=(5, 3))
        for steps in (np.int32(2), np.uint8(2), np.array(2), torch.tensor(2)):
            np.testing.assert_array_equal(fk.predict(X, steps), fk.predict(X, 2))

    @pytest.mark.parametrize("make", [fk.predict, fk.pinv])
    def test_kinds_and_types(self, make):
        call = (lambda X: make(X, 1)) if make is fk.predict else make
        for dtype in (">f2", ">f4", ">f8", np.int64, bool, np.longdouble):
            with pytest.raises(TypeError, match=r"expected float32 or float64 .* got .*; pass .\.astype"):
                call(np.ones((3, 4), dtype))
        with pytest.raises(TypeError, match=r"expected an array of NumPy, CuPy or JAX.* got list"):
            call([[1.0, 2.0]])
        with pytest.raises(TypeError, match=r"expected an array of NumPy, CuPy or JAX.* got float64"):
            call(np.float64(1.0))
        with pytest.raises(TypeError, match=r"expected an array without a mask, got a masked one; pass .\.filled"):
            call(np.ma.ones((3, 4)))
        with pytest.raises(TypeError, match=r"requires grad .*detach\(\)"):
            call(torch.ones(3, 4, requires_grad=True))
        with pytest.raises(TypeError, match=r"expected float32 or float64, got torch.int32; pass .\.float\(\)"):
            call(torch.ones(3, 4, dtype=torch.int32))
        with pytest.raises(TypeError, match=r"dense tensor, .* pass .\.to_dense\(\)"):
            call(torch.ones(3, 4).to_sparse())
        with pytest.raises(TypeError, match=r"expected a tensor on the CPU or on a CUDA device, got one on meta"):
            call(torch.ones(3, 4, device="meta"))

    def test_no_grad_makes_a_leaf_acceptable(self):
        X = torch.randn(5, 3, requires_grad=True)
        with torch.no_grad():
            got = fk.predict(X, 1)
        assert not got.requires_grad

    @pytest.mark.parametrize(
        ("cutoff", "error"),
        [("scipy", ValueError), (-1e-3, ValueError), (np.nan, ValueError), (np.inf, ValueError), (10**400, ValueError),
         (True, TypeError), (None, TypeError), ([1e-3], TypeError), (1j, TypeError), (np.ones(1), TypeError)],
    )  # fmt: skip
    def test_cutoff(self, cutoff, error):
        for call in (lambda X: fk.predict(X, 1, cutoff=cutoff), lambda X: fk.pinv(X, cutoff=cutoff)):
            with pytest.raises(error, match="cutoff: expected"):
                call(np.ones((3, 4)))

    def test_an_input_error_is_a_value_error(self):
        assert issubclass(fk.InputError, ValueError)
        assert sys.modules["fastkoop.checks"].InputError is fk.InputError


def nested():
    return torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(4, 2)], layout=torch.jagged)


STRANGE = {
    "complex": (lambda: Z + 0j, "pass ..real or ..imag"),
    "objects": (lambda: Z.astype(object), r"pass np.array\(..tolist\(\), np.float64\)"),
    "texts": (lambda: Z.astype(str), "numbers, float32 or float64, got an array of <U"),
    "dates": (lambda: np.zeros((3, 4), "M8[s]"), "numbers, .* got an array of datetime"),
    "records": (lambda: np.zeros((3, 4), [("a", float)]), "numbers, .* got an array of"),
    "a class": (lambda: np.ndarray, "an array of NumPy, .* got type"),
    "a sparse matrix": (lambda: scipy.sparse.csr_matrix(Z), r"got csr_matrix; pass ..toarray\(\)"),
    "a sparse array": (lambda: scipy.sparse.coo_array(Z), r"got coo_array; pass ..toarray\(\)"),
    "a module": (lambda: torch.nn.Linear(3, 4), "got Linear; pass a recording of its parameters"),
    "a script": (lambda: torch.jit.script(torch.nn.Linear(3, 4)), "got RecursiveScriptModule; pass a recording"),
    "a memoryview": (lambda: memoryview(Z), r"got memoryview; pass np.asarray\(...\)"),
    "nothing": (lambda: None, "got NoneType; pass"),
    "a jagged tensor": (nested, r"got a nested one; pass its parts, ..unbind\(\)"),
    "a nested tensor": (lambda: torch.nested.nested_tensor([T, T[:, 1:]]), "got a nested one"),
    "a masked tensor": (lambda: torch.masked.masked_tensor(T, T > 0), r"got a masked one; pass ..to_tensor\(value\)"),
    "a tensor without data": (lambda: torch.ones(3, 4, device="meta"), "got one on meta; make it on another device"),
    "a lazy parameter": (lambda: torch.nn.LazyLinear(3).weight, "a parameter that is not initialised; run the model"),
    "a complex tensor": (lambda: T.to(torch.complex64), "got torch.complex64; pass ..real or ..imag"),
    "a quantized tensor": (
        lambda: torch.quantize_per_tensor(T.float(), 0.1, 0, torch.qint8), r"got torch.qint8; pass ..dequantize\(\)",
    ),
    "8 bits": (lambda: T.to(torch.float8_e4m3fn), r"got torch.float8_e4m3fn; pass ..float\(\)"),
    "rows": (lambda: T.to_sparse_csr(), r"got layout torch.sparse_csr; pass ..to_dense\(\)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of prototypes and deprecations in PyTorch
@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("call", CALLS)
def test_strange_arrays(name, call):
    make, message = STRANGE[name]
    with pytest.raises(TypeError, match=f"^[XF]: expected .*{message}"):
        CALLS[call](make())


@pytest.mark.parametrize("call", CALLS)
def test_keys_of_jax(call):
    jax = pytest.importorskip("jax")
    for key in (jax.random.key(0), jax.random.split(jax.random.key(0), 6).reshape(2, 3)):
        with pytest.raises(TypeError, match=r"^[XF]: expected numbers, .* got an array of key"):
            CALLS[call](key)


FRACTIONS = (2.0, np.float64(2), "2", b"2", None, decimal.Decimal(2), fractions.Fraction(2), {1}, iter([1]), 1j)
BOOLEANS = (True, np.bool_(True), np.array(True), torch.tensor(True))
ARRAYS = (np.array([1.5]), torch.tensor([1.0]), np.array(["1"]), np.array([True]), torch.tensor([True]))
NO_DATA = (torch.ones(2, device="meta", dtype=torch.int64), torch.ones((), device="meta", dtype=torch.int64))


def named(value) -> str:
    """A test's name that holds no address: runs have to agree on it."""
    return "iterator" if hasattr(value, "__next__") else repr(value)


@pytest.mark.parametrize("steps", [*FRACTIONS, *BOOLEANS, *ARRAYS, *NO_DATA], ids=named)
def test_steps_that_are_no_integers(steps):
    op = fk.fit(Z)
    for call in (lambda: fk.predict(Z, steps), lambda: op.predict(steps), lambda: op.predict([0, steps])):
        with pytest.raises(TypeError, match=r"^steps: expected an integer, got "):
            call()


@pytest.mark.parametrize("value", [*FRACTIONS, *BOOLEANS, *ARRAYS, *NO_DATA], ids=named)
def test_other_integers(value):
    for name, call in {
        "count": lambda: fk.fit(Z).walk().step(value), "ahead": lambda: fk.fit(Z).walk().step(1, value),
        "time_axis": lambda: fk.fit(Z, time_axis=value), "threads": lambda: fk.set_num_threads(value),
        r"Rank\(k\)": lambda: fk.Rank(value), r"Delay\(d\)": lambda: fk.Delay(value),
    }.items():  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: expected an integer, got "):
            call()


def test_arrays_of_one_integer_are_not_an_integer():
    for steps in (np.array([2]), torch.tensor([2]), torch.tensor([[2]])):
        with pytest.raises(TypeError, match=r"^steps: expected an integer, got"):
            fk.predict(Z, steps)
    assert fk.fit(Z).predict(torch.tensor([2])).shape == (3, 1)
    with pytest.raises(ValueError, match=r"^steps: expected an integer or a 1-D sequence, got 2 dimensions"):
        fk.fit(Z).predict(torch.tensor([[2]]))


@pytest.mark.parametrize(
    "value", [np.array([True, False]), np.array(True), None, "no", [], torch.tensor(False), 0, 1, 0.5], ids=repr
)
def test_flags(value):
    op = fk.fit(Z)
    calls = [lambda: fk.fit(Z, check_finite=value), lambda: fk.predict(Z, 1, check_finite=value),
             lambda: fk.pinv(Z, check_finite=value)]  # fmt: skip
    if value is not None:  # what fit was given
        calls += [lambda: op.predict(1, check_finite=value), lambda: op.walk(check_finite=value)]
    for call in calls:
        with pytest.raises(TypeError, match=r"^check_finite: expected True or False, got "):
            call()
    with pytest.raises(TypeError, match=r"^refine: expected True or False, got "):
        fk.fit(Z, refine=value)
    fk.fit(Z, check_finite=np.bool_(False), refine=np.bool_(True)).predict(1, check_finite=np.True_)


@pytest.mark.parametrize("value", [True, "Clip", [1], 1j, 0, -1, np.inf, np.nan, np.array([1.0, 2.0]), T], ids=type)
def test_stabilize(value):
    with pytest.raises((TypeError, ValueError), match=r"^stabilize: expected "):
        fk.fit(Z, stabilize=value)


def test_numbers_of_numpy_are_numbers():
    for one in (1, np.int64(1), np.uint8(1), np.float32(1.0)):
        assert fk.fit(Z, stabilize=one).options == fk.fit(Z, stabilize="clip").options
        assert fk.Energy(one) == fk.Energy(1.0)
    assert fk.Rank(np.array(2)) == fk.Rank(torch.tensor(2)) == fk.Rank(2)
    assert repr(fk.Rank(np.int8(2))) == "Rank(k=2)" and repr(fk.Energy(np.float64(0.5))) == "Energy(share=0.5)"


class TestMemory:
    """What does not fit is refused before anything is computed, with the numbers."""

    def test_views_that_are_larger_than_memory(self):
        X = np.broadcast_to(np.float32(1.0), (10**9, 100, 10))
        for call in (lambda: fk.predict(X, 1), lambda: fk.fit(X), lambda: fk.pinv(X)):
            with pytest.raises(ValueError, match=r"shape \(1000000000, 100, 10\) takes .* [GT]B, of which .* are free"):
                call()
        for shape in ((10**6, 10**6), (2, 10**6, 10**6)):
            huge = np.broadcast_to(np.float64(1.0), shape)
            for call in (lambda huge: fk.predict(huge, 1), fk.fit, fk.pinv):
                with pytest.raises(ValueError, match=r" takes .* TB, of which .* are free; pass fewer blocks"):
                    call(huge)

    @pytest.mark.parametrize("steps", [range(10**12), range(0, 10**13, 7)], ids=str)
    def test_steps_that_make_more_states_than_memory(self, steps):
        with pytest.raises(ValueError, match=r"^steps: \d+ states takes .* TB, of which .* are free; ask for fewer"):
            fk.fit(Z).predict(steps)
