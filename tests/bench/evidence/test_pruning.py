"""The page of pruning is what the committed results say; masks are the largest."""

import torch

from bench.common import pages
from bench.evidence import pruning


def test_the_page_shows_the_committed_results():
    assert pages.shown("pruning") == pruning.table_of()


def test_what_the_page_says():
    first, last = (
        [row for row in pruning.averaged("mlp") if row["epoch"] == epoch] for epoch in pruning.CASES["mlp"].looks
    )
    for row in last:  # near convergence: magnitude pruning
        assert abs(row["koopman"] - row["magnitude"]) < 0.01 and row["overlap"] > 0.95 and row["koopman"] > row["line"]
    for row in first:  # before it: no better
        assert row["koopman"] < row["magnitude"] and row["overlap"] < 0.95


def test_masks_keep_the_largest_of_all():
    sizes = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0], [0.5]])}
    masks = pruning.magnitude_masks(sizes, 0.5)
    assert masks["a"].tolist() == [1, 0] and masks["b"].tolist() == [[1], [0]]


def test_accuracy_puts_the_weights_back():
    model = torch.nn.Linear(2, 2, bias=False)
    x, y = torch.eye(2), torch.tensor([0, 1])
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    assert pruning.accuracy(model, {}, x, y) == 1.0
    assert pruning.accuracy(model, {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}, x, y) == 0.5
    assert torch.equal(model.weight, torch.eye(2))
