"""The page's table is what the committed results say, and the models are what they should be."""

import json

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.training import models, run  # noqa: E402


def results():
    return [json.loads(path.read_text()) for path in sorted(run.FOLDER.glob("*.json"))]


def test_the_page_shows_the_committed_results():
    assert pages.shown("training") == run.table_of()


def test_every_model_was_killed_and_resumed_to_the_same_bits():
    found = results()
    assert [each["model"] for each in found] == sorted(models.NAMES)
    for each in found:
        assert set(each["ranks"]) == {"1", "2"}
        for ranks in each["ranks"].values():
            assert ranks["resumed_to_the_same_bits"] and len(ranks["killed_at"]) == 5
            assert len(ranks["jumps"]) == 3
            assert all(jump["rolled_back"] or jump["after"] <= jump["before"] for jump in ranks["jumps"])
        for memory in each["memory"].values():
            assert abs(memory["measured"] / memory["planned"] - 1) < 0.05


def test_text_is_learnable_and_the_embedding_is_tied():
    said = models.text(50)
    assert said == models.text(50) and len(said) > 1000
    model = models.Transformer(30)
    assert model.head.weight is model.embedding.weight
    seen = torch.randint(30, (2, models.CONTEXT))
    later = seen.clone()
    later[:, -1] = 0
    model.eval()
    assert torch.allclose(model(seen)[:, :-1], model(later)[:, :-1], atol=1e-6)  # causal


def test_the_convolutional_net_takes_flat_images():
    assert models.Convolutional()(torch.zeros(3, 784)).shape == (3, 10)
