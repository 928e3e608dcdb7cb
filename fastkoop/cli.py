"""The command line: fastkoop compare | sweep | phases | report | spectra | profile | warmup | info.

Errors are one sentence; exit 0 done, 2 bad input, 1 anything else.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

from .checks import InputError, integer
from .options import parse

try:
    import typer

    from .console import console, one_sentence, progress, say
except ImportError as missing:  # a core-only installation
    sys.exit(f'fastkoop: the command line needs {missing.name}; pip install "fastkoop[mnist]"')

app = typer.Typer(
    name="fastkoop",
    help="Koopman operators over neural-network weight trajectories, at hardware speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: brackets in help and errors are brackets, and any encoding can say it
)
OF_A_PHASE = ("cutoff", "observables", "stabilize", "out_of_span", "window", "every")
GRID_NAMES = ("partition", "cutoff", "stabilize", "window", "observables", "out_of_span")

Problem = Annotated[str | None, typer.Option(
    "--problem", "--dataset",
    help="digits, softmax, mnist, oscillator, FILE.py:NAME or MODULE:NAME. Without any option: digits, then softmax.",
)]  # fmt: skip
DataDir = Annotated[
    str | None, typer.Option(help="Folder with the MNIST IDX files; else $FASTKOOP_DATA_DIR, cache, download.")
]
Partition = Annotated[str | None, typer.Option(help="weight, quasi-node, node, layer or network.")]
Q = Annotated[int | None, typer.Option(help="Weights in a quasi-node.")]
T1 = Annotated[str | None, typer.Option("--t1", help="Epochs before recording; or iterations, as 500it.")]
T2 = Annotated[str | None, typer.Option("--t2", help="Epoch that recording ends at; or iterations.")]
T = Annotated[str | None, typer.Option("--T", help="Epochs both sides then run for; or iterations.")]
Optimizer = Annotated[str | None, typer.Option(help="adadelta, adam, adagrad, sgd or momentum; else the problem's.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate; the optimizer's usual one if not given.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in a mini-batch (64).")]
Cutoff = Annotated[
    str | None, typer.Option(help="array_api, matlab, numpy, jax, svht, a number, rank:K or energy:SHARE.")
]
Stabilize = Annotated[
    str | None, typer.Option(help="none, clip, a radius that eigenvalues are clipped to, or project.")
]
Observables = Annotated[
    str | None, typer.Option(help="identity, or of affine, delay:D, momentum, several with commas between.")
]
Window = Annotated[int | None, typer.Option(help="Record means of WINDOW iterates instead of single ones.")]
OutOfSpan = Annotated[str | None, typer.Option(help="drop or carry what the snapshots do not span.")]
Every = Annotated[int | None, typer.Option(help="Record each EVERY-th iteration.")]
Preset = Annotated[
    str | None, typer.Option(help="published, noisy or smooth: the phase's options that are not given one by one.")
]
Horizon = Annotated[
    str | None, typer.Option(help="auto: jump as far as validation images like best; else the whole phase.")
]
Validation = Annotated[int | None, typer.Option(help="Images taken out of the training set to choose by.")]
Seeds = Annotated[int | None, typer.Option(help="Run seeds 0 .. SEEDS-1.")]
EvalEvery = Annotated[
    int | None, typer.Option(help="Evaluate each EVAL_EVERY-th iteration; with --every, where both fall.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Grid = Annotated[
    str | None, typer.Option(help="partition=node,layer;cutoff=jax,1e-2;stabilize=none,clip;window=1,10 ...")
]
Rest = Annotated[int | None, typer.Option(help="Epochs to train on after each phase.")]
Line = Annotated[
    float | None, typer.Option(help="A third run whose jumps go LINE epochs along the line through its recording.")
]
Old = {"hidden": True}


def parse_grid(text: str) -> dict:
    """A sweep's grid as written on the command line, name=value,value;name=... ; observables are joined by +."""
    grid = {}
    for part in filter(None, text.split(";")):
        name, _, values = part.strip().partition("=")
        if name not in GRID_NAMES or not values:
            raise InputError(
                f"grid: expected NAME=VALUE,VALUE with names of {', '.join(GRID_NAMES)}, and ; between, got {part!r}"
            )
        read = str.strip if name == "partition" else lambda value, name=name: parse(name, value)
        grid[name] = [read(value) for value in values.split(",")]
    return grid


def bare(error_code: int) -> typer.Exit:
    """The exception that ends the process with a code."""
    return typer.Exit(error_code)


def sentences():
    """Errors of a command as one sentence."""
    return one_sentence(bare, (typer.Exit, typer.Abort))


def _config(options: dict[str, Any], out: str):
    """The options that were given, as a checked config; what is None was not."""
    from .experiments.config import Config

    given = {name: value for name, value in options.items() if value is not None}
    chosen = {name: _parsed(name, given.pop(name)) for name in OF_A_PHASE if name in given}
    return Config(**given, out=out, chosen=chosen).checked()


def _parsed(name: str, value):
    return parse(name, value) if isinstance(value, str) else value


@app.command()
def compare(
    problem: Problem = None, data_dir: DataDir = None, partition: Partition = None, q: Q = None, t1: T1 = None,
    t2: T2 = None, epochs: T = None, optimizer: Optimizer = None, lr: Lr = None, batch_size: BatchSize = None,
    preset: Preset = None, cutoff: Cutoff = None, stabilize: Stabilize = None, observables: Observables = None,
    window: Window = None, out_of_span: OutOfSpan = None, every: Every = None, horizon: Horizon = None,
    validation: Validation = None, seeds: Seeds = None, eval_every: EvalEvery = None, device: Device = None,
    budget: Annotated[float | None, typer.Option(help="Seconds it may take; epochs and evaluations shrink.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and train nothing.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Print every baseline, all costs and words.")] = False,
    save: Annotated[bool, typer.Option("--save-spectra", help="Write spectra.npz, for fastkoop spectra.")] = False,
    out: Annotated[str, typer.Option(help="Folder for results.json, report.html and figures.")] = "fastkoop-compare",
    recommended: Annotated[bool, typer.Option("--recommended", **Old)] = False,
    sweep_old: Annotated[bool, typer.Option("--sweep", **Old)] = False,
    grid: Annotated[str | None, typer.Option(**Old)] = None,
    phases_old: Annotated[int | None, typer.Option("--phases", **Old)] = None,
    rest: Annotated[int | None, typer.Option(**Old)] = None,
    line: Annotated[float | None, typer.Option(**Old)] = None,
) -> None:  # fmt: skip
    """Train, record, then run the optimizer and the Koopman operator side by side."""
    options = dict(locals())
    with sentences():
        old = {name: options.pop(name) for name in ("sweep_old", "grid", "phases_old", "rest", "line", "recommended")}
        settings = {name: options.pop(name) for name in ("out", "details", "dry_run", "save")}
        options["T"] = options.pop("epochs")
        if old["recommended"]:
            _warn("--recommended", "--preset noisy")
            if options["preset"] not in (None, "noisy"):
                raise InputError(f"recommended: it is --preset noisy, got --preset {options['preset']} beside it")
            options["preset"] = "noisy"
        if not _former(options, old, settings["out"]):
            _compare(options, **settings)


def _former(options: dict, old: dict, out: str) -> bool:
    """The jobs that were options of compare, under a warning; whether there was one to do."""
    sweeping, phases = old["sweep_old"], old["phases_old"]
    if old["grid"] is not None and not sweeping:
        raise InputError("grid: settings for --sweep, which was not asked for")
    if sweeping and phases:
        raise InputError("phases: a sweep tries settings of one phase; leave --phases or --sweep out")
    if old["rest"] and not phases:
        raise InputError("rest: epochs after each of several phases; pass --phases")
    if old["line"] is not None and not phases:
        raise InputError("line: expected epochs >= 0 of the null model's jumps, with --phases")
    if (sweeping or phases) and options["budget"] is not None:
        raise InputError("budget: only one comparison is made to fit; leave --budget out")
    if sweeping:
        if old["recommended"]:
            raise InputError("recommended: a sweep tries settings of its --grid; leave --recommended out")
        for name in (*OF_A_PHASE, "preset", "partition", "horizon", "eval_every"):
            if options[name] is not None:
                raise InputError(
                    f"{name}: a sweep tries settings of its --grid, at the ends of phases; leave "
                    f"--{name.replace('_', '-')} out"
                )
        _warn("compare --sweep", "fastkoop sweep")
        _sweep(options, old["grid"] or "", out)
    elif phases is not None:
        _warn("compare --phases", "fastkoop phases")
        if options["eval_every"] is not None:
            raise InputError("eval_every: several phases are looked at eight times an epoch; leave --eval-every out")
        _phases(options, phases, old["rest"] or 0, old["line"], out)
    return bool(sweeping or phases is not None)


def _warn(old: str, new: str) -> None:
    say(f"fastkoop: {old} is now {new}; the old form goes with the next version", err=True)


def _compare(options: dict, out: str, details: bool, dry_run: bool, save: bool) -> None:
    from pathlib import Path

    from .experiments.compare import compare as run
    from .experiments.terminal import details_lines, summary_lines

    given = any(value is not None for value in options.values())
    jobs = (
        [(options, out)] if given else [(options, out), ({**options, "problem": "softmax"}, str(Path(out) / "softmax"))]
    )
    configs = [_config(*job) for job in jobs]
    if dry_run:
        from .experiments.estimate import dry_run as estimate

        for config in configs:
            say(estimate(config))
        return
    for i, config in enumerate(configs):
        results = _watched(lambda tick, config=config: run(config, tick), config.seeds)
        say([""] * bool(i) + summary_lines(results))
        if details:
            say(["", *details_lines(results)])
        if save:
            from .experiments.recorded_spectra import save_spectra

            save_spectra(config.out)
        say(f"report.html, its figures and results.json are in {config.out}")


def _watched(run: Callable, seeds: int = 1):
    """run(tick) under a progress bar; SIGTERM interrupts it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    with progress(seeds) as tick:
        return run(tick)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


@app.command()
def sweep(
    problem: Problem = None, data_dir: DataDir = None, q: Q = None, t1: T1 = None, t2: T2 = None, epochs: T = None,
    optimizer: Optimizer = None, lr: Lr = None, batch_size: BatchSize = None, validation: Validation = None,
    seeds: Seeds = None, device: Device = None, grid: Grid = None,
    out: Annotated[str, typer.Option(help="Folder for sweep.json; an interrupted sweep goes on.")] = "fastkoop-sweep",
) -> None:  # fmt: skip
    """Try many settings of a phase on the same recordings, chosen on validation images."""
    options = dict(locals())
    with sentences():
        options["T"] = options.pop("epochs")
        del options["out"]
        _sweep(options, options.pop("grid") or "", out)


def _sweep(options: dict, grid: str, out: str) -> None:
    from .experiments.sweep import sweep as run
    from .experiments.terminal import sweep_lines

    config, combinations = _config(options, out), parse_grid(grid)
    try:
        results = _watched(lambda tick: run(config, combinations, tick), config.seeds)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the same command goes on from {out}/sweep.json") from None
    say(sweep_lines(results))
    say(f"sweep.json is in {out}")


@app.command()
def phases(
    count: Annotated[int, typer.Option("--phases", help="Koopman phases in a run.")] = 4,
    rest: Rest = None, line: Line = None, problem: Problem = None, data_dir: DataDir = None,
    partition: Partition = None, q: Q = None, t1: T1 = None, t2: T2 = None, epochs: T = None,
    optimizer: Optimizer = None, lr: Lr = None, batch_size: BatchSize = None, preset: Preset = None,
    cutoff: Cutoff = None, stabilize: Stabilize = None, observables: Observables = None, window: Window = None,
    out_of_span: OutOfSpan = None, every: Every = None, horizon: Horizon = None, validation: Validation = None,
    seeds: Seeds = None, device: Device = None,
    out: Annotated[str, typer.Option(help="Folder for phases.json and phases.png.")] = "fastkoop-phases",
) -> None:  # fmt: skip
    """A whole training run with several phases of record (t2 - t1), jump (T) and rest, against no jumps."""
    options = dict(locals())
    with sentences():
        for name in ("count", "rest", "line", "out"):
            del options[name]
        options["T"] = options.pop("epochs")
        _phases(options, count, rest or 0, line, out)


def _phases(options: dict, count: int, rest: int, line: float | None, out: str) -> None:
    from .experiments.phases import run_phases as run
    from .experiments.terminal import phases_lines

    integer("phases", count, least=1)
    integer("rest", rest, least=0)
    if line is not None and not (math.isfinite(line) and line >= 0):
        raise InputError(f"line: expected epochs >= 0 of the null model's jumps, got {line}")
    config = _config(options, out)
    results = _watched(lambda tick: run(config, count, rest, line, tick), config.seeds)
    say(phases_lines(results))
    say(f"phases.png and phases.json are in {out}")


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="Folder of a comparison, or its results.json.")] = "fastkoop-compare",
    details: Annotated[bool, typer.Option("--details", help="Print every baseline, all costs and words.")] = False,
) -> None:
    """Draw the figures and report.html of a comparison again, from its results.json."""
    with sentences():
        from pathlib import Path

        from .experiments.report import draw_all
        from .experiments.results import Results
        from .experiments.terminal import details_lines, summary_lines

        results = Results.read(folder)
        place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        draw_all(results, place)
        say(summary_lines(results))
        if details:
            say(["", *details_lines(results)])
        say(f"report.html and its figures are in {place}")


@app.command()
def spectra(
    runs: Annotated[list[str], typer.Argument(help="Two or more: .npz files of runs, or folders of comparisons.")],
    rank: Annotated[int, typer.Option(help="Eigenvalues a run; of .npz files that hold snapshots, and folders.")] = 10,
    permutations: Annotated[int, typer.Option(help="Relabellings of the test.")] = 999,
    out: Annotated[str, typer.Option(help="Folder for spectra.json and spectra.png.")] = "fastkoop-spectra",
) -> None:
    """Compare training runs by their eigenvalues: distances, a test against seeds of one kind, a figure."""
    with sentences():
        from .experiments.recorded_spectra import compare_files, lines

        say(lines(compare_files(runs, out, rank, permutations)))
        say(f"spectra.png and spectra.json are in {out}")


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
    options = dict(locals())
    with sentences():
        _profile(options)


def _profile(options: dict) -> None:
    from .profile.profiling import profile as run
    from .profile.request import Request, parse_sizes
    from .profile.table import show

    sizes = options.pop("sizes")
    request = Request(**options, **({} if sizes is None else {"sizes": parse_sizes(sizes)}))
    try:
        results = _watched(lambda tick: run(request, tick))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; kept nothing") from None
    show(results, console())
    say(f"roofline.png and profile.json are in {request.out}")


@app.command()
def warmup(
    everything: Annotated[bool, typer.Option("--all", help="Every kernel, not just those of a first predict.")] = False,
) -> None:
    """Compile kernels ahead, for images and CI, and say how many seconds each took."""
    with sentences():
        from .backends import kernels

        say([f"compiled kernels are kept in {kernels.cache_place() or 'memory only'}"])
        seconds = kernels.warm_up(everything)
        width = max(map(len, seconds))
        say(f"{name.ljust(width)}  {second:7.2f} s" for name, second in seconds.items())


@app.command()
def info() -> None:
    """Say what is installed and which device would be used."""
    with sentences():
        from .machine import describe_machine, kernel_cache, versions

        machine = describe_machine()
        rows = [(name, version or "not installed") for name, version in versions().items()]
        rows += [
            ("python", f"{machine['python']} on {machine['system']}"),
            ("processor", f"{machine['processor']}, {machine['cores']} cores"),
            ("device", f"cpu, {machine['threads']} threads"),
            ("", _cuda()),
            ("kernels", kernel_cache()),
        ]
        width = max(len(name) for name, _ in rows)
        say(f"{name.ljust(width)}  {value}" for name, value in rows)


def _cuda() -> str:
    """The CUDA device that would be used, or why there is none."""
    from .backends import cuda

    try:
        return f"cuda, {cuda().device.name}"
    except InputError as error:
        return f"no cuda: {str(error).removeprefix('device: ')}"


def main() -> None:
    """Entry point of the `fastkoop` command."""
    with contextlib.suppress(BrokenPipeError):
        app()


if __name__ == "__main__":
    main()
