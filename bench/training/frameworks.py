"""Koopman phases in the frameworks that people train with: user code, recording's cost, checkpoints, memory, losses.

The same classifier of digits is trained by a plain loop, accelerate, Lightning and the Trainer, and a small language
model with tied embeddings, accumulation and clipping by a loop in the manner of nanoGPT: with a Koopman and without, on
equal gradients, three seeds.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import warnings

import torch
from torch import nn
from torch.nn import functional

from bench import RESULTS
from bench.common import pages
from bench.common.origin import environment
from bench.training import models
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import Koopman

FILE = RESULTS / "frameworks" / "frameworks.json"
STEPS, LANGUAGE_STEPS, BATCH, SEEDS = 600, 100, 64, 3
ADDED = {"plain loop": 3, "nanoGPT-like": 3, "accelerate": 4, "Lightning": 1, "Trainer": 1}  # lines of user code


class Meter:
    """CPU seconds of recording and of jumps, measured around a Koopman's methods."""

    def __init__(self, koopman: Koopman):
        self.koopman, self.record, self.jump, self.records = koopman, 0.0, 0.0, 0
        phase, schedule = koopman.phase, koopman.schedule
        record, jump = phase.record, schedule._jump

        def recording():
            began = time.process_time()
            record()
            self.record += time.process_time() - began
            self.records += 1

        def jumping():
            began = time.process_time()
            report = jump()
            self.jump += time.process_time() - began
            return report

        phase.record, schedule._jump = recording, jumping

    def figures(self, seconds: float, steps: int) -> dict:
        """After a run of so many CPU seconds and steps; the Koopman is closed."""
        phase = self.koopman.phase
        state = io.BytesIO()
        torch.save(self.koopman.state_dict(), state)
        held = phase.snapshots * phase.plan().bytes_per_snapshot
        jumps = self.koopman.jumps
        self.koopman.close()
        tensors = [v for r in phase.parts.recordings for v in vars(r).values() if isinstance(v, torch.Tensor)]
        step = (seconds - self.record - self.jump) / steps
        return {
            "jumps": jumps, "gradients_saved": self.koopman.gradients_saved,
            "record_share": self.record / max(self.records, 1) / step, "checkpoint_bytes": len(state.getvalue()),
            "held_bytes": held, "bytes_after_close": sum(tensor.nbytes for tensor in tensors),
        }  # fmt: skip


class Digits(nn.Module):
    """64-48-10, as the Trainer wants it: a loss where there are labels."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits} if labels is not None else logits


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels, shuffled once: 1200 to train with, 300 to judge jumps by, the rest to test with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


def batch_of(seed: int, step: int) -> torch.Tensor:
    """Indices of a batch of training images."""
    return torch.randint(1200, (BATCH,), generator=torch.Generator().manual_seed(seed * 10_000 + step))


def loss_of(model, batch) -> torch.Tensor:
    """Cross-entropy."""
    x, y = batch
    return functional.cross_entropy(model(x), y)


def plain(seed: int, with_koopman: bool, accelerator=None) -> dict:
    """In the manner of PyTorch's MNIST example; with an accelerator, accelerate's."""
    x, y = digits()
    model = Digits(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
    meter = None
    if with_koopman:
        held_out = [(x[1200:1500], y[1200:1500])]
        meter = Meter(Koopman(model, optimizer, validate=(loss_of, held_out), total_steps=STEPS))
    began = time.process_time()
    for step in range(STEPS):
        chosen = batch_of(seed, step)
        optimizer.zero_grad()
        loss = loss_of(model, (x[chosen], y[chosen]))
        loss.backward() if accelerator is None else accelerator.backward(loss)
        optimizer.step()
        if meter is not None:
            meter.koopman.step()
    return finish(model, meter, began, STEPS)


def finish(model, meter: Meter | None, began: float, steps: int, test=None) -> dict:
    """The loss on what neither training nor guard has seen, and the meter's figures."""
    seconds = time.process_time() - began
    if test is None:
        x, y = digits()
        test = lambda: loss_of(model, (x[1500:], y[1500:]))  # noqa: E731
    model.eval()
    with torch.no_grad():
        loss = float(test())
    return {"loss": loss, **(meter.figures(seconds, steps) if meter is not None else {})}


def accelerated(seed: int, with_koopman: bool) -> dict:
    """The plain loop under accelerate."""
    from accelerate import Accelerator

    return plain(seed, with_koopman, Accelerator(cpu=True))


def language(seed: int, with_koopman: bool) -> dict:
    """In the manner of nanoGPT: two batches a step, clipped gradients, AdamW, tied embeddings."""
    task = models.task("transformer", None, batch=16)
    torch.manual_seed(seed)
    model = task.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, y = task.held_out

    def judged(model, batch):
        return task.loss(model, *batch)

    meter = None
    if with_koopman:
        meter = Meter(Koopman(model, optimizer, validate=(judged, [(x[:64], y[:64])]), total_steps=LANGUAGE_STEPS))
    began = time.process_time()
    for step in range(LANGUAGE_STEPS):
        for part in range(2):
            (task.loss(model, *task.batch(seed * 10_000 + 2 * step + part)) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if meter is not None:
            meter.koopman.step()
    return finish(model, meter, began, LANGUAGE_STEPS, lambda: task.loss(model, x[64:192], y[64:192]))


def lightning(seed: int, with_koopman: bool) -> dict:
    """A LightningModule in automatic optimisation."""
    import lightning.pytorch as pl

    from fastkoop.lightning import KoopmanCallback

    x, y = digits()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Digits(seed)

        def training_step(self, batch, _):
            return loss_of(self.model, batch)

        def validation_step(self, batch, _):
            self.log("val_loss", loss_of(self.model, batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    class Metered(KoopmanCallback):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            self.meter = Meter(self.koopman)

    order = torch.cat([batch_of(seed, step) for step in range(STEPS)]).tolist()
    train = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(train, BATCH, sampler=order)
    held_out = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[1200:1500], y[1200:1500]), 300)
    callbacks = [Metered(monitor="val_loss")] if with_koopman else []
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")  # fmt: skip
    module = Module()
    began = time.process_time()
    trainer.fit(module, loader, held_out)
    return finish(module.model, callbacks[0].meter if callbacks else None, began, STEPS)


def trainer(seed: int, with_koopman: bool) -> dict:
    """Hugging Face's Trainer; its own optimizer and batches."""
    import transformers

    from fastkoop.huggingface import KoopmanCallback

    x, y = digits()

    class Metered(KoopmanCallback):
        def on_train_begin(self, *given, **named):
            super().on_train_begin(*given, **named)
            self.meter = Meter(self.koopman)

        def on_train_end(self, *given, **named):
            """The meter closes."""

    def rows(low: int, high: int) -> list[dict]:
        return [{"x": x[i], "labels": y[i]} for i in range(low, high)]

    callbacks = [Metered(metric="eval_loss")] if with_koopman else []
    model = Digits(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=300, seed=seed,
            learning_rate=3e-3, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=STEPS,
            lr_scheduler_type="constant",
        )  # fmt: skip
        run = transformers.Trainer(
            model, args, train_dataset=rows(0, 1200), eval_dataset=rows(1200, 1500), callbacks=callbacks
        )
        run.remove_callback(transformers.PrinterCallback)
        began = time.process_time()
        run.train()
        return finish(model, callbacks[0].meter if callbacks else None, began, STEPS)


TRAINERS = {
    "plain loop": plain, "nanoGPT-like": language, "accelerate": accelerated, "Lightning": lightning,
    "Trainer": trainer,
}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Every framework with a Koopman and without; the first run of each, which compiles, does not count."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = json.loads(FILE.read_text()) if FILE.exists() else {"frameworks": {}}
    results["machine"] = environment(Host())
    for name in pages.select(options.names, list(TRAINERS), "framework"):
        print(f"== {name}", flush=True)
        TRAINERS[name](SEEDS, True)
        runs = [{"alone": TRAINERS[name](seed, False), "koopman": TRAINERS[name](seed, True)} for seed in range(SEEDS)]
        results["frameworks"][name] = {"added_lines": ADDED[name], "runs": runs}
        write_json(FILE, results)


def table_of() -> str:
    """The table."""
    heads = (
        "framework", "lines added", "recording, share of a step", "checkpoint / held", "left after close",
        "jumps tried, iterations saved", "test loss without", "with, same gradients",
    )  # fmt: skip
    frameworks = json.loads(FILE.read_text())["frameworks"]
    return pages.markdown(heads, [row(name, found) for name, found in frameworks.items()])


def row(name: str, found: dict) -> list[str]:
    """A framework's line: medians over seeds, losses of all."""
    runs = [each["koopman"] for each in found["runs"]]

    def losses(side: str) -> str:
        return " ".join(f"{each[side]['loss']:.3f}" for each in found["runs"])

    def median(key: str) -> float:
        return statistics.median(each[key] for each in runs)

    return [
        name, str(found["added_lines"]), f"{median('record_share'):.1%}",
        f"{statistics.median(each['checkpoint_bytes'] / max(each['held_bytes'], 1) for each in runs):.2f}",
        f"{max(each['bytes_after_close'] for each in runs)} B",
        f"{runs[0]['jumps']}, " + " ".join(str(each["gradients_saved"]) for each in runs), losses("alone"),
        losses("koopman"),
    ]  # fmt: skip


def table(options: argparse.Namespace) -> None:
    """Write the part of the page."""
    pages.update("training", table_of(), "frameworks")
