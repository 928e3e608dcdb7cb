"""One first call in this process: python -m bench.speed.first_calls_worker call|other|import NAME [BEFORE].

Prints CPU and elapsed seconds as a line of JSON; with BEFORE that function is called first and not timed. Nothing is
imported before it is timed.
"""

from __future__ import annotations

import importlib
import json
import sys
import time


def timed(function) -> dict:
    """CPU seconds of this process and seconds on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}


def functions() -> dict:
    """Name -> call, on a few small blocks of random walks."""
    import numpy as np

    import fastkoop
    from fastkoop import kernels

    rng = np.random.default_rng(0)
    tall = rng.standard_normal((33, 4, 785)).cumsum(axis=0)
    X = tall.astype(np.float32)
    wide = rng.standard_normal((101, 4, 21), np.float32).cumsum(axis=0)
    gram = np.einsum("sbi,tbi->bst", tall, tall)
    affine = {"observables": fastkoop.Affine(), "stabilize": "clip"}
    return {
        "predict": lambda: fastkoop.predict(X, 1, time_axis=0),
        "fit": lambda: fastkoop.fit(X, time_axis=0).predict(3),
        "pinv": lambda: fastkoop.pinv(X.transpose(1, 2, 0)[..., :-1]),
        "float64": lambda: fastkoop.predict(tall, 1, time_axis=0),
        "wide": lambda: fastkoop.predict(wide, 1, time_axis=0),
        "affine": lambda: fastkoop.fit(X, time_axis=0, **affine).predict(3),
        "gram": lambda: kernels.gram(X),
        "solve": lambda: kernels.solve(gram, 785, 32, ("relative", 1e-7), np.float32),
    }


def call(name: str, before: str | None = None) -> dict:
    """A public function's first call."""
    known = functions()
    if before is not None:
        known[before]()
    return timed(known[name])


def other(name: str) -> dict:
    """What a compiler's first call takes elsewhere; nothing where the package is missing."""
    import numpy as np

    if name.startswith("jax"):
        try:
            import jax
        except ImportError:
            return {"cpu_seconds": None, "seconds": None}
        F = jax.numpy.asarray(np.random.default_rng(0).standard_normal((4, 785, 32), np.float32))
        return timed(lambda: jax.jit(jax.vmap(jax.numpy.linalg.pinv))(F).block_until_ready())
    import numba

    trivial = numba.njit(lambda x: x + 1.0)
    return timed(lambda: trivial(np.ones(3)))


def main(job: str, name: str, *before: str) -> dict:
    """One of the jobs."""
    if job == "import":
        return timed(lambda: [importlib.import_module(package) for package in name.split(", ")])
    return {"call": call, "other": other}[job](name, *before)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
