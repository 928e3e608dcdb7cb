// Gram matrices of blocks, each by one CTA or by several.

namespace fastkoop {

// Gram matrices as kernels.gram describes them, or their parts from each of p.splits shares of the lines.
//
// Launch: CTAs (share, block); whole warps, up to 128 threads. Reads the data once (a wide block's twice if it does
// not fit one tile). Writes splits * blocks matrices. Shared: the tile, two matrices of `rows`.
template <class T, class Sum, int R>
__global__ void __launch_bounds__(128, R > 5 ? 2 : 4) gram(const T* data, Layout X, Problem p, double* grams) {
  SHARED_MEMORY(memory);
  Shared shared = {memory};
  Room<T>& room = *shared.take<Room<T>>(1);
  const int rows = p.wide ? p.n : p.columns, across = rows | 1;
  T* const tile = shared.take<T>(rows * p.pitch);
  double* const S = shared.take<double>(rows * across);
  double* const D = shared.take<double>(rows * across);
  double* const partial = shared.take<double>(16);
  const int share = (tiles(p) + p.splits - 1) / p.splits;
  const int begin = min(blockIdx.x * share, tiles(p)), end = min(begin + share, tiles(p));
  for (int b = blockIdx.y; b < p.blocks; b += gridDim.y) {
    if (threadIdx.x == 0) room.describe(Block<T>(data, X, p, b), p, across, memory, tile, S, D, partial, partial);
    __syncthreads();
    gram_of<Sum, R>(room, memory, p, begin, end);
    write_gram<Sum>(room, memory, p, begin, end, grams, static_cast<long long>(b) * p.splits + blockIdx.x);
    __syncthreads();
  }
}

// grams[b] = the sum of its parts, in order. Launch: a thread a number, grid-stride.
__global__ void __launch_bounds__(256) add_parts(const double* parts, int splits, int size, int blocks, double* grams) {
  const long long total = static_cast<long long>(size) * blocks, stride = gridDim.x * blockDim.x;
  for (long long at = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; at < total; at += stride) {
    const double* const part = parts + at / size * size * splits + at % size;
    double sum = 0.0;
    for (int k = 0; k < splits; ++k) sum += part[static_cast<long long>(k) * size];
    grams[at] = sum;
  }
}

}  // namespace fastkoop
