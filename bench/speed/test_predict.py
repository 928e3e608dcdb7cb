"""FastKoop's own times, case by case, by pytest-benchmark: `pytest bench/speed/test_predict.py --benchmark-only`.

For watching a change at work: `--benchmark-autosave` before it, `--benchmark-compare` after it. Comparisons with
others, and everything that is published, come from `python -m bench speed run`.
"""

import pytest

from bench.speed import cases, data, measure

BLOCKS = {"A8": 1000, "A16": 1000, "A32": 500, "A64": 200, "R32": 300, "R32T": 200, "RR32-array_api": 8, "B11": 500,
          "B21": 200, "N1": 5000, "C-jax": 4, "S-B1": 1}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_predict(benchmark, name):
    [case] = cases.select([name])
    try:
        batches = data.make(case, blocks=BLOCKS[name])
    except data.NoRecording as error:
        pytest.skip(str(error))
    calls = [measure.fastkoop_call(case, X) for X in batches]
    benchmark.extra_info["blocks"] = sum(X.shape[1] for X in batches)
    benchmark(lambda: [call() for call in calls])
