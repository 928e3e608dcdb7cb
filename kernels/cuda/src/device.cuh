// What every kernel stands on: how a CTA is laid out, its shared memory, asynchronous copies, reductions, the double
// matrix instruction. A CTA is one-dimensional, whole warps; blocks of weights go to CTAs, a CTA never shares one.
//
// Under FASTKOOP_EMULATION the same sources compile as host C++ (tests/kernels/cuda/emulation.h), which then supplies what
// stands in the one #else below; everything after it is common to both.
#ifndef FASTKOOP_EMULATION
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

namespace fastkoop {

// Copy 4, 8 or 16 bytes from device to shared memory in the background; `copies_arrived` waits for this thread's.
template <int bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(bytes) : "memory");
#else
  if constexpr (bytes == 16) *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  if constexpr (bytes == 8) *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
  if constexpr (bytes == 4) *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}

__device__ __forceinline__ void copies_arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Exact conversions that keep subnormal numbers whatever the compiler was told (CuPy appends -ftz=true).
__device__ __forceinline__ double to_double(double x) { return x; }
__device__ __forceinline__ double to_double(float x) {
  double y;
  asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));
  return y;
}
template <class T>
__device__ __forceinline__ T rounded(double x) {
  if constexpr (sizeof(T) == 8) {
    return x;
  } else {
    float y;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y) : "d"(x));
    return y;
  }
}

// 1 / x of a positive, normal x to a unit in the last place, without the branches of a division.
__device__ __forceinline__ double reciprocal(double x) {
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  const double e = fma(-x, y, 1.0);  // at most 2^-20: its cube is beyond double
  return fma(y, fma(e, e, e), y);
}

__device__ __forceinline__ int upper_bits(double x) { return __double2hiint(x); }

// 1 / sqrt(x) to twenty bits.
__device__ __forceinline__ double rough_inverse_root(double x) {
  double y;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  return y;
}

// 1 / sqrt(x) as `reciprocal`.
__device__ __forceinline__ double inverse_root(double x) {
  const double y = rough_inverse_root(x);
  const double e = fma(-x * y, y, 1.0);
  return fma(y * e, fma(0.375, e, 0.5), y);
}

// c += A B over a warp: A 8 x 4, B 4 x 8 doubles. Lane l holds A[l/4][l%4], B[l%4][l/4], c[l/4][2 (l%4) + {0, 1}].
__device__ __forceinline__ void multiply_add_tile(double (&c)[2], double a, double b) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
#else
  const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
  for (int k = 0; k < 4; ++k) {
    const double x = __shfl_sync(~0u, a, row + k);
    c[0] += x * __shfl_sync(~0u, b, column + k);
    c[1] += x * __shfl_sync(~0u, b, column + 4 + k);
  }
#endif
}

}  // namespace fastkoop
#endif

namespace fastkoop {

constexpr double EPS = 2.220446049250313e-16;  // 2^-52
constexpr int WARP = 32;

// sqrt(x) of a positive, normal x to two units in the last place, without a call that would empty the registers.
__device__ __forceinline__ double root(double x) { return x * inverse_root(x); }

// x in the other precision, subnormal numbers included: a plain cast would become cvt.ftz.
template <class U, class T>
__device__ __forceinline__ U converted(T x) {
  if constexpr (sizeof(U) == sizeof(T))
    return x;
  else if constexpr (sizeof(U) == 8)
    return to_double(x);
  else
    return rounded<U>(x);
}

// How a block was answered: the indices of plan.ROUTES. Between two launches EIGEN and SVD say what is still to do.
enum Route : signed char { ZERO, CONSTANT, CHOLESKY, EIGEN, SVD, NON_FINITE };

// Rules of kernels/cutoffs.py.
enum Rule { RELATIVE, SPACING, RANK, ENERGY, MEDIAN };

// Snapshot t, weight i of block b is data[sum over axes of index stride + t time + i weight]; b runs over the axes of
// the batch, the last one fastest.
struct Layout {
  long long time, weight;
  long long strides[4];
  int extents[4];
};

// The numbers of one launch; launch.py and cuda.py fill it.
struct Problem {
  int blocks, n, m, columns;       // columns: snapshots there are, m + 1, or m where F is all of the data
  int order, wide;                 // order = min(n, m), the order of the Gram matrix
  int lines, tile, pitch;          // lines summed over in all, and a tile; numbers from row to row of a tile
  int vectors, splits;             // whether rows may be copied 16 bytes at a time; CTAs that share a block
  int rule, digits;                // of the cutoff; significand bits of the data
  double value, gram, svd, least;  // of the cutoff; plan.Resolution
  double tiny, huge;               // sums of squares between them can be trusted
};

__device__ __forceinline__ long long offset(const Layout& X, int b) {
  long long at = 0;
  for (int axis = 3; axis >= 0; --axis) {
    at += b % X.extents[axis] * X.strides[axis];
    b /= X.extents[axis];
  }
  return at;
}

// The blocks a launch is for: all of them, or those of a list that an earlier launch made: how many, then which, in no
// particular order. The results of a block do not depend on its place.
struct Work {
  const int* list;
  __device__ int count(const Problem& p) const { return list ? list[0] : p.blocks; }
  __device__ int block(int i) const { return list ? list[1 + i] : i; }
};

// Hands out a CTA's shared memory from front to back, each part on 16 bytes; launch.py adds up the same parts.
struct Shared {
  unsigned char* at;
  template <class T>
  __device__ T* take(int count) {
    T* const part = reinterpret_cast<T*>(at);
    at += (count * sizeof(T) + 15) / 16 * 16;
    return part;
  }
};

// The sum over a warp, on every lane; a fixed tree.
__device__ __forceinline__ double warp_sum(double x) {
  for (int far = WARP / 2; far; far /= 2) x += __shfl_xor_sync(~0u, x, far);
  return x;
}

}  // namespace fastkoop
