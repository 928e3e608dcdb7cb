"""Fits: the operators of a recording, fitted when they are first needed, forgotten when it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import checks
from ..operator import KoopmanOperator, fit
from ..options import OF_FIT, Options
from .buffers import GroupBuffer
from .compiling import Clock
from .parts import Parts
from .ranks import Spread, fit_spread


class Fits:
    """Operators of every block of a recording.

    Attributes:
        operators: by recording; None until they are fitted.
        forecasts: of these operators, see `fastkoop.adapter.forecast`; None until they are asked for.
        seconds, compile_seconds: what the last fit took, and beside it what compiling its kernels took.
    """

    def __init__(self, parts: Parts, options: Options):
        self._parts, self.options = parts, options
        self.operators: list[list[KoopmanOperator]] | None = None
        self.forecasts: Any = None
        self.seconds = self.compile_seconds = 0.0

    def forget(self) -> None:
        """Drop the operators."""
        self.operators = self.forecasts = None

    def take(self, changes: dict) -> None:
        """Fit with these options from now on.

        Raises:
            ValueError, TypeError: as `KoopmanPhase.fit`.
        """
        if unknown := set(changes) - set(OF_FIT):
            raise TypeError(f"fit: expected {', '.join(OF_FIT)}, got {', '.join(sorted(unknown))}")
        options = replace(self.options, **changes)
        if options.observables.momentum != self.options.observables.momentum:
            raise checks.InputError(
                "observables: Momentum() is decided when a phase is made, for what it records; make another phase"
            )
        self.options = options

    def ready(self, position: float) -> list[list[KoopmanOperator]]:
        """The operators, fitted now if they are not yet."""
        if self.operators is None:
            self.fit(position)
        return self.operators

    def fit(self, position: float) -> None:
        """Fit an operator to every block; see `KoopmanPhase.fit`.

        position: iterations past the newest snapshot, which ranks have to agree on.
        """
        with self.heard_by_all("fit"):
            self._check()
        with Clock() as clock:
            began = clock.now()
            self._fit(position)
            self.seconds, self.compile_seconds = clock.now() - began, clock.compiled

    def _fit(self, position: float) -> None:
        recorder, ranks = self._parts.recorder, self._parts.ranks
        self.forget()
        self.agree("fit", position=position)
        recorder.put_in_order()
        operators, refused = [], ""
        for recording, spread in zip(self._parts.recordings, self._parts.spreads, strict=True):
            try:
                views = recording.blocks(recorder.snapshots)
                fitted = self.fitted(recording, spread, views)
                operators.append(fitted if recording.direct else [op.released() for op in fitted])
            except checks.InputError as error:
                said = f"layer {recording.group.name}: {error}"
                refused = refused or f"{said} (if training diverged, lower its learning rate, or leave the layer out)"
                if ranks is None:
                    break
        if ranks is not None:  # whatever happens here: others wait for this rank in its spread layers
            refused = ranks.first("fit", refused)
        if refused:
            raise checks.InputError(refused)
        self.operators = operators

    def _check(self) -> None:
        """Raise unless the recording can be fitted."""
        snapshots = self._parts.recorder.snapshots
        if snapshots < 2:
            raise checks.InputError(
                f"fit: expected at least 2 snapshots, got {snapshots}; train with attach(optimizer), or call "
                "record() after each optimizer step"
            )
        self.options.observables.check(snapshots)
        self._parts.parameters.check()

    @contextlib.contextmanager
    def heard_by_all(self, what: str) -> Iterator[None]:
        """An error of this rank inside is raised on all ranks, which would wait for this one otherwise."""
        try:
            yield
        except (ValueError, TypeError) as error:
            if self._parts.ranks is not None:
                with contextlib.suppress(checks.InputError):  # this rank raises its own
                    self.agree(what, refused=str(error))
            raise

    def fitted(self, recording: GroupBuffer, spread: Spread | None, views: list) -> list[KoopmanOperator]:
        """Operators of a group's batches of blocks, from views (snapshots, ..., numbers) of them."""
        if spread is None:
            return [fit(view, time_axis=0, **self.options.fit_arguments) for view in views]
        fitted = [fit_spread(view, recording.group.n, spread, self.options) for view in views]
        _ = [op.residual for op in fitted]  # now, while ranks are at it: a jump then needs no exchange of its own
        return fitted

    def agree(self, what: str, **values) -> None:
        """Raise on all ranks unless all are at the same point of the same recording."""
        recorder, ranks = self._parts.recorder, self._parts.ranks
        if ranks is not None:
            setup = {**self._parts.setup, **self.options.words(), "capacity": str(recorder.capacity)}
            ranks.agree(
                what, setup=setup, snapshots=recorder.snapshots, iterations=recorder.iterations, **values
            )  # fmt: skip

    def __getstate__(self) -> dict:
        """For copies and pickles: fitted again from the same snapshots, to the same bits, when it is needed."""
        return {**self.__dict__, "operators": None, "forecasts": None}
