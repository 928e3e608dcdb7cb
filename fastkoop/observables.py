"""What an operator observes of a block besides the weights of one iterate.

The identity is the paper's choice: the operator acts on the weights themselves (Dogra & Redman 2020). Others stack
more rows on them, so that a linear operator can say what it otherwise could not; predictions are read out of the
weights' rows and stay (..., n).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import backends
from .checks import InputError, brief, integer


@dataclass(frozen=True)
class Affine:
    """A constant beside the weights: w -> A w + b, the least-squares affine map, so that w may settle anywhere.

    F and Fp are centred, each on its own mean, and the cutoff applies to what is left; the constant's eigenvalue is 1
    exactly. (The shift mode of dynamic mode decomposition: Hirsh, Harris, Kutz & Brunton 2020, SIAM J. Appl. Dyn.
    Syst. 19, section 3.)

    >>> import numpy as np, fastkoop
    >>> X = 3.0 + 0.5 ** np.arange(5.0)[None]              # settles at 3, where no linear map but the identity would
    >>> fastkoop.fit(X, observables=Affine()).predict(50)
    array([3.])
    """


@dataclass(frozen=True)
class Delay:
    """The last d iterates beside each other, the newest first, of which the newest is read out.

    What a linear operator on single iterates cannot tell, such as an oscillation seen through fewer weights than it
    has phases, it can tell from several (Takens 1981; Arbabi & Mezic 2017, SIAM J. Appl. Dyn. Syst. 16).

    >>> import numpy as np, fastkoop
    >>> X = np.cos(0.3 * np.arange(8.0))[None]             # one weight that oscillates
    >>> state = fastkoop.fit(X, observables=Delay(2)).predict(10)
    >>> bool(abs(state[0] - np.cos(0.3 * 17)) < 1e-9)
    True
    """

    d: int

    def __post_init__(self) -> None:
        d = integer("Delay(d)", self.d, least=1, cure="Delay(1) observes what the identity does")
        object.__setattr__(self, "d", d)


@dataclass(frozen=True)
class Momentum:
    """The optimizer's velocity beside the weights, since with momentum (w, v) is the dynamical system's state.

    A block of n weights then has 2 n rows, weights before velocities; the weights are read out. `KoopmanPhase` records
    both. (A. Rao's report, on momentum.)
    """


OBSERVABLES = (Affine, Delay, Momentum)


@dataclass(frozen=True)
class Observables:
    """Several of them together: `observed` for the kernels, and whether half of a block's rows are velocities."""

    observed: backends.observed.Observed
    momentum: bool

    @property
    def identity(self) -> bool:
        """Whether just the snapshots as they are are observed."""
        return self.observed == backends.observed.Observed()

    def weights(self, rows: int) -> int:
        """Weights in a block of so many rows.

        Raises:
            ValueError: an odd number of rows with `Momentum`.
        """
        if not self.momentum:
            return rows
        if rows % 2:
            raise InputError(
                f"X: Momentum() takes blocks of n weights and n velocities below them, got {rows} rows; stack both "
                "along n"
            )
        return rows // 2

    def check(self, columns: int) -> None:
        """Raise if so many snapshots hold no pair of observables."""
        delay, affine = self.observed
        if columns < delay + 1 + affine:
            raise InputError(
                f"X: expected at least {delay + 1 + affine} snapshots for {self}, got {columns}; record more of them"
            )

    def __str__(self) -> str:
        parts = [f"Delay({self.observed.delay})"] * (self.observed.delay > 1)
        parts += ["Affine()"] * self.observed.affine + ["Momentum()"] * self.momentum
        return " with ".join(parts) or "identity"


ObservablesLike = str | Affine | Delay | Momentum | Observables | tuple[Affine | Delay | Momentum, ...]


def resolve(observables: Any) -> Observables:
    """One of the observables, "identity", or a tuple of different ones, as one.

    Raises:
        ValueError, TypeError: anything else.

    >>> str(resolve((Delay(3), Affine())))
    'Delay(3) with Affine()'
    """
    if isinstance(observables, Observables):
        return observables
    if isinstance(observables, str) and observables == "identity":
        return Observables(backends.observed.Observed(), False)
    parts = list(observables) if isinstance(observables, (tuple, list)) else [observables]
    for part in parts:
        if not isinstance(part, OBSERVABLES):
            kind = part.__name__ if isinstance(part, type) and part in OBSERVABLES else ""
            cure = f"; write {kind}(), with brackets" if kind else ""
            raise InputError(
                'observables: expected "identity", Affine(), Delay(d), Momentum() or a tuple of these, got '
                f"{brief(part)}{cure}"
            )
    if len({type(part) for part in parts}) < len(parts) or not parts:
        raise InputError(f"observables: expected at least one, and each kind once, got {brief(observables)}")
    delay = next((part.d for part in parts if isinstance(part, Delay)), 1)
    kinds = {type(part) for part in parts}
    return Observables(backends.observed.Observed(delay, Affine in kinds), Momentum in kinds)


def word(observables: Any) -> str:
    """The observables as they are written on the command line.

    >>> word((Affine(), Delay(3))), word("identity")
    ('delay:3+affine', 'identity')
    """
    whole = resolve(observables)
    parts = [f"delay:{whole.observed.delay}"] * (whole.observed.delay > 1)
    parts += ["affine"] * whole.observed.affine + ["momentum"] * whole.momentum
    return "+".join(parts) or "identity"


def read(text: str) -> Any:
    """The observables of a word, parts joined by + or a comma, or of what str(Observables) says.

    Text that is neither is returned as it is, for `resolve` to refuse.

    >>> read("delay:3+affine"), read("Delay(3) with Affine()"), read("momentum")
    ((Delay(d=3), Affine()), (Delay(d=3), Affine()), (Momentum(),))
    """
    parts: list[Any] = []
    for part in re.split(r"[,+]| with ", text):
        match = re.fullmatch(r"(affine|momentum)(?:\(\))?|delay(?::(\d+)|\((\d+)\))", part.strip().lower())
        if not match:
            return text
        kind, *delays = match.groups()
        delay = delays[0] or delays[1]
        parts.append(Delay(int(delay)) if delay else {"affine": Affine, "momentum": Momentum}[kind]())
    return tuple(parts)
