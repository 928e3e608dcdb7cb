"""Results that start as NaN, and both engines, for every test that asks for them."""

import sys

import numpy as np
import pytest

from fastkoop.kernels import cpu
from fastkoop.kernels.cpu import layout


@pytest.fixture
def poisoned(monkeypatch):
    """Results start as NaN: an entry that a kernel forgets to write fails."""

    def poisoned_empty(shape, dtype):
        out = layout.aligned_empty(shape, dtype)
        out[...] = np.nan
        return out

    monkeypatch.setattr(cpu, "aligned_empty", poisoned_empty)


@pytest.fixture(params=["kernel", "library"])
def engine(request, monkeypatch):
    """Both engines, whatever the size."""
    plan = sys.modules["fastkoop.kernels.plan"]  # fastkoop.kernels.plan itself is the function
    for module in (plan, cpu):
        monkeypatch.setattr(module, "KERNEL_ORDER", 1000 if request.param == "kernel" else 0)
    return request.param
