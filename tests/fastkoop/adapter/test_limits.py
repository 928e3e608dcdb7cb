"""Limits: blocks beyond a bound keep their weights."""

import math

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import adam_recorded, bits_of, same_bits  # noqa: E402

from fastkoop.torch_adapter import KoopmanPhase, Limits  # noqa: E402


class TestLimits:
    @pytest.mark.parametrize("name", ["residual", "holdout", "spectral_radius"])
    @pytest.mark.parametrize("storage", [None, torch.bfloat16])
    @pytest.mark.parametrize(("partition", "q"), [("node", None), ("quasi-node", 3), ("layer", None)])
    def test_blocks_beyond_keep_their_weights(self, name, storage, partition, q):
        _, phase, _ = adam_recorded(partition=partition, q=q, cutoff=1e-2, storage_dtype=storage)
        values = {layer: [getattr(op, name) for op in ops] for layer, ops in phase.operators().items()}
        every = torch.cat([value.flatten() for each in values.values() for value in each])
        bound = float(every[~every.isnan()].median())
        assert (every > bound).any()
        before = {layer: phase.groups[i] for i, layer in enumerate(values)}
        rows = {layer: phase.parts.recordings[i].current() for i, layer in enumerate(values)}
        report = phase.jump(3, limits=Limits(**{name: bound}))
        for i, layer in enumerate(values):
            now, at = phase.parts.recordings[i].current(), 0
            for value in values[layer]:
                beyond = (value > bound).reshape(before[layer].rows, -1)
                width = beyond.shape[1] * (3 if partition == "quasi-node" and at == 0 else 0) or now.shape[1] - at
                stayed = (now == rows[layer])[:, at : at + width].reshape(*beyond.shape, -1).all(dim=-1)
                assert torch.equal(stayed, beyond), layer
                at += width
            held = sum(int((value > bound).sum()) for value in values[layer])
            assert report.layers[i].held == ({name: held} if held else {})
        assert f"held by {name}" in str(report)

    def test_what_is_not_beyond_moves_as_without(self):
        model, phase, _ = adam_recorded()
        phase.jump(3)
        free = bits_of(model.parameters())
        phase.rollback()
        phase.jump(3, limits=Limits(residual=1e9, holdout=1e9, spectral_radius=1e9))
        assert same_bits(bits_of(model.parameters()), free)

    def test_a_dead_unit_is_within_every_limit(self):
        model = nn.Linear(3, 2)
        phase = KoopmanPhase(model)
        for step in range(6):
            with torch.no_grad():
                model.weight[1] += 0.1 * step
            phase.record()
        [[op]] = phase.operators().values()
        assert op.residual[0].isnan()
        report = phase.jump(2, limits=Limits(residual=0.5, holdout=0.5))
        assert sum(report.layers[0].held.values()) <= 2  # the unit that moves, by one limit or both; not the dead one

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [({"residual": 0}, ValueError, "residual > 0, got 0"), ({"holdout": "1"}, TypeError, "expected a number"),
         ({"spectral_radius": True}, TypeError, "expected a number"), ({"residual": math.nan}, ValueError, "> 0")],
    )  # fmt: skip
    def test_refusals(self, options, error, match):
        with pytest.raises(error, match=match):
            Limits(**options)

    def test_of_another_kind(self):
        _, phase, _ = adam_recorded(3)
        with pytest.raises(TypeError, match=r"limits: expected Limits\(...\), got dict"):
            phase.jump(1, limits={"residual": 1.0})
