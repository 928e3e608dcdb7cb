"""What the frameworks' callbacks share: a Koopman that begins or goes on, its state, its figures, a metric as guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..checks import InputError
from . import generators
from .three_lines import Koopman, resumed


class Figures(dict):
    """The last jump's figures by name, as a `log` that also tells another one.

    >>> figures = Figures()
    >>> figures("koopman/steps", 8.0, 120)
    >>> figures("koopman/kept", 1.0, 120)
    >>> figures("koopman/steps", 4.0, 240)
    >>> figures
    {'koopman/steps': 4.0}
    """

    def __init__(self, log: Callable[[str, float, int], object] | None = None):
        super().__init__()
        self._log, self._step = log, -1

    def __call__(self, name: str, value: float, step: int) -> None:
        if step != self._step:
            self.clear()
            self._step = step
        self[name] = value
        if self._log is not None:
            self._log(name, value, step)


def begin(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, options: dict, figures: Figures, state: dict | None,
    ranks: int,
) -> Koopman:  # fmt: skip
    """A Koopman where training begins, on all ranks; with a state, where the saved one stood."""
    if ranks > 1:
        options = {"process_group": torch.distributed.group.WORLD, **options}
    state = state and state["koopman"]
    koopman = Koopman(model, optimizer, **resumed({**options, "log": figures}, state))
    if state:
        koopman.load_state_dict(state)
    return koopman


def saved(koopman: Koopman) -> dict[str, Any]:
    """A Koopman's state and the random generators', which dropout and shuffling draw from."""
    return {"koopman": koopman.state_dict(), "generators": generators.states()}


def resume(state: dict | None, ranks: int) -> None:
    """Set the generators as they were saved; not on several ranks, which would all draw rank 0's numbers."""
    if state and ranks == 1:
        generators.check(state["generators"])
        generators.restore(state["generators"])


def measured(metrics: Mapping[str, float], name: str, larger_is_better: bool) -> float:
    """A metric as a guard wants it, smaller is better.

    >>> measured({"eval_loss": 0.5}, "loss", False), measured({"eval_f1": 0.75}, "eval_f1", True)
    (0.5, -0.75)

    Raises:
        ValueError: no metric has that name.
    """
    value = metrics.get(name, metrics.get(f"eval_{name}"))
    if value is None:
        raise InputError(f"metric: expected one of {', '.join(metrics)}, got {name!r}")
    return -value if larger_is_better else value
