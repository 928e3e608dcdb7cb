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

constexpr int SWEEPS = 40;  // of Jacobi; 6 to 10 are usual

// Rows of L = the columns of A's Cholesky factor, (nearly) the largest remaining pivot first, until what remains is within
// A's own rounding; A (given in full) is spent. Returns how many; the other rows of L are zero. Two barriers a column.
__device__ inline int pivoted_cholesky(double* A, double* L, int order, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  constexpr int TOGETHER = 8;
  unsigned long long used = 0;
  double small = 0.0;
  int rank = 0;
  for (; rank < order; ++rank) {
    int key = 0;  // the upper bits of a positive number grow with it; the lowest six name its row
    for (int i = lane; i < order; i += WARP)
      if (!(used >> i & 1)) key = max(key, (upper_bits(A[i * across + i]) & ~63) | i);
#pragma unroll
    for (int far = WARP / 2; far; far /= 2) key = max(key, __shfl_xor_sync(~0u, key, far));
    const int at = key & 63;
    const double pivot = A[at * across + at];
    if (rank == 0) small = 0.25 * EPS * pivot;
    if (key < 64 || !(pivot > small)) break;
    __syncthreads();  // all warps have read the diagonal that the first of them goes on to write
    const double scale = inverse_root(pivot);
    const double* const row = A + at * across;
    for (int j = lane; j < order; j += WARP) {
      const double right = row[j] * scale;
      if (rank % warps == warp) L[rank * across + j] = used >> j & 1 ? 0.0 : right;
      const double factor = -(right * scale);
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
    used |= 1ull << at;
    __syncthreads();
  }
  for (int k = rank + warp; k < order; k += warps)
    for (int j = lane; j < order; j += WARP) L[k * across + j] = 0.0;
  __syncthreads();
  return rank;
}

constexpr int SHARE = 8;  // lanes that turn a pair of rows

// Turns rows p and q of W until they are orthogonal, by SHARE lanes beside others that do the same to other rows, or to
// none (q < 0); whether they were not. HELD: numbers of a row that a lane holds. The test is that of
// svd.orthogonalize.
template <int HELD>
__device__ bool turn_rows(double* W, int p, int q, int order, int across, double top) {
  const int lane = threadIdx.x % SHARE;
  double x[HELD], y[HELD], a = 0.0, b = 0.0, product = 0.0;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    const int i = lane + SHARE * k;
    const bool inside = q >= 0 && i < order;
    x[k] = inside ? W[p * across + i] : 0.0;
    y[k] = inside ? W[q * across + i] : 0.0;
    a = fma(x[k], x[k], a);
    b = fma(y[k], y[k], b);
    product = fma(x[k], y[k], product);
  }
#pragma unroll
  for (int far = SHARE / 2; far; far /= 2) {
    a += __shfl_xor_sync(~0u, a, far);
    b += __shfl_xor_sync(~0u, b, far);
    product += __shfl_xor_sync(~0u, product, far);
  }
  const double rounding = max(4.0 * (order + 8) * min(a, b), 0.0025 * top);
  if (product * product <= EPS * EPS * max(a, b) * rounding) return false;
  // c and s of half the angle whose tangent is 2 x.y / (y.y - x.x)
  const double apart = b - a, twice = 2.0 * product, hypotenuse = inverse_root(fma(twice, twice, apart * apart));
  const double square = fma(0.5, fabs(apart) * hypotenuse, 0.5), inverse = inverse_root(square);
  const double c = square * inverse, s = copysign(0.5, apart) * twice * hypotenuse * inverse;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    const int i = lane + SHARE * k;
    if (i < order) {
      W[p * across + i] = fma(c, x[k], -(s * y[k]));
      W[q * across + i] = fma(s, x[k], c * y[k]);
    }
  }
  return true;
}

// values = the squared norms of the rows of W, which become unit vectors where they are not zero.
__device__ inline void normalize_rows(double* W, int order, int across, double* values) {
  const int lane = threadIdx.x % SHARE, groups = blockDim.x / SHARE;
  for (int first = 0; first < order; first += groups) {
    const int row = first + threadIdx.x / SHARE;
    double square = 0.0;
    for (int i = lane; i < order && row < order; i += SHARE) square = fma(W[row * across + i], W[row * across + i], square);
#pragma unroll
    for (int far = SHARE / 2; far; far /= 2) square += __shfl_xor_sync(~0u, square, far);
    const double scale = square > 0.0 ? 1.0 / sqrt(square) : 0.0;
    for (int i = lane; i < order && row < order; i += SHARE) W[row * across + i] *= scale;
    if (row < order && lane == 0) values[row] = square;
  }
  __syncthreads();
}

// Eigenvalues and eigenvectors (rows of Z) of a positive semidefinite A, given in full and spent: one-sided Jacobi
// (Hestenes 1958) on the pivoted Cholesky factor, which is near orthogonal already (Veselic & Hari 1989). False if it
// does not converge. A round's pairs are turned at once, eight lanes each.
__device__ inline bool eigenvectors(double* A, double* Z, int order, int across, double* values) {
  const int rank = pivoted_cholesky(A, Z, order, across), groups = blockDim.x / SHARE, group = threadIdx.x / SHARE;
  double top = 0.0;  // the longest row, as good as always
  for (int i = threadIdx.x % WARP; i < order; i += WARP) top = fma(Z[i], Z[i], top);
  top = warp_sum(top);
  __syncthreads();  // before any row is turned
  const int circle = rank + rank % 2 - 1, pairs = (rank + 1) / 2;
  bool converged = rank < 2;
  for (int sweep = 0; sweep < SWEEPS && !converged; ++sweep) {
    int worked = 0;
    for (int round = 0; round < circle; ++round) {
      for (int first = 0; first < pairs; first += groups) {
        const int j = first + group;
        int up = round + j, down = round - j;  // pair_of without divisions
        up = j == 0 ? circle : up < circle ? up : up - circle;
        down = down < 0 ? down + circle : down;
        const bool idle = j >= pairs || up >= rank;
        const int p = idle ? 0 : min(up, down), q = idle ? -1 : max(up, down);
        worked |= order <= 4 * SHARE ? turn_rows<4>(Z, p, q, order, across, top)
                                     : turn_rows<8>(Z, p, q, order, across, top);
      }
      __syncthreads();
    }
    converged = !__syncthreads_or(worked);
  }
  normalize_rows(Z, order, across, values);
  return converged;
}

// sorted = values, largest first; place[r] = which of them is number r. Equal ones keep their order; NaN comes last.
__device__ inline void sort(const double* values, int order, double* sorted, int* place) {
  for (int i = threadIdx.x; i < order; i += blockDim.x) {
    int before = 0;
    for (int j = 0; j < order; ++j) before += values[j] > values[i] || (!(values[j] < values[i]) && j < i);
    sorted[before] = values[i];
    place[before] = i;
  }
  __syncthreads();
}

__device__ inline double dot(const double* a, const double* b, int n) {
  double total = 0.0;
  for (int i = 0; i < n; ++i) total = fma(a[i], b[i], total);
  return total;
}

}  // namespace fastkoop
