"""Options: what a Koopman operator is asked for, once - defaults, checks, words and the words read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from . import checks, observables
from . import cutoff as rules
from .cutoff import Cutoff

Stabilize = float | str | None  # None, "clip", "project" or a radius
OUT_OF_SPAN = ("drop", "carry")
OF_FIT = ("cutoff", "observables", "stabilize", "out_of_span")


@dataclass(frozen=True)
class Options:
    """What `fit` and `KoopmanPhase` are asked for, checked and in one form, so that equals compare equal.

    Args:
        cutoff: which singular values count, see `fastkoop.cutoff`.
        observables: "identity", `Affine()`, `Delay(d)`, `Momentum()` or a tuple of these; held as `Observables`.
        stabilize: None, "clip", a radius > 0 or "project", see `fastkoop.fit`; "clip" is held as the radius 1.0.
        out_of_span: "drop" or "carry".
        window: iterates whose mean is a snapshot; alone it implies every=window.
        every: optimizer iterations from one snapshot to the next, at least `window`.

    Raises:
        ValueError, TypeError: a value out of range, or values that exclude each other.

    >>> options = Options(cutoff=0.01, stabilize="clip", window=5)
    >>> options.stabilize, options.every, options.carry
    (1.0, 5, False)
    >>> Options.read(cutoff="rank:3", observables="delay:2+affine").words()["cutoff"]
    'rank:3'
    """

    cutoff: Cutoff = "array_api"
    observables: Any = "identity"  # any of ObservablesLike; Observables once checked
    stabilize: Any = None  # Stabilize; None, a radius or "project" once checked
    out_of_span: str = "drop"
    window: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        window = checks.integer("window", self.window, least=1)
        every = checks.integer("every", self.every, least=1)
        values = {
            "cutoff": rules.checked(self.cutoff),
            "observables": observables.resolve(self.observables),
            "stabilize": checks.stabilizer(self.stabilize),
            "out_of_span": checks.choice("out_of_span", self.out_of_span, OUT_OF_SPAN),
            "window": window,
            "every": window if every == 1 else every,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if window > self.every:
            raise checks.InputError(f"window: expected at most every={self.every} iterates, got {window}")
        if self.project and (self.observables.momentum or self.observables.observed.delay > 1):
            raise checks.InputError(
                f'stabilize: "project" would hold {self.observables} back though nothing diverges; use "clip" or a '
                "radius"
            )

    @property
    def project(self) -> bool:
        """Whether the operator is replaced by the nearest one that stretches no vector."""
        return self.stabilize == "project"

    @property
    def carry(self) -> bool:
        """Whether what the snapshots do not span of the last state is added to every prediction."""
        return self.out_of_span == "carry"

    @property
    def plain(self) -> bool:
        """Whether the published operator is all there is to it, save eigenvalues that are clipped."""
        return self.observables.identity and not self.project and not self.carry

    def rule(self, n: int, columns: int, dtype: Any) -> tuple[str, float]:
        """The cutoff as kernels/ take it, for blocks of n rows in so many snapshots."""
        rows, pairs = self.observables.observed.shape(n, columns)
        return self.rule_of(rows, pairs, dtype)

    def rule_of(self, rows: int, pairs: int, dtype: Any) -> tuple[str, float]:
        """The same for a matrix of so many rows and columns."""
        return rules.resolve(self.cutoff, rows, pairs, dtype)

    @property
    def fit_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `fit`."""
        return {name: getattr(self, name) for name in OF_FIT}

    @property
    def phase_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `KoopmanPhase`: all of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def describe(self) -> dict[str, Any]:
        """Values as results files hold them: words, and numbers as numbers.

        >>> Options(cutoff=0.5, stabilize=0.875).describe()["stabilize"]
        0.875
        """
        return {name: DESCRIBE.get(name, _same)(value) for name, value in self.phase_arguments.items()}

    def words(self) -> dict[str, str]:
        """Values as they are written on the command line; `read` takes them back."""
        return {name: word(name, value) for name, value in self.phase_arguments.items()}

    def __str__(self) -> str:
        """What differs from the defaults, as a caption has it.

        >>> print(Options(cutoff="jax", window=10))
        cutoff jax, window 10
        """
        usual = Options().words()
        said = {name: text for name, text in self.words().items() if text != usual[name]}
        if self.every == self.window:
            said.pop("every", None)
        return ", ".join(f"{name} {text}" for name, text in said.items()) or "defaults"

    @classmethod
    def read(cls, words: Mapping[str, str] | None = None, /, **more: str) -> Options:
        """From words by name, defaults for what is not named.

        >>> Options.read(stabilize="none", every="4") == Options(every=4)
        True
        """
        return cls(**{name: parse(name, text) for name, text in {**(words or {}), **more}.items()})


def _same(value: Any) -> Any:
    return value


def _read_stabilize(text: str) -> Stabilize:
    if text in ("none", "None"):
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _word_of_stabilize(value: Stabilize) -> str:
    described = _described_stabilize(value)
    return "none" if described is None else str(described)


def _described_stabilize(value: Stabilize) -> Stabilize:
    radius = checks.stabilizer(value)
    return "clip" if radius == 1.0 else radius


READ: dict[str, Callable[[str], Any]] = {
    "cutoff": rules.read, "observables": observables.read, "stabilize": _read_stabilize, "out_of_span": str,
    "window": int, "every": int,
}  # fmt: skip
DESCRIBE: dict[str, Callable[[Any], Any]] = {
    "cutoff": rules.describe,
    "observables": lambda value: str(observables.resolve(value)),
    "stabilize": _described_stabilize,
}
WORD: dict[str, Callable[[Any], str]] = {
    "cutoff": rules.word, "observables": observables.word, "stabilize": _word_of_stabilize,
}  # fmt: skip


def parse(name: str, text: str) -> Any:
    """The value of one option from its word; what no rule reads is returned as it is, for `Options` to refuse by name.

    >>> parse("cutoff", "energy:0.99"), parse("stabilize", "0.875"), parse("window", "10")
    (Energy(share=0.99), 0.875, 10)

    Raises:
        ValueError: no option of that name, or a word for a number that is none.
    """
    reader = READ[checks.choice("option", name, READ)]
    try:
        return reader(text.strip())
    except checks.InputError:
        raise
    except ValueError:
        raise checks.InputError(f"{name}: expected an integer, got {text!r}") from None


def word(name: str, value: Any) -> str:
    """The word of one option's value, which `parse` reads.

    >>> word("cutoff", rules.Rank(3)), word("stabilize", None), word("observables", "identity")
    ('rank:3', 'none', 'identity')
    """
    checks.choice("option", name, READ)
    return WORD.get(name, str)(value)
