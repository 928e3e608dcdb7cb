// K^steps x_last of a batch of blocks in one pass over the data.

namespace fastkoop {

constexpr int ABREAST = 2, BATCH = 8;  // weights that a thread reconstructs side by side, snapshots that it loads at once

// result[i] of the weights first <= i < end: sums over t of c[t] times rows(t)[i step], where rows(t) is where snapshot
// t + 1 begins.
template <class T, class Rows>
__device__ void reconstruct_range(int m, const double* c, int first, int end, long long step, Rows rows, T* result) {
  const int threads = blockDim.x;
#pragma unroll 1
  for (int i = first + threadIdx.x; i < end; i += ABREAST * threads) {
    const long long at = i * step, next = min(i + threads, end - 1) * step;
    double total = 0.0, other = 0.0;
    int t = 0;
    for (; t + BATCH <= m; t += BATCH) {
      T x[BATCH], y[BATCH];
#pragma unroll
      for (int k = 0; k < BATCH; ++k) {
        const T* const row = rows(t + k);
        x[k] = row[at];
        y[k] = row[next];
      }
#pragma unroll
      for (int k = 0; k < BATCH; ++k) {
        total = fma(c[t + k], to_double(x[k]), total);
        other = fma(c[t + k], to_double(y[k]), other);
      }
    }
    for (; t < m; ++t) {
      total = fma(c[t], to_double(rows(t)[at]), total);
      other = fma(c[t], to_double(rows(t)[next]), other);
    }
    result[i] = rounded<T>(total);
    if (i + threads < end) result[i + threads] = rounded<T>(other);
  }
}

// result = Fp c of a tall block: the weights of the last tile, which is still there, from shared memory; those of the
// tiles before it from device memory, mostly its L2.
template <class T>
__device__ void reconstruct_snapshots(Block<T> block, const Problem& p, int tiles, const double* c, const T* tile,
                                      T* result) {
  const int begin = (tiles - 1) * p.tile;
  const T* const first = tile - begin;
  reconstruct_range(p.m, c, begin, p.n, 1, [&](int t) { return first + block.place(p, t + 1); }, result);
  const T* const next = block.at + block.row_stride;
  reconstruct_range(p.m, c, 0, begin, block.line_stride, [&](int t) { return next + t * block.row_stride; }, result);
}

// result = Fp (F^T y) of a wide block, one step of its K = (Fp F^T)(F F^T)^-1. g: a number a line of the tile; w: n.
template <class T>
__device__ void reconstruct_weights(Block<T> block, const Problem& p, int tiles, const double* y, double* g, T* tile,
                                    double* w, T* result) {
  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % WARP;
#pragma unroll 1  // here and below: else the trip count takes a division, whose parts are kept
  for (int i = thread; i < p.n; i += threads) w[i] = 0.0;
  for (int k = 0; k < tiles; ++k) {
    const int count = tiles > 1 ? block.load(p, k, tile) : block.lines(p, k);
    for (int t = thread; t < count; t += threads) {
      double total = 0.0;
#pragma unroll 8
      for (int i = 0; i < p.n; ++i) total = fma(y[i], to_double(tile[block.place(p, i) + t]), total);
      g[t] = total;
    }
    __syncthreads();
    for (int i = thread / WARP; i < p.n; i += threads / WARP) {
      const T* const ahead = tile + block.place(p, i) + 1;
      double total = 0.0;
#pragma unroll 8
      for (int t = lane; t < count; t += WARP) total = fma(g[t], to_double(ahead[t]), total);
      total = warp_sum(total);
      if (lane == 0) w[i] += total;
    }
    __syncthreads();
  }
#pragma unroll 1
  for (int i = thread; i < p.n; i += threads) result[i] = rounded<T>(w[i]);
}

// What becomes of a block whose Gram matrix is in room.S and room.A: EIGEN or SVD where this launch does not finish it;
// of CHOLESKY the solution is in its Scratch. Ends with a barrier.
template <int SLOTS, class T>
__device__ Route decide(const Room<T>& room, unsigned char* memory, const Problem& p, const Sums& sums) {
  const Block<T>& block = room.block;
  const int order = room.order, across = room.across;
  double* const S = part_of<double>(memory, room.S);
  const double* const side = S + order * across;
  if (p.wide) {  // x_last is the right-hand side, as F^T x_last is of a tall block
    const T* const last = part_of<T>(memory, room.tile) + block.lines(p, room.tiles - 1);
    for (int i = threadIdx.x; i < order; i += blockDim.x)
      S[order * across + i] = S[i * across + order] = to_double(last[block.place(p, i)]);
    if (threadIdx.x == 0) S[order * across + order] = 0.0;
    __syncthreads();
  }
  const double size = sums.size, last = p.wide ? dot(side, side, order) : side[order];
  Route way = triage(size, last, block, p);
  if (way == EIGEN) {
    const double near = 4.0 * p.gram * last;
    const bool alike =
        p.wide ? fabs(size - p.m * last) <= p.m * near : fabs(S[0] - last) <= near && fabs(side[0] - last) <= near;
    if (keeps_rank_one(p) && is_constant(alike, block, p))
      way = CONSTANT;
    else if (const double needed = needed_of(p, room.order, sums); !room.beyond && !isnan(needed)) {
      const Scratch scratch(part_of<double>(memory, room.partial), room.order);
      double *const S = part_of<double>(memory, room.S), *const A = part_of<double>(memory, room.A);
      if (certify_and_solve<SLOTS>(S, A, needed, room.across, scratch)) way = CHOLESKY;
    }
  }
  __syncthreads();
  return way;
}

// K^steps x_last of a block whose solution `decide` left.
template <class T>
__device__ void finish(const Room<T>& room, unsigned char* memory, const Problem& p, long long steps, T* result) {
  const int order = room.order;
  const Scratch scratch(part_of<double>(memory, room.partial), order);
  T* const tile = part_of<T>(memory, room.tile);
  double* const c = part_of<double>(memory, room.c);
  if (p.wide) {
    reconstruct_weights(room.block, p, room.tiles, scratch.a(), c, tile, part_of<double>(memory, room.S), result);
  } else {
    for (int k = threadIdx.x; k < order; k += blockDim.x) c[k] = scratch.a()[k];
    __syncthreads();
    advance_companion(scratch.a(), order, steps - 1, c, scratch.kept());
    reconstruct_snapshots(room.block, p, room.tiles, c, tile, result);
  }
}

// The certified, constant, zero and non-finite blocks of a batch from data to result; the others go onto the list
// `pending`, (1 + blocks) ints that start at 0, with their Gram matrices: their route is left at EIGEN for `solve`, or
// at SVD for `exact` where squares overflow.
//
// Launch: any number of CTAs, each takes every gridDim.x-th block; whole warps, up to 128 threads.
// Reads: the data once where a block fits one tile, twice (then mostly from L2) where it does not.
// Writes: a row of `out` a finished block; (m+1)^2 doubles (tall) or (2n+1) n (wide) of `grams` a pending one.
// Shared: the tile, two matrices of order + 1, and `Scratch`.
template <class T, class Sum, int R>
__global__ void __launch_bounds__(128, R > 5 ? 2 : 4) predict(const T* data, Layout X, Problem p, long long steps,
                                                              T* out, signed char* route, double* grams, int* pending) {
  SHARED_MEMORY(memory);
  Room<T>& room = *reinterpret_cast<Room<T>*>(memory);
  constexpr int SLOTS = R <= 3 ? 1 : R <= 5 ? 2 : 3;
  if (threadIdx.x == 0) {
    Shared shared = {memory};
    shared.take<Room<T>>(1);
    const int across = (p.order + 1) | 1, square = (p.order + 1) * across;
    T* const tile = shared.take<T>((p.wide ? p.n : p.columns) * p.pitch);
    double* const S = shared.take<double>(square);
    double* const A = shared.take<double>(square);
    const Scratch scratch(shared, p.order);
    double* const c = p.wide ? shared.take<double>(p.tile) : scratch.inverse();  // which is free once a is known
    room.describe(Block<T>(data, X, p, 0), p, across, memory, tile, S, A, scratch.at, c);
    room.beyond = too_many(p, steps);
  }
  for (int next = blockIdx.x; next < p.blocks;) {
    if (threadIdx.x == 0) {
      room.b = next;
      room.block.at = data + offset(X, next);
    }
    __syncthreads();
    const Sums sums = gram_of<Sum, R>(room, memory, p, 0, room.tiles);
    const Route way = decide<SLOTS>(room, memory, p, sums);
    const int b = room.b;
    next = b + gridDim.x;
    if (threadIdx.x == 0) {
      route[b] = way;
      if (way == EIGEN || way == SVD) pending[1 + atomicAdd(pending, 1)] = b;
    }
    T* const result = out + static_cast<long long>(b) * p.n;
    if (way == CHOLESKY) {
      finish(room, memory, p, steps, result);
    } else if (way == EIGEN) {
      write_gram<Sum>(room, memory, p, 0, room.tiles, grams, b);
    } else if (way != SVD) {
      const T* const newest = room.block.at + p.m * X.time;
#pragma unroll 1
      for (int i = threadIdx.x; i < p.n; i += blockDim.x)
        result[i] = way == ZERO ? T(0) : way == CONSTANT ? newest[i * X.weight] : rounded<T>(nan(""));
    }
    __syncthreads();
  }
}

// The same for blocks of one weight, under rules that keep its singular value: K = sum x_(t+1) x_t / sum x_t^2.
//
// Launch: a thread a block, grid-stride. Reads the data once; coalesced where weights lie side by side. No shared.
template <class T>
__global__ void __launch_bounds__(256)
    predict_scalars(const T* data, Layout X, Problem p, long long steps, T* out, signed char* route, int* pending) {
  const int stride = gridDim.x * blockDim.x;
  for (int b = blockIdx.x * blockDim.x + threadIdx.x; b < p.blocks; b += stride) {
    const T* const x = data + offset(X, b);
    double square = 0.0, cross = 0.0, before = to_double(x[0]);
    bool constant = true, zero = before == 0.0, finite = isfinite(before);
    for (int t = 1; t <= p.m; ++t) {
      const double now = to_double(x[t * X.time]);
      square = fma(before, before, square);
      cross = fma(now, before, cross);
      constant = constant && now == before;
      zero = zero && now == 0.0;
      finite = finite && isfinite(now);
      before = now;
    }
    Route way = !finite ? NON_FINITE : zero ? ZERO : constant ? CONSTANT : CHOLESKY;
    if (way == CHOLESKY && !(square > p.tiny && square < p.huge && before * before < p.huge)) way = SVD;
    route[b] = way;
    if (way == CHOLESKY) before *= pow(cross / square, static_cast<double>(steps));
    if (way == SVD) pending[1 + atomicAdd(pending, 1)] = b;
    if (way != SVD) out[b] = rounded<T>(way == NON_FINITE ? nan("") : way == ZERO ? 0.0 : before);
  }
}

}  // namespace fastkoop
