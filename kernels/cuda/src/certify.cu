// Gram matrices that are certified to coefficients, without an eigenproblem.

namespace fastkoop {

// coefficients[b] after `steps` steps of the blocks whose Gram matrix proves that every singular value counts, as
// `predict` finds them: of snapshots (tall), or the state itself (wide, one step). The others go onto the list
// `pending`, their route left at EIGEN. For blocks that several CTAs summed.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 256 threads; order < 32 SLOTS.
// Reads a Gram matrix a block. Shared: two matrices of order + 1, `Scratch`, a vector.
template <int SLOTS>
__global__ void __launch_bounds__(256, SLOTS < 3 ? 2 : 1)
    certify(const double* grams, Problem p, long long steps, double* coefficients, signed char* route, int* pending) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  const int order = p.order, rows = order + 1, across = rows | 1, thread = threadIdx.x, threads = blockDim.x;
  double* const S = shared.take<double>(rows * across);
  double* const A = shared.take<double>(rows * across);
  const Scratch scratch(shared, order);
  double* const c = shared.take<double>(order);
  const int height = p.wide ? 2 * order + 1 : rows, width = p.wide ? order : rows;
  const bool beyond = too_many(p, steps);
  for (int b = blockIdx.x; b < p.blocks; b += gridDim.x) {
    const double* const gram = grams + static_cast<long long>(b) * height * width;
    for (int at = thread; at < rows * width; at += threads) {
      const int i = at / width, j = at % width;
      const double x = gram[(i < order ? i : height - 1) * width + j];
      S[i * across + j] = x;
      if (p.wide && i == order) S[j * across + i] = x;  // a tall block's is symmetric as it is
    }
    if (p.wide && thread == 0) S[order * across + order] = 0.0;
    __syncthreads();
    const Sums sums = complete(S, A, false, p.wide ? order : rows, order, across, scratch.partial());
    const double* const side = S + order * across;
    const double size = sums.size, last = p.wide ? dot(side, side, order) : side[order];
    const double needed = needed_of(p, order, sums);
    const bool usable = size > p.tiny && size < p.huge && last < p.huge && !beyond && !isnan(needed);
    const bool passed = usable && certify_and_solve<SLOTS>(S, A, needed, across, scratch);
    __syncthreads();
    if (thread == 0) {
      route[b] = passed ? CHOLESKY : EIGEN;
      if (!passed) pending[1 + atomicAdd(pending, 1)] = b;
    }
    if (passed) {
      double* const out = coefficients + static_cast<long long>(b) * order;
      if (p.wide) {
        for (int i = thread; i < order; i += threads) out[i] = dot(gram + (order + i) * width, scratch.a(), order);
      } else {
        for (int k = thread; k < order; k += threads) c[k] = scratch.a()[k];
        __syncthreads();
        advance_companion(scratch.a(), order, steps - 1, c, scratch.kept());
        for (int k = thread; k < order; k += threads) out[k] = c[k];
      }
    }
    __syncthreads();
  }
}

}  // namespace fastkoop
