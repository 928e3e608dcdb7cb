"""Networks trained step by step, with the trail of their parameters, and the reference's answer to it."""

import cases
import numpy as np
import torch
from torch import nn

from fastkoop import cutoff as rules
from fastkoop.kernels import reference
from fastkoop.torch_adapter import KoopmanPhase

GRANULARITIES = [("weight", None), ("quasi-node", 3), ("node", None), ("layer", None), ("network", None)]


EDGE = 1e-5  # a singular value this near the threshold may count or not


def flat(model) -> np.ndarray:
    """All parameters one after another, float64."""
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()]).numpy()


def index(model) -> dict[str, np.ndarray]:
    """For every parameter, the places of its entries in `flat`."""
    places, at = {}, 0
    for name, parameter in model.named_parameters():
        places[name] = np.arange(at, at + parameter.numel()).reshape(tuple(parameter.shape))
        at += parameter.numel()
    return places


def mlp_rows(model) -> list[np.ndarray]:
    """Every linear layer's units as rows of places: the weights that feed one, its bias last."""
    at = index(model)
    names = [name.removesuffix(".weight") for name in at if name.endswith(".weight")]
    return [np.concatenate([at[f"{name}.weight"], at[f"{name}.bias"][:, None]], axis=1) for name in names]


def blocks(rows: list[np.ndarray], granularity: str, q: int | None) -> list[np.ndarray]:
    """The places of every block's weights."""
    if granularity == "network":
        return [np.concatenate([layer.ravel() for layer in rows])]
    if granularity == "layer":
        return [layer.ravel() for layer in rows]
    units = [unit for layer in rows for unit in layer]
    if granularity == "node":
        return units
    q = 1 if granularity == "weight" else q
    return [unit[at : at + q] for unit in units for at in range(0, len(unit), q)]


def candidates(X: np.ndarray, cutoff) -> list[tuple[str, float]]:
    """The cutoff as the reference takes it; also the ranks to either side of a value on the threshold's edge."""
    rule = rules.resolve(cutoff, X.shape[0], X.shape[1] - 1, X.dtype)
    if rule[0] in ("rank", "energy"):
        return [rule]
    s = np.linalg.svd(X[:, :-1].astype(np.float64), compute_uv=False)
    limit = reference.threshold(s, rule, X.dtype) if s[0] else 0.0
    ranks = {int((s > limit * (1 - EDGE)).sum()), int((s > limit * (1 + EDGE)).sum())}
    return [rule] + [("rank", rank) for rank in ranks if rank and len(ranks) > 1]


def assert_predicted(got, trail, places, steps, dtype=torch.float32, cutoff="array_api"):
    """`got` (flat) holds K^steps x_last of every block of the snapshots `trail`, a list of flat vectors."""
    snapshots = np.stack(trail, axis=1).astype(np.float32 if dtype == torch.float32 else np.float64)
    assert len(np.unique(np.concatenate(places))) == sum(map(len, places)) == len(got)
    for place in places:
        X = snapshots[place]
        shares = []
        for rule in candidates(X, cutoff):
            expected = cases.truth(X, steps, rule)
            bound = cases.error_bound(X, steps, rule, expected)
            # no bound so loose that a wrong answer could hide behind it; an exact zero is rounding to the reference
            bound = min(bound, 1e-2 * np.linalg.norm(expected) + 64 * cases.EPS64 * np.linalg.norm(X))
            bound += np.finfo(X.dtype).smallest_normal
            shares.append(np.linalg.norm(got[place] - expected) / bound)
        assert min(shares) <= 1.0, f"weights {place}: off by {min(shares):.3g} times the bound"


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)


def trained(model, iterations, *, optimizer=None, inputs=(6,), seed=1):
    """Train on random batches; the parameters after every step."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    trail = []
    for _ in range(iterations):
        x = torch.randn(8, *inputs, generator=generator).to(dtype)
        optimizer.zero_grad()
        (model(x) - x.flatten(1)[:, :1]).square().mean().backward()
        optimizer.step()
        trail.append(flat(model))
    return trail


def recorded(iterations=9, dtype=torch.float32, **options):
    """A trained network, its phase and the trail."""
    model = net(dtype)
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    return model, phase, trained(model, iterations, optimizer=optimizer)


def scripted(model, phase, iterations, seed=0, scale=1.0):
    """Record parameters set to multiples of 6/8, of which means of 1, 2 or 3 are exact."""
    generator = torch.Generator().manual_seed(seed)
    trail = []
    for _ in range(iterations):
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randint(-8, 9, parameter.shape, generator=generator) * (0.75 * scale)
                parameter.copy_(values)
        phase.record()
        trail.append(flat(model))
    return trail


def bits(model) -> list[np.ndarray]:
    """The bytes of every parameter, so that -0.0 and NaN compare too."""
    return [p.detach().contiguous().flatten().view(torch.uint8).numpy().copy() for p in model.parameters()]


def same_bits(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def mlp_rows_of_one(linear) -> list[np.ndarray]:
    at = index(linear)
    return [np.concatenate([at["weight"], at["bias"][:, None]], axis=1)]


def exploding(partition, q=None, dtype=torch.float32, rows=(0,), base=2.0, **options):
    """A recorded layer whose given rows double at every step while the others halve."""
    model = nn.Linear(5, 3).to(dtype)
    phase = KoopmanPhase(model, partition=partition, q=q, **options)
    for t in range(6):
        for row in range(3):
            with torch.no_grad():
                rate = base if row in rows else 1 / base
                model.weight[row] = torch.arange(1.0, 6.0).to(dtype) * rate**t
                model.bias[row] = 7.0 * rate**t
        phase.record()
    return model, phase


def bits_of(tensors):
    """The bytes of tensors."""
    return [t.detach().contiguous().flatten().view(torch.uint8).numpy().copy() for t in tensors]


def adam_recorded(iterations=12, model=None, **options):
    """A network that Adam trained to sum its inputs, its phase and the optimizer."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    phase.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(iterations):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        (model(x).sum(dim=1, keepdim=True) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return model, phase, optimizer
