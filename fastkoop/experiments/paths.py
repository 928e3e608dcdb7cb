"""The paths of a few single weights, which the report and the paper dispute."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

MOST_POINTS = 2000  # of a path that is kept and drawn
SHOWN = 3  # matrices


@dataclass(frozen=True)
class WeightPaths:
    """Paths of k single weights before and during the Koopman phase.

    Args:
        labels: k names such as ``"layers.0.weight[3, 411]"``.
        recorded_iteration: (R,) ints <= 0; 0 is the last recorded iterate, where the Koopman phase starts.
        recorded: (R, k) the recorded iterates.
        iteration: (T,) ints >= 1.
        true: (T, k) the optimizer's path.
        predicted: (T, k) the Koopman path; inf and nan where it diverged.
    """

    labels: list[str]
    recorded_iteration: np.ndarray
    recorded: np.ndarray
    iteration: np.ndarray
    true: np.ndarray
    predicted: np.ndarray

    def as_dict(self) -> dict:
        """For results.json, thinned to `MOST_POINTS` a path."""
        values = asdict(self)
        for names in (("recorded_iteration", "recorded"), ("iteration", "true", "predicted")):
            stride = max(1, -(-len(values[names[0]]) // MOST_POINTS))
            for name in names:
                values[name] = values[name][::-1][::stride][::-1].tolist()  # the last point stays
        return values

    @classmethod
    def of(cls, values: dict) -> WeightPaths:
        """Back from results.json, whose None is a number that was not finite."""
        arrays = {name: np.array(value, float) for name, value in values.items() if name != "labels"}
        arrays |= {name: arrays[name].astype(int) for name in ("recorded_iteration", "iteration")}
        return cls(labels=list(values["labels"]), **arrays)


class WeightWatch:
    """Of up to three matrices the weight that moved most and the one that moved as usual."""

    def __init__(self, model: nn.Module, start: list[torch.Tensor]):
        everything = [(i, *named) for i, named in enumerate(model.named_parameters()) if named[1].numel()]
        shown = [entry for entry in everything if entry[2].ndim > 1] or everything
        picked = dict.fromkeys((0, len(shown) // 2, len(shown) - 1))
        self._entries, self.labels = [], []
        for i, name, parameter in (shown[at] for at in picked):
            order = (parameter.detach() - start[i]).abs().flatten().argsort(descending=True)
            for entry in dict.fromkeys((int(order[0]), int(order[len(order) // 2]))):
                self._entries.append((i, entry))
                index = ", ".join(map(str, np.unravel_index(entry, parameter.shape)))
                self.labels.append(f"{name}[{index}]")

    def read(self, model: nn.Module) -> torch.Tensor:
        """The weights' present values in a model, (k,) on its device."""
        parameters = list(model.parameters())
        return torch.stack([parameters[i].detach().flatten()[entry] for i, entry in self._entries])


def path(values: list[torch.Tensor], labels: list[str]) -> np.ndarray:
    """Values of consecutive iterates, (iterates, k) float64."""
    return torch.stack(values).double().cpu().numpy() if values else np.zeros((0, len(labels)))
