// The Gram matrix of one block by one CTA: a tile of the block in shared memory, its products in registers.
//
// Rows are what the Gram matrix is of and lines are what it sums over: snapshots and weights of a tall block, weights
// and snapshots of a wide one. Each warp sums every fourth-line group that falls to it, for the whole lower triangle
// of 8 x 8 tiles; warps are added in a fixed order, so that the bits depend on the launch's shape alone.

namespace fastkoop {

// Products and sums in double on the matrix unit: float data is exact in it.
struct Tensor {
  double c[2];
  static constexpr bool tiles = true;
  __device__ void clear() { c[0] = c[1] = 0.0; }
  __device__ double value(int k) const { return c[k]; }
};

// The same in double, where there is no such unit.
struct Vector {
  double c[2];
  static constexpr bool tiles = false;
  __device__ void clear() { c[0] = c[1] = 0.0; }
  template <class T>
  __device__ void add(int k, T a, T b) {
    c[k] = fma(to_double(a), to_double(b), c[k]);
  }
  __device__ void settle() {}
  __device__ double value(int k) const { return c[k]; }
};

// Pairs of floats, for devices whose double is slow: exact products, compensated sums (Ogita, Rump & Oishi 2005,
// algorithm 5.3): as if in twice the working precision, then rounded.
struct DoubleFloat {
  float high[2], low[2];
  static constexpr bool tiles = false;
  __device__ void clear() { high[0] = high[1] = low[0] = low[1] = 0.0f; }
  __device__ void add(int k, float a, float b) {
    const float product = __fmul_rn(a, b), error = __fmaf_rn(a, b, -product);
    const float sum = __fadd_rn(high[k], product), part = __fsub_rn(sum, high[k]);
    const float lost = __fadd_rn(__fsub_rn(high[k], __fsub_rn(sum, part)), __fsub_rn(product, part));
    low[k] = __fadd_rn(low[k], __fadd_rn(lost, error));
    high[k] = sum;
  }
  // What low has gathered goes up, before it is so large that its own rounding counts: terms all alike would make it
  // grow with every one of them.
  __device__ void settle() {
    for (int k = 0; k < 2; ++k) {
      const float sum = __fadd_rn(high[k], low[k]);
      low[k] = __fsub_rn(low[k], __fsub_rn(sum, high[k]));
      high[k] = sum;
    }
  }
  __device__ double value(int k) const { return to_double(high[k]) + to_double(low[k]); }
};

// Lines first .. first + count of a block into tile[row * pitch + line - first]; reads each number once, along
// whichever axis lies in consecutive memory. Ends with the tile complete and all threads past a barrier.
template <class T>
__device__ void stage(const T* block, long long row_stride, long long line_stride, const Problem& p, int rows,
                      int first, int count, T* tile) {
  const int thread = threadIdx.x, threads = blockDim.x;
  const T* const from = block + first * line_stride;
  constexpr int per = 16 / sizeof(T);
  if (p.vectors) {
    const int warp = thread / WARP, warps = threads / WARP, whole = count / per * per;
    for (int row = warp; row < rows; row += warps) {
      for (int line = per * (thread % WARP); line < whole; line += per * WARP)
        copy_async<16>(tile + row * p.pitch + line, from + row * row_stride + line);
      for (int line = whole + thread % WARP; line < count; line += WARP)
        copy_async<sizeof(T)>(tile + row * p.pitch + line, from + row * row_stride + line);
    }
  } else if (line_stride == 1 || row_stride != 1) {
    const int warp = thread / WARP, warps = threads / WARP;
    for (int row = warp; row < rows; row += warps)
      for (int line = thread % WARP; line < count; line += WARP)
        copy_async<sizeof(T)>(tile + row * p.pitch + line, from + row * row_stride + line * line_stride);
  } else {
    int width = 1;  // lanes side by side along a line: as many as there are rows, up to a warp
    while (width < rows && width < WARP) width *= 2;
    for (int line = thread / width; line < count; line += threads / width)
      for (int row = thread % width; row < rows; row += width)
        copy_async<sizeof(T)>(tile + row * p.pitch + line, from + row + line * line_stride);
  }
  copies_arrived();
  __syncthreads();
}

// sums[tile of the lower triangle] += products of the tile's lines; rows past the last repeat it and are never read.
template <class Sum, int R, class T>
__device__ void accumulate(const T* tile, int pitch, int rows, int count, Sum (&sums)[R * (R + 1) / 2]) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int line = 4 * warp; line < count; line += 4 * warps) {
    if constexpr (Sum::tiles) {
      double part[R];
      const bool inside = line + lane % 4 < count;
#pragma unroll
      for (int I = 0; I < R; ++I) {
        const T* const row = tile + min(8 * I + lane / 4, rows - 1) * pitch + line;
        part[I] = inside ? to_double(row[lane % 4]) : 0.0;
      }
#pragma unroll
      for (int I = 0; I < R; ++I)
#pragma unroll
        for (int J = 0; J <= I; ++J) multiply_add_tile(sums[I * (I + 1) / 2 + J].c, part[I], part[J]);
    } else {
      const int end = min(line + 4, count);
      for (int k = line; k < end; ++k) {
        T below[R], left[R], right[R];
#pragma unroll
        for (int I = 0; I < R; ++I) {
          below[I] = tile[min(8 * I + lane / 4, rows - 1) * pitch + k];
          left[I] = tile[min(8 * I + 2 * (lane % 4), rows - 1) * pitch + k];
          right[I] = tile[min(8 * I + 2 * (lane % 4) + 1, rows - 1) * pitch + k];
        }
#pragma unroll
        for (int I = 0; I < R; ++I)
#pragma unroll
          for (int J = 0; J <= I; ++J) {
            sums[I * (I + 1) / 2 + J].add(0, below[I], left[J]);
            sums[I * (I + 1) / 2 + J].add(1, below[I], right[J]);
          }
      }
#pragma unroll
      for (int k = 0; k < R * (R + 1) / 2; ++k) sums[k].settle();
    }
  }
}

// S (rows x rows, in shared memory, rows `across` apart) = the sums of all warps, both triangles.
template <class Sum, int R>
__device__ void gather(const Sum (&sums)[R * (R + 1) / 2], int rows, double* S, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int turn = 0; turn < warps; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int I = 0; I < R; ++I)
#pragma unroll
        for (int J = 0; J <= I; ++J)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const int i = 8 * I + lane / 4, j = 8 * J + 2 * (lane % 4) + k;
            if (i < rows && j <= i) {
              const double total = (turn ? S[i * across + j] : 0.0) + sums[I * (I + 1) / 2 + J].value(k);
              S[i * across + j] = total;
              S[j * across + i] = total;
            }
          }
    }
    __syncthreads();
  }
}

// D += sum over lines of row i a line further on times row j: Fp F^T of a wide block. A warp an 8 x 8 tile of D.
template <class Sum, class T>
__device__ void accumulate_lagged(const T* tile, int pitch, int rows, int count, bool first, double* D, int across) {
  const int lane = threadIdx.x % WARP, across_tiles = (rows + 7) / 8;
  for (int at = threadIdx.x / WARP; at < across_tiles * across_tiles; at += blockDim.x / WARP) {
    const int I = at / across_tiles, J = at % across_tiles;
    const T* const ahead = tile + min(8 * I + lane / 4, rows - 1) * pitch + 1;
    Sum sum;
    sum.clear();
    if constexpr (Sum::tiles) {
      const T* const row = tile + min(8 * J + lane / 4, rows - 1) * pitch;
      for (int line = lane % 4; line < count + lane % 4; line += 4) {
        const bool inside = line < count;
        multiply_add_tile(sum.c, inside ? to_double(ahead[line]) : 0.0, inside ? to_double(row[line]) : 0.0);
      }
    } else {
      const T* const left = tile + min(8 * J + 2 * (lane % 4), rows - 1) * pitch;
      const T* const right = tile + min(8 * J + 2 * (lane % 4) + 1, rows - 1) * pitch;
      for (int line = 0; line < count; ++line) {
        sum.add(0, ahead[line], left[line]);
        sum.add(1, ahead[line], right[line]);
        if (line % 4 == 3) sum.settle();
      }
    }
    for (int k = 0; k < 2; ++k) {
      const int i = 8 * I + lane / 4, j = 8 * J + 2 * (lane % 4) + k;
      if (i < rows && j < rows) D[i * across + j] = (first ? 0.0 : D[i * across + j]) + sum.value(k);
    }
  }
}

// One block as rows and lines, and its tiles one after another.
template <class T>
struct Block {
  const T* at;
  long long row_stride, line_stride;
  int rows;

  __device__ Block(const T* data, const Layout& X, const Problem& p, int b)
      : at(data + offset(X, b)),
        row_stride(p.wide ? X.weight : X.time),
        line_stride(p.wide ? X.time : X.weight),
        rows(p.wide ? p.n : p.columns) {}

  // Lines of tile number `k`; a wide block's come with the line after them, if there is one.
  __device__ int lines(const Problem& p, int k) const { return min(p.tile, p.lines - k * p.tile); }
  __device__ int load(const Problem& p, int k, T* tile) const {
    const int count = lines(p, k), first = k * p.tile;
    const int extra = p.wide && first + count < p.columns ? 1 : 0;
    stage(at, row_stride, line_stride, p, rows, first, count + extra, tile);
    return count;
  }
};

__device__ __forceinline__ int tiles(const Problem& p) { return (p.lines + p.tile - 1) / p.tile; }

// S = the Gram matrix of a block's rows over tiles begin .. end; the last of them stays in `tile`.
template <class Sum, int R, class T>
__device__ void gram_of(const Block<T>& block, const Problem& p, int begin, int end, T* tile, double* S, int across) {
  Sum sums[R * (R + 1) / 2];
#pragma unroll
  for (int k = 0; k < R * (R + 1) / 2; ++k) sums[k].clear();
  for (int k = begin; k < end; ++k) {
    const int count = block.load(p, k, tile);
    accumulate<Sum, R>(tile, p.pitch, block.rows, count, sums);
    if (k + 1 < end) __syncthreads();
  }
  gather<Sum, R>(sums, block.rows, S, across);
}

// D = Fp F^T over tiles begin .. end of a wide block; a single tile is in shared memory already.
template <class Sum, class T>
__device__ void lagged_of(const Block<T>& block, const Problem& p, int begin, int end, T* tile, double* D, int across) {
  for (int k = begin; k < end; ++k) {
    if (k > begin) __syncthreads();
    const int count = end - begin > 1 ? block.load(p, k, tile) : block.lines(p, k);
    accumulate_lagged<Sum>(tile, p.pitch, block.rows, count, k == begin, D, across);
  }
  if (begin == end)
    for (int at = threadIdx.x; at < p.n * p.n; at += blockDim.x) D[at / p.n * across + at % p.n] = 0.0;
  __syncthreads();
}

// grams[slot] of a block whose first Gram matrix is S: S itself if tall, [F F^T; Fp F^T; x_last^T] if wide, where only
// the last share of the lines has x_last. D is scratch of S's size.
template <class Sum, class T>
__device__ void write_gram(const Block<T>& block, const Problem& p, int begin, int end, T* tile, const double* S,
                           int across, double* D, double* grams, long long slot) {
  const int rows = block.rows, height = p.wide ? 2 * rows + 1 : rows;
  double* const gram = grams + slot * height * rows;
  const bool newest = end == tiles(p) && begin < end;
  if (p.wide) lagged_of<Sum>(block, p, begin, end, tile, D, across);
  for (int at = threadIdx.x; at < height * rows; at += blockDim.x) {
    const int i = at / rows, j = at % rows;
    if (i < rows)
      gram[at] = S[i * across + j];
    else if (i < 2 * rows)
      gram[at] = D[(i - rows) * across + j];
    else
      gram[at] = newest ? to_double(block.at[j * block.row_stride + p.m * block.line_stride]) : 0.0;
  }
}

}  // namespace fastkoop
