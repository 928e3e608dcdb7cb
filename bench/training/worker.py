"""What training.run starts, one process a rank: train, record, jump, guard, save, be killed, resume; or measure.

    python -m bench.training.worker train|cost|memory NAME FOLDER KILL_AT [DATA_DIR]

Under torchrun `train` shards the model with FSDP2, every rank a share of each batch.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pathlib
import signal
import sys
import time
from statistics import median

import torch
import torch.distributed as dist

from fastkoop.adapter.buffers import local
from fastkoop.adapter.seal import checksum
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule, Limits, load_checkpoint, save_checkpoint

from . import models

BURN_IN, RECORD, JUMP, REST, REPEATS = 150, 60, 40, 40, 3
LENGTH = BURN_IN + REPEATS * (RECORD + REST)
SAVE_EVERY = 25  # iterations; a run that was killed goes back to its last file
WINDOW = 5


class Run:
    """A model in training, on one rank or several, with a schedule of Koopman phases."""

    def __init__(self, name: str, data_dir: str | None):
        torch.manual_seed(0)
        torch.set_num_threads(1)  # so that a resumed run has no reason to differ
        self.task = models.task(name, data_dir)
        self.model, self.rank, self.ranks = self.task.make(), 0, 1
        if dist.is_initialized():
            self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
            self._shard()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        options = {"cutoff": "jax", "window": WINDOW, "capacity": RECORD // WINDOW}
        self.phase = KoopmanPhase(self.model, self.task.partition, **options)
        batches = [self.task.batch(10**6 + i)[0] for i in range(4)] if self.task.recalibrate else None
        self.schedule = KoopmanSchedule(
            self.phase, self.optimizer, burn_in=BURN_IN, record=RECORD, jump=JUMP, rest=REST, repeats=REPEATS,
            guard=self.guard, horizon="auto", limits=Limits(spectral_radius=1.2), update_bn=batches,
        )  # fmt: skip

    def _shard(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for module in getattr(self.model, "blocks", self.model).children():
            if any(True for _ in module.parameters()):
                fully_shard(module)
        fully_shard(self.model)

    @torch.no_grad()
    def guard(self) -> float:
        """The loss on what is held out."""
        self.model.eval()
        loss = float(self.task.loss(self.model, *self.task.held_out))
        self.model.train()
        return loss

    def step(self, iteration: int) -> None:
        """One optimizer iteration, of this rank's share of the batch."""
        x, y = (part.chunk(self.ranks)[self.rank] for part in self.task.batch(iteration))
        self.optimizer.zero_grad()
        self.task.loss(self.model, x, y).backward()
        self.optimizer.step()

    def checksum(self) -> int:
        """Of parameters, buffers and the optimizer's state on this rank."""
        state = [local(v) for own in self.optimizer.state.values() for v in own.values() if torch.is_tensor(v)]
        return checksum([*map(local, self.model.parameters()), *self.model.buffers(), *state])


def train(name: str, folder: pathlib.Path, kill_at: int, data_dir: str | None) -> None:
    """Run to the end, or to a SIGKILL, from the last file on if there is one."""
    run = Run(name, data_dir)
    parts = {"model": run.model, "optimizer": run.optimizer, "phase": run.phase, "schedule": run.schedule}
    file, first, jumps = folder / f"rank{run.rank}.pt", 0, []
    if file.exists():
        left = load_checkpoint(file, **parts)
        first, jumps = left["iteration"], left["jumps"]
    for iteration in range(first, LENGTH):
        run.step(iteration)
        sent = run.phase.sent_bytes
        report = run.schedule.step()
        if report is not None:
            jumps.append(described(report, run.phase.sent_bytes - sent))
        if (iteration + 1) % SAVE_EVERY == 0:
            save_checkpoint(file, iteration=iteration + 1, jumps=jumps, **parts)
        if iteration == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters())
    found = {"checksum": run.checksum(), "loss": run.guard(), "jumps": jumps, "weight_bytes": weights}
    (folder / f"rank{run.rank}.json").write_text(json.dumps(found))


def described(report, sent: int) -> dict:
    """A jump in a few numbers."""
    layers = report.layers
    return {
        "steps": report.steps, "before": report.before, "after": report.after, "rolled_back": report.rolled_back,
        "blocks": sum(layer.blocks for layer in layers), "kept": sum(layer.kept for layer in layers),
        "held": sum(sum(layer.held.values()) for layer in layers), "sent_bytes": sent,
    }  # fmt: skip


def cost(name: str, folder: pathlib.Path, data_dir: str | None) -> None:
    """What recording adds to an optimizer step: both, in turn, many times."""
    run = Run(name, data_dir)
    run.schedule.close()
    phase = KoopmanPhase(run.model, run.task.partition, capacity=100)
    trained, recorded = [], []
    for iteration in range(400):
        began = time.perf_counter()
        run.step(iteration)
        between = time.perf_counter()
        phase.record()
        recorded.append(time.perf_counter() - between)
        trained.append(between - began)
    warm = slice(100, None)
    found = {"step_seconds": median(trained[warm]), "record_seconds": median(recorded[warm])}
    (folder / "cost.json").write_text(json.dumps(found))


def memory(name: str, folder: pathlib.Path, data_dir: str | None) -> None:
    """What a full recording adds to this process, beside the plan."""
    run = Run(name, data_dir)
    run.schedule.close()
    found = {}
    for label, options in {"float32": {}, "bfloat16": {"storage_dtype": torch.bfloat16}}.items():
        each = KoopmanPhase(run.model, run.task.partition, **options).plan().bytes_per_snapshot
        phase = KoopmanPhase(run.model, run.task.partition, capacity=max(2, int(2e8 / each)), **options)
        for iteration in range(20):
            run.step(iteration)
        gc.collect()  # of the recording before
        ctypes.CDLL(None).malloc_trim(0)  # so that nothing recorded hides in pages that training left behind
        before = resident()
        for _ in range(phase.capacity):
            phase.record()
        found[label] = {"planned": phase.plan().bytes, "measured": resident() - before, "capacity": phase.capacity}
        del phase
    (folder / "memory.json").write_text(json.dumps(found))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(job: str, name: str, folder: str, kill_at: str, data_dir: str | None = None) -> None:
    """One of the jobs."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    if job == "train":
        train(name, pathlib.Path(folder), int(kill_at), data_dir)
    else:
        {"cost": cost, "memory": memory}[job](name, pathlib.Path(folder), data_dir)
    if dist.is_initialized():
        dist.destroy_process_group()
        os._exit(0)  # Gloo's threads may abort a process that takes its modules down (PyTorch issue 190489)


if __name__ == "__main__":
    main(*sys.argv[1:])
