"""Koopman phases in Lightning: one callback, in automatic and manual optimisation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .adapter.randomness import generators_put_back
from .adapter.three_lines import Koopman, resumed
from .checks import InputError


class KoopmanCallback(Callback):
    """Records and jumps while a `Trainer` fits; figures go to its loggers, the state into its checkpoints.

    Args:
        monitor: a value that `validation_step` logs, smaller is better, as guard; "val_loss" for example. It is taken
            over the first `batches` validation batches of every loader, None for all.
        validate: (loss, batches) as guard instead, see `Koopman`.
        module: name of the submodule to record, with the optimizer that trains it; None for the whole module and the
            first optimizer. Two of them, as in a GAN, take two callbacks.
        options: all else that `fastkoop.torch_adapter.Koopman` takes; total_steps is the trainer's.

    Attributes:
        koopman: the `Koopman`, once training has begun; its `close()` gives the recording's memory back.
    """

    def __init__(
        self,
        *,
        monitor: str | None = None,
        validate: tuple[Callable, Iterable] | None = None,
        batches: int | None = None,
        module: str | None = None,
        **options: Any,
    ):
        self.monitor, self.validate, self.batches, self.module = monitor, validate, batches, module
        self.options, self.koopman, self._state = options, None, None
        self.figures: dict[str, float] = {}  # of the last jump

    @property
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = pl_module if self.module is None else pl_module.get_submodule(self.module)
        members = {id(parameter) for parameter in model.parameters()}
        optimizer = next(o for o in trainer.optimizers for g in o.param_groups for p in g["params"] if id(p) in members)
        guard = None if self.monitor is None else monitored(trainer, pl_module, self.monitor, self.batches)
        options = {"log": lambda name, value, _: self.figures.update({name: value}), "total_steps": length(trainer)}
        options |= self.options
        options |= {"validate": self.validate, "monitor": guard}
        if trainer.world_size > 1:
            options.setdefault("process_group", torch.distributed.group.WORLD)
        self.koopman = Koopman(model, optimizer, **resumed(options, self._state))
        if self._state:
            self.koopman.load_state_dict(self._state)
            self._state = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.koopman.step() is not None and self.figures:
            for logger in trainer.loggers:
                logger.log_metrics(self.figures, self.koopman.schedule.steps)
            self.figures = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.koopman is not None:
            self.koopman.schedule.close()  # the recording stays, for a checkpoint after the fit

    def state_dict(self) -> dict[str, Any]:
        return {} if self.koopman is None else self.koopman.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


def monitored(trainer: Trainer, pl_module: LightningModule, monitor: str, batches: int | None) -> Callable[[], float]:
    """A guard from what `validation_step` logs under a name."""
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, (list, tuple)) else [] if loaders is None else [loaders]
    with generators_put_back():  # loaders draw from them
        data = [(k, list(itertools.islice(loader, batches))) for k, loader in enumerate(loaders)]

    def guard() -> float:
        values: list[float] = []

        def log(name: str, value: Any, *_: Any, **__: Any) -> None:
            if name == monitor:
                values.append(float(value))

        pl_module.log = log
        try:
            pl_module.eval()
            with torch.no_grad():
                for k, part in data:
                    for i, batch in enumerate(part):
                        moved = trainer.strategy.batch_to_device(batch, dataloader_idx=k)
                        moved = trainer.precision_plugin.convert_input(moved)
                        trainer.strategy.validation_step(moved, i, *([k] if len(data) > 1 else []))
        finally:
            del pl_module.log
        if not values:
            raise InputError(f"monitor: expected validation_step to log {monitor!r}; log it there, or pass validate=")
        return sum(values) / len(values)

    return guard


def length(trainer: Trainer) -> int | None:
    """Optimizer steps of the fit; None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None
