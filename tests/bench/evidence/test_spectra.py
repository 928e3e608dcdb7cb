"""The page of spectra is what the committed results say, and these are what the paper prints."""

import json

import numpy as np
import pytest

import fastkoop
from bench.common import pages
from bench.evidence import pooled_cost, retraining, spectra
from fastkoop.checks import InputError


def committed():
    return json.loads((spectra.FOLDER / "published.json").read_text())


def test_the_page_shows_the_committed_results():
    assert pages.shown("spectra") == spectra.table_of()


def test_the_papers_figures_come_out():
    results = committed()
    for name, (mean, deviation) in spectra.PRINTED.items():
        row = results["networks"][name]
        assert (round(row["mean"], 4), round(row["deviation"], 4)) == (mean, deviation)
    assert round(results["methods"]["mirror_descent-gradient_descent"], 4) == 0.0081
    assert round(results["methods"]["mirror_descent-bisection_method"], 3) == 0.746


def test_what_the_page_says_of_the_null():
    rows = committed()["networks"]
    assert rows["5-40"]["exceeded"] == rows["5-10"]["exceeded"] == 0 and rows["10-40"]["p"] < 0.01
    assert rows["5-40"]["nearest"] == 1.0
    assert 1.4 < rows["5-40"]["between"] / rows["5-40"]["within"] < 1.6  # "half as far apart again"
    small = rows["10-40"]
    assert 0.05 < (small["between"] - small["within"]) / small["within"] < 0.15  # "by a tenth"


def test_one_published_spectrum_stands_twice():
    assert committed()["repeated"] == {"5": [], "10": [], "40": [[0, 5]]}  # "the first and the sixth"


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"redman-dir: expected a folder with gradient_descent_eigs\.npy"):
        spectra.folder(str(tmp_path))


@pytest.fixture(scope="module")
def trained():
    """Networks trained here."""
    return json.loads((spectra.FOLDER / "retrained.json").read_text())


def test_the_page_shows_what_was_trained_and_what_it_costs():
    assert pages.shown("spectra", "retrained") == retraining.table_of(
        spectra.FOLDER / "retrained.json", spectra.PRINTED
    )
    assert pages.shown("spectra", "cost") == pooled_cost.table_of(spectra.FOLDER / "cost.json")


def test_what_the_page_says_of_the_networks_trained_here(trained):
    rows = retraining.compared(trained)
    for name, (mean, deviation) in spectra.PRINTED.items():
        assert abs(rows[name]["mean"] - mean) < deviation  # "within one standard deviation"
    nearest = {name: row["nearest"] for name, row in rows.items()}
    assert nearest["5-40"] > 0.95 and round(nearest["10-40"], 1) == 0.7
    rates = [rows[name] for name in ("10, lr 0.05-10", "10-10, lr 0.2")]
    assert all(row["mean"] < rows["5-10"]["mean"] and 0.68 < row["nearest"] < 0.85 for row in rates)
    assert [row["exceeded"] for row in rates] == [0, 10]


def test_networks_of_a_seed_train_as_pytorch_trains_them(rng, monkeypatch):
    import torch

    monkeypatch.setattr(retraining, "STEPS", 6)
    pixels, labels = rng.normal(size=(400, 784)).astype(np.float32), rng.integers(0, 10, 400)
    recorded, loss = retraining.train(5, 0.1, 3, (pixels, labels))
    assert recorded.shape == (retraining.INITIAL, 50, 6) and 1 < loss < 4
    first, second = retraining.initial(5, 3)
    order = np.random.default_rng(3).permutation(400)[:360].reshape(6, 60)
    for network in (0, 7):
        weights = [torch.tensor(part.copy()) for part in (first[:, network], second[network])]
        for weight in weights:
            weight.requires_grad_()
        optimizer = torch.optim.SGD(weights, lr=0.1)
        for step, chosen in enumerate(order):
            optimizer.zero_grad()
            scores = torch.relu(torch.from_numpy(pixels[chosen]) @ weights[0]) @ weights[1]
            torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels[chosen])).backward()
            optimizer.step()
            mine = recorded[network, :, step]
            np.testing.assert_allclose(mine, weights[1].detach().numpy().ravel(), rtol=0, atol=2e-6)


def test_initial_weights_of_a_seed_lie_within_a_thousandth():
    first, second = retraining.initial(5, 0)
    assert np.abs(first[:, 0]).max() <= 1 / 28 and np.abs(second[0]).max() <= 5**-0.5
    for part, axis in ((first, 1), (second, 0)):
        own, others = np.take(part, [0], axis), np.delete(part, 0, axis)
        assert 0 < np.abs(others / own - 1).max() <= 1.001e-3


def test_both_ways_agree(rng, monkeypatch):
    sets = rng.normal(size=(6, 4)) + 1j * rng.normal(size=(6, 4))
    np.testing.assert_allclose(pooled_cost.pair_by_pair(sets), pooled_cost.at_once(sets), atol=1e-12)
    A, runs = np.linalg.qr(rng.normal(size=(4, 4)))[0] * np.array([0.9, 0.8, 0.6, 0.5]), np.empty((3, 4, 12))
    runs[:, :, 0] = rng.normal(size=(3, 4))
    for t in range(1, 12):
        runs[:, :, t] = runs[:, :, t - 1] @ A.T
    monkeypatch.setattr(pooled_cost, "RANK", 4)
    ours = fastkoop.fit(list(runs), cutoff=fastkoop.Rank(4), observables=fastkoop.Delay(2)).eigenvalues
    assert float(fastkoop.spectra.distance(ours, pooled_cost.by_svd(runs, 2))) < 1e-8
    assert float(fastkoop.spectra.distance(ours, np.linalg.eigvals(A))) < 1e-8
