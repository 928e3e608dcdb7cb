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
__device__ Route triage(double size, double last, Block<T> block, const Problem& p) {
  if (size > p.tiny && size < p.huge && last < p.huge) return EIGEN;
  int bad = 0, some = 0;
  const int lines = p.wide ? p.columns : p.n;
  for (long long at = threadIdx.x; at < static_cast<long long>(block.rows) * lines; at += blockDim.x) {
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
__device__ bool is_constant(bool alike, Block<T> block, const Problem& p) {
  if (!alike) return false;
  const long long time = p.wide ? block.line_stride : block.row_stride;
  const long long weight = p.wide ? block.row_stride : block.line_stride;
  int differ = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    const double first = to_double(block.at[i * weight]);
#pragma unroll 1
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

// What the certificate takes from the diagonal of a Gram matrix of this order with these sums: if a Cholesky factor of
// the rest exists, every singular value counts and the Gram route resolves it (algebra.certified). The largest
// eigenvalue is at most the root of the squares. NaN where the rule cannot be certified.
__device__ inline double needed_of(const Problem& p, int order, const Sums& sums) {
  if (p.rule != RELATIVE && p.rule != SPACING) return nan("");
  const double largest = root(sums.squares), threshold = limit(root(largest), p, 1.0);
  return max(threshold * threshold, p.least * largest) + p.gram * largest + (order + 4) * EPS * sums.size;
}

// Vectors of `certify_and_solve`, in one piece so that one register holds them; launch.py: scratch.
struct Scratch {
  double* at;
  int order;
  __device__ Scratch(double* at, int order) : at(at), order(order) {}
  __device__ Scratch(Shared& shared, int order) : at(shared.take<double>(4 * order + 18)), order(order) {}
  __device__ double* partial() const { return at; }               // two numbers a warp
  __device__ double* ok() const { return at + 16; }               // one
  __device__ double* a() const { return at + 17; }                // `order`
  __device__ double* kept() const { return a() + order; }         // one more
  __device__ double* inverse() const { return kept() + order + 1; }  // twice as many
};

// The certificate on A, the lower triangle of G, less `needed_of` it, and a = G^-1 of the right-hand side from S, which
// holds G and the right-hand side as its last row and column. Where the certificate fails S is as it was.
template <int SLOTS>
__device__ bool certify_and_solve(double* S, double* A, double needed, int across, const Scratch& scratch) {
  const int order = scratch.order, thread = threadIdx.x, threads = blockDim.x;
  for (int i = thread; i <= order; i += threads) scratch.kept()[i] = S[i * across + i];
  __syncthreads();
  const Dense certificate = {A, order, needed, scratch.inverse()}, normal = {S, order + 1, 0.0, scratch.inverse() + order};
  if (factorize_both<SLOTS>(certificate, normal, order, across, scratch.ok())) {
    back_substitute<SLOTS < 2 ? 1 : 2>(S, order, across, scratch.inverse() + order, scratch.a());
    return true;
  }
  for (int i = thread / WARP; i <= order; i += threads / WARP)
    for (int j = thread % WARP; j <= i; j += WARP) S[i * across + j] = i == j ? scratch.kept()[i] : S[j * across + i];
  __syncthreads();
  return false;
}

// Whether `steps` need the reduced operator: a wide block's further steps Fp F^T, and very many of them are cheaper by
// squaring one.
__device__ inline bool too_many(const Problem& p, long long steps) {
  return steps > 1 && (p.wide || steps > 4.0 * p.order * p.order * log2(steps + 2.0));
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
  double *basis, *readout, *op, *start;  // (q, r), (q, r), (r, r), (r); basis is readout if tall; no op if one step is all
  double* reports;                    // threshold, largest, smallest
  long long* rank;
  signed char *edge, *route;
};

// Pointers to the block in place `slot` of arrays over many.
__device__ inline Factors factors_of(const Factors& all, long long slot, int order) {
  const long long square = static_cast<long long>(order) * order;
  return {all.basis + slot * square, all.readout + slot * square, all.op ? all.op + slot * square : nullptr,
          all.start + slot * order,  all.reports + slot * 3,      all.rank + slot,
          all.edge + slot,           all.route + slot};
}

// The reduced operator of a block from the eigenvectors in the rows of Z (see algebra.reduce_snapshots and
// reduce_weights). squares: by rank, in units of unit^2; place: their rows; project(row): U^T x_last in the
// block's own units; lifted(i, row): entry i of D z for a wide block, in units of unit^2. inverse: scratch, a number a
// rank: 1 / s in units of the block, or 1 / s^2 of a wide one.
template <class Project, class Lifted>
__device__ void reduce(const Problem& p, int rank, const double* squares, const int* place, const double* Z, int across,
                       double unit, double* inverse, Project project, Lifted lifted, const Factors& out) {
  const int order = p.order, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int r = threadIdx.x; r < order; r += blockDim.x) {
    inverse[r] = r >= rank ? 0.0 : p.wide ? 1.0 / squares[r] : 1.0 / (sqrt(squares[r]) * unit);
    out.start[r] = r < rank ? project(place[r], squares[r]) : 0.0;
  }
  __syncthreads();
  for (int i = warp; i < order; i += warps)
    for (int r = lane; r < order; r += WARP) {
      const int row = place[r];
      const double z = Z[row * across + i];
      if (p.wide) {
        out.basis[i * order + r] = r < rank ? z : 0.0;
        out.readout[i * order + r] = r < rank ? lifted(i, row) * inverse[r] : 0.0;
      } else {
        out.basis[i * order + r] = r < rank ? z * inverse[r] : 0.0;
      }
    }
  if (!out.op) return;
  __syncthreads();  // start and readout are read back below
  for (int r = warp; r < order; r += warps)
    for (int k = lane; k < order; k += WARP) {
      double total = 0.0;
      if (r < rank && k < rank) {
        const double *const z = Z + place[r] * across, *const other = Z + place[k] * across;
        if (p.wide) {
          for (int i = 0; i < order; ++i) total = fma(z[i], out.readout[i * order + k], total);
        } else {  // F^T Fp is F^T F a column further on, then F^T x_last
          for (int j = 0; j + 1 < order; ++j) total = fma(z[j + 1], other[j], total);
          total *= squares[r] * (inverse[r] * unit);
          total = fma(out.start[r] / unit, other[order - 1], total) * (inverse[k] * unit);
        }
      }
      out.op[r * order + k] = total;
    }
  __syncthreads();
}

// Reports of a block without an operator.
__device__ inline void reduce_nothing(const Problem& p, Route route, const Factors& out) {
  for (int at = threadIdx.x; at < p.order * p.order; at += blockDim.x) {
    out.basis[at] = out.readout[at] = 0.0;
    if (out.op) out.op[at] = 0.0;
  }
  for (int r = threadIdx.x; r < p.order; r += blockDim.x) out.start[r] = 0.0;
  if (threadIdx.x == 0) {
    out.reports[0] = out.reports[1] = out.reports[2] = 0.0;
    *out.rank = 0;
    *out.edge = 0;
    *out.route = route;
  }
  __syncthreads();
}

// By one thread: the reports of a block whose singular values are unit roots.
__device__ inline void report(const Selection& found, Route route, const double* roots, double unit, const Factors& out) {
  out.reports[0] = found.threshold * unit;
  out.reports[1] = found.rank ? roots[0] * unit : 0.0;
  out.reports[2] = found.rank ? roots[found.rank - 1] * unit : 0.0;
  *out.rank = found.rank;
  *out.edge = found.edge;
  *out.route = route;
}

}  // namespace fastkoop
