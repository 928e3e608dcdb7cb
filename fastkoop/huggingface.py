"""Koopman phases in Hugging Face's Trainer: one callback."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .adapter.callbacks import Figures, begin, measured
from .adapter.checkpoint import load_checkpoint, save_checkpoint
from .adapter.randomness import generators_put_back
from .adapter.three_lines import Koopman


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

    koopman: Koopman | None = None

    def __init__(
        self, *, metric: str | None = None, validate: tuple[Callable, Iterable] | None = None,
        trainer: Trainer | None = None, **options: Any,
    ):  # fmt: skip
        self.metric, self.trainer, self.options = metric, trainer, {"validate": validate, **options}
        self.figures = Figures(options.get("log"))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any):
        running, folder = training()
        self.trainer = self.trainer or running
        options = {"total_steps": state.max_steps, **self.options}
        if self.metric is not None:
            options["monitor"] = self.evaluated
        path = place(args, state, folder)
        with generators_put_back():  # the Trainer restores its own
            saved = load_checkpoint(path) if state.global_step and path.exists() else None
        self.koopman = begin(given["model"], given["optimizer"], options, self.figures, saved, args.world_size)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        if self.koopman.step() is not None:
            self.trainer.log(dict(self.figures))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        save_checkpoint(place(args, state), koopman=self.koopman)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any):
        self.koopman.close()

    def evaluated(self) -> float:
        """The guard: the metric on the evaluation set."""
        trainer = self.trainer
        loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Koopman guard", metric_key_prefix="eval")
        return measured(loop.metrics, self.metric, trainer.args.greater_is_better)


def training() -> tuple[Trainer | None, str | None]:
    """The Trainer whose training begins, and the checkpoint that it resumes from: it hands neither to callbacks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer) and "resume_from_checkpoint" in frame.f_locals:
            return frame.f_locals["self"], frame.f_locals["resume_from_checkpoint"]
        frame = frame.f_back
    return None, None


def place(args: TrainingArguments, state: TrainerState, folder: str | None = None) -> pathlib.Path:
    """The file beside a checkpoint that holds the state, of every process its own."""
    folder = folder or f"{args.output_dir}/checkpoint-{state.global_step}"
    return pathlib.Path(folder, f"koopman-{args.process_index}.pt")
