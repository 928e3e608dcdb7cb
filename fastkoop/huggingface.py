"""Koopman phases in Hugging Face's Trainer: one callback."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .adapter.checkpoint import load_checkpoint, save_checkpoint
from .adapter.randomness import generators_put_back
from .adapter.three_lines import Koopman, resumed
from .checks import InputError


class KoopmanCallback(TrainerCallback):
    """Records and jumps while a `Trainer` trains; figures go through `trainer.log`, the state beside its checkpoints.

    Args:
        metric: a metric of the trainer's evaluation as guard, such as "eval_loss"; whether smaller is better says
            `args.greater_is_better` (smaller, unless that is True).
        validate: (loss, batches) as guard instead, see `Koopman`.
        trainer: the Trainer that this is a callback of; found where training begins if it is not given.
        options: all else that `fastkoop.torch_adapter.Koopman` takes; total_steps is the trainer's.

    Attributes:
        koopman: the `Koopman`, once training has begun; its `close()` gives the recording's memory back.
    """

    def __init__(
        self,
        *,
        metric: str | None = None,
        validate: tuple[Callable, Iterable] | None = None,
        trainer: Trainer | None = None,
        **options: Any,
    ):
        self.metric, self.validate, self.trainer, self.options = metric, validate, trainer, options
        self.koopman: Koopman | None = None
        self.figures: dict[str, float] = {}  # of the last jump

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any):
        running, folder = training()
        self.trainer = self.trainer or running
        guard = None if self.metric is None else measured(self.trainer, self.metric)
        options = {"log": lambda name, value, _: self.figures.update({name: value}), "total_steps": state.max_steps}
        options |= {**self.options, "validate": self.validate, "monitor": guard}
        if args.world_size > 1:
            options.setdefault("process_group", torch.distributed.group.WORLD)
        saved = state_at(args, state, folder) if state.global_step else None
        self.koopman = Koopman(given["model"], given["optimizer"], **resumed(options, saved))
        if saved:
            self.koopman.load_state_dict(saved)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        if self.koopman.step() is not None and self.figures:
            self.trainer.log(self.figures)
            self.figures = {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        folder = pathlib.Path(args.output_dir, f"checkpoint-{state.global_step}")
        save_checkpoint(folder / name(args), koopman=self.koopman)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        self.koopman.close()


def training() -> tuple[Trainer | None, str | None]:
    """The Trainer whose training begins, and the checkpoint that it resumes from: it hands neither to callbacks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer) and "resume_from_checkpoint" in frame.f_locals:
            return frame.f_locals["self"], frame.f_locals["resume_from_checkpoint"]
        frame = frame.f_back
    return None, None


def measured(trainer: Trainer, metric: str) -> Callable[[], float]:
    """A guard from a metric of the trainer's evaluation."""

    def guard() -> float:
        loader = trainer.get_eval_dataloader()
        metrics = trainer.evaluation_loop(loader, "Koopman guard", metric_key_prefix="eval").metrics
        value = metrics.get(metric, metrics.get(f"eval_{metric}"))
        if value is None:
            raise InputError(f"metric: expected one of {', '.join(metrics)}, got {metric!r}")
        return -value if trainer.args.greater_is_better else value

    return guard


def name(args: TrainingArguments) -> str:
    """Of the file that holds the state, of every process its own."""
    return f"koopman-{args.process_index}.pt"


def state_at(args: TrainingArguments, state: TrainerState, folder: str | None) -> dict | None:
    """The state that was saved beside the checkpoint that training goes on from; None where there is none."""
    path = pathlib.Path(folder or f"{args.output_dir}/checkpoint-{state.global_step}", name(args))
    if not path.exists():
        return None
    with generators_put_back():  # the Trainer restores its own
        return load_checkpoint(path)["koopman"]
