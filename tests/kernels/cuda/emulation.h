// A CTA on one host thread: CUDA threads are fibers, barriers and shuffles are yields. For the correctness of the
// kernels' sources, not for speed. It finds
//   - barriers that not all threads of a CTA, or of a warp, reach (each is named by file and line),
//   - threads that end before a barrier, and asynchronous copies that nobody waits for,
//   - shared memory that is read before it is written: it starts as NaN, integers as -1,
//   - missing barriers, when the order in which threads run changes the result: `order` 0 forward, 1 backward, 2 mixed,
//   - writes past the end of shared memory, by a guard; other accesses out of bounds are for -fsanitize.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define FASTKOOP_EMULATION 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) unsigned char* const name = emulation::cta.shared
#define __syncthreads() emulation::wait_cta(__FILE__, __LINE__)
#define __syncthreads_or(x) emulation::wait_cta_or(x, __FILE__, __LINE__)
#define __syncwarp() emulation::wait_warp(__FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) emulation::shuffle(value, lane, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, far) emulation::shuffle(value, threadIdx.x % 32 ^ (far), __FILE__, __LINE__)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

void entry();

// A fiber's registers. swapcontext would do everywhere, but asks the kernel for its signal mask at every switch.
#if defined(__x86_64__) && defined(__linux__)
struct Context {
  void* stack_pointer;
  void start(char* stack, size_t size) {
    auto top = reinterpret_cast<uintptr_t>(stack + size) / 16 * 16;
    void** const at = reinterpret_cast<void**>(top) - 8;  // six registers, where to return to, a word to align
    memset(at, 0, 8 * sizeof(void*));
    at[6] = reinterpret_cast<void*>(&entry);
    stack_pointer = at;
  }
};
asm(R"(
.text
.local emulation_switch
.type emulation_switch, @function
emulation_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov (%rsi), %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
extern "C" void emulation_switch(void** from, void** to) __attribute__((visibility("hidden")));
inline void switch_to(Context& from, Context& to) { emulation_switch(&from.stack_pointer, &to.stack_pointer); }
#else
struct Context {
  ucontext_t registers;
  void start(char* stack, size_t size) {
    getcontext(&registers);
    registers.uc_stack.ss_sp = stack;
    registers.uc_stack.ss_size = size;
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
  }
};
inline void switch_to(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
#endif

constexpr int WARP = 32, GUARD = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 1 << 18;
#else
constexpr size_t STACK = 1 << 16;
#endif

enum State { RUNNING, AT_CTA, AT_WARP, DONE };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Context context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  void* fake_stack = nullptr;
  State state;
  const char* file;
  int line, turn;  // turn: which of two buffers the next collective takes
  std::vector<Copy> copies;
};

struct Cta {
  std::vector<Thread> threads;
  std::vector<double> lent[2][2];  // what lanes hold out to each other, a and b
  unsigned char* shared = nullptr;
  int any[2], any_turn, current;
  void (*body)(void**);
  void** arguments;
  Context scheduler;
  void* scheduler_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  std::string error;
};
inline Cta cta;

inline void to_scheduler(bool last) {
  Thread& self = cta.threads[cta.current];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &self.fake_stack, cta.scheduler_bottom, cta.scheduler_size);
#endif
  switch_to(self.context, cta.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.fake_stack, &cta.scheduler_bottom, &cta.scheduler_size);
#endif
  (void)last;
}

inline void wait(State state, const char* file, int line) {
  Thread& self = cta.threads[cta.current];
  self.state = state;
  self.file = file;
  self.line = line;
  to_scheduler(false);
}

inline void wait_cta(const char* file, int line) { wait(AT_CTA, file, line); }
inline void wait_warp(const char* file, int line) { wait(AT_WARP, file, line); }

inline int wait_cta_or(int x, const char* file, int line) {
  const int turn = cta.any_turn;
  cta.any[turn] |= x != 0;
  wait(AT_CTA, file, line);
  return cta.any[turn];
}

struct Lent {
  const double *a, *b;  // of each lane
};

// Holds out x and y and waits for the warp. Two buffers take turns, so that no lane overwrites what another still
// reads.
inline Lent lend(double x, double y, const char* file, int line) {
  Thread& self = cta.threads[cta.current];
  const int turn = self.turn ^= 1, first = cta.current / WARP * WARP;
  cta.lent[turn][0][cta.current] = x;
  cta.lent[turn][1][cta.current] = y;
  wait(AT_WARP, file, line);
  return {cta.lent[turn][0].data() + first, cta.lent[turn][1].data() + first};
}

template <class T>
T shuffle(T x, int lane, const char* file, int line) {
  static_assert(std::is_floating_point<T>::value || sizeof(T) <= 4, "a double must hold what is shuffled");
  return static_cast<T>(lend(x, 0.0, file, line).a[lane]);
}

inline void entry() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &cta.scheduler_bottom, &cta.scheduler_size);
#endif
  cta.body(cta.arguments);
  Thread& self = cta.threads[cta.current];
  if (!self.copies.empty()) cta.error = "a thread ended with copies that it did not wait for";
  self.state = DONE;
  to_scheduler(true);
}

inline void run(int index) {
  Thread& thread = cta.threads[index];
  cta.current = index;
  threadIdx.x = index;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&cta.scheduler_stack, thread.stack.get(), STACK);
#endif
  switch_to(cta.scheduler, thread.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(cta.scheduler_stack, nullptr, nullptr);
#endif
}

inline std::string place(const Thread& thread) { return std::string(thread.file) + ":" + std::to_string(thread.line); }

// Lets the threads first .. last go on if they all wait for each other at one place; says what is wrong if they never
// will.
inline bool release(int first, int last, State kind) {
  const Thread& leader = cta.threads[first];
  int waiting = 0;
  for (int i = first; i < last; ++i) waiting += cta.threads[i].state == kind;
  if (waiting == 0) return false;
  for (int i = first; i < last; ++i) {
    const Thread& thread = cta.threads[i];
    if (thread.state == kind && leader.state == kind && thread.line == leader.line &&
        strcmp(thread.file, leader.file) == 0)
      continue;
    if (kind == AT_CTA && thread.state == AT_WARP) return false;  // its warp may still get here
    const char* const what = kind == AT_CTA ? "barrier" : "warp barrier";
    const Thread& stuck = thread.state == kind ? thread : leader;
    cta.error = std::string("divergent ") + what + ": thread " + std::to_string(i) +
                (thread.state == DONE ? " has ended" : " is at " + place(thread)) + ", another waits at " +
                (stuck.state == kind && &stuck != &thread ? place(stuck) : "a different one");
    return false;
  }
  for (int i = first; i < last; ++i) cta.threads[i].state = RUNNING;
  if (kind == AT_CTA) {
    cta.any_turn ^= 1;
    cta.any[cta.any_turn] = 0;
  }
  return true;
}

inline void run_cta(int count, int order) {
  for (int i = 0; i < count; ++i) {
    Thread& thread = cta.threads[i];
    thread.state = RUNNING;
    thread.turn = 0;
    thread.copies.clear();
    thread.context.start(thread.stack.get(), STACK);
  }
  cta.any[0] = cta.any[1] = cta.any_turn = 0;
  unsigned mix = 12345;
  for (;;) {
    bool ran = false;
    mix = mix * 1664525u + 1013904223u;
    for (int k = 0; k < count; ++k) {
      const int i = order == 0 ? k : order == 1 ? count - 1 - k : static_cast<int>((k * 37u + mix / 65536) % count);
      if (cta.threads[i].state != RUNNING) continue;
      run(i);
      ran = true;
      if (!cta.error.empty()) return;
    }
    if (ran) continue;
    int done = 0;
    for (int i = 0; i < count; ++i) done += cta.threads[i].state == DONE;
    if (done == count) return;
    bool moved = false;
    for (int warp = 0; warp < count && cta.error.empty(); warp += WARP) moved |= release(warp, warp + WARP, AT_WARP);
    if (!moved && cta.error.empty()) moved = release(0, count, AT_CTA);
    if (!cta.error.empty()) return;
    if (!moved) {
      cta.error = "no thread can go on: warps wait at different barriers";
      return;
    }
  }
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}

template <auto kernel>
struct Entry;
template <class... P, void (*kernel)(P...)>
struct Entry<kernel> {
  static void call(void** arguments) { emulation::call(kernel, arguments, std::index_sequence_for<P...>()); }
};

// Runs a grid, CTA after CTA. nullptr, or what went wrong.
inline const char* launch(void (*body)(void**), unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared,
                          void** arguments, int order) {
  static std::string message;
  cta.error.clear();
  cta.body = body;
  cta.arguments = arguments;
  if (cta.threads.size() < threads) cta.threads.resize(threads);
  for (auto& turn : cta.lent)
    for (auto& buffer : turn) buffer.resize(threads);
  gridDim = {grid_x, grid_y, 1};
  blockDim = {threads, 1, 1};
  std::unique_ptr<unsigned char[]> memory(new unsigned char[shared + GUARD]);
  cta.shared = memory.get();
  for (unsigned y = 0; y < grid_y && cta.error.empty(); ++y)
    for (unsigned x = 0; x < grid_x && cta.error.empty(); ++x) {
      blockIdx = {x, y, 0};
      memset(cta.shared, 0xff, shared);
      memset(cta.shared + shared, 0xa5, GUARD);
      run_cta(static_cast<int>(threads), order);
      for (int i = 0; i < GUARD && cta.error.empty(); ++i)
        if (cta.shared[shared + i] != 0xa5)
          cta.error = "wrote " + std::to_string(i) + " bytes past the end of shared memory";
    }
  message = cta.error;
  return message.empty() ? nullptr : message.c_str();
}

}  // namespace emulation

// What CUDA C++ has built in.
using std::isfinite;
using std::isnan;
template <class A, class B>
auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<C>::value)
    return static_cast<C>(fmin(a, b));
  else
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(a) : static_cast<C>(b);
}
template <class A, class B>
auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<C>::value)
    return static_cast<C>(fmax(a, b));
  else
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}
inline int atomicAdd(int* at, int x) {
  const int before = *at;
  *at += x;
  return before;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

namespace fastkoop {

// Nothing arrives before it is waited for.
template <int bytes>
void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
    emulation::cta.error = "copy_async: an address is not aligned to its " + std::to_string(bytes) + " bytes";
  emulation::cta.threads[emulation::cta.current].copies.push_back({shared, global, bytes});
}
inline void copies_arrived() {
  auto& copies = emulation::cta.threads[emulation::cta.current].copies;
  for (const auto& copy : copies) memcpy(copy.to, copy.from, copy.bytes);
  copies.clear();
}

inline double to_double(double x) { return x; }
inline double reciprocal(double x) { return 1.0 / x; }
inline int upper_bits(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<int>(bits >> 32);
}
inline double inverse_root(double x) { return 1.0 / std::sqrt(x); }
inline double rough_inverse_root(double x) {  // as the instruction, which knows the upper half of x alone
  const double y = 1.0 / std::sqrt(x);
  int64_t bits;
  memcpy(&bits, &y, sizeof bits);
  bits &= ~0xffffffffll;
  double rough;
  memcpy(&rough, &bits, sizeof rough);
  return rough;
}
template <class T>
T rounded(double x) {
  return static_cast<T>(x);
}

// As the matrix unit does it: see device.cuh.
inline void multiply_add_tile(double (&c)[2], double a, double b) {
  const int lane = threadIdx.x % 32, row = lane / 4, column = 2 * (lane % 4);
  const emulation::Lent warp = emulation::lend(a, b, __FILE__, __LINE__);
  for (int k = 0; k < 4; ++k) {
    c[0] = fma(warp.a[4 * row + k], warp.b[4 * column + k], c[0]);
    c[1] = fma(warp.a[4 * row + k], warp.b[4 * column + 4 + k], c[1]);
  }
}

}  // namespace fastkoop
