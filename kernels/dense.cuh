// Small dense algebra of one block by one CTA, matrices of doubles in shared memory, rows `across` apart.

namespace fastkoop {

// In place and lower: A = L D L^T, the columns of L left unscaled (L D); rows order .. `rows` are carried along as
// right-hand sides. False if a pivot is not positive. One barrier a column: no column waits for a square root.
__device__ inline bool factorize(double* A, int order, int rows, int across) {
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int k = 0; k < order; ++k) {
    const double pivot = A[k * across + k];
    if (!(pivot > 0.0)) return false;  // the same for all threads
    const double inverse = 1.0 / pivot;
    const int size = rows - k - 1;
    for (int at = thread; at < size * size; at += threads) {
      const int i = k + 1 + at / size, j = k + 1 + at % size;
      if (j <= i && j < order) A[i * across + j] -= A[i * across + k] * inverse * A[j * across + k];
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
// act at once, each thread on 2 x 2 blocks of its own. turns: order / 2 rounded up; worked: one int.
__device__ inline bool jacobi(double* A, double* V, int order, int across, Rotation* turns, int* worked) {
  const int thread = threadIdx.x, threads = blockDim.x, pairs = (order + 1) / 2;
  double largest = 0.0;
  for (int i = 0; i < order; ++i) largest = max(largest, fabs(A[i * across + i]));  // <= ||A|| <= order times that
  const double small = 0.25 * EPS * largest;
  for (int at = thread; at < order * order; at += threads)
    V[at / order * across + at % order] = at / order == at % order ? 1.0 : 0.0;
  __syncthreads();
  for (int sweep = 0; sweep < SWEEPS; ++sweep) {
    if (thread == 0) *worked = 0;
    __syncthreads();
    for (int round = 0; round < 2 * pairs - 1; ++round) {
      for (int j = thread; j < pairs; j += threads) {
        int p, q;
        pair_of(order, round, j, &p, &q);
        turns[j] = {1.0, 0.0};
        if (q < order && fabs(A[p * across + q]) > small) {
          turns[j] = rotation(A[p * across + p], A[p * across + q], A[q * across + q]);
          *worked = 1;
        }
      }
      __syncthreads();
      for (int at = thread; at < pairs * pairs; at += threads) {
        const int J = at / pairs, K = at % pairs;
        if (K > J) continue;
        int p, q, u, v;
        pair_of(order, round, J, &p, &q);
        pair_of(order, round, K, &u, &v);
        const Rotation g = turns[J], h = turns[K];
        const bool hasq = q < order, hasv = v < order;
        const double pu = A[p * across + u], pv = hasv ? A[p * across + v] : 0.0;
        const double qu = hasq ? A[q * across + u] : 0.0, qv = hasq && hasv ? A[q * across + v] : 0.0;
        const double xu = g.c * pu - g.s * qu, yu = g.s * pu + g.c * qu;
        const double xv = g.c * pv - g.s * qv, yv = g.s * pv + g.c * qv;
        const double npu = h.c * xu - h.s * xv, npv = h.s * xu + h.c * xv;
        const double nqu = h.c * yu - h.s * yv, nqv = h.s * yu + h.c * yv;
        A[p * across + u] = A[u * across + p] = npu;
        if (hasv) A[p * across + v] = A[v * across + p] = npv;
        if (hasq) A[q * across + u] = A[u * across + q] = nqu;
        if (hasq && hasv) A[q * across + v] = A[v * across + q] = nqv;
        if (J == K && g.s != 0.0) A[p * across + q] = A[q * across + p] = 0.0;
      }
      for (int at = thread; at < pairs * order; at += threads) {
        const int J = at / order, i = at % order;
        int p, q;
        pair_of(order, round, J, &p, &q);
        const Rotation g = turns[J];
        if (q >= order || g.s == 0.0) continue;
        const double x = V[p * across + i], y = V[q * across + i];
        V[p * across + i] = g.c * x - g.s * y;
        V[q * across + i] = g.s * x + g.c * y;
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
