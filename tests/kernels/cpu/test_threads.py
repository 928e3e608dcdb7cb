"""How many threads, and BLAS's limit: one owner, whoever calls, and nobody else's limit lost."""

import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import fastkoop as fk
from fastkoop.kernels.cpu import pool
from fastkoop.kernels.cpu import threads as module


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def undecided(monkeypatch):
    """No number was set."""
    monkeypatch.setattr(module, "_threads", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


@pytest.fixture
def two():
    """BLAS at two threads, whatever this process began with."""
    module.blas.load()
    with threadpool_limits(2, user_api="blas"):
        yield blas_threads()


class TestDefault:
    def test_the_least_of_all_limits(self, undecided):
        undecided.setattr(module, "available_cores", lambda: 12)
        undecided.setattr(module, "granted_cores", lambda: math.inf)
        undecided.setattr(module.blas, "lowered", lambda: 1 << 30)
        assert module.get_num_threads() == 12
        undecided.setattr(module, "granted_cores", lambda: 8)
        assert module.get_num_threads() == 8
        undecided.setenv("OMP_NUM_THREADS", "5")
        assert module.get_num_threads() == 5
        undecided.setattr(module.blas, "lowered", lambda: 3)
        assert module.get_num_threads() == 3
        undecided.setattr(module, "_threads", 7)  # what was set by name counts
        assert module.get_num_threads() == 7

    @pytest.mark.parametrize(
        ("text", "number"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("", math.inf), ("0", math.inf), ("-1", math.inf),
                             ("many", math.inf), ("1.5", math.inf)],
    )  # fmt: skip
    def test_omp_num_threads(self, undecided, text, number):
        undecided.setenv("OMP_NUM_THREADS", text)
        assert module.asked_threads() == number

    @pytest.mark.parametrize(
        ("files", "cores"),
        [
            ({}, math.inf),
            ({"cpu.max": "max 100000"}, math.inf),
            ({"cpu.max": "150000 100000"}, 2),
            ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
            ({"a/b/cpu.max": "50000 100000"}, 1),
            ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
            ({"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
            ({"cpu.max": "nonsense"}, math.inf),
        ],
    )
    def test_quotas_of_control_groups(self, monkeypatch, tmp_path, files, cores):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(module, "CGROUPS", tmp_path)
        folders = [tmp_path, tmp_path / "cpu", tmp_path / "a", tmp_path / "a/b", tmp_path / "cpu/a"]
        monkeypatch.setattr(module, "_own_groups", lambda: folders)
        module.granted_cores.cache_clear()
        try:
            assert module.granted_cores() == cores
        finally:
            module.granted_cores.cache_clear()

    def test_own_groups_are_under_the_mount(self):
        assert all(module.CGROUPS in (path, *path.parents) for path in module._own_groups())

    def test_a_limit_that_somebody_lowered(self, undecided):
        undecided.setattr(module, "available_cores", lambda: 12)
        undecided.setattr(module, "granted_cores", lambda: math.inf)
        undecided.setattr(module.blas, "_first", 2)
        with threadpool_limits(1, user_api="blas"):
            assert module.get_num_threads() == 1
        with threadpool_limits(2, user_api="blas"):
            assert module.get_num_threads() == 12
            with module.blas.one_thread():  # held here, not lowered by anybody
                assert set(blas_threads()) == {1} and module.get_num_threads() == 12


class TestBlas:
    def test_each_block_holds_it_to_one_thread_and_gives_it_back(self, threads, two):
        threads(2)
        assert 2 in two
        inside = pool.each_block(lambda b: (b, blas_threads()), 9, alone=True)
        assert [b for b, _ in inside] == list(range(9))
        assert all(set(counts) == {1} for _, counts in inside)
        assert blas_threads() == two
        assert pool.each_block(lambda b: blas_threads(), 2, alone=False) == [two, two]

    def test_overlapping_callers(self, two):
        first, second = module.blas.one_thread(), module.blas.one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(blas_threads()) == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == two

    def test_an_error_gives_it_back(self, two):
        with pytest.raises(ZeroDivisionError):
            pool.each_block(lambda b: 1 // b, 3, alone=True)
        assert blas_threads() == two

    def test_from_another_thread_than_the_one_that_owns_a_limit(self, two):
        """Here the main thread does; threadpoolctl 3.8 ignores every other."""
        inside = []
        caller = threading.Thread(
            target=lambda: inside.append(pool.each_block(lambda b: blas_threads(), 2, alone=True))
        )
        caller.start()
        caller.join()
        assert all(set(counts) == {1} for counts in inside[0])
        assert blas_threads() == two

    def test_a_callers_limit_works_afterwards(self, two):
        pool.each_block(lambda b: b, 2, alone=True)
        caller = threading.Thread(target=pool.each_block, args=(lambda b: b, 2, True))
        caller.start()
        caller.join()
        with threadpool_limits(1, user_api="blas"):
            assert set(blas_threads()) == {1}
            pool.each_block(lambda b: b, 2, alone=True)
            assert set(blas_threads()) == {1}
        assert blas_threads() == two

    def test_a_limit_that_is_set_meanwhile_is_kept(self, two):
        with module.blas.one_thread():
            threadpool_limits(3, user_api="blas")
            with module.blas.one_thread():
                assert set(blas_threads()) == {1}
        assert blas_threads() == [3 for _ in two]

    def test_nothing_to_limit(self, monkeypatch):
        monkeypatch.setattr(module.Blas, "_find", staticmethod(lambda: ([], [])))
        blas = module.Blas()
        with blas.one_thread():
            assert blas.num_threads() == blas.lowered() == 1 << 30

    def test_limits_of_a_threads_own(self, monkeypatch):
        """As of OpenMP: set in every thread that works, and put back there."""

        class Own(threading.local):
            filepath, num_threads = "own", 4

            def set_num_threads(self, number):
                self.num_threads = number

        library = Own()
        monkeypatch.setattr(module.Blas, "_find", staticmethod(lambda: ([], [library])))
        monkeypatch.setattr(pool, "blas", module.Blas())
        assert set(pool.each_block(lambda b: library.num_threads, 9, alone=True)) == {1}
        assert library.num_threads == 4

    @pytest.fixture
    def late(self, monkeypatch):
        """A Blas of a library at hand, and one that is loaded later; both have 4 threads."""

        class Library:
            def __init__(self, filepath):
                self.filepath, self.num_threads = filepath, 4

            def set_num_threads(self, number):
                self.num_threads = number

        libraries = [Library("first")]
        monkeypatch.setattr(module.Blas, "_find", staticmethod(lambda: (list(libraries), [])))
        monkeypatch.setattr(module, "_load_lapack", lambda: libraries.append(Library("late")))
        return module.Blas(), libraries

    def test_a_library_that_is_loaded_under_a_limit_keeps_to_it(self, late):
        blas, libraries = late
        libraries[0].set_num_threads(2)
        with blas.one_thread():
            assert [library.num_threads for library in libraries] == [1, 1]
        assert [library.num_threads for library in libraries] == [2, 2] and blas.lowered() == 2
        libraries[0].set_num_threads(4)
        assert blas.lowered() == module.NONE
        assert [library.num_threads for library in libraries] == [4, 4]
        libraries[1].set_num_threads(3)
        assert blas.lowered() == 3 and libraries[1].num_threads == 3

    def test_a_library_that_is_loaded_while_others_are_held(self, late):
        blas, libraries = late
        blas._loaded = True
        with blas.one_thread():
            blas._loaded = False
            blas.load()
            blas.load()
            assert [library.num_threads for library in libraries] == [1, 1] and blas.lowered() == module.NONE
        assert [library.num_threads for library in libraries] == [4, 4]

    def test_a_child_that_was_forked_meanwhile(self, two):
        blas = module.Blas()
        holder = blas.one_thread()
        holder.__enter__()
        blas.after_fork()
        assert blas_threads() == two
        with blas.one_thread():
            assert set(blas_threads()) == {1}
        assert blas_threads() == two


EIGHT = """
import threading, sys
import numpy as np, fastkoop as fk
from threadpoolctl import threadpool_info, threadpool_limits
def limits():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
threadpool_limits(2, user_api="blas")
Z = np.random.default_rng(0).normal(size=(4, 150, 120)).cumsum(-1)
bits, lock = set(), threading.Lock()
def work(k):
    for i in range(6):
        fk.set_num_threads(1 + (k + i) % 3)
        got = fk.predict(Z, 2).tobytes()
        with lock:
            bits.add(got)
workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
if sys.argv[1] == "main first":
    bits.add(fk.predict(Z, 2).tobytes())
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert set(limits()) == {2}, limits()
bits.add(fk.predict(Z, 2).tobytes())
with threadpool_limits(1, user_api="blas"):
    assert set(limits()) == {1}
    bits.add(fk.predict(Z, 2).tobytes())
    assert set(limits()) == {1}
assert set(limits()) == {2}
print(len(bits))
"""


LATE = """
import numpy as np, fastkoop as fk
from threadpoolctl import threadpool_info, threadpool_limits
def limits():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
own = limits()
assert len(own) < 2, "import fastkoop needs no other BLAS than NumPy's"
Z = np.random.default_rng(0).normal(size=(4, 150, 120)).cumsum(-1)
with threadpool_limits(1, user_api="blas"):
    inside = fk.predict(Z, 2)
    assert set(limits()) == {1}, limits()
assert np.array_equal(fk.predict(Z, 2), inside)
assert set(limits()) == set(own), limits()
"""


def test_scipys_library_is_loaded_when_it_is_needed(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ["main first", "threads only"])
def test_eight_threads_with_changing_numbers_of_them(order, tmp_path):
    script = tmp_path / "eight.py"
    script.write_text(EIGHT)
    done = subprocess.run(
        [sys.executable, str(script), order], capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_joblibs_workers_are_told_by_the_environment(tmp_path):
    code = "import fastkoop; print(fastkoop.get_num_threads())"
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=True)
    assert done.stdout.strip() == "1"


def test_same_bits_whichever_thread_calls(two):
    Z = np.random.default_rng(0).normal(size=(4, 150, 120)).cumsum(-1)
    expected, results = fk.predict(Z, 2), []
    for _ in range(2):
        caller = threading.Thread(target=lambda: results.append(fk.predict(Z, 2)))
        caller.start()
        caller.join()
    assert all(np.array_equal(result, expected) for result in results)
