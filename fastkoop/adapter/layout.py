"""The layout of a phase: its groups of parameters, on this rank and on all, and where snapshots are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from .. import checks
from ..partition import Group, Parameter, groups
from .parameters import Parameters
from .ranks import Spread, localized, shard_of
from .selection import unit_axis
from .wrappers import without_prefixes


def refuse_frozen(model: nn.Module) -> None:
    """Raise if no parameter is trained."""
    names = [name for name, _ in model.named_parameters()]
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise checks.InputError(
            f"model: all {len(names)} parameters are frozen ({names[0]}, ...), so the model has no parameters to "
            "record; call requires_grad_(True) on those that are trained"
        )


def groups_of(model: nn.Module, chosen: Parameters, partition, q: int | None) -> list[Group]:
    """The groups of the whole model."""
    described = [Parameter(name, tuple(p.shape), unit_axis(model, name)) for name, p in chosen.by_name.items()]
    if isinstance(partition, Mapping):
        partition = {without_prefixes(pattern): granularity for pattern, granularity in partition.items()}
    return groups(described, partition, q)


def setup_of(whole: list[Group], chosen: Parameters, storage_dtype: torch.dtype | None) -> dict[str, str]:
    """What has to be alike on all ranks, in words."""
    setup = {f"parameter {name}": f"{tuple(p.shape)} in {p.dtype}" for name, p in chosen.by_name.items()}
    setup |= {f"partition of {group.name}": f"{group.granularity} q={group.q}" for group in whole}
    return setup | {"storage_dtype": str(storage_dtype)}


def local_groups(whole: list[Group], chosen: Parameters) -> Iterator[tuple[Group, Spread | None]]:
    """The groups of which this rank has a part, and how their blocks are spread over ranks."""
    shards = {name: shard_of(name, p) for name, p in chosen.by_name.items()}
    for group in whole:
        local, spread = localized(group, shards)
        if local.rows:
            yield local, spread


def home_of(storage_device, parameters: torch.device) -> torch.device | None:
    """Where snapshots are kept; None is where the parameters are."""
    if storage_device is None:
        return None
    try:
        home = torch.device(storage_device)
    except (RuntimeError, TypeError):
        home = None
    if home is None or home.type not in ("cpu", parameters.type):
        raise checks.InputError(
            f'storage_device: expected None, the parameters\' own device {parameters}, or "cpu", got {storage_device!r}'
        )
    return parameters if home.type == parameters.type else home
