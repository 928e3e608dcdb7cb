"""Parameters: those of a model that a phase records and moves, kept, put back, and watched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import checks
from .buffers import local
from .selection import chosen, patterns, select
from .wrappers import named_parameters


class Saved(NamedTuple):
    """What a move may have to put back."""

    parameters: list[torch.Tensor]
    buffers: list[torch.Tensor] | None


class Parameters:
    """A model's parameters by name, as include and exclude tell, on one device."""

    def __init__(self, model: nn.Module, include, exclude):
        self.model, self._chosen = model, (include, exclude)
        self.reshard()
        self.by_name = select(model, include, exclude)
        self.names, self.all = list(self.by_name), list(self.by_name.values())
        self._dtypes = [parameter.dtype for parameter in self.all]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.all[0].device if self.all else torch.device("cpu")

    @property
    def frozen(self) -> list[str]:
        """Names of those that do not require grad by now."""
        return [name for name, parameter in self.by_name.items() if not parameter.requires_grad]

    @property
    def trained(self) -> list[torch.Tensor]:
        """Those that are not frozen."""
        return [parameter for parameter in self.all if parameter.requires_grad]

    @property
    def sharded(self) -> bool:
        """Whether ranks have parts of them."""
        return any(hasattr(parameter, "to_local") for parameter in self.all)

    def reshard(self) -> None:
        """Let FSDP2 free whole parameters, which would outlive a move of their shards."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()

    def check_dtypes(self) -> None:
        """Refuse parameters that are no longer of the dtype that is recorded."""
        for name, parameter, dtype in zip(self.names, self.all, self._dtypes, strict=True):
            if parameter.dtype != dtype:
                raise checks.InputError(
                    f"model: {name} was {dtype} when this phase was made and is {parameter.dtype}; make a new phase"
                )

    def check(self) -> None:
        """Refuse tensors that the model no longer uses, and a model that uses others by now."""
        self.reshard()
        self.check_dtypes()
        present = dict(named_parameters(self.model, remove_duplicate=False))
        for name, parameter in self.by_name.items():
            if present.get(name) is not parameter:
                raise checks.InputError(f"model: {name} was replaced after this phase was made; make a new phase")
        known = {id(parameter) for parameter in self.all}
        wanted, unwanted = (
            patterns(which, given, list(present))  # whose parameters may all be frozen by now
            for which, given in zip(("include", "exclude"), self._chosen, strict=True)
        )
        for name, parameter in named_parameters(self.model):
            if parameter.requires_grad and id(parameter) not in known and chosen(name, wanted, unwanted):
                raise checks.InputError(
                    f"model: {name} was added, or set to require grad, after this phase was made; make a new phase, or "
                    "leave it out with exclude="
                )

    def save(self, buffers: bool) -> Saved:
        """Copies of this rank's parts, and of the model's buffers."""
        held = [buffer.detach().clone() for buffer in self.model.buffers()] if buffers else None
        return Saved([local(parameter).clone() for parameter in self.all], held)

    @torch.no_grad()
    def restore(self, saved: Saved) -> None:
        """Put them back, bit for bit; buffers if they were saved."""
        self.reshard()
        for parameter, value in zip(self.all, saved.parameters, strict=True):
            local(parameter).copy_(value)
        if saved.buffers is not None:
            for buffer, value in zip(self.model.buffers(), saved.buffers, strict=True):
                buffer.copy_(value)

    def recalibrate(self, batches) -> None:
        """BatchNorm's statistics of these batches, by `torch.optim.swa_utils.update_bn`.

        Norms in evaluation mode are frozen and keep theirs; modes and momenta are put back whatever happens.
        """
        with _modes_put_back(self.model):
            torch.optim.swa_utils.update_bn(batches, self.model)
        self.reshard()


@contextlib.contextmanager
def _modes_put_back(model: nn.Module) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    frozen = [(buffer, buffer.detach().clone()) for norm in norms if not norm.training for buffer in norm.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum
        with torch.no_grad():
            for buffer, value in frozen:
                buffer.copy_(value)
