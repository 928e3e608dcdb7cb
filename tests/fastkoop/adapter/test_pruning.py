"""Modes of parameters against eigenvectors of the whole K, and masks against a slow choice of the largest."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from trails import blocks, flat, index, mlp_rows  # noqa: E402

import fastkoop  # noqa: E402
from fastkoop import Affine, Delay, Rank  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, pruning_masks  # noqa: E402

RATES = np.array([1.0, 0.9, 0.6])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def put(model, values):
    with torch.no_grad():
        for name, places in index(model).items():
            model.get_parameter(name).copy_(torch.from_numpy(values[places]))


def recorded(model, trail, **options):
    """A phase that has seen the trail (snapshots, parameters)."""
    phase = KoopmanPhase(model, **options)
    for values in trail:
        put(model, values)
        phase.record()
    return phase


def trail(rng, rates=RATES, snapshots=8):
    """Sums of modes that decay at the given rates, and the modes."""
    shares = rng.normal(size=(len(rates), flat(network()).size))
    return np.stack([(rates[:, None] ** t * shares).sum(axis=0) for t in range(snapshots)]), shares


def joined(model, modes):
    """Tensors by name as `flat` has them."""
    out = np.full(flat(model).size, np.nan)
    for name, places in index(model).items():
        out[places] = modes[name].numpy()
    return out


class TestModes:
    @pytest.mark.parametrize(("partition", "q"), [("node", None), ("layer", None), ("network", None)])
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_are_the_shares_that_the_trail_was_made_of(self, rng, partition, q, which):
        values, shares = trail(rng)
        phase = recorded(network(), values, partition=partition, q=q, cutoff=Rank(3))
        newest = shares[which] * RATES[which] ** 7
        found = joined(phase.parts.parameters.model, phase.modes(near=RATES[which] + 0.02))
        np.testing.assert_allclose(found, newest, rtol=1e-6, atol=1e-6 * np.abs(newest).max())

    def test_are_shares_by_eigenvectors_of_the_whole_operator(self, rng):
        """The truth, slowly: K = Fp pinv(F) of every node, its eigenvectors, x_last in them."""
        model = network()
        values = rng.normal(size=(5, flat(model).size)).cumsum(axis=0)
        phase = recorded(model, values, partition="node")
        found = joined(model, phase.modes(near=1.0))
        for places in blocks(mlp_rows(model), "node", None):
            X = values[:, places].T
            K = X[:, 1:] @ np.linalg.pinv(X[:, :-1])
            eigenvalues, vectors = np.linalg.eig(K)
            amplitudes = np.linalg.solve(vectors, X[:, -1].astype(complex))
            j = np.argmin(np.abs(eigenvalues - 1.0))
            share = vectors[:, j] * amplitudes[j] * (1 if eigenvalues[j].imag == 0 else 2)
            np.testing.assert_allclose(found[places], share.real, rtol=1e-5, atol=1e-6 * np.abs(share).max())

    def test_a_conjugate_pair_counts_as_one(self, rng):
        turn = np.array([[0.8, -0.3], [0.3, 0.8]])
        basis = rng.normal(size=(flat(network()).size, 2))
        values = np.stack([basis @ np.linalg.matrix_power(turn, t) @ [1.0, 0.5] for t in range(6)])
        model = network()
        phase = recorded(model, values, partition="network", cutoff=Rank(2))
        np.testing.assert_allclose(joined(model, phase.modes(near=0.8 + 0.3j)), values[-1], rtol=1e-8, atol=1e-8)

    def test_with_a_constant_the_mode_at_one_is_the_fixed_point(self, rng):
        values, shares = trail(rng, np.array([0.9, 0.6]))
        rest = rng.normal(size=shares.shape[1])
        model = network()
        phase = recorded(model, values + rest, partition="layer", observables=Affine(), cutoff=Rank(2))
        np.testing.assert_allclose(joined(model, phase.modes()), rest, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("observables", [Delay(2), [Delay(2), Affine()]])
    def test_delays_read_out_the_newest_weights(self, rng, observables):
        values, shares = trail(rng, np.array([1.0, 0.5]), snapshots=9)
        model = network()
        phase = recorded(model, values, partition="network", observables=observables, cutoff=Rank(2))
        np.testing.assert_allclose(joined(model, phase.modes(near=0.5)), shares[1] * 0.5**8, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(("partition", "q"), [("weight", None), ("quasi-node", 3)])
    def test_small_blocks(self, rng, partition, q):
        """One mode a block: a weight that decays is its own share."""
        values = rng.normal(size=flat(network()).size) * 0.9 ** np.arange(4)[:, None]
        model = network()
        phase = recorded(model, values, partition=partition, q=q, cutoff=Rank(1))
        np.testing.assert_allclose(joined(model, phase.modes()), values[-1], rtol=1e-6)

    def test_of_dead_blocks_are_zero_and_dtypes_are_the_parameters(self, rng):
        model = network().bfloat16()
        phase = KoopmanPhase(model, partition="node")
        for scale in (1.0, 0.9, 0.8):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(scale)
                model[0].weight[1], model[0].bias[1] = 0, 0
            phase.record()
        modes = phase.modes()
        assert {name: tuple(m.shape) for name, m in modes.items()} == {
            name: tuple(p.shape) for name, p in model.named_parameters()
        }
        assert all(mode.dtype == torch.bfloat16 and not mode.requires_grad for mode in modes.values())
        assert not modes["0.weight"][1].any() and modes["0.weight"][0].all()

    def test_parameters_stay_and_walks_go_on(self, rng):
        values, _ = trail(rng)
        model = network()
        phase = recorded(model, values, partition="node", cutoff=Rank(3))
        phase.step()
        before = flat(model)
        phase.modes()
        np.testing.assert_array_equal(flat(model), before)
        phase.step()
        assert phase.position == 2

    @pytest.mark.parametrize("near", [np.nan, np.inf, complex(0, np.inf)])
    def test_refuse_points(self, rng, near):
        phase = recorded(network(), trail(rng)[0])
        with pytest.raises(fastkoop.InputError, match=r"near: expected a finite number, got .*; 1\.0 is what"):
            phase.modes(near=near)

    def test_refuse_kinds_and_empty_recordings(self):
        phase = KoopmanPhase(network())
        with pytest.raises(TypeError, match="near: expected a real or complex number, got 'one'"):
            phase.modes(near="one")
        with pytest.raises(fastkoop.InputError, match="fit: expected at least 2 snapshots, got 0"):
            phase.modes()


class TestMasks:
    @pytest.fixture
    def phase(self, rng):
        return recorded(network(), trail(rng)[0], partition="network", cutoff=Rank(3))

    @pytest.mark.parametrize("keep", [0.05, 0.5, 1.0])
    def test_keep_the_largest_of_all(self, phase, keep):
        model = phase.parts.parameters.model
        sizes = np.abs(joined(model, phase.modes()))
        kept = joined(model, pruning_masks(phase, keep=keep))
        count = round(keep * sizes.size)
        assert set(np.unique(kept)) <= {0.0, 1.0} and kept.sum() == count
        assert set(np.flatnonzero(kept)) == set(np.argsort(-sizes)[:count])

    def test_by_layer_every_parameter_keeps_its_share(self, phase):
        masks = pruning_masks(phase, keep=0.25, scope="layer")
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {
            "0.weight": 5, "0.bias": 1, "2.weight": 2, "2.bias": 1,
        }  # fmt: skip

    def test_go_into_pytorchs_pruning(self, phase):
        model = phase.parts.parameters.model
        masks = pruning_masks(phase, keep=0.3)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for name, mask in masks.items():
            module, _, attribute = name.rpartition(".")
            prune.custom_from_mask(model.get_submodule(module), attribute, mask)
        for name, value in before.items():
            module, _, attribute = name.rpartition(".")
            pruned = getattr(model.get_submodule(module), attribute)
            assert torch.equal(pruned, value * masks[name])

    def test_include_prunes_weights_alone(self, phase):
        masks = pruning_masks(phase, keep=0.5, include="*.weight")
        assert set(masks) == {"0.weight", "2.weight"} and sum(int(m.sum()) for m in masks.values()) == 14

    def test_equal_sizes_keep_the_count(self):
        model = nn.Linear(8, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        phase = KoopmanPhase(model)
        phase.record(), phase.record()
        assert pruning_masks(phase, keep=0.5)["weight"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]

    @pytest.mark.parametrize("keep", [0, -0.1, 1.5, np.nan])
    def test_refuse_shares(self, phase, keep):
        with pytest.raises(fastkoop.InputError, match="keep: expected a share, 0 < keep <= 1, got"):
            pruning_masks(phase, keep=keep)

    def test_refuse_other_arguments(self, phase):
        with pytest.raises(TypeError, match="keep: expected a share between 0 and 1, got True"):
            pruning_masks(phase, keep=True)
        with pytest.raises(fastkoop.InputError, match="scope: expected one of 'global', 'layer', got 'node'"):
            pruning_masks(phase, scope="node")
        with pytest.raises(fastkoop.InputError, match=r"include: the pattern 'conv\*' matches no parameter"):
            pruning_masks(phase, include="conv*")
