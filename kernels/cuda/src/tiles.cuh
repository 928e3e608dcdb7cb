// The Gram matrix of one block by one CTA: a tile of the block in shared memory, its products in registers.
//
// Rows are what the Gram matrix is of and lines are what it sums over: snapshots and weights of a tall block, weights
// and snapshots of a wide one. Each warp sums the groups of four lines that fall to it, for the whole lower triangle of
// 8 x 8 tiles; warps are added in a fixed order, so that the bits depend on the launch's shape alone.

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

// One block as rows and lines. Where lines lie side by side (p.vectors) a row's place in the tile begins as many numbers
// past 16 bytes as in memory, so that all but its ends is copied 16 bytes at a time, whatever its length.
template <class T>
struct Block {
  static constexpr int PER = 16 / sizeof(T);
  const T* at;
  long long row_stride, line_stride;
  int rows, mask;  // mask: of a place within 16 bytes

  __device__ Block(const T* data, const Layout& X, const Problem& p, int b)
      : at(data + offset(X, b)),
        row_stride(p.wide ? X.weight : X.time),
        line_stride(p.wide ? X.time : X.weight),
        rows(p.wide ? p.n : p.columns),
        mask(p.vectors ? PER - 1 : 0) {}

  __device__ int shift(int row) const {
    const unsigned long long first = reinterpret_cast<unsigned long long>(at) / sizeof(T);
    return (static_cast<unsigned>(first) + static_cast<unsigned>(row) * static_cast<unsigned>(row_stride)) & mask;
  }
  __device__ int place(const Problem& p, int row) const { return row * p.pitch + shift(row); }  // of a row in the tile

  // Lines of tile number `k`; a wide block's come with the line after them, if there is one.
  __device__ int lines(const Problem& p, int k) const { return min(p.tile, p.lines - k * p.tile); }
  __device__ int load(const Problem& p, int k, T* tile) const {
    const int count = lines(p, k), first = k * p.tile;
    const int extra = p.wide && first + count < p.columns ? 1 : 0;
    stage(*this, p, first, count + extra, tile);
    return count;
  }
};

// Lines first .. first + count of a block into tile[place of row + line - first]; reads each number once, along
// whichever axis lies in consecutive memory. Ends with the tile complete and all threads past a barrier.
template <class T>
__device__ void stage(Block<T> block, const Problem& p, int first, int count, T* tile) {
  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % WARP, rows = block.rows;
  const T* const from = block.at + first * block.line_stride;
  constexpr int PER = Block<T>::PER;
  if (p.vectors) {
    for (int row = thread / WARP; row < rows; row += threads / WARP) {
      const T* const source = from + row * block.row_stride;
      T* const to = tile + block.place(p, row);
      const int head = min(-block.shift(row) & (PER - 1), count), end = head + (count - head) / PER * PER;
#pragma unroll 4
      for (int line = head + PER * lane; line < end; line += PER * WARP) copy_async<16>(to + line, source + line);
      const int edge = lane < 16 ? lane : end + lane - 16;  // up to three numbers before, up to three after
      if (lane < 16 ? edge < head : edge < count) copy_async<sizeof(T)>(to + edge, source + edge);
    }
  } else if (block.row_stride != 1) {
    for (int row = thread / WARP; row < rows; row += threads / WARP)
      for (int line = lane; line < count; line += WARP)
        copy_async<sizeof(T)>(tile + row * p.pitch + line, from + row * block.row_stride + line * block.line_stride);
  } else {
    int width = 1;  // lanes side by side along a line: as many as there are rows, up to a warp
    while (width < rows && width < WARP) width *= 2;
    for (int line = thread / width; line < count; line += threads / width)
      for (int row = thread % width; row < rows; row += width)
        copy_async<sizeof(T)>(tile + row * p.pitch + line, from + row + line * block.line_stride);
  }
  copies_arrived();
  __syncthreads();
}

// sums[tile of the lower triangle] += products of the tile's lines; rows past the last repeat it and are never read.
// Groups of four lines go to the warps in turn; each takes several at a time while all of them are whole.
template <class Sum, int R, class T>
__device__ void accumulate(Block<T> block, const Problem& p, const T* tile, int count,
                           Sum (&sums)[R * (R + 1) / 2]) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, step = 4 * (blockDim.x / WARP), last = block.rows - 1;
  if constexpr (Sum::tiles) {
    constexpr int TOGETHER = R <= 3 ? 4 : R <= 5 ? 2 : 1;
    int row[R];  // offsets: pointers would take twice the registers
#pragma unroll
    for (int I = 0; I < R; ++I) row[I] = block.place(p, min(8 * I + lane / 4, last)) + lane % 4;
    int line = 4 * warp;
    for (; line + (TOGETHER - 1) * step + 4 <= count; line += TOGETHER * step) {
      double part[TOGETHER][R];
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k)
#pragma unroll
        for (int I = 0; I < R; ++I) part[k][I] = to_double(tile[row[I] + line + k * step]);
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k)
#pragma unroll
        for (int I = 0; I < R; ++I)
#pragma unroll
          for (int J = 0; J <= I; ++J) multiply_add_tile(sums[I * (I + 1) / 2 + J].c, part[k][I], part[k][J]);
    }
#pragma unroll 1
    for (; line < count; line += step) {
      double part[R];
      const bool inside = line + lane % 4 < count;
#pragma unroll
      for (int I = 0; I < R; ++I) part[I] = inside ? to_double(tile[row[I] + line]) : 0.0;
#pragma unroll
      for (int I = 0; I < R; ++I)
#pragma unroll
        for (int J = 0; J <= I; ++J) multiply_add_tile(sums[I * (I + 1) / 2 + J].c, part[I], part[J]);
    }
  } else {
    const T *below[R], *left[R], *right[R];
#pragma unroll
    for (int I = 0; I < R; ++I) {
      below[I] = tile + block.place(p, min(8 * I + lane / 4, last));
      left[I] = tile + block.place(p, min(8 * I + 2 * (lane % 4), last));
      right[I] = tile + block.place(p, min(8 * I + 2 * (lane % 4) + 1, last));
    }
    for (int line = 4 * warp; line < count; line += step) {
      for (int k = line; k < min(line + 4, count); ++k)
#pragma unroll
        for (int I = 0; I < R; ++I)
#pragma unroll
          for (int J = 0; J <= I; ++J) {
            sums[I * (I + 1) / 2 + J].add(0, below[I][k], left[J][k]);
            sums[I * (I + 1) / 2 + J].add(1, below[I][k], right[J][k]);
          }
#pragma unroll
      for (int k = 0; k < R * (R + 1) / 2; ++k) sums[k].settle();
    }
  }
}

// The lower triangles of S and A (rows x rows, in shared memory, rows `across` apart) = the sums of the warps of even
// and of odd number, of up to four; `complete` adds them. Ends with a barrier.
template <class Sum, int R>
__device__ void gather(const Sum (&sums)[R * (R + 1) / 2], int rows, double* S, double* A, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  double* const to = warp % 2 ? A : S;
#pragma unroll
  for (int turn = 0; turn < 2; ++turn) {
    if (warp / 2 == turn) {
#pragma unroll
      for (int I = 0; I < R; ++I)
#pragma unroll
        for (int J = 0; J <= I; ++J)
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const int i = 8 * I + lane / 4, j = 8 * J + 2 * (lane % 4) + k;
            if (i < rows && j <= i)
              to[i * across + j] = (turn ? to[i * across + j] : 0.0) + sums[I * (I + 1) / 2 + J].value(k);
          }
    }
    if (turn == 0 || warps > 2) __syncthreads();
  }
}

struct Sums {
  double size, squares;  // the trace of a Gram matrix, and the sum of squares of its entries
};

// From the lower triangle of S, or of its halves in S and A: both triangles of S, the lower one of A, and what decides
// the block's route, of the first `order` rows. partial: two numbers a warp. Begins and ends past a barrier.
__device__ inline Sums complete(double* S, double* A, bool halves, int rows, int order, int across, double* partial) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  constexpr int TOGETHER = 4;
  double size = 0.0, squares = 0.0;
  for (int first = warp; first < rows; first += TOGETHER * warps)
    for (int j = lane; j < rows; j += WARP) {
      double x[TOGETHER];
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k) {
        const int i = first + k * warps;
        x[k] = i < rows && j <= i ? S[i * across + j] + (halves ? A[i * across + j] : 0.0) : 0.0;
      }
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k) {
        const int i = first + k * warps;
        if (i < rows && j <= i) S[i * across + j] = S[j * across + i] = A[i * across + j] = x[k];
        if (i < order) squares = fma(i == j ? x[k] : 2.0 * x[k], x[k], squares);
        if (i < order && i == j) size += x[k];
      }
    }
#pragma unroll
  for (int far = WARP / 2; far; far /= 2) {
    size += __shfl_xor_sync(~0u, size, far);
    squares += __shfl_xor_sync(~0u, squares, far);
  }
  if (lane == 0) {
    partial[2 * warp] = size;
    partial[2 * warp + 1] = squares;
  }
  __syncthreads();
  Sums sums = {partial[0], partial[1]};
  for (int k = 1; k < warps; ++k) {
    sums.size += partial[2 * k];
    sums.squares += partial[2 * k + 1];
  }
  return sums;
}

// D += sum over lines of row i a line further on times row j: Fp F^T of a wide block. A warp an 8 x 8 tile of D.
template <class Sum, class T>
__device__ void accumulate_lagged(Block<T> block, const Problem& p, const T* tile, int count, bool first,
                                  double* D, int across) {
  const int lane = threadIdx.x % WARP, rows = block.rows, across_tiles = (rows + 7) / 8;
  for (int at = threadIdx.x / WARP; at < across_tiles * across_tiles; at += blockDim.x / WARP) {
    const int I = at / across_tiles, J = at % across_tiles;
    const T* const ahead = tile + block.place(p, min(8 * I + lane / 4, rows - 1)) + 1;
    Sum sum;
    sum.clear();
    if constexpr (Sum::tiles) {
      const T* const row = tile + block.place(p, min(8 * J + lane / 4, rows - 1));
      for (int line = lane % 4; line < count + lane % 4; line += 4) {
        const bool inside = line < count;
        multiply_add_tile(sum.c, inside ? to_double(ahead[line]) : 0.0, inside ? to_double(row[line]) : 0.0);
      }
    } else {
      const T* const left = tile + block.place(p, min(8 * J + 2 * (lane % 4), rows - 1));
      const T* const right = tile + block.place(p, min(8 * J + 2 * (lane % 4) + 1, rows - 1));
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

__device__ __forceinline__ int tiles(const Problem& p) { return (p.lines + p.tile - 1) / p.tile; }

// Where a CTA keeps what belongs to its block and all blocks; one thread writes it down for all, in shared memory:
// registers are for the products, and what is read here after a barrier takes none before it. Places are bytes into
// shared memory: through a pointer that was kept there the compiler could no longer tell which memory it reads.
// launch.py: ROOM_BYTES.
template <class T>
struct Room {
  Block<T> block;
  int S, tile;  // a matrix; the tile
  int tiles;
  int beyond;   // whether there are more steps than a certified block takes
  int A, c;     // another matrix; what else a kernel needs
  int b;        // the block's number
  int order;
  int partial;  // 16 numbers. 16 bytes from S and A: neighbours are read as one vector, whose registers stay together
  int across;   // between rows of the matrices

  __device__ void describe(const Block<T>& from, const Problem& p, int across, unsigned char* memory, T* tile,
                           double* S, double* A, double* partial, double* c) {
    const auto place = [&](const void* part) { return static_cast<int>(static_cast<const unsigned char*>(part) - memory); };
    const int tiles = fastkoop::tiles(p);
    *this = {from, place(S), place(tile), tiles, 0, place(A), place(c), 0, p.order, place(partial), across};
  }
};

// What begins at a place of shared memory.
template <class T>
__device__ T* part_of(unsigned char* memory, int place) {
  return reinterpret_cast<T*>(memory + place);
}

// room.S = the Gram matrix of a block's rows over tiles begin .. end, and its lower triangle in room.A; the last of the
// tiles stays where tiles are.
template <class Sum, int R, class T>
__device__ Sums gram_of(const Room<T>& room, unsigned char* memory, const Problem& p, int begin, int end) {
  Sum sums[R * (R + 1) / 2];
#pragma unroll
  for (int k = 0; k < R * (R + 1) / 2; ++k) sums[k].clear();
  for (int k = begin; k < end; ++k) {
    T* const tile = part_of<T>(memory, room.tile);
    const int count = room.block.load(p, k, tile);
    accumulate<Sum, R>(room.block, p, tile, count, sums);
    if (k + 1 < end) __syncthreads();
  }
  double *const S = part_of<double>(memory, room.S), *const A = part_of<double>(memory, room.A);
  gather<Sum, R>(sums, room.block.rows, S, A, room.across);
  return complete(S, A, blockDim.x > WARP, room.block.rows, room.order, room.across,
                  part_of<double>(memory, room.partial));
}

// D = Fp F^T over tiles begin .. end of a wide block; a single tile is in shared memory already.
template <class Sum, class T>
__device__ void lagged_of(const Block<T>& block, const Problem& p, int begin, int end, T* tile, double* D, int across) {
  for (int k = begin; k < end; ++k) {
    if (k > begin) __syncthreads();
    const int count = end - begin > 1 ? block.load(p, k, tile) : block.lines(p, k);
    accumulate_lagged<Sum>(block, p, tile, count, k == begin, D, across);
  }
  if (begin == end)
    for (int at = threadIdx.x; at < p.n * p.n; at += blockDim.x) D[at / p.n * across + at % p.n] = 0.0;
  __syncthreads();
}

// grams[slot] of a block whose first Gram matrix is S: S itself if tall, [F F^T; Fp F^T; x_last^T] if wide, where only
// the last share of the lines has x_last. room.A is spent.
template <class Sum, class T>
__device__ void write_gram(const Room<T>& room, unsigned char* memory, const Problem& p, int begin, int end,
                           double* grams, long long slot) {
  const Block<T>& block = room.block;
  const double* const S = part_of<double>(memory, room.S);
  double* const D = part_of<double>(memory, room.A);
  const int rows = block.rows, across = room.across, height = p.wide ? 2 * rows + 1 : rows;
  double* const gram = grams + slot * height * rows;
  const bool newest = end == room.tiles && begin < end;
  if (p.wide) lagged_of<Sum>(block, p, begin, end, part_of<T>(memory, room.tile), D, across);
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
