"""A problem as the experiments call it: answers checked, faults named after the method, state left undisturbed."""

from __future__ import annotations

import contextlib
import inspect
import math
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ...checks import InputError
from ..devices import to_device
from ..training import make_optimizer, named_optimizer, needs_closure
from .contract import REQUIRED

DEFAULT_EPOCHS = (10, 30, 20)
PACKAGE = str(pathlib.Path(__file__).resolve().parents[2])


class ProblemError(InputError):
    """A method of a problem failed, or answered what it must not."""


class SeedStopped(InputError):
    """A seed that cannot go on: its loss is no longer finite."""


class Evaluation(NamedTuple):
    """What `evaluate` said: the loss, the accuracy if there is one, and every metric by name."""

    loss: float
    accuracy: float | None
    metrics: dict[str, float]


class Batches:
    """A problem's training batches, gone through again and again."""

    def __init__(self, problem: CheckedProblem, seed: int):
        self._problem, self._seed = problem, seed
        self._iterable = problem.call("batches", seed)
        if not hasattr(self._iterable, "__iter__"):
            kind = type(self._iterable).__name__
            raise ProblemError(f"{problem.name}.batches: expected an iterable of batches, got {kind}")
        try:
            self.per_epoch: int | None = len(self._iterable)
        except TypeError:  # an iterable without a length, or an IterableDataset's loader
            self.per_epoch = None
        if self.per_epoch == 0:
            raise self._empty()

    def _empty(self) -> ProblemError:
        return ProblemError(f"{self._problem.name}.batches: expected at least one batch in an epoch, got none")

    def forever(self) -> Iterator[Any]:
        """Epoch after epoch. An iterator, which can be gone through once only, is asked for again after each."""
        source = self._iterable
        while True:
            count = 0
            for batch in self._pass(source):
                count += 1
                yield batch
            if not count:
                raise self._empty()
            if iter(source) is source:
                source = self._problem.call("batches", self._seed)

    def _pass(self, source) -> Iterator[Any]:
        iterator = self._problem.guarded("batches", iter, source)
        done = object()
        while (batch := self._problem.guarded("batches", next, iterator, done)) is not done:
            yield to_device(batch, self._problem.device)


class CheckedProblem:
    """A problem, its answers checked.

    Args:
        problem: see `contract.Problem`.
        device: where its models train; "cpu", "cuda" or "cuda:N".

    Raises:
        ProblemError: it lacks a method.
    """

    def __init__(self, problem, device: str = "cpu"):
        lacking = [name for name in REQUIRED if not callable(getattr(problem, name, None))]
        self.name = str(getattr(problem, "name", None) or type(problem).__name__)
        if lacking:
            raise ProblemError(
                f"{self.name}: a problem has the methods {', '.join(REQUIRED)}; this one lacks {', '.join(lacking)}"
            )
        self.problem, self.device = problem, torch.device(device)
        self.validates = bool(getattr(problem, "validates", callable(getattr(problem, "validate", None))))
        self.threads: int | None = getattr(problem, "threads", None)
        self.loss_name: str = getattr(problem, "loss_name", "test loss")
        self.epoch_name: str = getattr(problem, "epoch_name", "epoch")
        self.batch_size: int | None = getattr(problem, "batch_size", None)
        self._step = getattr(problem, "train_step", None) or self._default_step
        self._seen_devices: set[torch.device] = set()

    @property
    def epochs(self) -> tuple:
        """(t1, t2, T) if the caller names none."""
        epochs = getattr(self.problem, "epochs", DEFAULT_EPOCHS)
        if not (isinstance(epochs, (tuple, list)) and len(epochs) == 3):
            raise ProblemError(f"{self.name}.epochs: expected three numbers (t1, t2, T), got {epochs!r}")
        for value in epochs:
            if isinstance(value, bool) or not isinstance(value, (int, str)):
                raise ProblemError(
                    f'{self.name}.epochs: expected whole epochs, or iterations as "500it", got {value!r}'
                )
        return tuple(epochs)

    def guarded(self, method: str, call: Callable, *arguments):
        """A call on behalf of a method; what it raises is told as that method's failure."""
        try:
            return call(*arguments)
        except InputError:
            raise
        except Exception as error:
            raise ProblemError(f"{self.name}.{method} failed: {last_line(error)}") from error

    def call(self, method: str, *arguments):
        """One of the problem's methods."""
        return self.guarded(method, getattr(self.problem, method), *arguments)

    def make_model(self, seed: int) -> nn.Module:
        """A new model on the device."""
        torch.manual_seed(seed)
        model = self.call("make_model", seed)
        where = f"{self.name}.make_model"
        if not isinstance(model, nn.Module):
            raise ProblemError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ProblemError(f"{where}: the model has no trainable parameters; there is nothing to train or to move")
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) > 1:
            raise ProblemError(f"{where}: expected a model on one device, got {', '.join(sorted(map(str, devices)))}")
        (device,) = devices
        if device.type not in ("cpu", self.device.type):
            raise ProblemError(
                f"{where}: the model is on {device}, the comparison runs on {self.device}; build it on the CPU, it is "
                "moved, or pass --device"
            )
        if self.device.type != "cpu":
            model = self.guarded("make_model", model.to, self.device)
        if complex_ones := [name for name, value in model.named_parameters() if value.is_complex()]:
            raise ProblemError(f"{where}: expected real parameters, got complex numbers in {complex_ones[0]}")
        bad = [name for name, value in model.named_parameters() if not bool(value.detach().isfinite().all())]
        if bad:
            raise ProblemError(f"{where}: the parameter {bad[0]} holds a NaN or an infinity from the start")
        return model

    def make_optimizer(self, model: nn.Module, name: str | None, lr: float | None):
        """(optimizer, scheduler or None): the one that was asked for by name, or the problem's."""
        if name is not None:
            return make_optimizer(name, model, lr), None
        chosen = self.call("make_optimizer", model)
        optimizer, scheduler = chosen if isinstance(chosen, (tuple, list)) and len(chosen) == 2 else (chosen, None)
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            raise ProblemError(f"{self.name}.make_optimizer: expected a torch.optim.Optimizer, got {kind}")
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise ProblemError(f"{self.name}.make_optimizer: expected a scheduler with step(), got {scheduler!r}")
        if scheduler is not None and _takes_arguments(scheduler.step):
            raise ProblemError(
                f"{self.name}.make_optimizer: expected a scheduler whose step() takes nothing, called after every "
                f"iteration, got {type(scheduler).__name__}"
            )
        for group in optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        return optimizer, scheduler

    @property
    def makes_optimizer(self) -> bool:
        """Whether the problem brings its optimizer."""
        return callable(getattr(self.problem, "make_optimizer", None))

    @property
    def has_gradient(self) -> bool:
        """Whether `gradient` is what trains; a problem that replays a training has steps only."""
        return self._step == self._default_step

    def batches(self, seed: int) -> Batches:
        """The training batches of a seed."""
        return Batches(self, seed)

    def train_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch) -> torch.Tensor | None:
        """One optimizer iteration on a batch; the loss before it."""
        return self._step(model, optimizer, batch)

    def _default_step(self, model, optimizer, batch) -> torch.Tensor:
        optimizer.zero_grad()
        loss = self.gradient(model, batch)
        try:
            if needs_closure(optimizer):
                optimizer.step(lambda: (optimizer.zero_grad(), self.gradient(model, batch))[1])
            else:
                optimizer.step()
        except (RuntimeError, ArithmeticError) as error:
            raise SeedStopped(f"the {named_optimizer(optimizer)} step failed: {last_line(error)}") from error
        return loss

    def gradient(self, model: nn.Module, batch) -> torch.Tensor:
        """The loss on a batch, its gradient added to the parameters'."""
        try:
            loss = self.problem.loss(model, batch)
            if isinstance(loss, Mapping):
                loss = loss["loss"]
            loss.backward()
        except InputError:
            raise
        except Exception as error:
            raise ProblemError(f"{self.name}.loss failed: {last_line(error)}") from error
        return loss.detach()

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Test loss, accuracy and metrics; the model's modes and the random numbers stay as they are."""
        with undisturbed(model):
            answer = self.call("evaluate", model)
        if not isinstance(answer, Mapping):
            return Evaluation(self._number("evaluate", answer), None, {})
        if "loss" not in answer:
            raise ProblemError(
                f'{self.name}.evaluate: expected a mapping with "loss", got {", ".join(map(str, answer))}'
            )
        numbers = {str(name): self._number("evaluate", value) for name, value in answer.items()}
        return Evaluation(numbers.pop("loss"), numbers.pop("accuracy", None), numbers)

    def validate(self, model: nn.Module) -> float:
        """The loss on data that guards choose by."""
        with undisturbed(model):
            return self._number("validate", self.call("validate", model))

    def _number(self, method: str, value) -> float:
        if isinstance(value, Mapping):
            value = value.get("loss")
        if isinstance(value, torch.Tensor):
            value = value.detach()
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            raise ProblemError(
                f'{self.name}.{method}: expected a number or a mapping with "loss", got {kind}'
            ) from None

    def measures(self, run: dict, states: dict, **spans) -> dict:
        """What the problem has to say of a run beside the curves."""
        measures = getattr(self.problem, "measures", None)
        return {} if measures is None else measures(run, states, **spans)


def stop_if_not_finite(loss: torch.Tensor | None, what: str) -> None:
    """Raise `SeedStopped` for a training loss that is not finite."""
    if loss is not None and not math.isfinite(value := float(loss)):
        raise SeedStopped(f"the training loss is {value} {what}; lower the learning rate")


def _takes_arguments(call: Callable) -> bool:
    """Whether a call without arguments lacks some."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(call).parameters.values()
    return any(entry.default is inspect.Parameter.empty and entry.kind not in kinds for entry in parameters)


@contextlib.contextmanager
def undisturbed(model: nn.Module):
    """Training modes and random numbers, put back."""
    modes, state = [(module, module.training) for module in model.modules()], torch.get_rng_state()
    on_device = next(model.parameters()).device.type == "cuda"
    with torch.random.fork_rng() if on_device else contextlib.nullcontext():
        try:
            yield
        finally:
            torch.set_rng_state(state)
            for module, training in modes:
                module.training = training


def last_line(error: BaseException) -> str:
    """The last line of a traceback, and where in the user's file it happened."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    outside = [frame for frame in traceback.extract_tb(error.__traceback__) if not _inside(frame.filename)]
    place = f" ({outside[-1].filename.rpartition('/')[2]}, line {outside[-1].lineno})" if outside else ""
    return (lines[-1] if lines else type(error).__name__) + place


def _inside(filename: str) -> bool:
    """Whether a frame is not the user's: the package's, an installed library's or generated."""
    return filename.startswith((PACKAGE, "<")) or "site-packages" in filename
