// Neighbouring values that move in one access of up to 16 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/cuda.cuh"

// float2 and float4 are added in one instruction since Hopper, by atomicAdd since CUDA 12.1; the
// emulation does it everywhere, so that the tests see these accesses too.
#if !defined(__CUDACC__)
#define NATIVE_VECTOR_ATOMICS 1
#elif defined(__CUDA_ARCH__) && CUDART_VERSION >= 12010
#define NATIVE_VECTOR_ATOMICS (__CUDA_ARCH__ >= 900)
#else
#define NATIVE_VECTOR_ATOMICS 0
#endif

namespace native {

template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  static_assert(sizeof(T) * V <= 16, "no access is wider than 16 bytes");
  T at[V];
};

// Addresses must be aligned to the vector.
template <typename T, int V>
__device__ __forceinline__ Vector<T, V> load(const T* address) {
  return *reinterpret_cast<const Vector<T, V>*>(address);
}

template <typename T, int V>
__device__ __forceinline__ void store(T* address, const Vector<T, V>& value) {
  *reinterpret_cast<Vector<T, V>*>(address) = value;
}

// Adds weight * value; each element by itself is added atomically.
template <typename T, int V>
__device__ __forceinline__ void atomic_add(T* address, T weight, const Vector<T, V>& value) {
  constexpr bool single = sizeof(T) == 4 && NATIVE_VECTOR_ATOMICS;
  if constexpr (single && V == 4) {
    atomicAdd(reinterpret_cast<float4*>(address),
              make_float4(weight * value.at[0], weight * value.at[1], weight * value.at[2],
                          weight * value.at[3]));
  } else if constexpr (single && V == 2) {
    atomicAdd(reinterpret_cast<float2*>(address),
              make_float2(weight * value.at[0], weight * value.at[1]));
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) atomicAdd(address + v, weight * value.at[v]);
  }
}

inline bool is_aligned(const void* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

}  // namespace native
