"""Both backends keep the contract: names, arguments, and the numbers that CUDA's headers share with Python."""

import inspect
import math
import pathlib
import re

import numpy as np
import pytest

from fastkoop import kernels
from fastkoop.kernels import Rule, contract, cutoffs, plan
from fastkoop.kernels.cuda import PROBLEM, Cuda

ROOT = pathlib.Path(kernels.__file__).parent
CUDA = "\n".join(path.read_text() for path in sorted((ROOT / "cuda" / "src").iterdir()))
FUNCTIONS = [
    name for name, function in vars(contract.Backend).items() if inspect.isfunction(function) and name[0] != "_"
]
SIZES = {"int": np.dtype("i4"), "double": np.dtype("f8")}


def arguments(function, bound):
    """Name, kind and default of every argument, `self` left out."""
    parameters = list(inspect.signature(function).parameters.values())
    return [(p.name, p.kind, p.default) for p in parameters[bool(bound) :]]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", [kernels, Cuda], ids=["CPU", "CUDA"])
def test_signatures(name, backend):
    """What a backend adds for itself comes last and can be left out."""
    static = backend is kernels or isinstance(inspect.getattr_static(backend, name), staticmethod)
    expected, got = arguments(getattr(contract.Backend, name), True), arguments(getattr(backend, name), not static)
    assert got[: len(expected)] == expected
    assert all(default is not inspect.Parameter.empty for _, _, default in got[len(expected) :])


def test_the_cuda_backend_imports_nothing_of_the_cpus():
    for path in (ROOT / "cuda").rglob("*.py"):
        assert not re.search(r"^\s*from \.\.+cpu|^\s*from \.\. import .*\bcpu\b", path.read_text(), re.MULTILINE), path


def enum(name):
    """The names of a C++ enum, whose values count from 0."""
    body = re.search(rf"enum {name}\b[^{{]*\{{([^}}]*)\}}", CUDA).group(1)
    return [entry.strip() for entry in body.split(",") if entry.strip()]


def test_rules_have_the_same_numbers():
    assert {name.lower(): number for number, name in enumerate(enum("Rule"))} == cutoffs.KINDS
    assert [getattr(cutoffs, name) for name in enum("Rule")] == list(range(len(cutoffs.KINDS)))


def test_routes_have_the_same_numbers():
    """CUDA need not know the routes that it never takes, which come last."""
    module = __import__("sys").modules["fastkoop.kernels.plan"]
    assert [getattr(module, name) for name in enum("Route")] == list(range(len(enum("Route"))))


def test_the_problem_lies_in_memory_as_python_writes_it():
    body = re.sub(r"//.*", "", re.search(r"struct Problem \{(.*?)\};", CUDA, re.DOTALL).group(1))
    declarations = re.findall(r"\b(int|double) ([^;]*);", body)
    fields = [(name.strip(), SIZES[kind]) for kind, names in declarations for name in names.split(",")]
    expected = np.dtype(fields, align=True)
    assert expected.names == PROBLEM.names
    assert expected.fields == PROBLEM.fields and expected.itemsize == PROBLEM.itemsize


def test_a_rule_is_a_pair():
    assert Rule(*("relative", 0.5)) == ("relative", 0.5)
    assert Rule("median", 2).numbers(np.float64) == (4, 2.0, 53)
    with pytest.raises(ValueError, match="cutoff: expected a pair of a kind, relative, spacing"):
        Rule("largest", 1.0).numbers(np.float32)


def test_digits_are_the_significands():
    for dtype, digits in contract.DIGITS.items():
        assert np.finfo(dtype).eps == 2.0 ** (1 - digits)


class TestChecks:
    def test_side(self):
        for side in (None, "snapshots", "weights"):
            contract.check_side(side)
        with pytest.raises(ValueError, match=r'side: expected "snapshots", "weights" or None, got .tall'):
            contract.check_side("tall")

    @pytest.mark.parametrize(("n", "m", "shape"), [(9, 3, (5, 4, 4)), (3, 9, (5, 7, 3)), (3, 3, (0, 7, 3))])
    def test_gram(self, n, m, shape):
        contract.check_gram(np.zeros(shape), n, m)
        for wrong in (shape[1:], (*shape[:2], shape[2] + 1), (shape[0], shape[1] + 1, shape[2])):
            with pytest.raises(ValueError, match=rf"gram: expected \(B, {shape[1]}, {shape[2]}\) for n={n}"):
                contract.check_gram(np.zeros(wrong), n, m)

    def test_steps(self):
        assert contract.ascending([1, 1, 5]).dtype == np.int64 and contract.ascending([]).size == 0
        for wrong in ([0, 1], [2, 1], [-1]):
            with pytest.raises(ValueError, match="steps: expected ascending counts >= 1, got"):
                contract.ascending(wrong)

    def test_coefficients(self):
        contract.check_coefficients(np.zeros((2, 1, 3)), 2, 3)
        for shape in ((2, 3), (1, 1, 3), (2, 1, 4)):
            with pytest.raises(ValueError, match=r"coefficients: expected \(B, k, q\) with B = 2 and q <= 3 rows, got"):
                contract.check_coefficients(np.zeros(shape), 2, 3)

    def test_strides(self):
        records = np.zeros((3, 4), np.dtype([("x", "f4"), ("rest", "i1")]))
        contract.check_strides(np.zeros((3, 4))[:, ::-2])
        with pytest.raises(ValueError, match=r"X: expected strides in whole elements of 4 bytes, .*ascontiguousarray"):
            contract.check_strides(records["x"])


class TestTwins:
    """Expressions of the CUDA sources that stand for a function of cutoffs.py, evaluated beside it."""

    def expression(self, pattern):
        text = re.search(pattern, CUDA).group(1)
        for c, python in (
            ("p.order", "order"),
            ("&&", " and "),
            ("||", " or "),
            ("!", " not "),
            (" not =", "!="),
            ("p.rule", "kind"),
        ):
            text = text.replace(c, python)
        text = re.sub(r"static_cast<double>", "", text).replace("p.value", "value")
        return lambda **names: eval(text, {"log2": math.log2, **vars(cutoffs)}, names)

    def test_a_constant_is_kept(self):
        twin = self.expression(r"bool keeps_rank_one\([^)]*\) \{\s*return (.*?);")
        for kind in cutoffs.KINDS.values():
            for value in (0.0, 0.5, 1.0, 1.5):
                assert twin(kind=kind, value=value) == cutoffs.keeps_constant(kind, value)

    def test_rules_that_a_certificate_can_prove(self):
        twin = self.expression(r"double needed_of\(.*\) \{\s*if \((.*?)\) return nan")
        for kind in cutoffs.KINDS.values():
            assert twin(kind=kind) != cutoffs.needs_largest_only(kind)

    def test_the_gap(self):
        assert float(re.search(r"GAP = ([\d.]+)", CUDA).group(1)) == cutoffs.GAP

    @pytest.mark.parametrize(
        ("pattern", "names", "function"),
        [(r"if \((gap > .*log2.*)\) \{", ("gap", "r"), cutoffs.squaring_pays),
         (r"p\.wide \|\| \(?(steps > .*?log2\(steps \+ 2\.0\))", ("steps", "order"), cutoffs.companion_squaring_pays)],
    )  # fmt: skip
    def test_the_squaring_crossover(self, pattern, names, function):
        twin = self.expression(pattern)
        for order in (1, 2, 8, 33, 64):
            for steps in (1, 2, 64, 65, 100, 257, 1000, 3000, 10**4, 10**5, 10**6):
                assert twin(**dict(zip(names, (steps, order), strict=True))) == function(steps, order)


def test_costs_are_part_of_the_contract(dtype):
    assert plan(2, 50, 8, dtype)._fields == ("side", "engine", "order", "bytes", "flops")
