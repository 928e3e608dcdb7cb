"""Compiling ahead, and what a user is told of compiling."""

import logging
import os
import subprocess
import sys

import numpy as np

from fastkoop import kernels
from fastkoop.kernels.cpu import fused, parts


def test_all_kernels_by_name_and_dtype():
    seconds = kernels.warm_up(all=True)
    assert list(kernels.warm_up()) == ["predict, float32", "predict, float64"] and set(kernels.warm_up()) < set(seconds)
    assert all(second >= 0 for second in seconds.values()) and len(seconds) == len({*seconds})
    for kernel in (fused.predict_tall, fused.predict_wide, fused.pinv_tall, fused.pinv_wide, fused.pinv_range):
        data = {signature[2].dtype.name for signature in kernel.signatures}
        assert data == {"float32", "float64"}, kernel
    ways = (parts.truncated_step, parts.truncated_tall, parts.truncated_wide, parts.far_tall, parts.full_wide)
    assert all(part.address for part in ways)


FIRST = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
import numpy as np, fastkoop
X = np.random.default_rng(0).normal(size=(3, 9, 3)).astype(np.float32)
fastkoop.predict(X, 1)
"""


def test_a_first_call_says_that_it_compiles_and_takes_one_kernel(tmp_path):
    """Blocks that a certificate settles need no other; the second process compiles nothing."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", FIRST], capture_output=True, text=True, env=environment, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said == ["fastkoop compiling kernels, once on this machine: predict_tall\n", ""]
    entries = {path.name.split("-")[0] for path in tmp_path.rglob("*.nbc")}
    assert "fused.predict_tall" in entries and not any("truncated" in name or "svd" in name for name in entries)


def test_a_pending_block_is_done_again_with_its_part(rng, monkeypatch, caplog):
    """Same bits, whether its part was there at once or not; its neighbours stay as they are."""
    X = rng.normal(size=(5, 40, 30)).cumsum(axis=0)
    X[1, ::7] = X[0, ::7]  # truncated
    for steps in (1, 4):
        expected, routes = kernels.predict(X, steps, ("relative", 1e-6))
        for part in (parts.truncated_step, parts.truncated_tall):
            monkeypatch.setattr(part, "address", 0)
        got, again = kernels.predict(X, steps, ("relative", 1e-6))
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(again, routes)
    assert len(set(routes.tolist())) == 2
    with caplog.at_level(logging.INFO, "fastkoop"):
        kernels.predict(X, 1, ("relative", 1e-6))
    assert not caplog.text
