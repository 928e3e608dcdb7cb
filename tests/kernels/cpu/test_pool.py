"""The thread pool: any number of threads, concurrent callers, and life after a fork."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from fastkoop import kernels
from fastkoop.kernels.cpu import pool

RULE = ("relative", 1e-4)


def test_counts(threads):
    assert kernels.get_num_threads() >= 1
    threads(3)
    assert kernels.get_num_threads() == 3
    threads(0)
    assert kernels.get_num_threads() == 1


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 7, 20, 21, 1000])
def test_every_block_once(count, blocks, threads):
    threads(count)
    seen, lock = [], threading.Lock()

    def kernel(first, last, extra):
        assert extra == "argument"
        with lock:
            seen.extend(range(first, last))

    pool.over_blocks(kernel, blocks, 1 << 40, "argument")
    assert sorted(seen) == list(range(blocks))


@pytest.mark.parametrize("culprit", [0, 13])
def test_an_exception_comes_out(culprit, threads):
    threads(2)

    def kernel(first, last):
        if first <= culprit < last:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.over_blocks(kernel, 20, 1 << 40)


def test_same_bits_for_any_number_of_threads(threads, dtype, rng):
    X = rng.normal(size=(33, 300, 40)).astype(dtype)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(kernels.predict(X, 3, RULE)[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_concurrent_callers_with_batches_of_different_sizes(threads, rng):
    """The pool must not be taken from under a caller that is about to hand it work."""
    threads(5)
    kernel = lambda first, last: None  # noqa: E731
    failures = []

    def caller(blocks):
        try:
            for _ in range(1500):
                pool.over_blocks(kernel, blocks, 1 << 40)
        except Exception as error:
            failures.append(error)

    callers = [threading.Thread(target=caller, args=(blocks,)) for blocks in (2, 3, 4, 5, 2, 3, 4, 5)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


def test_concurrent_callers_get_their_own_answers(threads, rng):
    threads(2)
    batches = [rng.normal(size=(20, B, 30)).astype(np.float32) for B in (50, 80, 300, 7)]
    expected = [kernels.predict(X, 2, RULE)[0] for X in batches]
    failures = []

    def caller(X, answer):
        for _ in range(15):
            if not np.array_equal(kernels.predict(X, 2, RULE)[0], answer):
                failures.append(X.shape)

    callers = [threading.Thread(target=caller, args=pair) for pair in zip(batches, expected, strict=True)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


def test_changing_the_number_of_threads_meanwhile(threads, rng):
    X = rng.normal(size=(20, 300, 30)).astype(np.float32)
    expected = kernels.predict(X, 2, RULE)[0]
    failures = []

    def caller():
        try:
            for _ in range(20):
                np.testing.assert_array_equal(kernels.predict(X, 2, RULE)[0], expected)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=caller) for _ in range(3)]
    for thread in callers:
        thread.start()
    count = 2
    while any(thread.is_alive() for thread in callers):
        threads(count)
        count = 5 - count
    for thread in callers:
        thread.join()
    assert not failures


FORKED = """
import multiprocessing, sys, warnings
import numpy as np
from fastkoop import kernels

def answers(data):
    rule = ("relative", 1e-4)
    return [kernels.predict(X, steps, rule)[0].tobytes() for X in data for steps in (1, 2)]

def child(data, results):
    kernels.set_num_threads(2)
    results.put(answers(data))

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Python 3.12 warns of every fork beside threads, which is the point here
    kernels.set_num_threads(2)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 400, 30)).astype(np.float32), rng.normal(size=(121, 3, 150))  # the latter by LAPACK
    expected = answers(data)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=child, args=(data, results)) for _ in range(2)]
    for process in children:
        process.start()
    for _ in children:
        assert results.get(timeout=60) == expected
    for process in children:
        process.join(60)
        assert process.exitcode == 0
    assert answers(data) == expected
    print("alive")
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this platform cannot fork")
def test_after_a_fork(tmp_path):
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alive"


def test_a_pool_that_takes_no_work_leaves_it_to_the_caller(threads, monkeypatch):
    threads(3)

    class Closed:
        taken = 0

        def submit(self, run):
            Closed.taken += 1
            if Closed.taken > 1:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(pool, "_pool", lambda count: Closed())
    seen = []
    pool.over_blocks(lambda first, last: seen.extend(range(first, last)), 20, 1 << 40)
    assert sorted(seen) == list(range(20)) and Closed.taken == 2


AT_THE_END = """
import atexit, sys, threading, time
import numpy as np, fastkoop
fastkoop.set_num_threads(3)
tall = np.random.default_rng(0).normal(size=(400, 64, 33)).cumsum(-1)
large = np.random.default_rng(0).normal(size=(3, 150, 120)).cumsum(-1)
calls = {
    "predict": lambda: fastkoop.predict(tall, 2),
    "pinv": lambda: fastkoop.pinv(tall[:100]),
    "fit": lambda: fastkoop.fit(tall[:100]).predict([1, 5]),
    "LAPACK": lambda: fastkoop.predict(large, 2),
}
expected = {name: call() for name, call in calls.items()}

def check():
    for name, call in calls.items():
        print(name, np.array_equal(call(), expected[name]))

def late():
    time.sleep(0.5)
    for _ in range(2):
        check()

atexit.register(check)
threading.Thread(target=late).start()
"""


def test_work_after_the_main_thread_has_ended(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(AT_THE_END)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.split("\n") == ["predict True", "pinv True", "fit True", "LAPACK True"] * 3 + [""]
