"""Koopman phases in Lightning: one callback, in automatic and manual optimisation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .adapter.callbacks import Figures, begin, resume, saved
from .adapter.three_lines import Koopman
from .adapter.validation import Validation


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

    koopman: Koopman | None = None

    def __init__(
        self, *, monitor: str | None = None, validate: tuple[Callable, Iterable] | None = None,
        batches: int | None = None, module: str | None = None, **options: Any,
    ):  # fmt: skip
        self.monitor, self.batches, self.module = monitor, batches, module
        self.options = {"validate": validate, **options}
        self.figures, self._state = Figures(options.get("log")), None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        resume(self._state, trainer.world_size)  # before loaders draw their seeds; Lightning saves no generators

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = pl_module if self.module is None else pl_module.get_submodule(self.module)
        members = {id(parameter) for parameter in model.parameters()}
        optimizer = next(o for o in trainer.optimizers for g in o.param_groups for p in g["params"] if id(p) in members)
        steps = trainer.estimated_stepping_batches  # infinite, or -1, where the fit has no end
        options = {"total_steps": int(steps) if 0 < steps < float("inf") else None, **self.options}
        if self.monitor is not None:
            options["monitor"] = monitored(trainer, pl_module, self.monitor, self.batches)
        self.koopman = begin(model, optimizer, options, self.figures, self._state, trainer.world_size)
        self._state = None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.koopman.step() is not None:
            for logger in trainer.loggers:
                logger.log_metrics(dict(self.figures), self.koopman.schedule.steps)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.koopman is not None:
            self.koopman.schedule.close()  # the recording stays, for a checkpoint after the fit

    def state_dict(self) -> dict[str, Any]:
        return {} if self.koopman is None else saved(self.koopman)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


def monitored(trainer: Trainer, pl_module: LightningModule, monitor: str, batches: int | None) -> Validation:
    """A guard: the mean of what `validation_step` logs under a name."""
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    loaders = loaders if isinstance(loaders, (list, tuple)) else [] if loaders is None else [loaders]
    data = ((k, *pair) for k, loader in enumerate(loaders) for pair in enumerate(itertools.islice(loader, batches)))

    def logged(module: LightningModule, entry: tuple[int, int, Any]) -> float | None:
        (k, i, batch), values = entry, {}
        module.log = lambda name, value, *_, **__: values.update({name: value})
        try:
            batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch, dataloader_idx=k))
            trainer.strategy.validation_step(batch, i, *([k] if len(loaders) > 1 else []))
        finally:
            del module.log
        return values.get(monitor)

    missing = f"monitor: expected validation_step to log {monitor!r}; log it there, or pass validate="
    return Validation(pl_module, logged, data, missing)
