// The algebra of one block between its Gram matrix and its prediction, in the letters of algebra.py.

namespace fastkoop {

__device__ inline double trace(const double* S, int order, int across) {
  double total = 0.0;
  for (int i = 0; i < order; ++i) total += S[i * across + i];
  return total;
}

// The power of 2 that brings a block with this sum of squares near 1.
__device__ inline double unit_of(double size) {
  int exponent;
  frexp(size, &exponent);
  return ldexp(1.0, exponent / 2);
}

// EIGEN if a Gram matrix with this trace is usable beside |x_last|^2, else what the data says: ZERO, NON_FINITE, or
// SVD where squares overflow or underflow. All threads get the same answer.
template <class T>
__device__ Route triage(double size, double last, const Block<T>& block, const Problem& p) {
  if (size > p.tiny && size < p.huge && last < p.huge) return EIGEN;
  int bad = 0, some = 0;
  for (long long at = threadIdx.x; at < static_cast<long long>(p.n) * p.columns; at += blockDim.x) {
    const long long row = p.wide ? at % p.n : at / p.n, line = p.wide ? at / p.n : at % p.n;
    const double x = to_double(block.at[row * block.row_stride + line * block.line_stride]);
    bad |= !isfinite(x);
    some |= x != 0.0;
  }
  if (__syncthreads_or(bad)) return NON_FINITE;
  return __syncthreads_or(some) ? SVD : ZERO;
}

// Whether all snapshots are the same numbers; `alike`: whether their Gram matrix allows it, for all threads the same.
template <class T>
__device__ bool is_constant(bool alike, const Block<T>& block, const Problem& p) {
  if (!alike) return false;
  const long long time = p.wide ? block.line_stride : block.row_stride;
  const long long weight = p.wide ? block.row_stride : block.line_stride;
  int differ = 0;
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    const double first = to_double(block.at[i * weight]);
    for (int t = 1; t < p.columns && !differ; t += 8)
#pragma unroll
      for (int k = 0; k < 8; ++k)  // eight loads at once
        if (t + k < p.columns) differ |= to_double(block.at[(t + k) * time + i * weight]) != first;
  }
  return !__syncthreads_or(differ);
}

// Whether the rule keeps the one singular value of a constant trajectory, so that K x = x.
__device__ inline bool keeps_rank_one(const Problem& p) {
  return p.rule != RELATIVE || p.value < 1.0;
}

// Prove from the Gram matrix S that every singular value counts and that the Gram route resolves it: S minus what is
// needed times the identity has a Cholesky factor (algebra.certified). size: its trace; A: scratch for it.
__device__ inline bool certified(const double* S, const Problem& p, int across, double size, double* A, double* sums) {
  if (p.rule != RELATIVE && p.rule != SPACING) return false;
  const int order = p.order, thread = threadIdx.x;
  const double unit = unit_of(size), shrink = 1.0 / unit;  // a power of two
  if (thread < WARP) {
    double squares = 0.0;
    for (int at = thread; at < order * order; at += WARP) {
      const double x = S[at / order * across + at % order] * shrink * shrink;
      squares = fma(x, x, squares);
    }
    squares = warp_sum(squares);
    if (thread == 0) sums[0] = squares;
  }
  for (int at = thread; at < order * order; at += blockDim.x)
    A[at / order * across + at % order] = S[at / order * across + at % order];
  __syncthreads();
  const double largest = sqrt(sums[0]);  // of S / unit^2: its norm is at most that
  const double threshold = limit(sqrt(largest), p, unit);
  double needed = max(threshold * threshold, p.least * largest) + p.gram * largest;
  needed = needed * unit * unit + (order + 4) * EPS * size;
  for (int i = thread; i < order; i += blockDim.x) A[i * across + i] -= needed;
  __syncthreads();
  return factorize(A, order, order, across);
}

// Whether `steps` need the reduced operator: a wide block's further steps Fp F^T, and very many of them are cheaper by
// squaring one.
__device__ inline bool too_many(const Problem& p, long long steps) {
  return steps > 1 && (p.wide || steps > 4.0 * p.order * p.order * log2(steps + 2.0));
}

// a = G^-1 of the right-hand side, by all threads: S holds G and the right-hand side as its last row; A is scratch.
__device__ inline void solve_normal(const double* S, double* A, int order, int across, double* a) {
  const int rows = order + 1;
  for (int at = threadIdx.x; at < rows * rows; at += blockDim.x)
    A[at / rows * across + at % rows] = S[at / rows * across + at % rows];
  __syncthreads();
  factorize(A, order, rows, across);
  back_substitute(A, order, across, a);
}

// y <- y after `steps` steps of the companion matrix F^+ Fp whose last column is a: O(order) a step, by one warp.
__device__ inline void advance_companion(const double* a, int order, long long steps, double* y, double* spare) {
  if (threadIdx.x < WARP)
    for (long long step = 0; step < steps; ++step) {
      const double top = y[order - 1];
      for (int k = threadIdx.x; k < order; k += WARP) spare[k] = fma(top, a[k], k ? y[k - 1] : 0.0);
      __syncwarp();
      for (int k = threadIdx.x; k < order; k += WARP) y[k] = spare[k];
      __syncwarp();
    }
  __syncthreads();
}

// out = M y, r x r in device memory, rows `across` apart: a warp a row.
__device__ inline void multiply(const double* M, int r, int across, const double* y, double* out) {
  const int lane = threadIdx.x % WARP;
  for (int row = threadIdx.x / WARP; row < r; row += blockDim.x / WARP) {
    double total = 0.0;
    for (int k = lane; k < r; k += WARP) total = fma(M[row * across + k], y[k], total);
    total = warp_sum(total);
    if (lane == 0) out[row] = total;
  }
  __syncthreads();
}

// What `solve` and `exact` leave of one block, all in device memory: kernels.Factors, untrimmed (r = order).
struct Factors {
  double *basis, *readout, *op, *start;  // (q, r), (q, r), (r, r), (r); basis and readout are the same array if tall
  double* reports;                    // threshold, largest, smallest
  long long* rank;
  signed char *edge, *route;
};

// Pointers to the block in place `slot` of arrays over many.
__device__ inline Factors factors_of(const Factors& all, long long slot, int order) {
  const long long square = static_cast<long long>(order) * order;
  return {all.basis + slot * square, all.readout + slot * square, all.op + slot * square, all.start + slot * order,
          all.reports + slot * 3,    all.rank + slot,          all.edge + slot,        all.route + slot};
}

// The reduced operator of a block from the eigenvectors in the rows of Z (see algebra.reduce_snapshots and
// reduce_weights). squares: by rank, in units of unit^2; place: their rows; project(row): U^T x_last in the
// block's own units; lifted(i, row): entry i of D z for a wide block, in units of unit^2.
template <class Project, class Lifted>
__device__ void reduce(const Problem& p, int rank, const double* squares, const int* place, const double* Z, int across,
                       double unit, Project project, Lifted lifted, const Factors& out) {
  const int order = p.order, thread = threadIdx.x, threads = blockDim.x;
  for (int r = thread; r < order; r += threads) out.start[r] = r < rank ? project(place[r], squares[r]) : 0.0;
  for (int at = thread; at < order * order; at += threads) {
    const int i = at / order, r = at % order;
    const double* const z = Z + place[r] * across;
    if (p.wide) {
      out.basis[at] = r < rank ? z[i] : 0.0;
      out.readout[at] = r < rank ? lifted(i, place[r]) / squares[r] : 0.0;
    } else {
      out.basis[at] = r < rank ? z[i] / sqrt(squares[r]) / unit : 0.0;
    }
  }
  __syncthreads();  // start and readout are read back below
  for (int at = thread; at < order * order; at += threads) {
    const int r = at / order, k = at % order;
    double total = 0.0;
    if (r < rank && k < rank) {
      const double *const z = Z + place[r] * across, *const other = Z + place[k] * across;
      if (p.wide) {
        for (int i = 0; i < order; ++i) total = fma(z[i], out.readout[i * order + k], total);
      } else {  // F^T Fp is F^T F a column further on, then F^T x_last
        for (int j = 0; j + 1 < order; ++j) total = fma(z[j + 1], other[j], total);
        total = total * sqrt(squares[r]) / sqrt(squares[k]);
        total += out.start[r] / unit * other[order - 1] / sqrt(squares[k]);
      }
    }
    out.op[at] = total;
  }
  __syncthreads();
}

// Reports of a block without an operator.
__device__ inline void reduce_nothing(const Problem& p, Route route, const Factors& out) {
  for (int at = threadIdx.x; at < p.order * p.order; at += blockDim.x) out.basis[at] = out.readout[at] = out.op[at] = 0.0;
  for (int r = threadIdx.x; r < p.order; r += blockDim.x) out.start[r] = 0.0;
  if (threadIdx.x == 0) {
    out.reports[0] = out.reports[1] = out.reports[2] = 0.0;
    *out.rank = 0;
    *out.edge = 0;
    *out.route = route;
  }
  __syncthreads();
}

// By one thread: the reports of a block whose singular values are unit sqrt(squares).
__device__ inline void report(const Selection& found, Route route, const double* squares, double unit,
                              const Factors& out) {
  out.reports[0] = found.threshold * unit;
  out.reports[1] = found.rank ? sqrt(squares[0]) * unit : 0.0;
  out.reports[2] = found.rank ? sqrt(max(squares[found.rank - 1], 0.0)) * unit : 0.0;
  *out.rank = found.rank;
  *out.edge = found.edge;
  *out.route = route;
}

}  // namespace fastkoop
