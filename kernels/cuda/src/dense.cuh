// Small dense algebra of one block by one CTA, matrices of doubles in shared memory, rows `across` apart: an odd number,
// so that the lanes of a warp on one column meet no bank twice.

namespace fastkoop {

// Two matrices are factorized side by side, A = L D L^T with the columns of L left unscaled (L D): in panels of eight
// columns by one warp each, a row a lane, and the rest by all warps on the matrix unit. Both are lower triangles; what
// lies above their diagonals is neither read nor written.
struct Dense {
  double* A;
  int rows;         // past `order` they are carried along as right-hand sides
  double shift;     // taken from the diagonal
  double* inverse;  // of D
};

constexpr int PANEL = 8;

// Columns first .. first + 7 of a factorization, rows in up to 32 SLOTS lanes; false if a pivot is not positive.
template <int SLOTS>
__device__ bool factorize_panel(const Dense& d, int first, int order, int across) {
  const int lane = threadIdx.x % WARP, width = min(PANEL, order - first);
  double a[SLOTS][PANEL];
#pragma unroll
  for (int s = 0; s < SLOTS; ++s)
#pragma unroll
    for (int j = 0; j < PANEL; ++j) {
      const int row = lane + WARP * s;
      const bool inside = first + row < d.rows && j < width && j <= row;
      a[s][j] = inside ? d.A[(first + row) * across + first + j] - (j == row ? d.shift : 0.0) : 0.0;
    }
  bool positive = true;
#pragma unroll
  for (int j = 0; j < PANEL; ++j) {
    const double diagonal = __shfl_sync(~0u, a[0][j], j), pivot = j < width ? diagonal : 1.0;
    positive = positive && pivot > 0.0;
    const double inverse = reciprocal(pivot);
    double factor[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) factor[s] = s || lane > j ? a[s][j] * inverse : 0.0;
#pragma unroll
    for (int k = j + 1; k < PANEL; ++k) {
      const double left = __shfl_sync(~0u, a[0][j], k);
#pragma unroll
      for (int s = 0; s < SLOTS; ++s) a[s][k] = fma(-factor[s], left, a[s][k]);
    }
    if (lane == j && j < width) d.inverse[first + j] = inverse;
  }
#pragma unroll
  for (int s = 0; s < SLOTS; ++s)
#pragma unroll
    for (int j = 0; j < PANEL; ++j) {
      const int row = lane + WARP * s;
      if (first + row < d.rows && j < width && j <= row) d.A[(first + row) * across + first + j] = a[s][j];
    }
  return positive;
}

// The tile at (I, J) less what a panel left of it takes: A -= (L D) D^-1 (L D)^T, by one warp.
__device__ inline void update_tile(const Dense& d, int first, int order, int across, int I, int J) {
  const int lane = threadIdx.x % WARP, row = I + lane / 4, column = J + 2 * (lane % 4);
  const double* const below = d.A + min(row, d.rows - 1) * across + first + lane % 4;
  const double* const left = d.A + min(J + lane / 4, d.rows - 1) * across + first + lane % 4;
  const double* const inverse = d.inverse + first + lane % 4;
  double* const at = d.A + row * across + column;
  double c[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) c[k] = row < d.rows && column + k <= row && column + k < order ? at[k] : 0.0;
  const double a[2] = {-below[0], -below[4]}, b[2] = {left[0] * inverse[0], left[4] * inverse[4]};
  multiply_add_tile(c, a[0], b[0]);
  multiply_add_tile(c, a[1], b[1]);
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (row < d.rows && column + k <= row && column + k < order) at[k] = c[k];
}

// Factorizes both by all threads; false as soon as the first of them has a pivot that is not positive, for all threads.
// ok: one number in shared memory.
template <int SLOTS>
__device__ bool factorize_both(const Dense& first_of_two, const Dense& second, int order, int across, double* ok) {
  const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int first = 0;; first += PANEL) {
    if (warp == 0) {
      const bool positive = factorize_panel<SLOTS>(first_of_two, first, order, across);
      if (threadIdx.x == 0) *ok = positive ? 1.0 : 0.0;
    }
    if (warp == min(1, warps - 1)) factorize_panel<SLOTS>(second, first, order, across);
    __syncthreads();
    if (*ok == 0.0) return false;
    if (first + PANEL >= order) return true;
    int turn = 0;
    for (int which = 0; which < 2; ++which) {
      const Dense& d = which ? second : first_of_two;
      for (int J = first + PANEL; J < order; J += 8)
        for (int I = J; I < d.rows; I += 8) {
          if (turn == warp) update_tile(d, first, order, across, I, J);
          turn = turn + 1 == warps ? 0 : turn + 1;
        }
    }
    __syncthreads();
  }
}

// c = A^-1 b by the first warp, from the factors of A and b carried along as row `order`; ends with a barrier.
template <int SLOTS>
__device__ void back_substitute(const double* A, int order, int across, const double* inverse, double* c) {
  if (threadIdx.x < WARP) {
    const int lane = threadIdx.x;
    double y[SLOTS], scale[SLOTS];
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
      const int k = lane + WARP * s;
      scale[s] = k < order ? inverse[k] : 0.0;
      y[s] = k < order ? A[order * across + k] * scale[s] : 0.0;
    }
#pragma unroll
    for (int s = SLOTS - 1; s >= 0; --s)
      for (int end = min(WARP, (order - WARP * s + 7) / 8 * 8); end > 0; end -= 8) {
        double L[8][SLOTS];  // of eight rows, read before any of them is used
#pragma unroll
        for (int i = 0; i < 8; ++i)
#pragma unroll
          for (int q = 0; q <= s; ++q) {
            const int k = WARP * s + end - 1 - i, j = lane + WARP * q;
            L[i][q] = k < order && j < k ? A[k * across + j] * scale[q] : 0.0;
          }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const double found = __shfl_sync(~0u, y[s], end - 1 - i);
#pragma unroll
          for (int q = 0; q <= s; ++q) y[q] = fma(-L[i][q], found, y[q]);
        }
      }
#pragma unroll
    for (int s = 0; s < SLOTS; ++s)
      if (lane + WARP * s < order) c[lane + WARP * s] = y[s];
  }
  __syncthreads();
}

struct Rotation {
  double c, s;
};

// The Jacobi rotation that makes [app apq; apq aqq] diagonal (Golub & Van Loan 2013, algorithm 8.5.1).
__device__ inline Rotation rotation(double app, double apq, double aqq) {
  const double theta = (aqq - app) / (2.0 * apq);
  const double t = copysign(1.0, theta) / (fabs(theta) + sqrt(fma(theta, theta, 1.0)));
  const double c = 1.0 / sqrt(fma(t, t, 1.0));
  return {c, t * c};
}

// Pair `j` of round `round` in a tournament of `order` players (made even): every pair meets once in order - 1 rounds.
__device__ inline void pair_of(int order, int round, int j, int* p, int* q) {
  const int circle = order + order % 2 - 1;
  const int first = j ? (round + j) % circle : circle, second = (round + circle - j) % circle;
  *p = min(first, second);
  *q = max(first, second);
}

constexpr int SWEEPS = 40;      // of Jacobi; 4 to 8 are usual
constexpr int CORRECTIONS = 4;  // after a sweep; 1 or 2 are usual
constexpr double LARGE_TURN = 0.05;     // a sweep that turned rows by more leaves turns that no correction makes
constexpr double SOME_TURNS = 0x1p-8, LITTLE_TURNS = 0x1p-13;  // norms of K up to which `correct` rounds no more than
                                                               // any product does

// Rows of L = the columns of A's Cholesky factor, (nearly) the largest remaining pivot first, until what remains is within
// A's own rounding; A (given in full) is spent. Returns how many; the other rows of L are zero. Every warp keeps what is
// left of the diagonal, a row in each of 32 SLOTS lanes, so that a column costs one barrier and the next pivot is sought
// while the rest of the matrix follows.
template <int SLOTS>
__device__ int pivoted_cholesky(double* A, double* L, int order, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  constexpr int TOGETHER = 8;
  double left[SLOTS];  // zero once a row is used up
#pragma unroll
  for (int s = 0; s < SLOTS; ++s) left[s] = lane + WARP * s < order ? A[(lane + WARP * s) * (across + 1)] : 0.0;
  __syncthreads();
  double small = 0.0;
  int rank = 0;
  for (; rank < order; ++rank) {
    int key = 0;  // the upper bits of a positive number grow with it; the lowest six name its row
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) key = max(key, (upper_bits(left[s]) & ~63) | (lane + WARP * s));
#pragma unroll
    for (int far = WARP / 2; far; far /= 2) key = max(key, __shfl_xor_sync(~0u, key, far));
    const int at = key & 63;
    double pivot = __shfl_sync(~0u, left[0], at % WARP);
    if constexpr (SLOTS > 1) {
      const double other = __shfl_sync(~0u, left[1], at % WARP);
      pivot = at < WARP ? pivot : other;
    }
    if (rank == 0) small = 0.25 * EPS * pivot;
    if (key < 64 || !(pivot > small)) break;
    const double scale = inverse_root(pivot);
    const double* const row = A + at * across;
#pragma unroll
    for (int s = 0; s < SLOTS; ++s) {
      const int j = lane + WARP * s;
      const bool live = j < order && left[s] != 0.0;
      const double right = live ? row[j] * scale : 0.0, factor = -(right * scale);
      left[s] = j == at ? 0.0 : fma(-right, right, left[s]);
      if (j >= order) continue;
      if (rank % warps == warp) L[rank * across + j] = right;
      for (int first = warp; first < order; first += TOGETHER * warps) {
        double x[TOGETHER];  // of rows and columns that are used up nobody reads what this makes
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
          const int i = first + k * warps < order ? first + k * warps : first;
          x[k] = fma(row[i], factor, A[i * across + j]);
        }
#pragma unroll
        for (int k = 0; k < TOGETHER; ++k) {
          const int i = first + k * warps;
          if (i < order && i != at) A[i * across + j] = x[k];
        }
      }
    }
    __syncthreads();
  }
  for (int k = rank + warp; k < order; k += warps)
    for (int j = lane; j < order; j += WARP) L[k * across + j] = 0.0;
  __syncthreads();
  return rank;
}

constexpr int SHARE = 8;  // lanes that turn a pair of rows

// Rows of squared norms a and b count as orthogonal up to this square of their product: the test of svd.orthogonalize.
__device__ inline double bound_of(double a, double b, int order, double top) {
  const double shorter = a < b ? a : b, longer = a < b ? b : a, least = 0.0025 * top;
  const double relative = 4.0 * (order + 8) * shorter;
  return EPS * EPS * longer * (relative > least ? relative : least);
}

enum Turn { NONE, SMALL, LARGE };

// Turns rows p and q of W, by SHARE lanes, until they are orthogonal but for what twenty bits of the angle leave, and
// keeps their squared norms up to date; whether they were not, and by so much that W cannot be orthogonal yet. Other
// lanes of the warp do the same to other rows, or to none (idle). HELD: numbers of a row that a lane holds, zeros past
// its end among them. Without branches, so that the test costs no time.
template <int HELD>
__device__ Turn turn_rows(double* W, double* squares, int p, int q, bool idle, int order, int across, double top) {
  const int lane = threadIdx.x % SHARE;
  const double a = idle ? 1.0 : squares[p], b = idle ? 1.0 : squares[q];
  double *const from = W + p * across + lane, *const other = W + q * across + lane;
  double x[HELD], y[HELD], sums[2] = {0.0, 0.0};
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    x[k] = idle ? 0.0 : from[SHARE * k];
    y[k] = idle ? 0.0 : other[SHARE * k];
    sums[k % 2] = fma(x[k], y[k], sums[k % 2]);
  }
  double product = sums[0] + sums[1];
  product += __shfl_xor_sync(~0u, product, 1);
  const double bound = bound_of(a, b, order, top), apart = b - a, square = apart * apart;  // while lanes wait
#pragma unroll
  for (int far = 2; far < SHARE; far *= 2) product += __shfl_xor_sync(~0u, product, far);
  __syncwarp();  // all lanes have read the norms that one of them goes on to write
  // (c, s) is along (1 + cosine, sine) of the angle whose tangent is 2 x.y / (y.y - x.x): orthogonal whatever the angle
  const double twice = 2.0 * product, shrink = rough_inverse_root(fma(twice, twice, square));
  const double right = fma(fabs(apart), shrink, 1.0), up = copysign(twice, product * apart) * shrink;
  const double scale = inverse_root(fma(right, right, up * up));
  const bool turned = !(product * product <= bound);
  const double c = turned ? right * scale : 1.0, s = turned ? up * scale : 0.0;
  if (!idle) {
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      from[SHARE * k] = fma(c, x[k], -(s * y[k]));
      other[SHARE * k] = fma(s, x[k], c * y[k]);
    }
    const double change = s * fma(c, twice, -(s * apart));
    if (turned && lane == 0) {
      squares[p] = a - change;
      squares[q] = b + change;
    }
  }
  return !turned ? NONE : fabs(s) > LARGE_TURN ? LARGE : SMALL;
}

// squares = the squared norms of the rows of W. Ends with a barrier.
__device__ inline void measure_rows(const double* W, int order, int across, double* squares) {
  const int lane = threadIdx.x % SHARE, groups = blockDim.x / SHARE;
  for (int first = 0; first < order; first += groups) {
    const int row = first + threadIdx.x / SHARE;
    double square = 0.0;
    for (int i = lane; i < order && row < order; i += SHARE) square = fma(W[row * across + i], W[row * across + i], square);
#pragma unroll
    for (int far = SHARE / 2; far; far /= 2) square += __shfl_xor_sync(~0u, square, far);
    if (row < order && lane == 0) squares[row] = square;
  }
  __syncthreads();
}

enum Rest { NOTHING, LITTLE, SOME, MUCH };

// K = the turns, antisymmetric, that make the rows of W, of these squared norms, orthogonal to first order, from their
// products on the matrix unit: zero where rows count as orthogonal, and past `rank` up to a whole tile. NOTHING if all
// are, MUCH if `correct` cannot make the turns, for all threads the same; some hundred cycles, where a sweep takes
// thousands. W has 8 HELD columns; W and K are rows `across` apart.
template <int HELD>
__device__ Rest turns_left(const double* W, const double* squares, int rank, int order, int across, double top,
                           double* K) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const double some = SOME_TURNS / rank, little = LITTLE_TURNS / rank;
  int turn = 0, rest = NOTHING;
  for (int I = 0; I < rank; I += 8)
    for (int J = 0; J <= I; J += 8) {
      if (turn == warp) {
        const double* const below = W + min(I + lane / 4, rank - 1) * across + lane % 4;
        const double* const beside = W + min(J + lane / 4, rank - 1) * across + lane % 4;
        double c[2] = {0.0, 0.0}, other[2] = {0.0, 0.0};
#pragma unroll
        for (int k = 0; k < 8 * HELD; k += 8) {
          multiply_add_tile(c, below[k], beside[k]);
          multiply_add_tile(other, below[k + 4], beside[k + 4]);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int i = I + lane / 4, j = J + 2 * (lane % 4) + k;
          const double d = squares[min(i, rank - 1)], e = squares[min(j, rank - 1)], apart = d - e;
          const double product = c[k] + other[k], angle = product * reciprocal(fabs(apart));  // NaN if as long
          const bool turns = j < i && i < rank && !(product * product <= bound_of(d, e, order, top));
          const Rest found = fabs(angle) <= little ? LITTLE : fabs(angle) <= some ? SOME : MUCH;
          const double entry = turns ? copysign(angle, product * apart) : 0.0;
          rest = max(rest, static_cast<int>(turns ? found : NOTHING));
          if (j <= i && i < rank) K[i * across + j] = entry;
          if (j <= i && j < rank) K[j * across + i] = -entry;
        }
      }
      turn = turn + 1 == warps ? 0 : turn + 1;
    }
  if (!__syncthreads_or(rest)) return NOTHING;
  if (!__syncthreads_or(rest > LITTLE)) return LITTLE;
  return __syncthreads_or(rest > SOME) ? MUCH : SOME;
}

// W <- (1 + K + K^2 / 2) W, which is a rotation up to |K|^4 / 4, or with K^3 / 8 besides up to |K|^6 / 64: a warp eight
// columns at a time, which no other warp reads (Ogita & Aishima 2018 refine eigenvectors so). rank <= 8 HELD.
template <int HELD>
__device__ void correct(const double* K, int powers, double* W, int rank, int order, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int J = 8 * warp; J < order; J += 8 * warps) {
    double sums[HELD][2], power[HELD][2];
    double* const at = W + J + 2 * (lane % 4);
#pragma unroll
    for (int t = 0; t < HELD; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) sums[t][e] = at[min(8 * t + lane / 4, rank - 1) * across + e];
#pragma unroll 1
    for (int n = 1; n <= powers; ++n) {
#pragma unroll
      for (int t = 0; t < HELD; ++t) power[t][0] = power[t][1] = 0.0;
#pragma unroll 4
      for (int first = 0; first < rank; first += 4) {
        const double right = W[min(first + lane % 4, rank - 1) * across + J + lane / 4];
#pragma unroll
        for (int t = 0; t < HELD; ++t)
          multiply_add_tile(power[t], K[min(8 * t + lane / 4, rank - 1) * across + first + lane % 4], right);
      }
      __syncwarp();  // all lanes have read what is written now
      const double weight = n == 1 ? 1.0 : n == 2 ? 0.5 : 0.125;
#pragma unroll
      for (int t = 0; t < HELD; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          sums[t][e] = fma(weight, power[t][e], sums[t][e]);
          if (8 * t + lane / 4 < rank) at[(8 * t + lane / 4) * across + e] = n < powers ? power[t][e] : sums[t][e];
        }
      __syncwarp();
    }
  }
  __syncthreads();
}

// Eigenvalues and eigenvectors (rows of Z) of a positive semidefinite A, given in full and spent: one-sided Jacobi
// (Hestenes 1958) on the pivoted Cholesky factor, which is near orthogonal already (Veselic & Hari 1989), the last turns
// all at once. False if it does not converge. SHARE lanes turn a pair of rows; order <= SHARE HELD <= across.
template <int HELD>
__device__ bool eigenvectors(double* A, double* Z, int order, int across, double* values) {
  constexpr int SLOTS = SHARE * HELD <= WARP ? 1 : 2, PADDED = SHARE * HELD;
  for (int at = threadIdx.x; at < order * (PADDED - order); at += blockDim.x)
    Z[at % order * across + order + at / order] = 0.0;
  const int rank = pivoted_cholesky<SLOTS>(A, Z, order, across), groups = blockDim.x / SHARE, group = threadIdx.x / SHARE;
  measure_rows(Z, order, across, values);
  const double top = values[0];  // the longest row, as good as always
  __syncthreads();               // before any row is turned
  const int circle = rank + rank % 2 - 1, pairs = (rank + 1) / 2;
  bool converged = rank < 2;
  for (int sweep = 0; sweep < SWEEPS && !converged; ++sweep) {
    int most = NONE;
    for (int round = 0; round < circle; ++round) {
      for (int first = 0; first < pairs; first += groups) {
        const int j = first + group;
        int up = round + j, down = round - j;  // pair_of without divisions
        up = j == 0 ? circle : up < circle ? up : up - circle;
        down = down < 0 ? down + circle : down;
        const bool idle = j >= pairs || up >= rank;
        const Turn turn = turn_rows<HELD>(Z, values, min(up, down), max(up, down), idle, order, across, top);
        most = max(most, static_cast<int>(turn));
      }
      __syncthreads();
    }
    measure_rows(Z, order, across, values);
    converged = !__syncthreads_or(most != NONE);
    if (converged || __syncthreads_or(most == LARGE)) continue;
    for (int k = 0; k < CORRECTIONS; ++k) {
      const Rest rest = turns_left<HELD>(Z, values, rank, order, across, top, A);
      converged = rest == NOTHING;
      if (converged || rest == MUCH || HELD == 8) break;  // whose eight tiles are more than the registers hold
      if constexpr (HELD < 8) correct<HELD>(A, rest == LITTLE ? 2 : 3, Z, rank, order, across);
      measure_rows(Z, order, across, values);
    }
  }
  for (int row = group; row < order; row += groups) {
    const double scale = values[row] > 0.0 ? 1.0 / sqrt(values[row]) : 0.0;
    for (int i = threadIdx.x % SHARE; i < order; i += SHARE) Z[row * across + i] *= scale;
  }
  __syncthreads();
  return converged;
}

// sorted = values, largest first; place[r] = which of them is number r; the values become the roots of the sorted ones
// (of negative ones zero). Equal ones keep their order; NaN comes last.
__device__ inline void sort(double* values, int order, double* sorted, int* place) {
  for (int i = threadIdx.x; i < order; i += blockDim.x) {
    int before = 0;
    for (int j = 0; j < order; ++j) before += values[j] > values[i] || (!(values[j] < values[i]) && j < i);
    sorted[before] = values[i];
    place[before] = i;
  }
  __syncthreads();
  for (int r = threadIdx.x; r < order; r += blockDim.x) values[r] = sqrt(max(sorted[r], 0.0));
  __syncthreads();
}

// M = S times a power of two, a square matrix from device memory, a warp a row, eight rows read before any is written.
__device__ inline void load_scaled(const double* S, int order, int width, double scale, double* M, int across) {
  constexpr int TOGETHER = 8;
  const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  for (int first = threadIdx.x / WARP; first < order; first += TOGETHER * warps)
    for (int j = lane; j < order; j += WARP) {
      double x[TOGETHER];
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k) x[k] = S[min(first + k * warps, order - 1) * width + j];
#pragma unroll
      for (int k = 0; k < TOGETHER; ++k)
        if (first + k * warps < order) M[(first + k * warps) * across + j] = x[k] * scale;
    }
}

__device__ inline double dot(const double* a, const double* b, int n) {
  double total = 0.0;
  for (int i = 0; i < n; ++i) total = fma(a[i], b[i], total);
  return total;
}

}  // namespace fastkoop
