"""What a comparison is asked for, checked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from .. import checks
from .. import cutoff as rules
from ..cutoff import Rank
from ..observables import Affine, resolve
from ..options import Options
from ..partition import GRANULARITIES
from .problems import datasets, oscillator
from .training import OPTIMIZERS

# t1, t2, T in epochs where the caller names none: the report's on MNIST, the paper's on the oscillator
EPOCHS = {"mnist": (3, 5, 1), "digits": (10, 30, 20), oscillator.NAME: (35_000, 45_000, 2_500)}
BATCH_SIZE = 64
WITH_VELOCITY = ("adam", "momentum")

# What was chosen on MNIST's validation images, for nodes, layers and the network alike (`python -m bench pays`): so
# many means of the recording, an affine operator on the direction in which these vary most, its eigenvalue held at a
# memory of two thirds of the recording, 1 - 1.5 / pairs. It cannot diverge, and ends near the trend of the mean.
WINDOWS = 12
RECOMMENDED = {"cutoff": Rank(1), "observables": Affine(), "stabilize": 0.875}


def recommended(config: Config, per_epoch: int) -> Config:
    """The config, checked, with the settings of a phase that are recommended for its recording."""
    window = max(1, (config.t2 - config.t1) * per_epoch // WINDOWS)
    return replace(config, **RECOMMENDED, window=window, every=window)


@dataclass(frozen=True)
class Config:
    """One comparison. Epochs, batch_size, lr and q may be None: what is usual.

    The oscillator's iterations are epochs: all its points are one batch. validation: images that are taken out of the
    training set, to choose settings by; with horizon="auto" they are the guard's. With a window, `every` is no shorter.
    recommended: take `RECOMMENDED` and its window, whatever cutoff, observables, stabilize, window and every say.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    partition: str = "node"
    q: int | None = None
    t1: int | None = None
    t2: int | None = None
    T: int | None = None
    optimizer: str = "adadelta"
    lr: float | None = None
    batch_size: int | None = None
    cutoff: object = "array_api"
    stabilize: object = None
    observables: object = "identity"
    window: int = 1
    out_of_span: str = "drop"
    horizon: str | None = None
    recommended: bool = False
    validation: int = 0
    every: int = 1
    seeds: int = 1
    eval_every: int = 1
    device: str = "cpu"
    out: str = "fastkoop-compare"

    def checked(self) -> Config:
        """The same with usual values filled in.

        Raises:
            ValueError, TypeError: naming the option, what was expected, what was found and the cure.
        """
        checks.choice("dataset", self.dataset, (*datasets.NAMES, oscillator.NAME))
        checks.choice("partition", self.partition, GRANULARITIES)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.choice("device", self.device, ("cpu",))
        if self.partition == "quasi-node" and self.q is None:
            raise checks.InputError('q: the partition "quasi-node" needs --q, the number of weights in a block')
        if self.partition != "quasi-node" and self.q is not None:
            raise checks.InputError(f'q: only the partition "quasi-node" takes --q, got {self.q}')
        if self.q is not None:
            checks.integer("q", self.q, least=1)
        batch_size = self._batch_size()
        for name in ("every", "window", "seeds", "eval_every"):
            checks.integer(name, getattr(self, name), least=1)
        every = self.window if self.every == 1 else self.every
        if self.window > every:
            raise checks.InputError(f"window: expected at most every = {every} iterates, got {self.window}")
        usual = dict(zip(("t1", "t2", "T"), EPOCHS[self.dataset], strict=True))
        chosen = {name: usual[name] if (own := getattr(self, name)) is None else own for name in usual}
        for name, epochs in chosen.items():
            checks.integer(name, epochs, least=0)
        if chosen["t2"] <= chosen["t1"]:
            raise checks.InputError(
                f"t2: expected more than t1 = {chosen['t1']} epochs, got {chosen['t2']}; recording runs from t1 to t2"
            )
        lr = OPTIMIZERS[self.optimizer][1] if self.lr is None else self.lr
        if not (isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0):
            raise checks.InputError(f"lr: expected a number > 0, got {lr}")
        observables = Options(self.cutoff, self.observables, self.stabilize, self.out_of_span).observables
        if observables.momentum and self.optimizer not in WITH_VELOCITY:
            raise checks.InputError(
                f"observables: Momentum() needs an optimizer with velocities, {' or '.join(WITH_VELOCITY)}, got "
                f"{self.optimizer}"
            )
        self._check_horizon()
        return replace(self, lr=float(lr), batch_size=batch_size, every=every, **chosen)

    def _check_horizon(self) -> None:
        checks.integer("validation", self.validation, least=0)
        if self.validation and self.dataset == oscillator.NAME:
            raise checks.InputError("validation: the oscillator has no images to take out; leave --validation out")
        if self.horizon not in (None, "auto"):
            raise checks.InputError(f'horizon: expected "auto", got {self.horizon!r}; leave it out for the whole phase')
        if self.horizon and not self.validation:
            raise checks.InputError('horizon: "auto" is guarded by the loss on validation images; pass --validation')

    def _batch_size(self) -> int | None:
        if self.dataset != oscillator.NAME:
            return checks.integer("batch_size", BATCH_SIZE if self.batch_size is None else self.batch_size, least=1)
        if self.batch_size is not None:
            raise checks.InputError(
                f"batch_size: the oscillator's points are one batch, got {self.batch_size}; leave --batch-size out"
            )
        return None

    @property
    def phase_options(self) -> dict:
        """What a KoopmanPhase takes of it."""
        names = ("partition", "q", "cutoff", "observables", "stabilize", "out_of_span", "every", "window")
        return {name: getattr(self, name) for name in names}

    def described(self) -> dict:
        """The config of results.json."""
        config = {**asdict(self), "cutoff": rules.describe(self.cutoff), "observables": str(resolve(self.observables))}
        del config["data_dir"], config["out"]  # places on one machine mean nothing on another
        return config
