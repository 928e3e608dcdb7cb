// Pseudo-inverses, from Gram matrices or from the data itself.

namespace fastkoop {

constexpr int INVERSE_LINES = 64;  // lines of a pseudo-inverse that are made together

// The pseudo-inverse of every block, by the eigenvectors of its Gram matrix: Z^T (Lambda^-1 (Z F^T)), factored; the
// route of a block that the Gram matrix does not resolve is left at SVD.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 128 threads. Reads the data once
// where a block fits one tile, else twice; writes as much. Shared: the tile, two matrices, order * INVERSE_LINES.
template <class T, class Sum, int R>
__global__ void __launch_bounds__(128, R > 5 ? 2 : 4)
    inverse(const T* data, Layout X, Problem p, T* out, signed char* route) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  Room<T>& room = *shared.take<Room<T>>(1);
  constexpr int HELD = R < 8 ? R : 8;
  const int order = p.order, across = 8 * HELD + 1, thread = threadIdx.x, threads = blockDim.x;
  T* const tile = shared.take<T>(order * p.pitch);
  double* const A = shared.take<double>(order * across);
  double* const Z = shared.take<double>(order * across);
  double* const U = shared.take<double>(order * INVERSE_LINES);
  double* const values = shared.take<double>(order);
  double* const squares = shared.take<double>(order);
  double* const partial = shared.take<double>(16);
  int* const place = shared.take<int>(order);
  for (int b = blockIdx.x; b < p.blocks; b += gridDim.x) {
    if (threadIdx.x == 0) room.describe(Block<T>(data, X, p, b), p, across, memory, tile, A, Z, partial, partial);
    __syncthreads();
    const Block<T>& block = room.block;
    const double size = gram_of<Sum, R>(room, memory, p, 0, tiles(p)).size, unit = unit_of(size);
    Route way = triage(size, 0.0, block, p);
    int rank = 0;
    if (way == EIGEN) {
      __syncthreads();  // all have summed the trace
      for (int at = thread; at < order * order; at += threads) A[at / order * across + at % order] /= unit * unit;
      __syncthreads();
      const bool converged = eigenvectors<HELD>(A, Z, order, across, values);
      sort(values, order, squares, place);
      const Selection found = judge(squares, values, order, p, unit);
      rank = found.rank;
      if (!converged || !found.clear) way = SVD;
    }
    if (thread == 0) route[b] = way;
    T* const result = out + static_cast<long long>(b) * p.n * p.m;
    for (int k = 0; k < tiles(p) && way != SVD; ++k) {
      const int count = tiles(p) > 1 ? block.load(p, k, tile) : block.lines(p, k);
      for (int first = 0; first < count; first += INVERSE_LINES) {
        const int some = min(INVERSE_LINES, count - first);
        for (int at = thread; at < rank * some; at += threads) {
          const int r = at / some, line = first + at % some;
          double along = 0.0;
          for (int i = 0; i < order; ++i)
            along = fma(Z[place[r] * across + i], to_double(tile[block.place(p, i) + line]), along);
          U[r * INVERSE_LINES + at % some] = along / squares[r] / unit / unit;
        }
        __syncthreads();
        for (int at = thread; at < order * some; at += threads) {
          const int i = p.wide ? at % order : at / some, line = p.wide ? at / order : at % some;
          double total = way == NON_FINITE ? nan("") : 0.0;
          for (int r = 0; r < rank; ++r) total = fma(Z[place[r] * across + i], U[r * INVERSE_LINES + line], total);
          const long long at_line = static_cast<long long>(k) * p.tile + first + line;
          result[p.wide ? at_line * p.n + i : i * static_cast<long long>(p.n) + at_line] = rounded<T>(total);
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

// The same from the data itself, of the blocks whose route is one of those in `which`; launched as `exact` is.
template <class T>
__global__ void __launch_bounds__(256, 1)
    inverse_exact(const T* data, Layout X, Problem p, double* workspace, unsigned which, T* out, signed char* route) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  Exact e = exact_in(shared, p, workspace);
  for (int b = blockIdx.x; b < p.blocks; b += gridDim.x) {
    if (!(which >> route[b] & 1)) continue;
    const Block<T> block(data, X, p, b);
    __syncthreads();  // all have read the route
    decompose(block, p, e);
    if (threadIdx.x == 0) route[b] = e.route;
    T* const result = out + static_cast<long long>(b) * p.n * p.m;
    for (long long at = threadIdx.x; at < static_cast<long long>(p.n) * p.m; at += blockDim.x) {
      const int t = static_cast<int>(at / p.n), i = static_cast<int>(at % p.n);
      const int line = p.wide ? t : i, row = p.wide ? i : t;
      double total = e.route == NON_FINITE ? nan("") : 0.0;
      for (int r = 0; r < e.found.rank; ++r)
        total += e.column(e.place[r])[line] / e.squares[r] * e.Z[e.place[r] * e.across + row];
      result[at] = rounded<T>(total / e.unit);
    }
    __syncthreads();
  }
}

}  // namespace fastkoop
