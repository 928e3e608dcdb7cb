"""What `python -m bench steps` measures."""

from __future__ import annotations

from dataclasses import dataclass

COMPILED = {  # what torch.compile gets
    "eager": (),
    "compiled": ("forward and backward", "optimizer"),
    "optimizer compiled": ("optimizer",),
}


@dataclass(frozen=True)
class Setting:
    """What is measured; the defaults are the report's setting."""

    dataset: str = "mnist"
    t1: int = 3
    t2: int = 5
    epochs: tuple[int, ...] = (1, 2)  # T
    cutoff: str = "jax"
    batch_size: int = 64
    seed: int = 0
    optimizers: tuple[str, ...] = ("adadelta", "adam", "momentum")
    modes: tuple[str, ...] = tuple(COMPILED)
    partitions: tuple[str, ...] = ("node", "layer")
    every: tuple[int, ...] = (1, 10)
    ahead: int = 64
    rounds: int = 9
    stretch: int = 134
    windows: tuple[int, ...] = (1, 10)  # iterates in a snapshot's mean, of recording's share
    shared: int = 100  # steps from which recording's share of a step is taken
