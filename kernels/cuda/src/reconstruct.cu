// Coefficients to states.

namespace fastkoop {

constexpr int STATES = 8;  // made in one pass over the rows

// out[k, b] = sum over t of coefficients[b, k, t] rows[t, b], or the coefficients themselves where those are states
// (wide blocks, q = 0); of all blocks, or of those on a list.
//
// Launch: CTAs (share of the weights, block); up to 256 threads, a thread a weight. Reads a block's rows once for
// every eight states, its coefficients through shared memory. Shared: 8 q doubles.
template <class T>
__global__ void __launch_bounds__(256)
    combine(const T* data, Layout X, Problem p, const double* coefficients, int q, int count, Work work, T* out) {
  SHARED_MEMORY(memory);
  double* const c = reinterpret_cast<double*>(memory);
  for (int place = blockIdx.y; place < work.count(p); place += gridDim.y) {
    const int b = work.block(place);
    const T* const block = data + (q ? offset(X, b) : 0);
    for (int first = 0; first < count; first += STATES) {
      const int states = min(STATES, count - first);
      const double* const from = coefficients + (static_cast<long long>(b) * count + first) * (q ? q : p.n);
      for (int at = threadIdx.x; at < states * q; at += blockDim.x) c[at % q * STATES + at / q] = from[at];
      __syncthreads();
      for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += gridDim.x * blockDim.x) {
        double sums[STATES];
#pragma unroll
        for (int k = 0; k < STATES; ++k) sums[k] = 0.0;
        for (int t = 0; t < q; ++t) {
          const double x = to_double(block[t * X.time + i * X.weight]);
#pragma unroll
          for (int k = 0; k < STATES; ++k)
            if (k < states) sums[k] = fma(c[t * STATES + k], x, sums[k]);
        }
#pragma unroll
        for (int k = 0; k < STATES; ++k) {
          if (k >= states) break;
          out[(static_cast<long long>(first + k) * p.blocks + b) * p.n + i] =
              rounded<T>(q ? sums[k] : from[static_cast<long long>(k) * p.n + i]);
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace fastkoop
