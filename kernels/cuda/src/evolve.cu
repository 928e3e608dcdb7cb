// Reduced operators to coefficients after some steps.

namespace fastkoop {

// Step counts that come by value, so that a captured graph keeps its own; launch.py: COUNTS.
struct Counts {
  long long at[64];
};

// counts[first ..] = the first `count` of some. Launch: one warp, of which one thread writes: parameters are read at
// fixed places.
__global__ void __launch_bounds__(32) write_counts(Counts some, int first, int count, long long* counts) {
  if (threadIdx.x) return;
#pragma unroll
  for (int k = 0; k < 64; ++k)
    if (k < count) counts[first + k] = some.at[k];
}

// coefficients[b, k] = readout op^(steps[k] - 1) start, of all blocks or those on a list; zero of a block of rank 0, NaN
// of one that is not finite.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 256 threads. Step counts ascend
// from 1; they are first + k stride where `steps` is null. Reads an operator a step, mostly from L1; squares it instead
// over long gaps. Shared: two matrices of `order`, two vectors.
__global__ void __launch_bounds__(256, 1)
    evolve(Factors all, Problem p, Work work, const long long* steps, long long first, long long stride, int count,
           double* coefficients) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  const int order = p.order, thread = threadIdx.x, threads = blockDim.x;
  double* P = shared.take<double>(order * order);
  double* Q = shared.take<double>(order * order);
  double* y = shared.take<double>(order);
  double* spare = shared.take<double>(order);
  for (int i = blockIdx.x; i < work.count(p); i += gridDim.x) {
    const int b = work.block(i);
    const Factors block = factors_of(all, b, order);
    const int r = static_cast<int>(*block.rank);
    double* const out = coefficients + static_cast<long long>(b) * count * order;
    const bool bad = *block.route == NON_FINITE;
    for (int k = thread; k < r; k += threads) y[k] = block.start[k];
    __syncthreads();
    long long at = 1;
    for (int k = 0; k < count; ++k) {
      const long long next = steps ? steps[k] : first + k * stride;
      long long gap = next - at;
      at = next;
      if (gap > 64 && gap > 4.0 * r * log2(static_cast<double>(gap))) {
        for (int i = thread; i < r * r; i += threads) P[i] = block.op[i / r * order + i % r];
        __syncthreads();
        for (; gap; gap >>= 1) {
          if (gap & 1) {
            multiply(P, r, r, y, spare);
            double* const other = y;
            y = spare;
            spare = other;
          }
          for (int i = thread; i < r * r && gap > 1; i += threads) {
            double total = 0.0;
            for (int j = 0; j < r; ++j) total = fma(P[i / r * r + j], P[j * r + i % r], total);
            Q[i] = total;
          }
          __syncthreads();
          double* const other = P;
          P = Q;
          Q = other;
        }
      }
      for (; gap > 0; --gap) {
        multiply(block.op, r, order, y, spare);
        double* const other = y;
        y = spare;
        spare = other;
      }
      for (int i = thread; i < order; i += threads) {
        double total = bad ? nan("") : 0.0;
        for (int j = 0; j < r; ++j) total = fma(block.readout[i * order + j], y[j], total);
        out[static_cast<long long>(k) * order + i] = total;
      }
    }
    __syncthreads();
  }
}

}  // namespace fastkoop
