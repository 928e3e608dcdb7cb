// Reduced operators from the data itself.

namespace fastkoop {

// Reduced operators from the data itself, of the blocks, all or those on a list, whose route is one of
// those in `which` (a bit each).
//
// Launch: as many CTAs as the workspace has shares of order * max(n, m) doubles; whole warps, up to 256 threads.
// Reads the data once, its share of the workspace some hundred times, mostly from L2. Shared: one matrix of `order`,
// three vectors.
template <class T>
__global__ void __launch_bounds__(256, 1)
    exact(const T* data, Layout X, Problem p, double* workspace, Work work, unsigned which, Factors all) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  Exact e = exact_in(shared, p, workspace);
  for (int i = blockIdx.x; i < work.count(p); i += gridDim.x) {
    const int b = work.block(i);
    if (!(which >> all.route[b] & 1)) continue;
    const Block<T> block(data, X, p, b);
    const Factors out = factors_of(all, b, p.order);
    __syncthreads();  // all have read the route
    decompose(block, p, e);
    if (e.route != SVD) {
      reduce_nothing(p, e.route, out);
      continue;
    }
    if (threadIdx.x == 0) report(e.found, SVD, e.values, e.unit, out);
    __syncthreads();  // `reduce` writes over the values
    const long long weight = p.wide ? block.row_stride : block.line_stride;
    const T* const newest = block.at + p.m * (p.wide ? block.line_stride : block.row_stride);
    reduce(
        p, e.found.rank, e.squares, e.place, e.Z, e.across, e.unit, e.values,
        [&](int row, double square) {
          double along = 0.0;
          for (int i = 0; i < p.n; ++i)
            along =
                fma(p.wide ? e.Z[row * e.across + i] : e.column(row)[i], to_double(newest[i * weight]) / e.unit, along);
          return (p.wide ? along : along / sqrt(square)) * e.unit;
        },
        [&](int i, int row) {
          double along = 0.0;
          const T* const ahead = block.at + i * block.row_stride + block.line_stride;
          for (int t = 0; t < p.m; ++t)
            along = fma(to_double(ahead[t * block.line_stride]) / e.unit, e.column(row)[t], along);
          return along;
        },
        out);
  }
}

}  // namespace fastkoop
