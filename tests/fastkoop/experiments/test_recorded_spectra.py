"""From files to distances: what each kind of file gives, what is written, what is refused."""

import json

import numpy as np
import pytest

import fastkoop
from fastkoop.experiments.recorded_spectra import compare_files, lines, save_spectra, spectrum_of
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


def comparison(folder, counts=(3, 2)):
    """What compare writes, of one seed for each number of eigenvalues of the first layer."""
    runs = [
        {"koopman": {"eigenvalues": {"0": [[0.9 - 0.1 * k, 0.0] for k in range(count)], "2": [[1.0, 0.5]]}}}
        for count in counts
    ]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"runs": runs}))
    return str(folder)


def test_comparisons_give_the_largest_of_all_layers(tmp_path):
    folder = comparison(tmp_path / "out")
    np.testing.assert_allclose(spectrum_of(folder, rank=3), [[1 + 0.5j, 0.9, 0.8]] * 2)
    path = save_spectra(folder, rank=2)
    np.testing.assert_allclose(spectrum_of(str(path)), [[1 + 0.5j, 0.9]] * 2)
    with pytest.raises(fastkoop.InputError, match="rank: expected at most 3, which every seed of"):
        spectrum_of(folder, rank=4)


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(fastkoop.InputError, match=r"results\.json: cannot be read .*; run fastkoop compare --out"):
        spectrum_of(str(tmp_path))
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(fastkoop.InputError, match=r"results\.json: expected the results of fastkoop compare"):
        spectrum_of(str(tmp_path))


def test_tables_fit_eighty_columns():
    row = {"a": "x" * 99, "b": "y", "between": 1 / 3, "within": 1e-7 / 3, "p": 0.001, "nearest": 2 / 3}
    table = lines([row, {"a": "x", "b": "y", "between": 0.5}])
    assert max(map(len, table)) <= 80
    assert table[1].split() == [".." + "x" * 18, "y", "0.3333", "3.333e-08", "0.001", "0.6667"]
    assert table[2].split()[-3:] == ["-", "-", "-"]


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from fastkoop.cli import app

    folders = [comparison(tmp_path / name) for name in ("one", "two")]
    done = CliRunner().invoke(app, ["spectra", *folders, "--rank", "2", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].split() == ["run", "and", "run", "between", "within", "p", "1-NN"]
    assert (tmp_path / "out" / "spectra.png").exists()
    done = CliRunner().invoke(app, ["spectra", folders[0], "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "files: expected at least 2 to compare, got 1" in done.output


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
