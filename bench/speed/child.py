"""Measurements that need a process of their own: cold starts and peak memory. Prints one line of JSON.

python -m bench.speed.child cold A32            # NUMBA_CACHE_DIR decides whether kernels are compiled or loaded
python -m bench.speed.child memory C-jax "torch pinv"
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def cold(name: str) -> dict:
    """Seconds of importing FastKoop, and of the first and the second prediction of a few blocks of the case's sizes."""
    import numpy as np

    began = time.perf_counter()
    import fastkoop

    imported = time.perf_counter() - began
    from bench.speed.cases import select

    [case] = select([name])
    rng = np.random.default_rng(0)
    batches = [
        rng.standard_normal((case.m + 1, min(count, 4), n), np.float32).cumsum(axis=0) for n, count in case.sizes
    ]
    calls = []
    for _ in range(2):
        began = time.perf_counter()
        for X in batches:
            fastkoop.predict(X, case.steps, cutoff=case.cutoff, time_axis=0)
        calls.append(time.perf_counter() - began)
    return {"import_seconds": imported, "first_call_seconds": calls[0], "second_call_seconds": calls[1]}


def memory(name: str, contender: str) -> dict:
    """Bytes by which one call raises the process's resident memory over what it was with the data loaded."""
    from bench.speed import data, measure
    from bench.speed.cases import select
    from bench.speed.peers import PEERS

    [case] = select([name])
    batches = data.make(case)

    def calls(batches):
        if contender == "fastkoop":
            return [measure.fastkoop_call(case, X) for X in batches]
        peer = PEERS[contender]
        [make, *_] = peer.variants.values()
        return [lambda X=X: make(measure.problem(case, X))(peer.take(X)) for X in batches]

    # BLAS's buffers, thread stacks and kernels belong to the process, not to the call
    for call in calls([X[:40, :2, :50].copy() for X in batches]):
        call()
    for X in batches:
        X.sum()  # data may still lie in its file
    before = _reset_peak()
    results = [call() for call in calls(batches)]
    after = _status("VmHWM")
    return {"increment_bytes": after - before, "result_bytes": sum(result.nbytes for result in results)}


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{STATUS} tells no {field}")


def _reset_peak() -> int:
    """Present resident bytes, from which the kernel's peak counts from now on."""
    CLEAR.write_text("5")
    return _status("VmRSS")


if __name__ == "__main__":
    print(json.dumps({"cold": cold, "memory": memory}[sys.argv[1]](*sys.argv[2:])))
