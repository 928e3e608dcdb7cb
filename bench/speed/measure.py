"""How a case is measured: contenders, interleaved rounds, and errors against a float64 SVD of the same data.

Every round runs every contender once, in rotating order, so that a machine whose speed drifts treats all alike. A
contender that is too slow for all blocks gets an evenly spread part of them, and one whose call takes seconds fewer
rounds; both are told in the results. Times are per block.
"""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import sleep

import numpy as np

import fastkoop
from bench.gpu.peers import gpu_peers
from fastkoop import cutoff as rules
from fastkoop.kernels.plan import KERNEL_ORDER
from fastkoop.profile.devices import Gpu, Host

from . import data
from .cases import Case
from .peers import PEERS, Peer, Problem

PUBLIC = "fastkoop, public call"
SVD_PEER = "torch pinv"  # a float32 SVD: numpy.linalg.pinv works in float64 and rounds
CALL_SECONDS = 0.12  # a library peer gets as many blocks as fit into this
PAUSE = 0.01  # between contenders: the threads of the one before spin a while before they sleep
TRIAL_BLOCKS = 16
ERROR_BLOCKS, ERROR_BLOCKS_LARGE = 64, 8
EPS32 = float(np.finfo(np.float32).eps)


@dataclass
class Contender:
    """One side of a comparison, ready to run: a call for every batch it is given."""

    name: str
    kind: str
    calls: list[Callable]
    blocks: int  # in all calls together
    groups: int  # calls whose results belong to the first rotation
    timer: Callable  # calls a function and tells the seconds it took
    order: list[np.ndarray] | None = None  # which blocks those are; None: all
    variant: str = ""
    compiles: bool = False
    first_seconds: float | None = None  # of its first call, which compiles
    rounds: int = 0
    call_seconds: float = 0.0
    error: dict | None = None
    witness: Contender | None = None  # the same on enough blocks to take errors of, where it is given fewer
    seconds: list[list[float]] = field(default_factory=list)  # per block, of every round of every repeat

    def run(self) -> tuple[float, list]:
        """Seconds for all calls, and the results of the first rotation."""
        results = []

        def every() -> None:
            for i, call in enumerate(self.calls):
                result = call()
                if i < self.groups:
                    results.append(result)

        return self.timer(every), results


@functools.cache
def spread_order(blocks: int) -> np.ndarray:
    """A permutation of range(blocks) with every beginning of it spread evenly: bits reversed.

    >>> spread_order(6)
    array([0, 4, 2, 1, 5, 3])
    """
    bits = max(1, (blocks - 1).bit_length())
    reversed_bits = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return np.array([i for i in reversed_bits if i < blocks])


def rotations(case: Case, device: Host | Gpu, blocks: int | None = None) -> list[list]:
    """The case's batches on a device, and others like them where they would stay in cache."""
    batches = batches_on(case, device, blocks)
    size = sum(X.nbytes for X in batches)
    more = 0 if case.real else min(255, -(-device.rotate_bytes // size) - 1)
    return [batches, *(batches_on(case, device, blocks, seed) for seed in range(1, more + 1))]


def batches_on(case: Case, device: Host | Gpu, blocks: int | None = None, seed: int = 0) -> list:
    """The case's batches; on a GPU the blocks of a CPU's batch over and over, until there are enough."""
    if device.name == "cpu":
        return data.make(case, blocks, seed=seed)
    wanted = blocks or case.gpu_blocks or case.blocks
    made = min(case.blocks, wanted)
    batches = []
    for X in data.make(case, made, seed=seed):
        few = device.put(np.ascontiguousarray(X))
        batches.append(device.xp.take(few, device.xp.arange(X.shape[1] * wanted // made) % X.shape[1], axis=1))
    return batches


def problem(case: Case, X) -> Problem:
    """What peers are asked, with the cutoff as a number."""
    kind, value = rules.resolve(case.cutoff, X.shape[2], len(X) - 1, X.dtype)
    assert kind == "relative"
    return Problem(value, case.steps, case.result == "states")


def contract_call(case: Case, X, device: Gpu) -> Callable:
    """FastKoop's kernels for a batch on a GPU, as the public call has them once it has looked at its arguments."""
    kernels, rule = device.kernels, rules.resolve(case.cutoff, X.shape[2], len(X) - 1, X.dtype)
    if case.result == "states":
        steps = np.arange(1, case.steps + 1)
        return lambda: kernels.reconstruct(X, kernels.evolve(kernels.fit(X, rule), steps))
    return lambda: kernels.predict(X, case.steps, rule)[0]


def fastkoop_call(case: Case, X: np.ndarray, time_axis: int = 0) -> Callable:
    """FastKoop's public call for a batch."""
    if case.result == "states":
        steps = range(1, case.steps + 1)
        return lambda: np.moveaxis(fastkoop.fit(X, cutoff=case.cutoff, time_axis=time_axis).predict(steps), -1, 0)
    return lambda: fastkoop.predict(X, case.steps, cutoff=case.cutoff, time_axis=time_axis)


def contenders(
    case: Case, turns: list[list], device: Host | Gpu, say=lambda _: None, without: Sequence[str] = ()
) -> tuple[list[Contender], dict[str, str]]:
    """FastKoop and the case's peers, warmed up, each with its blocks and its variant chosen; and who is absent, why.

    without: words; peers and variants that have one of them in their names are left out.
    """
    entrants: list[Contender] = []
    names, peers = (case.peers, PEERS) if device.name == "cpu" else (case.gpu_peers, gpu_peers(device))
    asked = {name: _variants(peers[name], without) for name in names}
    absent = {name: "left out" for name, peer in asked.items() if not peer.variants}
    others = {name: functools.partial(_ready, case, asked[name], turns, device) for name in names if name not in absent}
    for name, make in {**_forms(case, turns, device), **others}.items():
        say(name)
        try:
            entrants.append(make())
        except (ImportError, MemoryError, RuntimeError) as error:  # no jax, no compiler for torch.compile, no room
            if not entrants:
                raise  # FastKoop itself
            absent[name] = why(error)
            device.release()
    return entrants, absent


def _variants(peer: Peer, without: Sequence[str]) -> Peer:
    """The peer with the variants that may run."""

    def asked(variant: str) -> bool:
        return not any(word in f"{peer.name} {variant}" for word in without)

    return replace(peer, variants={name: make for name, make in peer.variants.items() if asked(name)})


def why(error: Exception) -> str:
    """What a result says of a peer that failed: its error's first line, without paths."""
    text = re.sub(r"/\S*", "(path)", f"{type(error).__name__}: {error}".partition("\n")[0])
    return f"out of memory ({text})" if re.search("out ?of ?memory|RESOURCE_EXHAUSTED", text, re.I) else text


def _forms(case: Case, turns: list[list], device: Host | Gpu) -> dict[str, Callable[[], Contender]]:
    """FastKoop itself, in every form it is measured in."""
    every, groups = [X for turn in turns for X in turn], len(turns[0])
    blocks = sum(X.shape[1] for X in every)

    def warm(name: str, calls: list[Callable]) -> Contender:
        one = Contender(name, "fastkoop", calls, blocks, groups, device.timer)
        one.first_seconds, _ = one.run()
        one.call_seconds, _ = one.run()
        return one

    def time_last() -> Contender:
        copies = [np.ascontiguousarray(X.transpose(1, 2, 0)) for X in every]
        return warm("fastkoop, time last", [fastkoop_call(case, X, -1) for X in copies])

    def in_a_graph() -> Contender:
        calls = [device.captured(contract_call(case, X, device)) for X in every]
        return warm("fastkoop in a graph", calls)

    if device.name != "cpu":
        forms = {"fastkoop": lambda: warm("fastkoop", [contract_call(case, X, device) for X in every])}
        if device.public:
            forms[PUBLIC] = lambda: warm(PUBLIC, [fastkoop_call(case, X) for X in every])
        if all(device.plan(X.shape[2], case.m, X.dtype).engine == "kernel" for X in turns[0]):
            forms["fastkoop in a graph"] = in_a_graph  # the libraries of larger blocks wait for the device
        return forms
    plain = {"fastkoop": lambda: warm("fastkoop", [fastkoop_call(case, X) for X in every])}
    return {**plain, "fastkoop, time last": time_last} if case.time_last else plain


def _ready(case: Case, peer: Peer, turns: list[list], device: Host | Gpu) -> Contender:
    """A peer with its variant, its blocks and its rounds chosen, compiled and warm."""
    total = sum(X.shape[1] for X in turns[0])
    if peer.kind == "report":  # half a minute a call: warmed up, and compiled, on a node of every size
        node, ready = (_contender(case, peer, "", turns, share, device) for share in (1 / total, 1.0))
        _warm(node)
        ready.first_seconds, ready.call_seconds = node.first_seconds, node.call_seconds * total
        return ready
    whole = peer.kind not in ("library", "shown") or (case.steps > 1 and case.real)
    large = min(turns[0][0].shape[2], case.m) > KERNEL_ORDER
    # looping, or holding back threads, is no use to blocks that take seconds: only the last variant is tried
    variants = list(peer.variants)[-1:] if large and not whole else list(peer.variants)
    turned, share = (turns, 1.0) if whole else (turns[:1], min(1.0, (1 if large else TRIAL_BLOCKS) / total))
    trials = _tried([lambda v=v: _contender(case, peer, v, turned, share, device) for v in variants])
    best = min(trials, key=lambda one: one.call_seconds)
    if whole:
        return best
    allowed = CALL_SECONDS / (best.call_seconds / best.blocks)
    turned = turns[: max(1, int(allowed / total))]
    if allowed > best.blocks and not (share == 1.0 and len(turned) == 1):
        ready = _contender(case, peer, best.variant, turned, min(1.0, allowed / total), device)
        _warm(ready)
    else:
        ready = best
    if ready.order is not None and any(
        len(chosen) < min(X.shape[1], error_blocks(X)) for chosen, X in zip(ready.order, turns[0], strict=True)
    ):
        needed = max(min(1.0, (error_blocks(X) + 0.5) / X.shape[1]) for X in turns[0])
        ready.witness = _contender(case, peer, best.variant, turns[:1], needed, device)
    return ready


def _tried(makers: list[Callable[[], Contender]]) -> list[Contender]:
    """The variants that run, warm; the last one's error if none does."""
    ready, failed = [], None
    for make in makers:
        try:
            one = make()
            _warm(one)
        except (MemoryError, RuntimeError) as error:
            failed = error
        else:
            ready.append(one)
    if failed is not None and not ready:
        raise failed
    return ready


def error_blocks(X: np.ndarray) -> int:
    """How many of a batch's blocks errors are taken of."""
    return ERROR_BLOCKS if min(X.shape[2], len(X) - 1) <= KERNEL_ORDER else ERROR_BLOCKS_LARGE


def _warm(one: Contender) -> None:
    """Run a few times: the first call compiles; one of seconds that does not is warm enough after it."""
    one.first_seconds, _ = one.run()
    one.call_seconds = one.first_seconds
    if one.compiles or one.first_seconds < 1.0:
        one.call_seconds = min(one.run()[0] for _ in range(2))


def _contender(case: Case, peer: Peer, variant: str, turns, share: float, device: Host | Gpu) -> Contender:
    """A peer on the first `share` of every batch's blocks in spread order."""
    calls, blocks, order = [], 0, []
    for turn, batches in enumerate(turns):
        for X in batches:
            run = peer.variants[variant](problem(case, X))
            chosen = spread_order(X.shape[1])[: max(1, int(share * X.shape[1]))]
            part = X if share >= 1.0 else device.xp.ascontiguousarray(X[:, device.put(chosen)])
            calls.append(_bound(run, peer.take(part)))
            blocks += part.shape[1]
            if turn == 0:
                order.append(chosen if share < 1.0 else None)
    kept, timer = None if share >= 1.0 else order, device.waiting_timer if peer.waits else device.timer
    return Contender(peer.name, peer.kind, calls, blocks, len(turns[0]), timer, kept, variant, peer.compiles)


def _bound(run: Callable, X) -> Callable:
    return lambda: run(X)


def share_of_rounds(seconds: float, rounds: int) -> int:
    """How many of the rounds a contender runs in, by what a call of it takes."""
    if seconds > 4.0:
        return 1
    return rounds if seconds <= 1.0 else min(rounds, max(3, rounds // 3))


def run_rounds(entrants: list[Contender], rounds: int, judge: Judge) -> None:
    """One repeat: every round runs every contender once, the next one first; each is judged once."""
    for one in entrants:
        if one.witness is not None and one.error is None:
            judge(one.witness, one.witness.run()[1])
            one.error = one.witness.error
        one.rounds = share_of_rounds(one.call_seconds, rounds)
        one.seconds.append([])
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            first = i % len(entrants)
            for one in entrants[first:] + entrants[:first]:
                if (i + 1) * one.rounds // rounds == i * one.rounds // rounds:
                    continue
                sleep(PAUSE)
                seconds, results = one.run()
                one.seconds[-1].append(seconds / one.blocks)
                if one.error is None:
                    judge(one, results)
                del results  # before the next one allocates its own
    finally:
        gc.enable()


class Judge:
    """Errors of a case's contenders, on the same few blocks of every batch."""

    def __init__(self, case: Case, batches: list, device: Host | Gpu):
        self.case, self.batches, self.device = case, batches, device
        self._truth: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._data = (case.data, case.m, batches[0].shape) if case.real else None

    def __call__(self, one: Contender, results: list) -> None:
        """Put the median and largest error of the results into one.error."""
        errors, dead = [], []
        for group, (X, result) in enumerate(zip(self.batches, results, strict=True)):
            states = in_host_memory(result)
            states = states[-1] if states.ndim == 3 else states
            for b in spread_order(X.shape[1])[: error_blocks(X)]:
                row = b
                if one.order is not None:
                    found = np.flatnonzero(one.order[group] == b)
                    if not found.size:
                        break  # beginnings of one order: the rest is missing too
                    row = found[0]
                error, alive = self._error(group, int(b), states[row])
                (errors if alive else dead).append(error)
        one.error = {
            "median": float(np.median(errors)) if errors else None,
            "max": float(np.max(errors)) if errors else None,
            "blocks": len(errors),
            "dead_blocks": len(dead),
            "dead_max": float(np.max(dead)) if dead else None,
        }

    def _error(self, group: int, b: int, state: np.ndarray) -> tuple[float, bool]:
        """||w - ref|| / ||ref - x_last||; of a dead block over ||ref||, and False.

        A block is dead if its prediction is its last snapshot within the data's rounding (a ReLU unit that never
        fires): no displacement there to measure an error by.
        """
        X = self.batches[group]
        if (group, b) not in self._truth:
            block = self.device.host(X[:, b]).T
            key = self._data and (*self._data, group, b)
            expected = truth(block, svd(block, key), self.case.steps, problem(self.case, X).cutoff)
            self._truth[group, b] = expected, block[:, -1].astype(np.float64)
        ref, last = self._truth[group, b]
        miss, moved = np.linalg.norm(state - ref), np.linalg.norm(ref - last)
        size = np.linalg.norm(ref)
        if moved > EPS32 * max(size, np.linalg.norm(last)):
            return float(miss / moved), True
        return float(miss / size) if size else float(miss), False


def in_host_memory(result) -> np.ndarray:
    """Any library's array as NumPy's."""
    if hasattr(result, "get"):  # CuPy
        return result.get()
    return np.asarray(result.cpu() if hasattr(result, "cpu") else result)  # PyTorch; JAX and NumPy


_known: dict[tuple, tuple] = {}


def svd(X: np.ndarray, key: tuple | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, s, V^T of F, a block's snapshots (n, m+1) but the last, in float64.

    Those of a recording take many seconds and serve several cases (cutoffs) in a row: kept under `key` until data
    of another sort come along.
    """
    if key not in _known:
        if any(known[:-2] != (key and key[:-2]) for known in _known):
            _known.clear()
        factors = np.linalg.svd(X[:, :-1].astype(np.float64), full_matrices=False)
        if key is None:
            return factors
        _known[key] = factors
    return _known[key]


def truth(X: np.ndarray, factors: tuple, steps: int, cutoff: float) -> np.ndarray:
    """K^steps x_last of one block (n, m+1) by its float64 SVD, in the coordinates of the vectors that count."""
    U, s, Vt = factors
    r = int((s > cutoff * s[0]).sum())
    U, coefficients = U[:, :r], Vt[:r].T / s[:r]
    Fp, y = X[:, 1:].astype(np.float64), U.T @ X[:, -1].astype(np.float64)
    readout = Fp @ coefficients
    A = U.T @ readout
    for _ in range(steps - 1):
        y = A @ y
    return readout @ y
