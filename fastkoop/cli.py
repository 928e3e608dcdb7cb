"""The command line: fastkoop compare | profile | info.

Errors are one sentence; exit 0 done, 2 bad input, 1 anything else.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import pathlib
import signal
import sys
from typing import Annotated

from .checks import InputError, integer
from .cutoff import Energy, Rank
from .observables import Affine, Delay, Momentum

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as missing:  # a core-only installation
    sys.exit(f'fastkoop: the command line needs {missing.name}; pip install "fastkoop[mnist]"')

OF_A_PHASE = ("cutoff", "stabilize", "observables", "window", "out_of_span", "every")

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


def parse_observables(text: str):
    """Observables as written on the command line: identity, or affine, delay:D and momentum with commas between."""
    found = []
    for part in text.split(","):
        kind, _, value = part.strip().partition(":")
        if kind == "delay" and value.isdigit():
            found.append(Delay(int(value)))
        elif kind in ("affine", "momentum") and not value:
            found.append(Affine() if kind == "affine" else Momentum())
        else:
            return text  # identity, or what is refused where observables are known
    return tuple(found)


def parse_grid(text: str) -> dict:
    """A sweep's grid as written on the command line, name=value,value;name=... ; delays need no comma inside."""
    readers = {
        "partition": str, "cutoff": parse_cutoff, "stabilize": parse_stabilize, "window": int,
        "observables": lambda value: parse_observables(value.replace("+", ",")), "out_of_span": str,
    }  # fmt: skip
    found = {}
    for part in filter(None, text.split(";")):
        name, _, values = part.strip().partition("=")
        if name not in readers or not values:
            raise InputError(
                f"grid: expected NAME=VALUE,VALUE with names of {', '.join(readers)}, and ; between, got {part!r}"
            )
        try:
            found[name] = [readers[name](value.strip()) for value in values.split(",")]
        except ValueError as error:
            raise InputError(f"grid: {name}: {error}") from None
    return found


@app.command()
def compare(
    dataset: Annotated[
        str, typer.Option(help="digits (bundled with scikit-learn), mnist, or oscillator, whose iterations are epochs.")
    ] = "digits",
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with the MNIST IDX files; else $FASTKOOP_DATA_DIR, cache, download.")
    ] = None,
    partition: Annotated[str, typer.Option(help="weight, quasi-node, node, layer or network.")] = "node",
    q: Annotated[int | None, typer.Option(help="Weights in a quasi-node.")] = None,
    t1: Annotated[
        int | None, typer.Option("--t1", help="Epochs before recording (mnist 3, digits 10, oscillator 35000).")
    ] = None,
    t2: Annotated[
        int | None, typer.Option("--t2", help="Epoch that recording ends at (mnist 5, digits 30, oscillator 45000).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--T", help="Epochs both sides then run for (mnist 1, digits 20, oscillator 2500).")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adadelta, adam, adagrad, sgd or momentum.")] = "adadelta",
    lr: Annotated[float | None, typer.Option(help="Learning rate; the optimizer's usual one if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a mini-batch (64).")] = None,
    cutoff: Annotated[
        str, typer.Option(help="array_api, matlab, numpy, jax, svht, a number, rank:K or energy:SHARE.")
    ] = "array_api",
    stabilize: Annotated[
        str, typer.Option(help="none, clip, a radius that eigenvalues are clipped to, or project.")
    ] = "none",
    observables: Annotated[
        str, typer.Option(help="identity, or of affine, delay:D, momentum, several with commas between.")
    ] = "identity",
    window: Annotated[int, typer.Option(help="Record means of WINDOW iterates instead of single ones.")] = 1,
    out_of_span: Annotated[str, typer.Option(help="drop or carry what the snapshots do not span.")] = "drop",
    horizon: Annotated[
        str | None, typer.Option(help="auto: jump as far as validation images like best; else the whole phase.")
    ] = None,
    recommended: Annotated[
        bool,
        typer.Option("--recommended", help="The cutoff, observables, stabilization and window chosen on validation."),
    ] = False,
    validation: Annotated[int, typer.Option(help="Images taken out of the training set to choose by.")] = 0,
    every: Annotated[int, typer.Option(help="Record each EVERY-th iteration.")] = 1,
    seeds: Annotated[int, typer.Option(help="Run seeds 0 .. SEEDS-1.")] = 1,
    eval_every: Annotated[
        int, typer.Option(help="Evaluate on the test set each EVAL_EVERY-th iteration; with --every, where both fall.")
    ] = 1,
    device: Annotated[str, typer.Option(help="cpu.")] = "cpu",
    out: Annotated[str, typer.Option(help="Folder for results.json and the figures.")] = "fastkoop-compare",
    phases: Annotated[
        int, typer.Option(help="A whole run with PHASES of record (t2 - t1), jump (T) and rest, against no jumps.")
    ] = 0,
    rest: Annotated[int, typer.Option(help="Epochs to train on after each of several phases.")] = 0,
    line: Annotated[
        float | None,
        typer.Option(help="With phases, a third run whose jumps go LINE epochs along the line through its recording."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try many settings on the same recordings; goes on where it stopped.")
    ] = False,
    grid: Annotated[
        str, typer.Option(help="Of a sweep: partition=node,layer;cutoff=jax,1e-2;stabilize=none,clip;window=1,10 ...")
    ] = "",
) -> None:
    """Train, record, then run the optimizer and the Koopman operator side by side."""
    with one_sentence():
        options = dict(locals())
        for name in ("sweep", "grid", "phases", "rest", "line"):
            del options[name]
        options.update(T=options.pop("epochs"), cutoff=parse_cutoff(cutoff), stabilize=parse_stabilize(stabilize))
        options.update(observables=parse_observables(observables))
        if grid and not sweep:
            raise InputError("grid: settings for --sweep, which was not asked for")
        if sweep and phases:
            raise InputError("phases: a sweep tries settings of one phase; leave --phases or --sweep out")
        if recommended:
            _refuse(options, OF_A_PHASE, "--recommended chooses it")
        if sweep:
            _refuse(options, ("recommended", *OF_A_PHASE, "partition", "horizon", "eval_every"),
                    "a sweep tries settings of its --grid, at the ends of phases")  # fmt: skip
        if phases:
            _refuse(options, ("eval_every",), "several phases are looked at eight times an epoch")
        if rest and not phases:
            raise InputError("rest: epochs after each of several phases; pass --phases")
        if line is not None and not (phases and math.isfinite(line) and line >= 0):
            raise InputError(f"line: expected epochs >= 0 of the null model's jumps, with --phases, got {line}")
        if sweep:
            _sweep(options, parse_grid(grid))
            return
        if phases:
            _phases(options, integer("phases", phases, least=1), integer("rest", rest, least=0), line)
            return
        _compare(options)


def _refuse(options: dict, names: tuple[str, ...], why: str) -> None:
    """Refuse options that would not be looked at."""
    usual = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}
    usual.update(stabilize=None)
    for name in names:
        if options[name] != usual[name]:
            raise InputError(f"{name}: {why}; leave --{name.replace('_', '-')} out")


def _compare(options: dict) -> None:
    from .experiments.compare import Config
    from .experiments.compare import compare as run
    from .experiments.figures import loss_name
    from .experiments.report import write_report
    from .experiments.verdict import baseline_rows, rows, words

    config, console = Config(**options).checked(), Console()
    results = _seed_by_seed(lambda tick: run(config, tick), f"of {config.seeds} seeds in {config.out}/results.json")
    table = Table("", loss_name(results), "accuracy", "an iteration", "T phase")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    table = Table("at the end", loss_name(results), "accuracy", "gradients", "seconds since t2", "Koopman's jump is")
    for row in baseline_rows(results):
        table.add_row(*row)
    console.print(table)
    for line in words(results):
        console.print(line, soft_wrap=True, highlight=False)
    write_report(results, pathlib.Path(config.out))
    console.print(f"report.html, its figures and results.json are in {config.out}", soft_wrap=True, highlight=False)


def _seed_by_seed(run, where: str):
    """run(tick) under a progress bar; says how many seeds are kept, and where, if it is interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    done = 0
    try:
        with _progress() as tick:

            def count(seed: int, what: str, at: int, of: int) -> None:
                nonlocal done
                done = seed
                tick(f"seed {seed}: {what}", at, of)

            return run(count)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; kept {f'{done} {where}' if done else 'nothing'}") from None


def _sweep(options: dict, grid: dict) -> None:
    from .experiments.config import Config
    from .experiments.sweep import baseline_rows, best_rows
    from .experiments.sweep import sweep as run

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _progress() as tick:
            results = run(Config(**options), grid, lambda seed, *state: tick(f"seed {seed}: {state[0]}", *state[1:]))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on from {options['out']}/sweep.json") from None
    console = Console()
    for title, lines in (("settings, best first", best_rows(results)), ("beside them", baseline_rows(results))):
        table = Table(title, "validation loss", "test loss", "against the mean of the recorded, test")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print(f"sweep.json is in {options['out']}", soft_wrap=True, highlight=False)


def _phases(options: dict, phases: int, rest: int, line: float | None) -> None:
    from .experiments.config import Config
    from .experiments.phases import comparisons, rows
    from .experiments.phases import run_phases as run

    config, console = Config(**options).checked(), Console()
    where = f"of {config.seeds} seeds in {config.out}/phases.json"
    results = _seed_by_seed(lambda tick: run(config, phases, rest, line, tick), where)
    table = Table("", "gradients", "seconds", "test loss", "of the moving average")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    for held, found in comparisons(results).items():
        console.print(f"{held}: Koopman ends {found}", soft_wrap=True, highlight=False)
    console.print(f"phases.png and phases.json are in {options['out']}", soft_wrap=True, highlight=False)


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
    from .profile.profiling import Config, parse_sizes
    from .profile.profiling import profile as run
    from .profile.table import show

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
