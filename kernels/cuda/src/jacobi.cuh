// From the data itself, where no Gram matrix resolves the cutoff: one-sided Jacobi (Hestenes 1958; Demmel & Veselic
// 1992), whose error grows with the condition number, not its square.

namespace fastkoop {

// A block's F as `order` columns of doubles in device memory, turned until they are orthogonal: W = F Z^T (tall) or
// F^T Z^T (wide), the rows of Z in shared memory, and what sorts them.
struct Exact {
  double *W, *Z, *squares, *values;
  int *place, across, length;
  double unit;
  Selection found;
  Route route;
  __device__ const double* column(int row) const { return W + static_cast<long long>(row) * length; }
};

// Carves an Exact out of a CTA's shared memory and its share of the workspace; launch.py: exact_bytes.
__device__ inline Exact exact_in(Shared& shared, const Problem& p, double* workspace) {
  Exact e;
  e.across = p.order | 1;
  e.length = max(p.n, p.m);
  e.W = workspace + static_cast<long long>(blockIdx.x) * p.order * e.length;
  e.Z = shared.take<double>(p.order * e.across);
  e.values = shared.take<double>(p.order);
  e.squares = shared.take<double>(p.order);
  e.place = shared.take<int>(p.order);
  return e;
}

// The power of two that brings the largest entry of F near 1; 0 if all are zero, NaN if any of the data is not finite.
template <class T>
__device__ double largest_entry(const Block<T>& block, const Problem& p, double* spare) {
  const long long time = p.wide ? block.line_stride : block.row_stride;
  const long long weight = p.wide ? block.row_stride : block.line_stride;
  double largest = 0.0;
  int bad = 0;
  for (long long at = threadIdx.x; at < static_cast<long long>(p.n) * p.columns; at += blockDim.x) {
    const long long t = at / p.n;
    const double x = to_double(block.at[t * time + at % p.n * weight]);
    bad |= !isfinite(x);
    if (t < p.m) largest = max(largest, fabs(x));
  }
  for (int far = WARP / 2; far; far /= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, far));
  if (threadIdx.x % WARP == 0) spare[threadIdx.x / WARP] = largest;
  bad = __syncthreads_or(bad);
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; ++warp) largest = max(largest, spare[warp]);
  __syncthreads();
  if (bad) return nan("");
  if (!(largest > 0.0)) return 0.0;
  int exponent;
  frexp(largest, &exponent);
  return ldexp(1.0, exponent - 1);
}

// Turns columns p and q of W, and rows p and q of Z, by one warp, until they are orthogonal; whether they were not.
__device__ inline bool turn(const Exact& e, int order, int p, int q, double top) {
  double *const x = e.W + static_cast<long long>(p) * e.length, *const y = e.W + static_cast<long long>(q) * e.length;
  const int lane = threadIdx.x % WARP;
  double a = 0.0, b = 0.0, product = 0.0;
  for (int i = lane; i < e.length; i += WARP) {
    a = fma(x[i], x[i], a);
    b = fma(y[i], y[i], b);
    product = fma(x[i], y[i], product);
  }
  a = warp_sum(a);
  b = warp_sum(b);
  product = warp_sum(product);
  const double rounding = max(4.0 * (order + 8) * min(a, b), 0.0025 * top);  // as svd.orthogonalize
  if (product * product <= EPS * EPS * max(a, b) * rounding) return false;
  const Rotation g = rotation(a, product, b);
  double *const u = e.Z + p * e.across, *const v = e.Z + q * e.across;
  for (int i = lane; i < e.length; i += WARP) {
    const double s = x[i], t = y[i];
    x[i] = g.c * s - g.s * t;
    y[i] = g.s * s + g.c * t;
  }
  for (int i = lane; i < order; i += WARP) {
    const double s = u[i], t = v[i];
    u[i] = g.c * s - g.s * t;
    v[i] = g.s * s + g.c * t;
  }
  return true;
}

// values = the squared norms of the columns of W.
__device__ inline void measure(const Exact& e, int order) {
  const int lane = threadIdx.x % WARP;
  for (int row = threadIdx.x / WARP; row < order; row += blockDim.x / WARP) {
    double square = 0.0;
    for (int i = lane; i < e.length; i += WARP) square = fma(e.column(row)[i], e.column(row)[i], square);
    square = warp_sum(square);
    if (lane == 0) e.values[row] = square;
  }
  __syncthreads();
}

// Makes the columns of W that count, orthogonal up to rounding of the longest, so to their own: svd.orthonormalize says
// why. A column, the longest first, is taken out of all shorter ones, a warp each.
__device__ inline void orthogonalize(const Exact& e) {
  const int lane = threadIdx.x % WARP;
  for (int k = 0; k < e.found.rank; ++k) {
    const double* const x = e.column(e.place[k]);
    for (int j = k + 1 + threadIdx.x / WARP; j < e.found.rank; j += blockDim.x / WARP) {
      double* const y = e.W + static_cast<long long>(e.place[j]) * e.length;
      double along = 0.0;
#pragma unroll 1  // registers are dearer
      for (int i = lane; i < e.length; i += WARP) along = fma(x[i], y[i], along);
      along = warp_sum(along) / e.squares[k];
#pragma unroll 1
      for (int i = lane; i < e.length; i += WARP) y[i] = fma(-along, x[i], y[i]);
    }
    __syncthreads();
  }
}

// Fills an Exact from a block and says what its singular values do; the rounds are those of `jacobi`, a warp a pair.
template <class T>
__device__ void decompose(const Block<T>& block, const Problem& p, Exact& e) {
  const int order = p.order, thread = threadIdx.x, threads = blockDim.x;
  e.found = {0, false, false, 0.0};
  e.unit = largest_entry(block, p, e.values);
  e.route = isnan(e.unit) ? NON_FINITE : e.unit > 0.0 ? SVD : ZERO;
  if (e.route != SVD) return;
  for (int row = 0; row < order; ++row)
    for (int line = thread; line < e.length; line += threads)
      e.W[static_cast<long long>(row) * e.length + line] =
          to_double(block.at[row * block.row_stride + line * block.line_stride]) / e.unit;
  for (int at = thread; at < order * order; at += threads)
    e.Z[at / order * e.across + at % order] = at / order == at % order ? 1.0 : 0.0;
  __syncthreads();
  measure(e, order);
  double top = 0.0;
  for (int row = 0; row < order; ++row) top = max(top, e.values[row]);
  const int pairs = (order + 1) / 2;
  int worked = 1;
  for (int sweep = 0; sweep < SWEEPS && worked; ++sweep) {
    worked = 0;
    for (int round = 0; round < 2 * pairs - 1; ++round) {
      for (int j = thread / WARP; j < pairs; j += threads / WARP) {
        int first, second;
        pair_of(order, round, j, &first, &second);
        if (second < order) worked |= turn(e, order, first, second, top);
      }
      __syncthreads();
    }
    worked = __syncthreads_or(worked);
  }
  measure(e, order);
  sort(e.values, order, e.squares, e.place);
  e.found = judge_values(e.squares, e.values, p, e.unit);  // every thread for itself: a few dozen numbers
  if (worked) e.found.edge = true;               // never seen: the columns are not quite orthogonal
  orthogonalize(e);
}

}  // namespace fastkoop
