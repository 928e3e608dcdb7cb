// K^steps x_last of a batch of blocks in one pass over the data.

namespace fastkoop {

// result = Fp c of a tall block: from the tile where that holds all of it, else from device memory, mostly its L2.
template <class T>
__device__ void reconstruct_snapshots(const Block<T>& block, const Problem& p, const double* c, const T* tile, T* result) {
  const bool resident = tiles(p) == 1;
  for (int i = threadIdx.x; i < p.n; i += blockDim.x) {
    double total = 0.0;
    if (resident) {
      const T* const from = tile + p.pitch + i;
      for (int t = 0; t < p.m; ++t) total = fma(c[t], to_double(from[t * p.pitch]), total);
    } else {
      const T* const from = block.at + block.row_stride + i * block.line_stride;
      for (int t = 0; t < p.m; ++t) total = fma(c[t], to_double(from[t * block.row_stride]), total);
    }
    result[i] = rounded<T>(total);
  }
}

// result = Fp (F^T y) of a wide block, one step of its K = (Fp F^T)(F F^T)^-1. g: a number a line of the tile; w: n.
template <class T>
__device__ void reconstruct_weights(const Block<T>& block, const Problem& p, const double* y, double* g, T* tile, double* w,
                             T* result) {
  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % WARP;
  for (int i = thread; i < p.n; i += threads) w[i] = 0.0;
  for (int k = 0; k < tiles(p); ++k) {
    const int count = tiles(p) > 1 ? block.load(p, k, tile) : block.lines(p, k);
    for (int t = thread; t < count; t += threads) {
      double total = 0.0;
      for (int i = 0; i < p.n; ++i) total = fma(y[i], to_double(tile[i * p.pitch + t]), total);
      g[t] = total;
    }
    __syncthreads();
    for (int i = thread / WARP; i < p.n; i += threads / WARP) {
      double total = 0.0;
      for (int t = lane; t < count; t += WARP) total = fma(g[t], to_double(tile[i * p.pitch + t + 1]), total);
      total = warp_sum(total);
      if (lane == 0) w[i] += total;
    }
    __syncthreads();
  }
  for (int i = thread; i < p.n; i += threads) result[i] = rounded<T>(w[i]);
}

// The certified, constant, zero and non-finite blocks of a batch from data to result; the others go onto the list
// `pending`, (1 + blocks) ints that start at 0, with their Gram matrices: their route is left at EIGEN for `solve`, or
// at SVD for `exact` where squares overflow.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 128 threads.
// Reads: the data once where a block fits one tile, twice (then mostly from L2) where it does not.
// Writes: a row of `out` a finished block; (m+1)^2 doubles (tall) or (2n+1) n (wide) of `grams` a pending one.
// Shared: the tile, two matrices of order + 1, three vectors.
template <class T, class Sum, int R>
__global__ void __launch_bounds__(128, R > 5 ? 2 : 4) predict(const T* data, Layout X, Problem p, long long steps,
                                                              T* out, signed char* route, double* grams, int* pending) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  const int order = p.order, rows = order + 1, across = rows | 1;
  T* const tile = shared.take<T>((p.wide ? p.n : p.columns) * p.pitch);
  double* const S = shared.take<double>(rows * across);
  double* const A = shared.take<double>(rows * across);
  double* const a = shared.take<double>(order);
  double* const c = shared.take<double>(p.wide ? p.tile : order);
  double* const spare = shared.take<double>(order);
  const int thread = threadIdx.x, threads = blockDim.x;
  const bool beyond = too_many(p, steps);

  for (int b = blockIdx.x; b < p.blocks; b += gridDim.x) {
    const Block<T> block(data, X, p, b);
    T* const result = out + static_cast<long long>(b) * p.n;
    gram_of<Sum, R>(block, p, 0, tiles(p), tile, S, across);
    const long long newest = p.m * (p.wide ? block.line_stride : block.row_stride);
    const long long weight = p.wide ? block.row_stride : block.line_stride;
    if (p.wide) {  // x_last is the right-hand side, as F^T x_last is of a tall block
      for (int j = thread; j < order; j += threads) S[order * across + j] = to_double(block.at[newest + j * weight]);
      if (thread == 0) S[order * across + order] = 0.0;
      __syncthreads();
    }
    const double* const side = S + order * across;
    const double size = trace(S, order, across), last = p.wide ? dot(side, side, order) : side[order];
    Route way = triage(size, last, block, p);
    if (way == EIGEN) {
      const double near = 4.0 * p.gram * last;
      const bool alike =
          p.wide ? fabs(size - p.m * last) <= p.m * near : fabs(S[0] - last) <= near && fabs(side[0] - last) <= near;
      if (keeps_rank_one(p) && is_constant(alike, block, p))
        way = CONSTANT;
      else if (!beyond && certified(S, p, across, size, A, spare))
        way = CHOLESKY;
    }
    __syncthreads();
    if (thread == 0) {
      route[b] = way;
      if (way == EIGEN || way == SVD) pending[1 + atomicAdd(pending, 1)] = b;
    }
    if (way == CHOLESKY) {
      solve_normal(S, A, order, across, a);
      if (p.wide) {
        reconstruct_weights(block, p, a, c, tile, S, result);
      } else {
        for (int k = thread; k < order; k += threads) c[k] = a[k];
        __syncthreads();
        advance_companion(a, order, steps - 1, c, spare);
        reconstruct_snapshots(block, p, c, tile, result);
      }
    } else if (way == EIGEN) {
      write_gram<Sum>(block, p, 0, tiles(p), tile, S, across, A, grams, b);
    } else if (way != SVD) {
      for (int i = thread; i < p.n; i += threads)
        result[i] = way == ZERO ? T(0) : way == CONSTANT ? block.at[newest + i * weight] : rounded<T>(nan(""));
    }
    __syncthreads();
  }
}

// The same for blocks of one weight, under rules that keep its singular value: K = sum x_(t+1) x_t / sum x_t^2.
//
// Launch: a thread a block, grid-stride. Reads the data once; coalesced where weights lie side by side. No shared.
template <class T>
__global__ void __launch_bounds__(256)
    predict_scalars(const T* data, Layout X, Problem p, long long steps, T* out, signed char* route, int* pending) {
  const int stride = gridDim.x * blockDim.x;
  for (int b = blockIdx.x * blockDim.x + threadIdx.x; b < p.blocks; b += stride) {
    const T* const x = data + offset(X, b);
    double square = 0.0, cross = 0.0, before = to_double(x[0]);
    bool constant = true, zero = before == 0.0, finite = isfinite(before);
    for (int t = 1; t <= p.m; ++t) {
      const double now = to_double(x[t * X.time]);
      square = fma(before, before, square);
      cross = fma(now, before, cross);
      constant = constant && now == before;
      zero = zero && now == 0.0;
      finite = finite && isfinite(now);
      before = now;
    }
    Route way = !finite ? NON_FINITE : zero ? ZERO : constant ? CONSTANT : CHOLESKY;
    if (way == CHOLESKY && !(square > p.tiny && square < p.huge && before * before < p.huge)) way = SVD;
    route[b] = way;
    if (way == CHOLESKY) before *= pow(cross / square, static_cast<double>(steps));
    if (way == SVD) pending[1 + atomicAdd(pending, 1)] = b;
    if (way != SVD) out[b] = rounded<T>(way == NON_FINITE ? nan("") : way == ZERO ? 0.0 : before);
  }
}

}  // namespace fastkoop
