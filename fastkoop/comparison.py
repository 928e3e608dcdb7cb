"""`fastkoop.compare`: a Koopman phase against an optimizer on a problem of one's own, from Python or a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .experiments.results import Results


def compare(
    problem: Any,
    *,
    out: str | None = None,
    partition: str | None = None,
    T: int | str | None = None,
    seeds: int = 1,
    device: str = "cpu",
    **options: Any,
) -> Results:
    """Train, record, then run the optimizer and the Koopman operators side by side, as `fastkoop compare` does.

    Args:
        problem: a built-in problem's name ("digits", "softmax", "mnist", "oscillator"), "FILE.py:NAME", "MODULE:NAME",
            or an object with `make_model(seed)`, `batches(seed)`, `loss(model, batch)` and `evaluate(model)`, see
            `fastkoop.experiments.problems.contract`.
        out: folder for results.json, report.html and figures; None writes nothing.
        partition: "weight", "quasi-node", "node", "layer" or "network"; None takes the problem's, then "node".
        T: epochs that both sides run for after recording, or iterations as "500it"; None takes the problem's.
        seeds: seeds 0 .. seeds-1 are run.
        device: "cpu", "cuda" or "cuda:N".
        **options: t1, t2, optimizer, lr, batch_size, preset, cutoff, observables, stabilize, out_of_span, window,
            every, q, horizon, validation, eval_every, data_dir and budget, as the command has them.

    Returns:
        Results, a mapping as results.json has it, with `.table()`, `.report(path)`, `.verdict` and `.as_dict()`; a
        notebook shows them as verdict and table.

    Raises:
        ValueError, TypeError: naming the option, or the problem's method that failed and its traceback's last line.

    >>> results = compare("digits", t1=1, t2=3, T=1, eval_every=23)
    >>> results.verdict.startswith("It ")
    True
    """
    from .experiments.compare import compare as run
    from .experiments.config import Config

    return run(Config.of(problem=problem, out=out, partition=partition, T=T, seeds=seeds, device=device, **options))
