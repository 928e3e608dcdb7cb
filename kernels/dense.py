"""Small dense algebra for one block, in Numba: Cholesky with its certificate, symmetric eigenproblem.

Matrices are float64, row-major, possibly larger than the leading n x n part that is used. Inner loops
run along rows, so that LLVM vectorises them.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import jit, jit_sums

EPS = 2.0**-52
QL_ITERATIONS = 60  # per eigenvalue; 2 is usual
NEGLIGIBLE = 1e-20  # of a matrix's norm: far below eps, and its square far above underflow


@jit_sums
def dot(a, b, n):
    """Sum of a[i] b[i] over i < n."""
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@jit_sums
def axpy(scale, a, b, n):
    """b += scale a over i < n."""
    for i in range(n):
        b[i] += scale * a[i]


@jit
def cholesky(A, n, extra, L):
    """Lower L with A = L L^T for the leading n x n part of A; False if a pivot is not positive.

    `extra` further rows of A below it are carried along as right-hand sides: row n + i of L becomes
    L^-1 times row n + i of A. Only the lower triangle of A is read.
    """
    for i in range(n + extra):
        for j in range(min(i, n)):
            L[i, j] = (A[i, j] - dot(L[i], L[j], j)) / L[j, j]
        if i < n:
            pivot = A[i, i] - dot(L[i], L[i], i)
            if not pivot > 0.0:
                return False
            L[i, i] = math.sqrt(pivot)
    return True


@jit
def solve_upper(L, n, y, c):
    """c with L^T c = y; y is overwritten."""
    for i in range(n - 1, -1, -1):
        c[i] = y[i] / L[i, i]
        axpy(-c[i], L[i], y, i)


@jit
def inverse_norm2(L, n, W):
    """Squared Frobenius norm of L^-1, which is trace((L L^T)^-1) >= 1 / smallest eigenvalue; W is scratch."""
    total = 0.0
    for i in range(n):
        for j in range(i):
            W[i, j] = 0.0
        for k in range(i):
            axpy(L[i, k], W[k], W[i], k + 1)
        inverse = 1.0 / L[i, i]
        for j in range(i):
            W[i, j] *= -inverse
        W[i, i] = inverse
        total += dot(W[i], W[i], i + 1)
    return total


@jit
def tridiagonalize(A, n, d, e, beta, p):
    """Householder: A = Q T Q^T with T = tridiag(e, d, e). Full symmetric A, overwritten by the reflectors.

    Reflector k is I - beta[k] v v^T with v = A[k, k+1:n]; p is scratch.
    (Golub & Van Loan 2013, algorithm 8.3.1, on the full matrix so that every access is along a row.)

    What is negligible counts as zero: after r steps on a matrix of rank r the rest is eps of the norm, then
    eps^2, eps^4, ..., and reflectors made of that would underflow.
    """
    negligible = 0.0
    for i in range(n):
        negligible += dot(A[i], A[i], n)
    negligible *= NEGLIGIBLE * NEGLIGIBLE
    for k in range(n - 2):
        d[k] = A[k, k]
        v = A[k, k + 1 : n]
        size = n - k - 1
        tail = dot(v[1:], v[1:], size - 1)
        if tail <= negligible:
            e[k] = v[0] if v[0] * v[0] > negligible else 0.0
            beta[k] = 0.0
            continue
        alpha = -math.copysign(math.sqrt(v[0] * v[0] + tail), v[0])
        e[k] = alpha
        v[0] -= alpha
        b = 2.0 / (v[0] * v[0] + tail)
        beta[k] = b
        for i in range(size):
            p[i] = b * dot(A[k + 1 + i, k + 1 : n], v, size)
        axpy(-0.5 * b * dot(p, v, size), v, p, size)
        for i in range(size):
            row = A[k + 1 + i, k + 1 : n]
            axpy(-v[i], p, row, size)
            axpy(-p[i], v, row, size)
    if n > 1:
        d[n - 2] = A[n - 2, n - 2]
        last = A[n - 2, n - 1]
        e[n - 2] = last if last * last > negligible else 0.0
        beta[n - 2] = 0.0
    d[n - 1] = A[n - 1, n - 1]
    e[n - 1] = 0.0


@jit
def accumulate(A, n, beta, Z):
    """Z = Q^T, from the reflectors that `tridiagonalize` left in A."""
    Z[:n, :n] = 0.0
    for i in range(n):
        Z[i, i] = 1.0
    for k in range(n - 3, -1, -1):
        v = A[k, k + 1 : n]
        size = n - k - 1
        for i in range(k + 1, n):  # Z <- Z H_k; outside the trailing part Z is still the identity
            row = Z[i, k + 1 : n]
            axpy(-beta[k] * dot(row, v, size), v, row, size)


@jit
def rotate(a, b, c, s, n):
    """Givens rotation of the two rows a and b."""
    for k in range(n):
        t = b[k]
        b[k] = s * a[k] + c * t
        a[k] = c * a[k] - s * t


@jit
def ql(d, e, n, Z):
    """Implicit QL on tridiag(e, d, e); rows of Z are rotated along. False if it does not converge.

    Eigenvalues are left in d, in no order. (Golub & Van Loan 2013, section 8.3.5; Wilkinson's shift.)
    """
    for low in range(n):
        for _ in range(QL_ITERATIONS):
            high = low
            while high < n - 1 and abs(e[high]) > EPS * (abs(d[high]) + abs(d[high + 1])):
                high += 1
            if high == low:
                break
            g = (d[low + 1] - d[low]) / (2.0 * e[low])
            g = d[high] - d[low] + e[low] / (g + math.copysign(math.hypot(g, 1.0), g))
            s, c, shift = 1.0, 1.0, 0.0
            split = False
            for i in range(high - 1, low - 1, -1):
                f, b = s * e[i], c * e[i]
                r = math.hypot(f, g)
                e[i + 1] = r
                if r == 0.0:  # the matrix split by underflow
                    d[i + 1] -= shift
                    e[high] = 0.0
                    split = True
                    break
                s, c = f / r, g / r
                g = d[i + 1] - shift
                r = (d[i] - g) * s + 2.0 * c * b
                shift = s * r
                d[i + 1] = g + shift
                g = c * r - b
                rotate(Z[i], Z[i + 1], c, s, n)
            if not split:
                d[low] -= shift
                e[low] = g
                e[high] = 0.0
        else:
            return False
    return True


@jit
def eigh(A, n, d, Z, work):
    """Eigenvalues d, largest first, and eigenvectors as *rows* of Z, of the full symmetric A (overwritten).

    work is a (3, >= n) scratch. False if the QL iteration does not converge (never seen on finite input).
    """
    e, beta, p = work[0], work[1], work[2]
    tridiagonalize(A, n, d, e, beta, p)
    accumulate(A, n, beta, Z)
    if not ql(d, e, n, Z):
        return False
    for i in range(n - 1):
        top = i + np.argmax(d[i:n])
        if top != i:
            d[i], d[top] = d[top], d[i]
            for k in range(n):
                Z[i, k], Z[top, k] = Z[top, k], Z[i, k]
    return True


@jit
def matmul(A, B, n, C):
    """C = A B for leading n x n parts."""
    for i in range(n):
        C[i, :n] = 0.0
        for k in range(n):
            axpy(A[i, k], B[k], C[i], n)
