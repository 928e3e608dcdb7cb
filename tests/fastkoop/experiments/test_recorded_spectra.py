"""From files to distances: what each kind of file gives, what is written, what is refused."""

import json

import numpy as np
import pytest

import fastkoop
from fastkoop.experiments.recorded_spectra import compare_files, spectrum_of
from fastkoop.spectra import distance, permutation_test

pytest.importorskip("matplotlib")


def decay(rng, rates, seeds=5, n=30, snapshots=12):
    """Recordings whose operators have these eigenvalues."""
    shares = rng.normal(size=(seeds, n, len(rates)))
    return 2.0 + np.einsum("snk,kt->snt", shares, np.array(rates)[:, None] ** np.arange(snapshots))


def saved(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_snapshots_give_the_rates_that_they_decay_at(rng, tmp_path):
    path = saved(tmp_path / "run.npz", snapshots=decay(rng, [0.9, 0.6, 0.3]))
    values = spectrum_of(path, rank=3)
    assert values.shape == (5, 3)
    np.testing.assert_allclose(np.sort(values.real), [[0.3, 0.6, 0.9]] * 5, atol=1e-6)


def test_eigenvalues_are_taken_as_they_are(rng, tmp_path):
    values = rng.normal(size=(4, 3)) + 1j
    np.testing.assert_array_equal(spectrum_of(saved(tmp_path / "a.npz", eigenvalues=values)), values)
    assert spectrum_of(saved(tmp_path / "b.npz", eigenvalues=values[0])).shape == (1, 3)


def test_pairs_are_tested_and_written(rng, tmp_path):
    slow, fast = ([0.9, 0.6], [0.5, 0.2])
    paths = [
        saved(tmp_path / f"{name}.npz", snapshots=decay(rng, rates))
        for name, rates in (("slow", slow), ("fast", fast), ("also", slow))
    ]
    rows = compare_files(paths, str(tmp_path / "out"), rank=2, permutations=199)
    assert [(row["a"], row["b"]) for row in rows] == [("slow", "fast"), ("slow", "also"), ("fast", "also")]
    np.testing.assert_allclose([row["between"] for row in rows], [0.4, 0.0, 0.4], atol=1e-6)
    groups = [spectrum_of(path, 2) for path in paths[:2]]
    test = permutation_test(groups, permutations=199)
    assert (rows[0]["p"], rows[0]["within"], rows[0]["nearest"]) == (test.p, test.within, 1.0)
    written = json.loads((tmp_path / "out" / "spectra.json").read_text())
    np.testing.assert_allclose(written["between"]["slow"]["fast"], distance(groups[0][:, None], groups[1]).mean())
    assert (tmp_path / "out" / "spectra.png").exists()


def test_one_seed_has_no_null(rng, tmp_path):
    paths = [saved(tmp_path / f"{name}.npz", snapshots=decay(rng, [0.9], seeds=1)) for name in "ab"]
    [row] = compare_files(paths, str(tmp_path), rank=1)
    assert set(row) == {"a", "b", "between"}


def test_files_of_one_name_are_told_apart_by_their_paths(rng, tmp_path):
    paths = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        paths.append(saved(tmp_path / folder / "run.npz", snapshots=decay(rng, [0.9])))
    [row] = compare_files(paths, str(tmp_path), rank=1)
    assert (row["a"], row["b"]) == tuple(paths)


class TestErrors:
    def test_name_the_file_and_what_it_holds(self, rng, tmp_path):
        text, other = tmp_path / "a.npz", tmp_path / "b.npy"
        text.write_text("no archive")
        np.save(other, np.ones(3))
        cases = {
            str(tmp_path / "missing.npz"): "missing.npz: cannot be read",
            str(text): r"a\.npz: expected an \.npz file .* got a damaged file or one of another kind",
            str(other): r"b\.npy: expected .* got a single array; np\.savez names its arrays",
            saved(tmp_path / "c.npz", weights=np.ones(3)): r"c\.npz: expected .* got weights",
            saved(tmp_path / "d.npz", snapshots=np.ones(3)): r"d\.npz: expected snapshots .* got shape \(3,\)",
            saved(tmp_path / "e.npz", eigenvalues=np.ones((2, 2, 2))): r"e\.npz: expected eigenvalues \(seeds, k\)",
            saved(tmp_path / "f.npz", snapshots=np.full((2, 20, 14), np.nan)): r"f\.npz: X: .* holds a NaN",
        }
        for path, match in cases.items():
            with pytest.raises(fastkoop.InputError, match=match):
                spectrum_of(path)

    def test_ranks_that_a_recording_does_not_have(self, rng, tmp_path):
        path = saved(tmp_path / "a.npz", snapshots=decay(rng, [0.9], snapshots=6))
        with pytest.raises(fastkoop.InputError, match=r"rank: expected at most 4 for .*a\.npz"):
            spectrum_of(path, rank=5)

    def test_one_file_alone(self, rng, tmp_path):
        with pytest.raises(fastkoop.InputError, match="files: expected at least 2 to compare, got 1"):
            compare_files([saved(tmp_path / "a.npz", eigenvalues=np.ones((2, 2)))], str(tmp_path))
