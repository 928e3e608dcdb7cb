// One snapshot of many parameters into its row of the time-major buffer.

namespace fastkoop {

// A matrix of numbers and where it goes: from[i * from_row + j * from_column] to to[i * to_row + j], i < rows,
// j < columns.
struct Strip {
  unsigned long long from;  // an address: parameters lie anywhere
  long long to, rows, columns, from_row, from_column, to_row;
};

// Launch: CTAs (share of a strip, strip); up to 256 threads, a thread a number, grid-stride. Reads the parameters
// once, coalesced along a row, and writes as much. No shared memory.
template <class T, class U>
__global__ void __launch_bounds__(256) record(const Strip* strips, U* snapshot) {
  const Strip strip = strips[blockIdx.y];
  const T* const from = reinterpret_cast<const T*>(strip.from);
  const long long count = strip.rows * strip.columns, stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long at = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; at < count; at += stride) {
    const long long i = at / strip.columns, j = at % strip.columns;
    snapshot[strip.to + i * strip.to_row + j] = static_cast<U>(from[i * strip.from_row + j * strip.from_column]);
  }
}

}  // namespace fastkoop
