"""Models and optimizers beneath what wraps them: torch.compile, data parallelism, accelerate.

A wrapper's prefixes, `_orig_mod.` and `module.`, do not count: parameters are called as in the raw model everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def wrapped_child(module: nn.Module) -> str | None:
    """The name under which a wrapper holds the module that it wraps; None for a module that is no wrapper."""
    if "_orig_mod" in module._modules:  # torch.compile's
        return "_orig_mod"
    return "module" if isinstance(module, PARALLEL) else None


def raw_model(model: nn.Module) -> nn.Module:
    """The model beneath its wrappers."""
    while (child := wrapped_child(model)) is not None:
        model = model._modules[child]
    return model


def raw_paths(model: nn.Module) -> dict[str, str]:
    """Every submodule's path, and the path without wrappers' prefixes."""
    paths: dict[str, str] = {}

    def walk(module: nn.Module, path: str, raw: str) -> None:
        paths[path] = raw
        skipped = wrapped_child(module)
        for name, child in module._modules.items():
            if child is not None:
                walk(child, _joined(path, name), raw if name == skipped else _joined(raw, name))

    walk(model, "", "")
    return paths


def raw_name(name: str, paths: dict[str, str]) -> str:
    """A parameter's or buffer's name without wrappers' prefixes, by the `raw_paths` of its model."""
    path, _, leaf = name.rpartition(".")
    return _joined(paths.get(path, path), leaf)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def without_prefixes(name: str) -> str:
    """A name, or a pattern of names, without wrappers' prefixes, where the model is not at hand."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part != "_orig_mod")


def named_parameters(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """As the model's, with the raw model's names."""
    paths = raw_paths(model)
    for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
        yield raw_name(name, paths), parameter


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path without wrappers' prefixes."""
    for name in filter(None, path.split(".")):
        model = raw_model(model)._modules[name]
    return raw_model(model)


def raw_optimizer(optimizer):
    """The optimizer beneath wrappers that have no step hooks of their own, such as accelerate's."""
    while not has_step_hooks(optimizer) and hasattr(optimizer, "param_groups") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def wrapped_optimizers(optimizer) -> Iterator:
    """The optimizer and all that it wraps, Lookahead's inner one too, from the outermost inwards."""
    while optimizer is not None:
        yield optimizer
        inner = getattr(optimizer, "optimizer", None)
        optimizer = inner if hasattr(inner, "param_groups") and inner is not optimizer else None


def has_step_hooks(optimizer) -> bool:
    """Whether it is an optimizer that PyTorch's own constructor set up."""
    return isinstance(optimizer, torch.optim.Optimizer) and "_optimizer_step_post_hooks" in vars(optimizer)
