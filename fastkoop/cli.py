"""The command line: fastkoop compare | profile | info.

Errors are one sentence; exit 0 done, 2 bad input, 1 anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated

from .checks import InputError
from .cutoff import Energy, Rank

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as missing:  # a core-only installation
    sys.exit(f'fastkoop: the command line needs {missing.name}; pip install "fastkoop[mnist]"')

app = typer.Typer(
    name="fastkoop",
    help="Koopman operators over neural-network weight trajectories, at hardware speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def one_sentence():
    """Turn exceptions into one sentence on standard error and an exit code; FASTKOOP_TRACEBACK=1 keeps them."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("FASTKOOP_TRACEBACK") == "1":
            raise
        if isinstance(error, KeyboardInterrupt):
            text = str(error) or "interrupted"
        elif isinstance(error, ImportError):
            text = f'{error.name or error} is not installed; pip install "fastkoop[mnist]"'
        elif isinstance(error, (InputError, TypeError)):
            text = str(error)
        else:
            text = f"{type(error).__name__}: {error} (FASTKOOP_TRACEBACK=1 shows where)"
        print(f"fastkoop: {' '.join(text.split())}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def parse_cutoff(text: str):
    """A cutoff as written on the command line: a name, a number, rank:K or energy:SHARE."""
    kind, _, value = text.partition(":")
    try:
        if kind == "rank" and value:
            return Rank(int(value))
        if kind == "energy" and value:
            return Energy(float(value))
        return float(text)
    except InputError:
        raise
    except ValueError:
        return text  # a name, checked where names are known


def parse_stabilize(text: str):
    """A stabilisation as written on the command line: none, clip or a radius."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        return text


@app.command()
def compare(
    dataset: Annotated[str, typer.Option(help="digits (bundled with scikit-learn) or mnist.")] = "digits",
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with the MNIST IDX files; else $FASTKOOP_DATA_DIR, cache, download.")
    ] = None,
    partition: Annotated[str, typer.Option(help="weight, quasi-node, node, layer or network.")] = "node",
    q: Annotated[int | None, typer.Option(help="Weights in a quasi-node.")] = None,
    t1: Annotated[int | None, typer.Option("--t1", help="Epochs before recording (mnist 3, digits 10).")] = None,
    t2: Annotated[int | None, typer.Option("--t2", help="Epoch that recording ends at (mnist 5, digits 30).")] = None,
    epochs: Annotated[
        int | None, typer.Option("--T", help="Epochs that both sides then run for (mnist 1, digits 20).")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adadelta, adam, adagrad, sgd or momentum.")] = "adadelta",
    lr: Annotated[float | None, typer.Option(help="Learning rate; the optimizer's usual one if not given.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a mini-batch.")] = 64,
    cutoff: Annotated[
        str, typer.Option(help="array_api, matlab, numpy, jax, svht, a number, rank:K or energy:SHARE.")
    ] = "array_api",
    stabilize: Annotated[str, typer.Option(help="none, clip, or a radius that eigenvalues are clipped to.")] = "none",
    every: Annotated[int, typer.Option(help="Record each EVERY-th iteration.")] = 1,
    seeds: Annotated[int, typer.Option(help="Run seeds 0 .. SEEDS-1.")] = 1,
    eval_every: Annotated[int, typer.Option(help="Evaluate on the test set each EVAL_EVERY-th iteration.")] = 1,
    device: Annotated[str, typer.Option(help="cpu.")] = "cpu",
    out: Annotated[str, typer.Option(help="Folder for results.json and the figures.")] = "fastkoop-compare",
) -> None:
    """Train, record, then run the optimizer and the Koopman operator side by side."""
    with one_sentence():
        options = dict(locals())
        options.update(T=options.pop("epochs"), cutoff=parse_cutoff(cutoff), stabilize=parse_stabilize(stabilize))
        _compare(options)


def _compare(options: dict) -> None:
    from .experiments.compare import Config
    from .experiments.compare import compare as run
    from .experiments.verdict import rows, words

    config = Config(**options).checked()
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    done: list[int] = []
    try:
        with _progress() as tick:

            def count(seed: int, what: str, at: int, of: int) -> None:
                done[:] = range(seed)
                tick(f"seed {seed}: {what}", at, of)

            results = run(config, count)
    except KeyboardInterrupt:
        kept = f"kept {len(done)} of {config.seeds} seeds in {config.out}/results.json" if done else "kept nothing"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    table = Table("", "test loss", "accuracy", "an iteration", "T phase")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    for line in words(results):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"Figures and results.json are in {config.out}", soft_wrap=True, highlight=False)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _progress():
    """A progress bar on standard error: tick(what, done, of)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=5) as bar:
        import time

        task, shown = bar.add_task("loading, on the first run compiling"), 0.0

        def tick(what: str, at: int, of: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown > REFRESH_SECONDS or at == of:  # a bar per iteration would cost as much as a step
                shown = now
                bar.update(task, description=what, completed=at, total=of)

        yield tick


@app.command()
def profile(
    sizes: Annotated[
        str | None, typer.Option(help="NxM,NxM,...: weights and snapshot pairs of a block; a usual few if not given.")
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(help="Blocks in a batch; if not given more than caches hold, of large ones one a thread."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Time each kernel this many times, if the seconds last.")] = 9,
    seconds: Annotated[float, typer.Option(help="Time for all kernels; ceilings and compiling come on top.")] = 40.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[str, typer.Option(help="Folder for profile.json and roofline.png.")] = "fastkoop-profile",
) -> None:
    """Measure ceilings (copy bandwidth, matrix rate) of the CPU or a GPU, and what every kernel reaches of them."""
    with one_sentence():
        _profile(dict(locals()))


def _profile(options: dict) -> None:
    from .profile_table import show
    from .profiling import Config, parse_sizes
    from .profiling import profile as run

    sizes = options.pop("sizes")
    config = Config(**options, **({} if sizes is None else {"sizes": parse_sizes(sizes)}))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _progress() as tick:
            results = run(config, tick)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; kept nothing") from None
    show(results, Console())
    Console().print(f"roofline.png and profile.json are in {config.out}", soft_wrap=True, highlight=False)


@app.command()
def info() -> None:
    """Say what is installed and which device would be used."""
    with one_sentence():
        from .machine import describe_machine, versions

        machine = describe_machine()
        table = Table("", "", show_header=False)
        for name, version in versions().items():
            table.add_row(name, version or "not installed")
        table.add_row("python", f"{machine['python']} on {machine['system']}")
        table.add_row("processor", f"{machine['processor']}, {machine['cores']} cores")
        table.add_row("device", f"cpu, {machine['threads']} threads")
        table.add_row("", _cuda())
        Console().print(table)


def _cuda() -> str:
    """The CUDA device that would be used, or why there is none."""
    from .backends import cuda

    try:
        return f"cuda, {cuda().device.name}"
    except InputError as error:
        return f"no cuda: {str(error).removeprefix('device: ')}"


def main() -> None:
    """Entry point of the `fastkoop` command."""
    app()


if __name__ == "__main__":
    main()
