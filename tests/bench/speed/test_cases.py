"""Every case of the benchmark's table, made small, is answered as the reference answers it."""

import cases as shared
import numpy as np
import pytest

import fastkoop
from bench.speed import cases, data
from fastkoop import cutoff as rules

FEW = {"windows": 2, "graded": 3, "modes": 3}  # blocks, or windows
SYNTHETIC = [case for case in cases.CASES if not case.real]


def small(case):
    """The case's batches with few blocks, and a shorter recording."""
    try:
        return data.make(case, blocks=FEW.get(case.data, 2), pairs=120)
    except data.NoRecording as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name, marks=[pytest.mark.mnist] * c.real) for c in cases.CASES])
def test_case_is_answered_like_the_reference(case):
    for X in small(case):
        rule = rules.resolve(case.cutoff, X.shape[2], len(X) - 1, X.dtype)
        steps = min(case.steps, 20) if case.real else case.steps  # real operators grow, until no bound is left
        got = fastkoop.predict(X, steps, cutoff=case.cutoff, time_axis=0)
        assert got.shape == X.shape[1:] and got.dtype == case.dtype
        assert np.isfinite(got).all()
        shared.assert_states(got, np.moveaxis(X, 0, -1), steps, rule, case.name)


@pytest.mark.parametrize("case", SYNTHETIC, ids=lambda case: case.name)
def test_synthetic_data_have_the_stated_sizes_and_spectrum(case):
    [X] = data.make(case, blocks=3)
    assert X.shape == (case.m + 1, 3, case.n) and X.dtype == np.float32 and X.flags.c_contiguous
    wanted = np.geomspace(1.0, case.last, min(case.n, case.m))
    noise = np.finfo(np.float32).eps  # of storing a matrix of norm 1 in float32
    for b in range(3):
        found = np.linalg.svd(X[:-1, b].astype(np.float64), compute_uv=False)
        if case.data == "modes":  # nearly orthogonal time courses
            assert (found < 2 * wanted + noise).all() and (found > wanted / 2 - noise).all()
        else:
            assert np.abs(found - wanted).max() < noise


@pytest.mark.parametrize("name", ["A8", "R32T"])
def test_blocks_truly_differ(name):
    """Leading singular vectors of different blocks, and of different seeds, are unrelated."""
    [case] = cases.select([name])
    leading = [
        np.linalg.svd(X[:-1, b].T, full_matrices=False)[0][:, 0]
        for X in (*data.make(case, blocks=4), *data.make(case, blocks=4, seed=1))
        for b in range(4)
    ]
    overlap = np.abs(np.array(leading) @ np.array(leading).T) - np.eye(8)
    assert overlap.max() < 6 / np.sqrt(case.n)


@pytest.mark.parametrize("name", ["R32T", "S-T1000"])
def test_decaying_modes_stay_sane_for_all_steps(name):
    [case] = cases.select([name])
    [X] = data.make(case, blocks=3)
    op = fastkoop.fit(X, time_axis=0)
    assert op.spectral_radius.max() <= 1.0 + 1e-4
    full = case.last > case.n * np.finfo(np.float32).eps
    assert (op.rank == case.m).all() if full else (op.rank < case.m).all()
    far = np.linalg.norm(op.predict(case.steps), axis=-1)
    assert (far <= 2.0 * np.linalg.norm(X[-1], axis=-1)).all()


def test_last_singular_values_are_on_their_side_of_the_cutoff():
    for case in SYNTHETIC:
        cutoff = rules.resolve(case.cutoff, case.n, case.m, np.float32)[1]
        assert case.last < cutoff / 10 if case.family in ("R32", "R32T") else case.last > 10 * cutoff, case.name


def test_the_table_is_whole():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    families = "A8 A16 A32 A64 R32 R32T RR8 RR32 RR64 B11 B21 N1 C D P Pj S"
    assert cases.FAMILIES == tuple(families.split())
    for case in cases.CASES:
        assert case.data in ("graded", "modes", "windows", "first layer", "first layer, nodes", "nodes")
        assert set(case.goals) <= {"expert", "library", "numpy", "report", "roofline"}
        assert set(case.gpu_goals) <= {"expert", "roofline"} and (case.gpu_blocks or case.blocks) >= case.blocks
    assert [case.name for case in cases.select(["C", "A8"])] == ["C-jax", "C-array_api", "A8"]
    with pytest.raises(ValueError, match=r"case: expected one of A8, .*got 'A9'"):
        cases.select(["A9"])


@pytest.mark.mnist
def test_windows_are_consecutive_snapshots_of_every_node():
    [case] = cases.select(["RR8-jax"])
    first, rest = small(case)
    assert first.shape == (9, 2 * 20, 785) and rest.shape == (9, 2 * 50, 21)
    recorded = data.nodes(785)
    assert recorded.shape == (1876, 20, 785)
    assert np.array_equal(first[:, :20], recorded[:9]) and np.array_equal(first[:, 20:], recorded[-9:])
