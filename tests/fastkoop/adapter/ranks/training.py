"""What the tests beside it run on several ranks: `torchrun training.py FOLDER`; every rank writes a report.

Each scenario trains one model on all ranks (FSDP2 or DistributedDataParallel) and on each rank another, of the same
weights and batches, as one process would; then both move, and their parameters are compared.
"""

import datetime
import json
import math
import os
import pathlib
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fastkoop import Affine, Delay, Momentum
from fastkoop.adapter.ranks import shard_of
from fastkoop.torch_adapter import Koopman, KoopmanPhase, Limits, RankError, load_checkpoint, save_checkpoint

SNAPSHOTS, BATCH = 12, 12
PATIENCE = 8  # seconds that a group waits for a rank that is lost


class Decoder(nn.Module):
    """A transposed convolution, sharded across its units' weights by FSDP2; a norm; two units for three ranks."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.norm = nn.BatchNorm2d(5)
        self.out = nn.Linear(80, 2)

    def forward(self, x):
        x = torch.tanh(self.norm(self.up(x.view(-1, 6, 3, 3))))
        return self.out(x.flatten(1))


def mlp():
    return nn.Sequential(nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))


def even():
    """Inputs that two and three ranks can share, which FSDP2 asks for across axis 1."""
    return nn.Sequential(nn.Linear(54, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))


def graded():
    """Inputs of very different sizes, so that singular values reach far down."""
    model = mlp()
    with torch.no_grad():
        model[0].weight *= torch.logspace(0, -9, 54)
    return model


SCENARIOS = {
    "node": (mlp, {"partition": "node"}),
    "weight": (mlp, {"partition": "weight"}),
    "quasi-node": (mlp, {"partition": "quasi-node", "q": 4}),
    "layer": (mlp, {"partition": "layer"}),
    "network": (mlp, {"partition": "network"}),
    "affine": (mlp, {"partition": "layer", "observables": Affine(), "stabilize": "project"}),
    "delay": (mlp, {"partition": "network", "observables": (Delay(2), Affine()), "out_of_span": "carry"}),
    "momentum": (mlp, {"partition": "layer", "observables": Momentum()}),
    "fine": (mlp, {"partition": "layer", "cutoff": 1e-9}),  # below what a Gram matrix resolves
    "float64": (mlp, {"partition": "network", "storage_dtype": torch.float64, "cutoff": 1e-7}),
    "half": (mlp, {"partition": "layer", "storage_dtype": torch.bfloat16}),
    "decoder": (Decoder, {"partition": "node"}),
    "decoder layers": (Decoder, {"partition": "layer", "window": 2}),
    "matlab": (graded, {"partition": "layer", "cutoff": "matlab"}),  # the spacing of the data's own dtype
    "median": (even, {"partition": "node", "cutoff": "svht"}, "across"),  # of wide blocks that are cut by rows
    "shared": (mlp, {"partition": "network", "cutoff": 0.2}, "partly"),
    "shared layers": (mlp, {"partition": "layer"}, "partly"),
    "ddp": (mlp, {"partition": "node"}, "ddp"),
    "tensor nodes": (even, {"partition": "node"}, "tensor"),
    "tensor layers": (even, {"partition": "layer"}, "tensor"),
    "tensor network": (even, {"partition": "network"}, "tensor"),
}  # fmt: skip


def shard(model):
    """FSDP2 along axis 0."""
    for module in list(model.children()):
        if any(True for _ in module.parameters()):
            fully_shard(module)
    return fully_shard(model)


def across(model):
    """FSDP2 with matrices sharded across their inputs, and biases along their units."""
    return fully_shard(model, shard_placement_fn=lambda parameter: Shard(1) if parameter.ndim > 1 else Shard(0))


def partly(model):
    """FSDP2 of all but the last layer, which every rank has whole."""
    return fully_shard(model, ignored_params=set(list(model.parameters())[-2:]))


def replicated(model):
    """The same on a mesh of replicas and shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    return fully_shard(model, mesh=mesh, ignored_params=set(list(model.parameters())[-2:]))


def tensor(model, mesh=None):
    """Tensor-parallel: the first layer by its units, the second by its inputs with a bias on all, the last whole."""
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def steady(model):
    """DistributedDataParallel that never rebuilds its buckets."""
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def whole(parameter):
    parameter = parameter.detach()
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).double().flatten()


def flat(model):
    return torch.cat([whole(parameter) for parameter in model.parameters()])


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, 54, generator=generator) for _ in range(count)]


def train(model, optimizer, x):
    optimizer.zero_grad()
    (model(x) - x[:, :1]).square().mean().backward()
    for parameter in model.parameters():
        if not hasattr(parameter, "to_local"):  # FSDP2 leaves what it ignores to its owner
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    optimizer.step()


def copy_of(model, make):
    """A model on this rank alone with the same weights."""
    alone = make()
    with torch.no_grad():
        for own, theirs in zip(alone.parameters(), model.parameters(), strict=True):
            own.copy_(whole(theirs).view(own.shape))
    return alone


def follow(phase, optimizer):
    """Attached to the optimizer, and at once no longer: only its velocities are of use."""
    phase.attach(optimizer)
    phase.detach()


def both(make, wrap, options):
    """A model on all ranks and one alone, with the same snapshots; their phases."""
    torch.manual_seed(0)
    model = wrap(make())
    phase = KoopmanPhase(model, **{"cutoff": 1e-3, "capacity": SNAPSHOTS, **options})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    alone = make()
    single = KoopmanPhase(alone, **{"cutoff": 1e-3, "capacity": SNAPSHOTS, **options})
    follower = torch.optim.Adam(alone.parameters(), lr=0.02)
    phase.attach(optimizer)
    follow(single, follower)
    rank, size = dist.get_rank(), dist.get_world_size()
    for x in batches(SNAPSHOTS * phase.every):
        train(model, optimizer, x if wrap is tensor else x.chunk(size)[rank])
        with torch.no_grad():  # the same weights and velocities, bit for bit
            for own, theirs in zip(alone.parameters(), model.parameters(), strict=True):
                own.copy_(whole(theirs).view(own.shape))
                state = optimizer.state[theirs]
                follower.state[own] = {"exp_avg": whole(state["exp_avg"]).view(own.shape).float()}
        single.record()
    return model, phase, optimizer, alone, single


def apart(model, alone):
    return float((flat(model) - flat(alone)).abs().max())


def scenario(folder, make, options, wrap="shard"):
    model, phase, optimizer, alone, single = both(make, globals()[wrap], options)
    found = {"size": float(flat(alone).abs().max()), "recorded": apart(model, alone)}
    start = flat(alone)
    phase.jump(4 * phase.every)
    single.jump(4 * phase.every)
    found["moved"] = float((flat(alone) - start).abs().max())
    found["jump"] = apart(model, alone)
    found["sent"] = sum(spread.ranks.sent for spread in phase.parts.spreads if spread is not None)
    found["messages"] = phase.sent_bytes - found["sent"]
    found["planned"] = phase.plan().exchange_bytes
    phase.rollback()
    single.rollback()
    found["rollback"] = apart(model, alone)
    for ahead in (1, 3, 1):
        phase.step(ahead)
        single.step(ahead)
    found["step"] = apart(model, alone)

    # a checkpoint in mid-walk, and on from it
    file = folder / f"rank{dist.get_rank()}.pt"
    save_checkpoint(file, phase=phase)
    held = [parameter.detach().clone() for parameter in model.parameters()]
    phase.step()
    expected = flat(model)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), held, strict=True):
            parameter.copy_(value)
    again = KoopmanPhase(model, **{"cutoff": 1e-3, "capacity": SNAPSHOTS, **options})
    follow(again, optimizer)
    load_checkpoint(file, phase=again)
    again.step()
    found["resumed"] = bool(torch.equal(flat(model), expected))

    again.rollback()
    seen = batches(1, seed=2)[0]

    def loss(model, rank):
        def guard():
            with torch.no_grad():
                return float((model(seen) - seen[:, :1]).square().mean()) + rank  # ranks see different losses

        return guard

    options = {"horizon": "auto", "limits": Limits(spectral_radius=1e3)}
    report = again.jump(8 * phase.every, guard=loss(model, dist.get_rank()), **options)
    single.rollback()
    expected = single.jump(8 * phase.every, guard=loss(alone, (dist.get_world_size() - 1) / 2), **options)
    found["horizon"] = [report.steps, report.rolled_back] == [expected.steps, expected.rolled_back]
    pairs = zip(report.tried, expected.tried, strict=True)
    found["guards"] = max(abs(a - b) / (1 + abs(b)) for (_, a), (_, b) in pairs)
    found["same"] = agree(flat(model))

    found["forecast"] = [[*one.forecast().overall] for one in (again, single)]
    start = flat(alone)
    for one in (again, single):
        one.fit(stabilize=0.95)  # so that every block settles
        one.jump(math.inf)
    found["settled"], found["limit"] = float((flat(alone) - start).abs().max()), apart(model, alone)
    return found


def agree(value):
    """Whether all ranks have the same bits."""
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value.contiguous())
    return all(torch.equal(other, found[0]) for other in found)


def heard(call):
    """What an error says, or that there was none."""
    try:
        call()
    except (ValueError, RankError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fresh(steps=4, skip=False, partition="layer", make=mlp):
    """A model on all ranks and its phase; with `skip` rank 0 records once less."""
    torch.manual_seed(0)
    model = shard(make())
    phase = KoopmanPhase(model, partition=partition, capacity=SNAPSHOTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i, x in enumerate(batches(steps)):
        optimizer.zero_grad()
        model(x[:, : next(iter(model.parameters())).shape[1]]).square().mean().backward()
        optimizer.step()
        if i or dist.get_rank() or not skip:
            phase.record()
    return model, phase


def disagreements():
    """Ranks that do not do the same: each of them has to hear of it."""
    rank, found = dist.get_rank(), {}
    _, phase = fresh(skip=True)
    found["recorded less"] = heard(lambda: phase.jump(2))
    model, phase = fresh()
    before = flat(model)
    found["other steps"] = heard(lambda: phase.jump(2 + rank))
    found["other limits"] = heard(lambda: phase.jump(2, limits=Limits(holdout=1.0) if rank else None))

    def guard():
        if rank == 1:
            raise OSError("no data")
        return 1.0

    found["guard"] = heard(lambda: phase.jump(2, guard=guard))
    found["unmoved"] = bool(torch.equal(flat(model), before))
    for partition in ("layer", "node"):
        model, phase = fresh(partition=partition)
        with torch.no_grad():
            if rank == 1:
                next(iter(model.parameters())).detach().to_local().fill_(float("nan"))
        phase.record()
        found[f"nan in a {partition}"] = heard(phase.fit)
    return found


def alike(jump=2, snapshots=3, dtype=torch.float32, width=4, hidden=3, **options):
    """A model of this rank's making in an explicit group; what its jump says, and whether nothing moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(dtype)
    phase = KoopmanPhase(model, process_group=dist.group.WORLD, **options)
    for _ in range(snapshots):
        phase.record()
    before = flat(model)
    began = time.monotonic()
    text = heard(lambda: phase.jump(jump))
    return [text, bool(torch.equal(flat(model), before)), time.monotonic() - began]


DIFFERENCES = {
    "dtype": {"dtype": torch.float64}, "shape": {"width": 5}, "partition": {"partition": "layer"},
    "cutoff": {"cutoff": 1e-3}, "every": {"every": 2}, "capacity": {"capacity": 9}, "storage": {"storage_dtype":
    torch.float64}, "fewer snapshots": {"snapshots": 1}, "no steps": {"jump": -1}, "left out": {"exclude": "0.bias"},
    "layers": {"partition": {"0.*": "layer", "*": "node"}},
}  # fmt: skip


def differences():
    """Rank 1 makes its model, phase or call in another way than the rest."""
    return {name: alike(**(options if dist.get_rank() == 1 else {})) for name, options in DIFFERENCES.items()}


def three_lines(wrap):
    """Koopman on all ranks, with a guard on other data on each, resumed in the middle of a recording."""
    rank, size = dist.get_rank(), dist.get_world_size()
    seen = batches(1, seed=10 + rank)

    def loss(model, x):
        return (model(x) - x[:, :1]).square().mean()

    def start():
        torch.manual_seed(0)
        model = globals()[wrap](mlp())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        options = {"burn_in": 4, "record": 12, "jump": 8, "rest": 4, "partition": "layer"}
        log = (lambda *figure: None) if rank == 0 else None  # figures are no exchange of rank 0's alone
        return model, optimizer, Koopman(model, optimizer, validate=(loss, seen), log=log, **options)

    def go(model, optimizer, koopman, first, last):
        for x in batches(last)[first:]:
            train(model, optimizer, x.chunk(size)[rank])
            koopman.step()

    model, optimizer, koopman = start()
    go(model, optimizer, koopman, 0, 10)
    state, weights = koopman.state_dict(), [p.detach().clone() for p in model.parameters()]
    go(model, optimizer, koopman, 10, 34)
    again, fresh, resumed = start()
    with torch.no_grad():
        for parameter, value in zip(again.parameters(), weights, strict=True):
            parameter.copy_(value)
    resumed.load_state_dict(state)
    go(again, fresh, resumed, 10, 34)
    same = bool(torch.equal(flat(model), flat(again)))
    return {"jumps": koopman.jumps, "same": agree(flat(model)), "resumed": same}


def plain(wrap, first=0):
    """Resumed without FastKoop, after `first` steps that only let buckets settle: whether it ends on the same bits."""
    rank, size = dist.get_rank(), dist.get_world_size()

    def go(model, optimizer, begin, end):
        for x in batches(end)[begin:]:
            train(model, optimizer, x.chunk(size)[rank])

    def start():
        torch.manual_seed(0)
        model = globals()[wrap](mlp())
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    whole_run, resumed = start(), start()
    go(*whole_run, 0, 10)
    saved = [p.detach().clone() for p in whole_run[0].parameters()]
    go(*whole_run, 10, 34)
    go(*resumed, 0, first)
    with torch.no_grad():
        for parameter, value in zip(resumed[0].parameters(), saved, strict=True):
            parameter.copy_(value)
    go(*resumed, 10, 34)
    return bool(torch.equal(flat(whole_run[0]), flat(resumed[0])))


def refused():
    """What a phase says of DTensors that it cannot move: sums to come, and a matrix that is cut along both axes."""
    size, found = dist.get_world_size(), {}
    for name, shape, placements in (
        ("sums", (size,), [Partial()]), ("both axes", (size, 1), [Shard(0), Shard(1)]),
        ("whole and sums", (size, 1), [Replicate(), Partial()]),
    ):  # fmt: skip
        model, mesh = nn.Linear(6, 6), init_device_mesh("cpu", shape)
        model.weight = nn.Parameter(DTensor.from_local(torch.ones(6, 6), mesh, placements))
        found[name] = heard(lambda model=model: KoopmanPhase(model))
        phase = KoopmanPhase(model, exclude="weight")  # the cure that it names
        found[f"{name}, left out"] = list(phase.parts.parameters.by_name)
    for name, shape, placements in (
        ("rows", (size, 1), [Shard(0), Replicate()]), ("columns", (1, size), [Replicate(), Shard(1)]),
    ):  # fmt: skip
        mesh = init_device_mesh("cpu", shape)
        found[name] = shard_of("w", distribute_tensor(torch.ones(8, 6), mesh, placements))[:4]
    return found


def mixed():
    """Tensor-parallel layers that FSDP2 shards once more, on two times two ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = fully_shard(tensor(even(), mesh["tensor"]), mesh=mesh["data"])
    return heard(lambda: KoopmanPhase(model))


def torn():
    """A layer that overflows on one rank alone is kept on all."""
    model = shard(nn.Sequential(nn.Linear(2, 2, bias=False)))
    phase = KoopmanPhase(model, partition="layer", capacity=SNAPSHOTS)
    local = next(iter(model.parameters())).detach().to_local()
    for step in range(4):
        with torch.no_grad():
            grows = dist.get_rank() == 0
            local.copy_(torch.tensor([[1e4, 2e4]]) ** (step + 1) if grows else torch.tensor([[0.9, 0.8]]) ** step)
        phase.record()
    before = local.clone()
    report = phase.jump(9)
    return {"kept": [layer.kept for layer in report.layers], "same": bool(torch.equal(local, before))}


def emptied():
    """A rank without rows walks along; parameters that were replaced, or gathered, are noticed or let go."""
    _, phase = fresh(partition="node", make=lambda: nn.Sequential(nn.Linear(4, 1)))
    phase.step()
    phase.step(ahead=3)
    phase.jump(2)
    model = shard(mlp())
    with torch.no_grad():
        model(batches(1)[0])  # gathers the root's parameters
    late = KoopmanPhase(model, partition="node")
    found = {"position": phase.position, "sharded": all(hasattr(p, "to_local") for p in late.parts.parameters.all)}
    model, phase = fresh()
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    found["replaced"] = heard(lambda: phase.jump(2))
    return found


def mended():
    """Bits that differ between replicas: rank 0's are taken."""
    _, phase, *_ = both(mlp, ddp, {"partition": "node"})
    if dist.get_rank():
        with torch.no_grad():
            phase.parts.parameters.all[0].add_(1e-3)
    phase.jump(0)
    return agree(torch.cat([p.detach().double().flatten() for p in phase.parts.parameters.all]))


def lost(folder, how):
    """Rank 1 dies, or says nothing more, while rank 0 jumps; what rank 0 hears of it, and when."""
    model = shard(mlp())
    phase = KoopmanPhase(model, partition="layer", capacity=SNAPSHOTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phase.attach(optimizer)
    for x in batches(4):
        train(model, optimizer, x)
    if dist.get_rank():
        if how == "dies":
            os._exit(1)
        time.sleep(3 * PATIENCE)
        os._exit(0)
    before = [parameter.detach().to_local().clone() for parameter in model.parameters()]
    began = time.monotonic()
    try:
        phase.jump(2)
        text = "no error"
    except RankError as error:
        text = str(error)
    seconds = time.monotonic() - began
    now = [parameter.detach().to_local() for parameter in model.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    (folder / "lost.json").write_text(json.dumps({"text": text, "seconds": seconds, "same": same}))
    os._exit(0)  # the group can not be taken down any more


def main():
    folder, how = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "all"
    torch.set_num_threads(1)
    patience = PATIENCE if how in ("dies", "is silent") else 100
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=patience))
    if how == "replicated":
        found = {"shared": scenario(folder, *SCENARIOS["shared"][:2], "replicated"), "mixed": mixed()}
    elif how == "all":
        found = {name: scenario(folder, *setting) for name, setting in SCENARIOS.items()}
        found |= {
            "mended": mended(),
            "disagreements": disagreements(),
            "differences": differences(),
            "three lines": {wrap: three_lines(wrap) for wrap in ("shard", "ddp", "steady")},
            "plain": {"ddp": plain("ddp"), "settled": plain("ddp", first=2), "steady": plain("steady")},
            "emptied": emptied(),
            "refused": refused(),
        }
        found["torn"] = torn() if dist.get_world_size() == 2 else None
    else:
        lost(folder, how)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # Gloo's threads may abort a process that takes its modules down (PyTorch issue 190489)


if __name__ == "__main__":
    main()
