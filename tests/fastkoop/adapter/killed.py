"""What test_checkpoint.py kills: `killed.py FOLDER AT` trains with a schedule, saves after every iteration, and kills
itself after iteration AT; started again it goes on from its file. Prints a checksum of where it ends."""

import os
import pathlib
import signal
import sys

import torch
from torch import nn

import fastkoop as fk
from fastkoop.adapter.seal import checksum
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule, load_checkpoint, save_checkpoint

LENGTH = 56  # iterations: burn in 6, record 14, jump, rest 3, record 14, ...; then steps of a walk


def main():
    folder, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    phase = KoopmanPhase(model, partition={"0.*": "node", "*": "layer"}, cutoff=1e-3, capacity=5, window=2,
                         observables=(fk.Affine(), fk.Momentum()))  # fmt: skip
    seen = torch.randn(32, 6, generator=torch.Generator().manual_seed(7))

    def guard():
        with torch.no_grad():
            return float((model(seen) - seen[:, :1]).square().mean())

    schedule = KoopmanSchedule(phase, optimizer, burn_in=6, record=14, jump=6, rest=3, repeats=2, guard=guard,
                               horizon="auto", optimizer_state=0.5)  # fmt: skip
    parts = {"model": model, "optimizer": optimizer, "phase": phase, "schedule": schedule}
    file, first = folder / "last.pt", 0
    if file.exists():
        first = load_checkpoint(file, **parts)["iteration"]
    for iteration in range(first, LENGTH):
        x = torch.randn(16, 6)  # of the generator that the checkpoint restores
        if iteration < 44:
            optimizer.zero_grad()
            (model(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
            schedule.step()
            if iteration > 40:
                phase.record()
                phase.record()  # a recording of its own, after the schedule is done
        else:
            phase.step(ahead=3)
        save_checkpoint(file, iteration=iteration + 1, **parts)
        if iteration == at:
            os.kill(os.getpid(), signal.SIGKILL)
    print(checksum([*model.state_dict().values(), optimizer.state_dict()["state"], phase.position, schedule.jumps]))


if __name__ == "__main__":
    main()
