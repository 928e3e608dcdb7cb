// One snapshot of many parameters into its row of the time-major buffer.

namespace fastkoop {

// A matrix of numbers and where it goes: from[i * from_row + j * from_column] to to[i * to_row + j], i < rows,
// j < columns.
struct Strip {
  unsigned long long from;  // an address: parameters lie anywhere
  long long to, rows, columns, from_row, from_column, to_row;
};

// Launch: a CTA a strip, whole warps, up to 256 threads: a warp a row of a long-rowed strip, else a thread a number.
// Reads the parameters once, coalesced along a row, and writes as much. No shared memory.
template <class T, class U>
__global__ void __launch_bounds__(256) record(const Strip* strips, U* snapshot) {
  const Strip strip = strips[blockIdx.x];
  const T* const from = reinterpret_cast<const T*>(strip.from);
  const int rows = static_cast<int>(strip.rows), columns = static_cast<int>(strip.columns);
  const int thread = threadIdx.x, threads = blockDim.x;
  if (columns < WARP) {
    for (int at = thread; at < rows * columns; at += threads) {
      const long long i = at / columns, j = at % columns;
      snapshot[strip.to + i * strip.to_row + j] = converted<U>(from[i * strip.from_row + j * strip.from_column]);
    }
    return;
  }
  for (long long i = thread / WARP; i < rows; i += threads / WARP)
    for (int j = thread % WARP; j < columns; j += WARP)
      snapshot[strip.to + i * strip.to_row + j] = converted<U>(from[i * strip.from_row + j * strip.from_column]);
}

}  // namespace fastkoop
