"""The page of pruning is what the committed results say; masks are the largest."""

import torch

from bench.common import pages
from bench.evidence import pruning


def test_the_page_shows_the_committed_results():
    assert pages.shown("pruning") == pruning.table_of()


def rows_of(name, which):
    """Rows of a network after its first look (0) or its last (1)."""
    return [row for row in pruning.averaged(name) if row["epoch"] == pruning.CASES[name].looks[which]]


def test_near_convergence_it_is_magnitude_pruning():
    for row in rows_of("mlp", 1) + rows_of("conv", 1):
        assert abs(row["koopman"] - row["magnitude"]) < 0.0215
        assert row["overlap"] > 0.95 and row["koopman"] > row["line"]


def test_before_it_there_is_no_clear_gain():
    assert all(row["koopman"] < row["magnitude"] for row in rows_of("mlp", 0))
    conv = rows_of("conv", 0)
    assert all(0 < row["koopman"] - row["magnitude"] < 0.01 for row in conv)
    assert [row["line"] > max(row["koopman"], row["magnitude"]) for row in conv] == [False, True]


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
