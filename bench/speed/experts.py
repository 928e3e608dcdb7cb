"""What an expert would write in PyTorch: float64 Gram matrices, batched Cholesky or eigh, and the reconstruction.

Tall blocks (n > m): G = F^T F (m x m), w = Fp G^+ F^T x. Wide ones: C = F F^T (n x n), w = Fp F^T C^+ x. Each comes
as one batch, under torch.compile, and in chunks that stay in cache, which spares the whole batch's way to memory
and back in float64 and is about twice as fast.
"""

from __future__ import annotations

import torch

# float64 bytes of a chunk's snapshots: around a core's L2, all L2, a share of L3
CHUNKS = {"1 MiB": 1 << 20, "4 MiB": 1 << 22, "16 MiB": 1 << 24}


def _double(X):
    """(B, m+1, n) float64, each block's snapshots together: rows of a product that BLAS likes."""
    return X.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format)


def _scalars(X):
    """K of a single weight is a number: Fp F^T / F F^T."""
    F, Fp = X[:-1, :, 0].double(), X[1:, :, 0].double()
    return ((F * Fp).sum(0) / (F * F).sum(0) * Fp[-1]).float()[:, None]


def cholesky(problem, powered):
    """For full rank: one factorisation, no cutoff. A block that is not positive definite comes out as NaN or wrong."""

    def tall(Y):
        S = torch.bmm(Y[:, :-1], Y.mT)
        L, _ = torch.linalg.cholesky_ex(S[:, :, :-1])
        if problem.steps == 1:
            c = torch.cholesky_solve(S[:, :, -1:], L)
        else:
            M = torch.cholesky_solve(S[:, :, 1:], L)
            c = powered(M, M[:, :, -1:], problem.steps - 1)
        return torch.bmm(c.mT, Y[:, 1:])[:, 0]

    def wide(Y):
        F = Y[:, :-1]
        L, _ = torch.linalg.cholesky_ex(torch.bmm(F.mT, F))
        c = torch.bmm(F, torch.cholesky_solve(Y[:, -1, :, None], L))
        return torch.bmm(c.mT, Y[:, 1:])[:, 0]

    def run(X):
        columns, _, n = X.shape
        return _scalars(X) if n == 1 else (tall if n >= columns else wide)(_double(X)).float()

    return run


def _eigh(G, cutoff: float):
    """Eigenvectors, and the inverses of the eigenvalues that count (zero for those that do not)."""
    values, V = torch.linalg.eigh(G)
    return V, torch.where(values > cutoff**2 * values[:, -1:], 1.0 / values, 0.0)


def rank_aware(problem, powered):
    """For any rank: the eigenvalues above cutoff^2 times the largest count."""

    def tall(Y):
        S = torch.bmm(Y[:, :-1], Y.mT)
        V, inverse = _eigh(S[:, :, :-1], problem.cutoff)
        right = S[:, :, -1:] if problem.steps == 1 else S[:, :, 1:]
        c = torch.bmm(V, inverse[:, :, None] * torch.bmm(V.mT, right))
        if problem.steps > 1:
            c = powered(c, c[:, :, -1:], problem.steps - 1)
        return torch.bmm(c.mT, Y[:, 1:])[:, 0]

    def wide(Y):
        F = Y[:, :-1]
        V, inverse = _eigh(torch.bmm(F.mT, F), problem.cutoff)
        u = torch.bmm(V, inverse[:, :, None] * torch.bmm(V.mT, Y[:, -1, :, None]))
        return torch.bmm(torch.bmm(F, u).mT, Y[:, 1:])[:, 0]

    def reduced(Y):
        """Many steps of wide blocks: K in the coordinates of the eigenvectors that count in any block."""
        F, Fp = Y[:, :-1], Y[:, 1:]
        V, inverse = _eigh(torch.bmm(F.mT, F), problem.cutoff)
        r = int((inverse > 0).sum(dim=1).max())
        V, inverse = V[:, :, -r:], inverse[:, -r:]
        L = torch.bmm(Fp.mT, torch.bmm(F, V * inverse[:, None]))
        A, y = torch.bmm(V.mT, L), torch.bmm(V.mT, Y[:, -1, :, None])
        if not problem.states:
            return torch.bmm(L, powered(A, y, problem.steps - 1))[:, :, 0]
        coordinates = [y]
        for _ in range(problem.steps - 1):
            coordinates.append(torch.bmm(A, coordinates[-1]))
        return torch.bmm(torch.cat(coordinates, dim=2).mT, L.mT).transpose(0, 1)

    def run(X):
        columns, _, n = X.shape
        if n == 1:
            return _scalars(X)
        how = tall if n >= columns else wide if problem.steps == 1 else reduced
        return how(_double(X)).float()

    return run


def forget_compiled() -> None:
    """Let torch.compile begin anew: after eight shapes of a function it gives up, and later cases' experts with it."""
    torch.compiler.reset()


def _in_chunks(make, size: int, compiled: bool = False):
    """The same, a few blocks at a time, out of a float64 buffer that stays in cache."""

    def chunked(problem, powered):
        run = make(problem, powered)
        run = torch.compile(run, dynamic=False) if compiled else run

        def chunks(X):
            columns, B, n = X.shape
            step = max(1, size // (8 * columns * n))
            out = torch.empty(B, n)
            for start in range(0, B, step):
                out[start : start + step] = run(X[:, start : start + step])
            return out

        return chunks

    return chunked


def contenders(powered):
    """(name, kind, variants) of every expert; `powered` applies a power of a matrix."""
    for name, make in (("expert", cholesky), ("rank-aware", rank_aware)):

        def bind(make):
            return lambda problem: make(problem, powered)

        def compiled(problem, make=make):
            return torch.compile(make(problem, powered), dynamic=False)

        yield name, name, {"": bind(make)}
        yield f"{name} compiled", name, {"": compiled}
        yield f"{name} in chunks", name, {size: bind(_in_chunks(make, b)) for size, b in CHUNKS.items()}
