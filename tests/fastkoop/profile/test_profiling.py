"""The profile from end to end on small blocks, and what it is made of. Nothing here depends on a time."""

import json
import math

import numpy as np
import pytest

from fastkoop.checks import InputError
from fastkoop.profile import devices, profiling, workload
from fastkoop.profile.devices import Host
from fastkoop.profile.profiling import against, first_calls, profile, tasks
from fastkoop.profile.request import Request, parse_sizes
from fastkoop.profile.throughput import COSTS, PARTS, Ceilings, copy_bandwidth, matrix_rate
from fastkoop.profile.workload import Workload, snapshots

HOST = Host()
SMALL = ((20, 4), (3, 40), (1, 9))


def quick_ceilings(threads):
    """Ceilings of a smaller copy and smaller products."""
    rates = (matrix_rate(dtype, threads, order=256) for dtype in (np.float32, np.float64))
    return Ceilings(threads, copy_bandwidth(threads, 1 << 24), *rates)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """One profile: its folder, what it returned and what it told on the way."""
    out, ticks = tmp_path_factory.mktemp("profile") / "new" / "folder", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "measure_ceilings", quick_ceilings)
        patch.setattr(Host, "batch_bytes", 1 << 18)
        config = Request(sizes=SMALL, rounds=2, seconds=0.5, out=str(out))
        results = profile(config, lambda *state: ticks.append(state))
    return out, results, ticks


class TestProfile:
    def test_writes_what_it_returns_and_nothing_else(self, profiled):
        out, results, _ = profiled
        stored = json.loads((out / "profile.json").read_text())
        assert stored == json.loads(json.dumps(results))
        assert sorted(path.name for path in out.iterdir()) == ["profile.json", "roofline.png"]
        assert (out / "roofline.png").read_bytes().startswith(b"\x89PNG")

    def test_every_kernel_has_its_rows(self, profiled):
        rows = profiled[1]["kernels"]
        for size in SMALL:
            mine = [(row["kernel"], row["data"]) for row in rows if (row["n"], row["m"]) == size]
            expected = {(kernel, "full") for kernel in COSTS}
            data = {("solve", "truncated"), ("predict", "truncated"), ("predict", "unresolved")}
            expected |= data if min(size) > 1 else set()
            assert set(mine) == expected - ({("reconstruct", "full")} if size[0] <= size[1] else set())
            assert len(mine) == len(set(mine))

    def test_rows_hold_together(self, profiled):
        for row in profiled[1]["kernels"]:
            seconds = row["seconds"]
            assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"] and seconds["rounds"] in (1, 2)
            assert (row["route"] in profiling.ROUTES) == (row["kernel"] in ("solve", "predict", "pinv"))
            assert row["microseconds_per_block"] == pytest.approx(1e6 * seconds["median"] / row["blocks"])
            assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / seconds["median"] / 1e9)
            assert row["gigaflops_per_second"] == pytest.approx(row["flops"] / seconds["median"] / 1e9)
            assert row["intensity"] == pytest.approx(row["flops"] / row["bytes"])
            # what fits into a cache may beat the memory's roof, and a busy machine is measured low: no tighter
            assert 0 < row["share"] < 5.0, row

    def test_truncated_rows_are_truncated(self, profiled):
        for row in profiled[1]["kernels"]:
            order = min(row["n"], row["m"])
            assert 0 < row["rank"] < order if row["data"] == "truncated" else row["rank"] == order
            assert (row["route"] == "qr") == (row["data"] == "unresolved")

    def test_ceilings_of_one_thread_and_of_all(self, profiled):
        ceilings = profiled[1]["ceilings"]
        assert sorted({1, ceilings[-1]["threads"]}) == [level["threads"] for level in ceilings]
        assert all(value > 0 for level in ceilings for value in level.values())

    def test_says_where_and_on_what(self, profiled):
        _, results, ticks = profiled
        assert results["machine"]["processor"] and results["machine"]["cache_bytes"]["last"] > 0
        assert results["config"]["sizes"] == [list(size) for size in SMALL] and "out" not in results["config"]
        assert list(results["first_calls"]) == list(COSTS)
        assert ticks[-1][1] == ticks[-1][2] == len(results["kernels"])


def test_a_failed_profile_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "first_calls", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profile(Request(out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "tpu"}, r"device: expected one of 'cpu', 'cuda', got 'tpu'"),
        ({"dtype": "float16"}, "dtype: expected one of"),
        ({"rounds": 0}, "rounds: expected an integer >= 1, got 0"),
        ({"seconds": 0.0}, "seconds: expected a number > 0, got 0"),
        ({"seconds": math.nan}, "seconds: expected a number > 0, got nan"),
        ({"seconds": math.inf}, "seconds: expected a number > 0, got inf"),
        ({"blocks": 0}, "blocks: expected an integer >= 1, got 0"),
        ({"sizes": ((10**6, 10**6),)}, "sizes: 1000000x1000000 with 1 blocks takes about"),
        ({"sizes": ((10, 10),), "blocks": 10**12}, "fewer --blocks"),
        ({"out": "/proc/nothing"}, "out: cannot write into '/proc/nothing'"),
    ],
)
def test_bad_options(options, says, tmp_path):
    with pytest.raises(InputError, match=says):
        profile(Request(**{"out": str(tmp_path), **options}))


def test_sizes_as_written():
    assert parse_sizes("785x32, 21X1875,785x32") == ((785, 32), (21, 1875))
    for text in ("", "785", "785x", "x8", "0x8", "8x0", "-1x8", "785x32,", "7.5x2", "axb"):
        with pytest.raises(InputError, match="sizes: expected NxM"):
            parse_sizes(text)


def test_batches_fill_the_bytes_and_large_blocks_the_threads(threads):
    threads(3)
    config = Request()
    assert config.batch(785, 8, HOST) == (64 << 20) // (785 * 9 * 4)
    assert config.batch(785, 1875, HOST) == 3
    assert config.batch(5000, 5000, HOST) == 1
    assert Request(blocks=7).batch(785, 1875, HOST) == 7


@pytest.mark.parametrize(("n", "m"), [(30, 6), (6, 30), (5, 5), (1, 8), (8, 1)])
def test_snapshots_have_the_singular_values_they_claim(n, m, dtype):
    X = snapshots(n, m, 70, dtype, 1e-2)
    assert X.shape == (m + 1, 70, n) and X.dtype == dtype and X.flags.c_contiguous
    values = np.linalg.svd(X[:-1].transpose(1, 2, 0).astype(np.float64), compute_uv=False)
    assert np.allclose(values, np.geomspace(1.0, 1e-2, min(n, m)), rtol=1e-3 if dtype == np.float32 else 1e-10)
    assert np.array_equal(X[:, 0], X[:, 64]) and not np.array_equal(X[:, 0], X[:, 1])


@pytest.mark.parametrize(("n", "m"), [(101, 7), (7, 101), (60, 7)])
def test_large_snapshots_repeat_themselves_and_keep_their_singular_values(n, m, monkeypatch):
    monkeypatch.setattr(workload, "MADE_BYTES", 1 << 10)
    X = snapshots(n, m, 1, np.float64, 1e-2)
    values = np.linalg.svd(X[:-1, 0], compute_uv=False)
    assert np.allclose(values, np.geomspace(1.0, 1e-2, 7), rtol=1e-10)
    lines = X[:-1, 0].T if n > m else X[:-1, 0]
    assert len(np.unique(lines, axis=0)) < len(lines)


def test_the_parts_of_large_blocks_are_what_predict_needs():
    for n, m in ((130, 100), (100, 130)):
        X = snapshots(n, m, 2, np.float32, 1e-2)
        parts = Workload(X, ("relative", 1e-6), HOST).parts
        assert list(parts) == list(PARTS)
        F = X[:-1].transpose(1, 2, 0).astype(np.float64)
        G = F.transpose(0, 2, 1) @ F if n > m else F @ F.transpose(0, 2, 1)
        assert np.allclose(parts["product"](), G, rtol=1e-12, atol=1e-14)
        for (d, e, _), one in zip(parts["tridiagonal"](), G, strict=True):
            values = np.linalg.eigvalsh(np.diag(d) + np.diag(e, 1) + np.diag(e, -1))
            assert np.allclose(values, np.linalg.eigvalsh(one), rtol=1e-10, atol=1e-13)


def test_large_blocks_have_parts_and_very_large_ones_only_a_prediction_beside():
    kernels = [task.kernel for task in tasks(Request(sizes=((785, 1875),)), HOST)]
    assert set(kernels) == {*COSTS, *PARTS} - {"reconstruct"}
    assert [task.kernel for task in tasks(Request(sizes=((15700, 1875),)), HOST)] == ["predict", *PARTS]


def test_small_things_are_repeated_until_they_fill_a_cache():
    X = snapshots(20, 4, 3, np.float32, 1e-2)
    once, often = Workload(X, ("relative", 1e-6), HOST), Workload(X, ("relative", 1e-6), HOST, (1000, 10_000))
    assert often.grams.nbytes >= 1000 and often.factors.operator.nbytes >= 10_000
    assert (once.batch("gram"), once.batch("solve"), once.batch("evolve")) == (3, 3, 3)
    assert often.batch("gram") == 3 and often.batch("solve") == len(often.grams) and often.batch("evolve") % 3 == 0
    assert np.array_equal(once.coefficients, often.coefficients)
    assert len(often.calls()["evolve"]()) == often.batch("evolve")


def test_the_calls_are_the_kernels_of_the_contract():
    X = snapshots(20, 4, 3, np.float64, 1e-2)
    problem = Workload(X, ("relative", 1e-6), HOST)
    results = {kernel: call() for kernel, call in problem.calls().items()}
    assert list(results) == list(COSTS)
    assert np.allclose(results["reconstruct"][0], results["predict"][0], rtol=1e-8)
    assert results["pinv"][0].shape == (3, 4, 20) and results["advance"].shape == (3, 4)
    assert set(results["solve"].route) <= set(range(len(profiling.ROUTES)))


def test_first_calls_of_a_process_that_has_called_before(dtype):
    first_calls(dtype, HOST)
    again = first_calls(dtype, HOST)
    assert list(again) == list(COSTS)
    assert all(call["seconds"] >= 0 and not call["compiled"] for call in again.values())


def test_one_singular_value_is_not_truncated_and_wide_blocks_are_not_lifted():
    assert {task.data for task in tasks(Request(sizes=((1, 9),)), HOST)} == {"full"}
    assert {task.kernel for task in tasks(Request(sizes=((3, 3),)), HOST)} == set(COSTS) - {"reconstruct"}


def test_float64_kernels_are_held_to_float64s_rate():
    roof = Ceilings(threads=1, copy=1e3, float32=8.0, float64=4.0)
    row = {"bytes": 1, "flops": 16, "seconds": {"median": 8.0}}
    assert against({**row, "kernel": "gram"}, "float32", roof) == {"share": 0.25, "bound": "arithmetic"}
    assert against({**row, "kernel": "solve"}, "float32", roof) == {"share": 0.5, "bound": "arithmetic"}
    assert against({**row, "kernel": "gram"}, "float64", roof) == {"share": 0.5, "bound": "arithmetic"}
    row = {"bytes": 4000, "flops": 1, "seconds": {"median": 8.0}}
    assert against({**row, "kernel": "gram"}, "float64", roof) == {"share": 0.5, "bound": "memory"}
