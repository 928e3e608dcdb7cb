// Gram matrices to reduced operators.

namespace fastkoop {

// Reduced operators from Gram matrices by one-sided Jacobi on their Cholesky factors; of all blocks, or of those on a
// list whose route is EIGEN. order <= 8 HELD; an operator is made where there is room for it.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 128 threads (HELD < 8) or 256.
// Reads a Gram matrix a block, writes its Factors (and readout reads them back, from L2). Shared: two matrices of
// `order` (tall) or three (wide), four vectors.
template <int HELD>
__global__ void __launch_bounds__(HELD < 8 ? 128 : 256, HELD < 8 ? 4 : 2)
    solve(const double* grams, Problem p, Work work, Factors all) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  const int across = 8 * HELD + 1, thread = threadIdx.x, threads = blockDim.x, lane = thread % WARP;
  double* const A = shared.take<double>(p.order * across);
  double* const Z = shared.take<double>(p.order * across);
  double* const D = shared.take<double>(p.wide ? p.order * across : 0);
  double* const h = shared.take<double>(p.order);
  double* const values = shared.take<double>(p.order);
  double* const squares = shared.take<double>(p.order);
  int* const place = shared.take<int>(p.order);
  Selection* const found = shared.take<Selection>(1);
  int* const kept = shared.take<int>(3);  // what would take registers through all blocks: order, turn, block
  if (thread == 0) kept[0] = p.order;

  for (int i = blockIdx.x; i < work.count(p); i = kept[1] + gridDim.x) {
    const int b = work.block(i);
    const bool pending = !work.list || all.route[b] == EIGEN;
    __syncthreads();  // all have read the route, and what was kept
    if (thread == 0) kept[1] = i, kept[2] = b;
    __syncthreads();
    if (!pending) continue;
    const int order = kept[0];
    const int height = p.wide ? 2 * order + 1 : order + 1, width = p.wide ? order : order + 1;
    const double* const S = grams + static_cast<long long>(b) * height * width;
    const double* const side = S + (height - 1) * width;
    double size = 0.0, last = p.wide || lane ? 0.0 : side[order];
#pragma unroll
    for (int first = 0; first < 8 * HELD; first += WARP) {
      const int k = first + lane;
      if (k < order) size += S[k * width + k];
      if (k < order && p.wide) last = fma(side[k], side[k], last);
    }
    size = warp_sum(size);
    last = warp_sum(last);
    if (!(size > p.tiny && size < p.huge && last < p.huge)) {
      reduce_nothing(p, !isfinite(size + last) ? NON_FINITE : size > 0.0 ? SVD : ZERO,
                     factors_of(all, b, order));
      continue;
    }
    const double unit = unit_of(size), shrink = 1.0 / unit / unit;
    load_scaled(S, order, width, shrink, A, across);
    if (p.wide) load_scaled(S + order * width, order, width, shrink, D, across);
    for (int j = thread; j < order; j += threads) h[j] = side[j] / unit;
    __syncthreads();
    const bool converged = eigenvectors<HELD>(A, Z, order, across, values);
    sort(values, order, squares, place);
    const Factors out = factors_of(all, kept[2], order);
    if (thread == 0) {
      *found = judge(squares, values, order, p, unit);
      if (!converged || !isfinite(squares[0])) *found = {0, false, false, 0.0};
      report(*found, found->clear ? EIGEN : SVD, values, unit, out);
    }
    __syncthreads();
    const int rank = found->rank && squares[found->rank - 1] > 0.0 ? found->rank : 0;  // else nothing it could say
    reduce(
        p, rank, squares, place, Z, across, unit, values,
        [&](int row, double square) {
          const double along = dot(h, Z + row * across, order);
          return p.wide ? along * unit : along / sqrt(square);
        },
        [&](int i, int row) { return dot(D + i * across, Z + row * across, order); }, out);
  }
}

}  // namespace fastkoop
