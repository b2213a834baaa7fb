// A stand-in for the CUDA runtime that runs kernels on the CPU, for tests on machines without a GPU.
//
// Every thread of a block is a fibre of the calling OS thread. Fibres run until they reach a barrier
// or a warp intrinsic, in the order of their index, the reverse, or a seeded random one
// (emulation::set_order), and blocks run one after the other. What it finds beyond wrong results:
//   - barriers and warp intrinsics that not all threads reach: an error that says who waits where;
//   - shared memory that is read before it is written: it starts as NaN (all bits set);
//   - races, under ThreadSanitizer: fibres are threads to it, ordered by barriers and warp syncs only;
//   - accesses out of bounds, under AddressSanitizer: shared arrays lie on the heap, each by itself.
// Memory order between threads of a block and speed are not modelled.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};

// Vector types, aligned as CUDA's.
#define EMULATION_VECTOR2(T, name, align) \
  struct alignas(align) name##2 {         \
    T x, y;                               \
  };                                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define EMULATION_VECTOR4(T, name, align) \
  struct alignas(align) name##4 {         \
    T x, y, z, w;                         \
  };                                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTOR2(float, float, 8)
EMULATION_VECTOR2(double, double, 16)
EMULATION_VECTOR2(int, int, 8)
EMULATION_VECTOR2(unsigned, uint, 8)
EMULATION_VECTOR4(float, float, 16)
EMULATION_VECTOR4(int, int, 16)
EMULATION_VECTOR4(unsigned, uint, 16)
EMULATION_VECTOR4(unsigned char, uchar, 4)
#undef EMULATION_VECTOR2
#undef EMULATION_VECTOR4

// ------------------------------------------------------------------------------------ host runtime

enum cudaError_t { cudaSuccess = 0 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

// --------------------------------------------------------------------------------------- emulation

namespace emulation {

struct Coordinates {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
const Coordinates& here();  // of the running fibre

// Runs `body(closure)` once for every thread of the grid.
void run(dim3 grid, dim3 block, void (*body)(void*), void* closure);

// The order in which the fibres of a block run between barriers: 0 by index, 1 reversed, else a
// shuffle with this seed.
void set_order(unsigned order);

// Waits for all threads of the block that have not returned; returns the sum of `value` over them.
int block_barrier(int value);

// Every lane of `mask` gives 8 bytes and gets those of all lanes. With `orders` it is also a memory
// barrier among them, as __syncwarp is and the shuffles are not.
struct WarpValues {
  std::uint64_t lane[32];
};
WarpValues warp_exchange(std::uint32_t mask, std::uint64_t value, bool orders);

void* shared_bytes(const char* file, int line, std::size_t bytes);

template <typename T>
T* shared_array(const char* file, int line, std::size_t count) {
  return static_cast<T*>(shared_bytes(file, line, count * sizeof(T)));
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t, A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  } call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  run(grid, block, [](void* closure) {
    Call* c = static_cast<Call*>(closure);
    std::apply(c->kernel, c->arguments);
  }, &call);
}

template <typename T>
std::uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lane() {
  const Coordinates& c = here();
  const unsigned rank =
      c.thread.x + c.block_size.x * (c.thread.y + c.block_size.y * c.thread.z);
  return rank % 32;
}

}  // namespace emulation

#define threadIdx (::emulation::here().thread)
#define blockIdx (::emulation::here().block)
#define blockDim (::emulation::here().block_size)
#define gridDim (::emulation::here().grid_size)

// -------------------------------------------------------------------------------------- intrinsics

inline void __syncthreads() { emulation::block_barrier(0); }
inline int __syncthreads_count(int value) { return emulation::block_barrier(value != 0); }
inline int __syncthreads_or(int value) { return emulation::block_barrier(value != 0) != 0; }

inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::warp_exchange(mask, 0, true); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const auto all = emulation::warp_exchange(mask, emulation::to_bits(value), false);
  const unsigned base = emulation::lane() & ~unsigned(width - 1);
  return emulation::from_bits<T>(all.lane[base + unsigned(source) % width]);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto all = emulation::warp_exchange(mask, emulation::to_bits(value), false);
  const unsigned lane = emulation::lane(), base = lane & ~unsigned(width - 1);
  return lane - base >= delta ? emulation::from_bits<T>(all.lane[lane - delta]) : value;
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const auto all = emulation::warp_exchange(mask, emulation::to_bits(value), false);
  const unsigned lane = emulation::lane(), base = lane & ~unsigned(width - 1);
  return lane - base + delta < unsigned(width) ? emulation::from_bits<T>(all.lane[lane + delta])
                                               : value;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const auto all = emulation::warp_exchange(mask, emulation::to_bits(value), false);
  const unsigned lane = emulation::lane(), other = lane ^ unsigned(bits);
  return other / width == lane / width ? emulation::from_bits<T>(all.lane[other]) : value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto all = emulation::warp_exchange(mask, predicate != 0, false);
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i) bits |= (mask >> i & 1u) && all.lane[i] ? 1u << i : 0u;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

inline int __float_as_int(float x) { return emulation::from_bits<int>(emulation::to_bits(x)); }
inline float __int_as_float(int x) { return emulation::from_bits<float>(emulation::to_bits(x)); }
// As in CUDA, min and max of integers are in the global namespace.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) {
  return static_cast<unsigned>(emulation::to_bits(x));
}
inline long long __double_as_longlong(double x) {
  return static_cast<long long>(emulation::to_bits(x));
}
template <typename T>
T __ldg(const T* p) {
  return *p;
}

// Float atomics as compare-and-swap: other fibres never run in between, but ThreadSanitizer then
// knows them for atomic.
template <typename T>
T atomicAdd(T* target, T value) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  Bits* bits = reinterpret_cast<Bits*>(target);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
  T before;
  do {
    std::memcpy(&before, &old, sizeof(T));
    const T sum = before + value;
    std::memcpy(&next, &sum, sizeof(T));
  } while (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  return before;
}
inline float2 atomicAdd(float2* target, float2 value) {
  return {atomicAdd(&target->x, value.x), atomicAdd(&target->y, value.y)};
}
inline float4 atomicAdd(float4* target, float4 value) {
  return {atomicAdd(&target->x, value.x), atomicAdd(&target->y, value.y),
          atomicAdd(&target->z, value.z), atomicAdd(&target->w, value.w)};
}
inline int atomicMax(int* target, int value) {
  int old = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(target, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
inline int atomicMin(int* target, int value) {
  int old = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (old > value && !__atomic_compare_exchange_n(target, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
