"""What FastKoop is measured against on a GPU: the library routines a user would call, and what an expert would write.

As in speed/peers.py, with batches (m+1, B, n) in device memory. The experts are those of speed/experts.py, which run
wherever their tensors are; here they also come as CUDA graphs, and the rank-aware one in CuPy. A library that a machine
lacks raises ImportError, what a device cannot do RuntimeError: the benchmark leaves that peer out and says why.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.speed import experts
from bench.speed.peers import Peer, Problem, jax_pinv, powered, through, torch_lstsq, torch_pinv
from fastkoop.profile.devices import Gpu


def gpu_peers(device: Gpu) -> dict[str, Peer]:
    """All of them, by name, for arrays of one device."""
    cupy = {"take": lambda X: X}
    tensors = {"take": torch.from_dlpack}
    made = [
        Peer("cupy pinv", "library", {"": lambda problem: _cupy_pinv(device.xp, problem)}, **cupy),
        Peer("torch pinv", "library", {"": torch_pinv}, **tensors),
        Peer("torch gesvda", "library", {"": _torch_gesvda}, **tensors),
        Peer("torch gels", "shown", {"": lambda problem: torch_lstsq("gels", problem)}, **tensors),
        Peer("jax pinv", "library", {"": jax_pinv}, take=_jax_array, compiles=True, waits=True),
        Peer("cupy rank-aware", "rank-aware", {"": lambda problem: _cupy_rank_aware(device.xp, problem)}, **cupy),
        Peer(
            "cupy rank-aware in a graph",
            "rank-aware",
            {"": lambda problem: _replayed(_cupy_rank_aware(device.xp, problem), device.captured)},
            **cupy,
        ),
    ]
    for name, make in (("expert", experts.cholesky), ("rank-aware", experts.rank_aware)):

        def eager(problem: Problem, make=make):
            return make(problem, powered)

        def compiled(problem: Problem, make=make):
            _needs_cuda("torch.compile is tried on a CUDA device alone")
            return torch.compile(make(problem, powered), dynamic=False)

        made.append(Peer(name, name, {"": eager}, **tensors))
        made.append(Peer(f"{name} compiled", name, {"": compiled}, compiles=True, **tensors))
        forms = {"eager": eager, "compiled": compiled} if name == "expert" else {"": _no_capture}
        graphs = {form: _in_a_torch_graph(one) for form, one in forms.items()}
        made.append(Peer(f"{name} in a graph", name, graphs, compiles=True, **tensors))
    return {peer.name: peer for peer in made}


def _needs_cuda(why: str) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(why)


def _no_capture(problem: Problem):
    raise RuntimeError("torch.linalg.eigh waits for the device, which a capture forbids")


def _cupy_pinv(xp, problem: Problem):
    def run(X):
        blocks = X.transpose(1, 2, 0)
        F, Fp, x = blocks[..., :-1], blocks[..., 1:], blocks[..., -1:]
        return through(F, Fp, x, xp.linalg.pinv(F, rcond=problem.cutoff), problem, xp.stack)

    return run


def _torch_gesvda(problem: Problem):
    """The truncated pseudo-inverse from cuSOLVER's approximate SVD for tall batches."""
    _needs_cuda("driver gesvda is cuSOLVER's")

    def run(X):
        blocks = X.permute(1, 2, 0)
        F, Fp, x = blocks[..., :-1], blocks[..., 1:], blocks[..., -1:]
        U, s, Vh = torch.linalg.svd(F, full_matrices=False, driver="gesvda")
        inverse = torch.where(s > problem.cutoff * s[..., :1], 1.0 / s, 0.0)
        return through(F, Fp, x, (Vh.mT * inverse[..., None, :]) @ U.mT, problem, torch.stack)

    return run


def _jax_array(X):
    import jax

    return jax.dlpack.from_dlpack(X)


def _cupy_rank_aware(xp, problem: Problem):
    """experts.rank_aware in CuPy, for the last state alone."""
    if problem.states:
        raise RuntimeError("all states are made by the other rank-aware expert")

    def pseudo_solve(G, right):
        values, V = xp.linalg.eigh(G)
        inverse = xp.where(values > problem.cutoff**2 * values[:, -1:], 1.0 / values, 0.0)
        return V @ (inverse[:, :, None] * (V.swapaxes(1, 2) @ right))

    def run(X):
        columns, _, n = X.shape
        Y = xp.ascontiguousarray(X.transpose(1, 0, 2).astype(xp.float64))
        F, Fp, x = Y[:, :-1], Y[:, 1:], Y[:, -1, :, None]
        if n >= columns:
            S = F @ Y.swapaxes(1, 2)
            c = pseudo_solve(S[:, :, :-1], S[:, :, -1:] if problem.steps == 1 else S[:, :, 1:])
            c = c if problem.steps == 1 else powered(c, c[:, :, -1:], problem.steps - 1)
        elif problem.steps == 1:
            c = F @ pseudo_solve(F.swapaxes(1, 2) @ F, x)
        else:
            K = Fp.swapaxes(1, 2) @ (F @ pseudo_solve(F.swapaxes(1, 2) @ F, xp.tile(xp.eye(n), (len(F), 1, 1))))
            return powered(K, x, problem.steps)[:, :, 0].astype(X.dtype)
        return (c.swapaxes(1, 2) @ Fp)[:, 0].astype(X.dtype)

    return run


def _replayed(run: Callable, capture: Callable) -> Callable:
    """The same, each batch captured as a CUDA graph when it is first seen and replayed from then on."""
    graphs: dict[int, Callable] = {}

    def replay(X):
        if id(X) not in graphs:
            graphs[id(X)] = capture(lambda: run(X))
        return graphs[id(X)]()

    return replay


def _in_a_torch_graph(make):
    def captured(problem: Problem):
        _needs_cuda("there are no CUDA graphs without a CUDA device")
        return _replayed(make(problem), capture_torch)

    return captured


def capture_torch(function: Callable) -> Callable:
    """The call as a CUDA graph of PyTorch's: a function that replays it and returns the tensors it fills."""
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lets libraries take their workspaces
            function()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError:
        torch.cuda.set_stream(current)  # a capture that failed leaves its own stream behind
        raise

    def replay():
        graph.replay()
        return result

    return replay
