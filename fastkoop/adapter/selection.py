"""Which of a model's parameters a phase takes, and which of their axes runs over units."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import torch
from torch import nn

from ..checks import InputError
from .wrappers import named_parameters, submodule, without_prefixes

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def patterns(name: str, given: str | Iterable[str] | None, names: list[str]) -> list[str]:
    """Name patterns as a list; every pattern matches a name."""
    if given is not None and not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a name pattern or several, got {given!r}")
    listed = [without_prefixes(pattern) for pattern in ([given] if isinstance(given, str) else given or ())]
    for pattern in listed:
        if not any(fnmatch.fnmatchcase(candidate, pattern) for candidate in names):
            raise InputError(f"{name}: the pattern {pattern!r} matches no parameter")
    return listed


def select(model: nn.Module, include, exclude, devices=("cpu", "cuda")) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, as include and exclude tell; all must be recordable, on one of the devices.

    Raises:
        ValueError, TypeError: naming the parameter.
    """
    trainable = {name: p for name, p in named_parameters(model) if p.requires_grad}
    wanted = patterns("include", include, list(trainable))
    unwanted = patterns("exclude", exclude, [name for name, _ in named_parameters(model)])
    parameters = {name: p for name, p in trainable.items() if chosen(name, wanted, unwanted)}
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"model: {name} is uninitialized; run the model once before making a phase")
        if parameter.device.type not in devices:
            raise TypeError(f"model: expected parameters on the CPU or CUDA, but {name} is on {parameter.device}")
        if parameter.dtype not in FLOATS:
            raise TypeError(f"model: expected float parameters, but {name} is {parameter.dtype}; see exclude=")
    devices = sorted({str(parameter.device) for parameter in parameters.values()})
    if len(devices) > 1:
        raise InputError(
            f"model: expected its parameters on one device, got {' and '.join(devices)}; make one phase per device, "
            "with include="
        )
    return parameters


def chosen(name: str, wanted: list[str], unwanted: list[str]) -> bool:
    """Whether patterns to include (none: all) and to exclude take a name."""
    inside = not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
    return inside and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted)


def unit_axis(model: nn.Module, name: str) -> int:
    """The axis over the units that a parameter feeds: 0, but 1 in the weight of a transposed convolution."""
    module = submodule(model, name.rpartition(".")[0])
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    return int(transposed and module.groups == 1 and name.endswith("weight"))
