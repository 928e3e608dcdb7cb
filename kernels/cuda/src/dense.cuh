// Small dense algebra of one block by one CTA, matrices of doubles in shared memory, rows `across` apart.

namespace fastkoop {

// In place and lower: A = L D L^T, the columns of L left unscaled (L D); rows order .. `rows` are carried along as
// right-hand sides. False if a pivot is not positive. A warp a column, a lane a row: rows lie an odd number apart, so
// that lanes meet no bank twice. One barrier a column, and none waits for a square root.
__device__ inline bool factorize(double* A, int order, int rows, int across) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (int k = 0; k < order; ++k) {
    const double pivot = A[k * across + k];
    if (!(pivot > 0.0)) return false;  // the same for all threads
    const double inverse = 1.0 / pivot;
    for (int j = k + 1 + warp; j < order; j += warps) {
      const double factor = A[j * across + k] * inverse;
      for (int i = j + lane; i < rows; i += WARP) A[i * across + j] -= A[i * across + k] * factor;
    }
    __syncthreads();
  }
  return true;
}

// c = A^-1 b by one warp, from the factors of A and b carried along as row `order`; ends with a barrier.
__device__ inline void back_substitute(const double* A, int order, int across, double* c) {
  if (threadIdx.x < WARP) {
    for (int k = threadIdx.x; k < order; k += WARP) c[k] = A[order * across + k];
    __syncwarp();
    for (int k = order - 1; k >= 0; --k) {
      const double found = c[k] / A[k * across + k];
      __syncwarp();
      for (int j = threadIdx.x; j < k; j += WARP) c[j] -= A[k * across + j] * found;
      if (threadIdx.x == 0) c[k] = found;
      __syncwarp();
    }
  }
  __syncthreads();
}

struct Rotation {
  double c, s;
};

// A rotation and the two rows that it turns.
struct Turn {
  Rotation by;
  int p, q;
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

// Cyclic Jacobi: eigenvalues of the symmetric A (given in full) onto its diagonal, eigenvectors into the rows of V.
// Off-diagonals below eps / 4 of A's norm count as zero, as they are within its own rounding. All rotations of a round
// act at once: a warp a pair of rows J, a lane a pair of columns K <= J, each on 2 x 2 numbers of its own and their
// mirror image. turns: order / 2 rounded up; worked: one int.
__device__ inline bool jacobi(double* A, double* V, int order, int across, Turn* turns, int* worked) {
  const int thread = threadIdx.x, threads = blockDim.x, pairs = (order + 1) / 2;
  const int lane = thread % WARP, warp = thread / WARP, warps = threads / WARP;
  double largest = 0.0;
  for (int i = 0; i < order; ++i) largest = max(largest, fabs(A[i * across + i]));  // <= ||A|| <= order times that
  const double small = 0.25 * EPS * largest;
  for (int i = warp; i < order; i += warps)
    for (int j = lane; j < order; j += WARP) V[i * across + j] = i == j ? 1.0 : 0.0;
  __syncthreads();
  for (int sweep = 0; sweep < SWEEPS; ++sweep) {
    if (thread == 0) *worked = 0;
    __syncthreads();
    for (int round = 0; round < 2 * pairs - 1; ++round) {
      for (int j = thread; j < pairs; j += threads) {
        Turn turn = {{1.0, 0.0}, 0, 0};
        pair_of(order, round, j, &turn.p, &turn.q);
        if (turn.q < order && fabs(A[turn.p * across + turn.q]) > small) {
          turn.by = rotation(A[turn.p * across + turn.p], A[turn.p * across + turn.q], A[turn.q * across + turn.q]);
          *worked = 1;
        }
        turns[j] = turn;
      }
      __syncthreads();
      for (int J = warp; J < pairs; J += warps) {
        const Rotation g = turns[J].by;
        const int p = turns[J].p, q = turns[J].q;
        const bool hasq = q < order;
        for (int K = lane; K <= J; K += WARP) {
          const Rotation h = turns[K].by;
          const int u = turns[K].p, v = turns[K].q;
          if (g.s == 0.0 && h.s == 0.0) continue;
          const bool hasv = v < order;
          const double pu = A[p * across + u], pv = hasv ? A[p * across + v] : 0.0;
          const double qu = hasq ? A[q * across + u] : 0.0, qv = hasq && hasv ? A[q * across + v] : 0.0;
          const double xu = g.c * pu - g.s * qu, yu = g.s * pu + g.c * qu;
          const double xv = g.c * pv - g.s * qv, yv = g.s * pv + g.c * qv;
          A[p * across + u] = A[u * across + p] = h.c * xu - h.s * xv;
          if (hasv) A[p * across + v] = A[v * across + p] = h.s * xu + h.c * xv;
          if (hasq) A[q * across + u] = A[u * across + q] = h.c * yu - h.s * yv;
          if (hasq && hasv) A[q * across + v] = A[v * across + q] = h.s * yu + h.c * yv;
          if (J == K && g.s != 0.0) A[p * across + q] = A[q * across + p] = 0.0;
        }
        for (int i = lane; i < order && g.s != 0.0; i += WARP) {
          const double x = V[p * across + i], y = V[q * across + i];
          V[p * across + i] = g.c * x - g.s * y;
          V[q * across + i] = g.s * x + g.c * y;
        }
      }
      __syncthreads();
    }
    if (!*worked) return true;
    __syncthreads();
  }
  return false;
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
