"""Small dense algebra for one block, in Numba: Cholesky, the symmetric eigenproblem, products.

Matrices are float64 and row-major, n rows of `lanes(n)` numbers or more (simd.py); what lies past column n is
overwritten, and must be finite on entry where a function says so.
"""

from __future__ import annotations

import math

from .jit import jit, jit_sums
from .simd import LANES, add, clear, copy, lanes, rotate, scale, subtract2, subtract2_and_sum, subtract4, tail

EPS = 2.0**-52
QL_ITERATIONS = 60  # per eigenvalue; fewer than 2 are usual
ROTATIONS = 3  # room for them, per n^2: it takes 0.5 to 1.4; a block that needs more goes to the SVD
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
def swap(a, b, n):
    """Exchange a[i] and b[i] over i < n."""
    for i in range(n):
        a[i], b[i] = b[i], a[i]


@jit
def place_of_largest(a, first, last):
    """Index of the first of the largest of a[first:last]."""
    place = first
    for i in range(first + 1, last):
        if a[i] > a[place]:
            place = i
    return place


@jit
def dot4(a, b, c, d, x, n):
    """Products of four rows with x, over i < n."""
    p = q = r = s = 0.0
    for i in range(n):
        p += a[i] * x[i]
        q += b[i] * x[i]
        r += c[i] * x[i]
        s += d[i] * x[i]
    return p, q, r, s


@jit
def matvec(A, x, rows, n, y):
    """y = A x for the leading rows x n part of A."""
    i = 0
    while i + 4 <= rows:
        y[i], y[i + 1], y[i + 2], y[i + 3] = dot4(A[i], A[i + 1], A[i + 2], A[i + 3], x, n)
        i += 4
    for k in range(i, rows):
        y[k] = dot(A[k], x, n)


@jit
def cholesky(R, n, columns):
    """In place: upper R with R^T R = A, where R holds A on entry; False if a pivot is not positive.

    Columns n .. `columns` are carried along as right-hand sides: they become R^-T times themselves. Of the
    leading n x n part only the upper triangle is read; what lies below it, and up to lanes(columns), is
    overwritten with nothing of use. Right-looking, four pivots at a time.
    """
    end = lanes(columns)
    for k in range(0, n, 4):
        top = min(k + 4, n)
        first = k // LANES * LANES
        for p in range(k, top):
            if not R[p, p] > 0.0:
                return False
            scale(first, end, 1.0 / math.sqrt(R[p, p]), R[p])
            for q in range(p + 1, top):
                add(first, end, -R[p, q], R[p], R[q])
        if top == k + 4:
            x, y, z, w = R[k], R[k + 1], R[k + 2], R[k + 3]
            for i in range(top, n):
                subtract4(i // LANES * LANES, end, x[i], y[i], z[i], w[i], x, y, z, w, R[i])
    return True


@jit
def solve_lower(R, n, b, y):
    """y with R^T y = b; b is overwritten."""
    for i in range(n):
        y[i] = b[i] / R[i, i]
        axpy(-y[i], tail(R[i], i + 1), tail(b, i + 1), n - i - 1)


@jit
def solve_upper(R, n, y, c):
    """c with R c = y."""
    for i in range(n - 1, -1, -1):
        c[i] = (y[i] - dot(tail(R[i], i + 1), tail(c, i + 1), n - i - 1)) / R[i, i]


@jit
def tridiagonalize(A, n, d, e, beta, work):
    """Householder: A = Q T Q^T with T = tridiag(e, d, e), whose rows and columns come out *last first*.

    A is symmetric, given in full, zero past column n, and overwritten by the reflectors: number k is
    I - beta[k] v v^T with v = A[k, k+1:n]. (Golub & Van Loan 2013, algorithm 8.3.1, with the matrix updated and
    multiplied by the next v in one pass.) work is a (3, >= lanes(n)) scratch.

    Gram matrices of trajectories have their large part at the top of T; with it at the bottom QL needs a third
    fewer rotations.

    What is negligible counts as zero: after r steps on a matrix of rank r the rest is eps of the norm, then
    eps^2, eps^4, ..., and reflectors made of that would underflow.
    """
    negligible = 0.0
    for i in range(n):
        negligible += dot(A[i], A[i], n)
    negligible *= NEGLIGIBLE * NEGLIGIBLE
    end = lanes(n)
    v, p, q = work[0], work[1], work[2]
    clear(v, 0, end)  # the update by v and p that rows from k on are still owed
    clear(p, 0, end)
    e[n - 1] = 0.0
    for k in range(n - 1):
        row = A[k]
        first = k // LANES * LANES
        subtract2(first, end, v[k], p[k], p, v, row)
        d[n - 1 - k] = row[k]
        head, size = row[k + 1], n - k - 2
        below = tail(row, k + 2)
        rest = dot(below, below, size)
        beta[k] = 0.0
        if rest <= negligible:
            e[n - 2 - k] = head if head * head > negligible else 0.0
            for i in range(k + 1, n):
                subtract2(first, end, v[i], p[i], p, v, A[i])
            clear(v, 0, end)
            clear(p, 0, end)
            continue
        alpha = -math.copysign(math.sqrt(head * head + rest), head)
        e[n - 2 - k] = alpha
        row[k + 1] = head - alpha
        b = 2.0 / (row[k + 1] * row[k + 1] + rest)
        beta[k] = b
        clear(q, 0, end)
        i = k + 1
        while i + 1 < n:
            subtract2_and_sum(
                first, end, v[i], p[i], b * row[i], v[i + 1], p[i + 1], b * row[i + 1], p, v, A[i], A[i + 1], q
            )
            i += 2
        if i < n:
            subtract2(first, end, v[i], p[i], p, v, A[i])
            add(first, end, b * row[i], A[i], q)
        clear(v, 0, k + 1)
        copy(row, v, k + 1, end)
        axpy(-0.5 * b * dot(tail(q, k + 1), tail(v, k + 1), n - k - 1), v, q, n)
        p, q = q, p
    subtract2(0, end, v[n - 1], p[n - 1], p, v, A[n - 1])
    d[0] = A[n - 1, n - 1]


@jit
def reflect(A, n, beta, x, forward):
    """x <- Q^T x (forward) or Q x, by the reflectors that `tridiagonalize` left in A; not yet last first."""
    for j in range(n - 2):
        k = j if forward else n - 3 - j
        if beta[k] != 0.0:
            size, v, y = n - k - 1, tail(A[k], k + 1), tail(x, k + 1)
            axpy(-beta[k] * dot(v, y, size), v, y, size)


@jit
def accumulate(A, n, beta, Z):
    """Z = Q^T with its rows last first, from the reflectors that `tridiagonalize` left in A."""
    end = lanes(n)
    for i in range(n):
        clear(Z[i], 0, end)
    for i in range(n):
        Z[n - 1 - i, i] = 1.0
    for k in range(n - 3, -1, -1):
        if beta[k] != 0.0:
            v, first = A[k], k // LANES * LANES
            clear(v, first, k + 1)
            clear(v, n, end)
            for i in range(n - 1 - k):  # Z <- Z H_k; outside these rows and columns Z is still a permutation
                add(first, end, -beta[k] * dot(tail(Z[i], k + 1), tail(v, k + 1), n - k - 1), v, Z[i])


@jit
def ql(d, e, n, whole, Z, vector, rotations, sweeps):
    """Implicit QL on tridiag(e, d, e); False if it does not converge or the log of rotations is full.

    Eigenvalues are left in d, in no order. Off-diagonals below eps / 4 of the matrix's norm count as zero, as they
    are within the rounding of the matrix itself. (Golub & Van Loan 2013, section 8.3.5; Wilkinson's shift.)

    whole: rows of Z, (n, lanes(n)), are rotated along. Otherwise only `vector` is, and the rotations are logged for
    `unrotate`: their cosines and sines in the rows of `rotations`, (first, last, count so far) per sweep in `sweeps`.

    Returns:
        (whether it converged, number of sweeps).
    """
    norm = 0.0
    for i in range(n):
        norm = max(norm, abs(d[i]) + abs(e[i]))
    small = 0.25 * EPS * norm
    count, swept, end = 0, 0, lanes(n)
    for low in range(n):
        for _ in range(QL_ITERATIONS):
            high = low
            while high < n - 1 and abs(e[high]) > small + EPS * (abs(d[high]) + abs(d[high + 1])):
                high += 1
            if high == low:
                break
            if not whole and (count + high - low > rotations.shape[1] or swept == len(sweeps)):
                return False, swept
            g = (d[low + 1] - d[low]) / (2.0 * e[low])
            g = d[high] - d[low] + e[low] / (g + math.copysign(math.hypot(g, 1.0), g))
            s, c, shift = 1.0, 1.0, 0.0
            last, begun = low, count
            for i in range(high - 1, low - 1, -1):
                f, b = s * e[i], c * e[i]
                r = math.sqrt(f * f + g * g)
                e[i + 1] = r
                if r == 0.0:  # the matrix split by underflow
                    d[i + 1] -= shift
                    e[high] = 0.0
                    last = i + 1
                    break
                inverse = 1.0 / r
                s, c = f * inverse, g * inverse
                g = d[i + 1] - shift
                r = (d[i] - g) * s + 2.0 * c * b
                shift = s * r
                d[i + 1] = g + shift
                g = c * r - b
                if whole:
                    rotate(0, end, c, s, Z[i], Z[i + 1])
                else:
                    t = vector[i + 1]
                    vector[i + 1] = s * vector[i] + c * t
                    vector[i] = c * vector[i] - s * t
                    rotations[0, count], rotations[1, count] = c, s
                    count += 1
            if last == low:
                d[low] -= shift
                e[low] = g
                e[high] = 0.0
            if not whole:
                sweeps[swept, 0], sweeps[swept, 1], sweeps[swept, 2] = high, last, begun
                swept += 1
        else:
            return False, swept
    return True, swept


@jit
def unrotate(vector, rotations, sweeps, swept):
    """Undo the rotations that `ql` logged, last one first."""
    for sweep in range(swept - 1, -1, -1):
        high, last, begun = sweeps[sweep]
        for i in range(last, high):
            at = begun + high - 1 - i
            c, s = rotations[0, at], rotations[1, at]
            t = vector[i]
            vector[i] = c * t + s * vector[i + 1]
            vector[i + 1] = c * vector[i + 1] - s * t


@jit
def eigh(A, n, d, Z, work, sweeps):
    """Eigenvalues d, largest first, and eigenvectors as *rows* of Z, of the full symmetric A (overwritten).

    A and Z are (n, lanes(n)), A zero past column n; work is a (5, >= lanes(n)) scratch, sweeps an int64 one of any
    size. False if the QL iteration does not converge (never seen on finite input).
    """
    e, beta = work[3], work[4]
    tridiagonalize(A, n, d, e, beta, work)
    accumulate(A, n, beta, Z)
    if not ql(d, e, n, True, Z, e, work, sweeps)[0]:
        return False
    for i in range(n - 1):
        top = place_of_largest(d, i, n)
        if top != i:
            d[i], d[top] = d[top], d[i]
            swap(Z[i], Z[top], n)
    return True


@jit
def solve_rows(R, order, T, end):
    """T <- (R^T R)^-1 T of the rows of T, over their first `end` numbers, a multiple of LANES; four rows at a time."""
    for i in range(order):
        k = 0
        while k + 4 <= i:
            subtract4(0, end, R[k, i], R[k + 1, i], R[k + 2, i], R[k + 3, i], T[k], T[k + 1], T[k + 2], T[k + 3], T[i])
            k += 4
        for j in range(k, i):
            add(0, end, -R[j, i], T[j], T[i])
        scale(0, end, 1.0 / R[i, i], T[i])
    for i in range(order - 1, -1, -1):
        k = i + 1
        while k + 4 <= order:
            subtract4(0, end, R[i, k], R[i, k + 1], R[i, k + 2], R[i, k + 3], T[k], T[k + 1], T[k + 2], T[k + 3], T[i])
            k += 4
        for j in range(k, order):
            add(0, end, -R[i, j], T[j], T[i])
        scale(0, end, 1.0 / R[i, i], T[i])


@jit
def clear_rows(A, rows):
    """Zeros in leading rows."""
    for i in range(rows):
        clear(A[i], 0, A.shape[1])


@jit
def copy_rows(A, B, rows, columns):
    """B = A for leading rows x columns parts."""
    for i in range(rows):
        copy(A[i], B[i], 0, columns)


@jit
def copy_upper(A, R, n, columns):
    """R = A on and above the diagonal of n rows, up to `columns`."""
    for i in range(n):
        copy(A[i], R[i], i, columns)


@jit
def matmul(A, B, n, C):
    """C = A B for leading n x n parts."""
    for i in range(n):
        clear(C[i], 0, n)
        for k in range(n):
            axpy(A[i, k], B[k], C[i], n)
