// What the CUDA kernels of all packages share: launching, errors, shared memory.
//
// The kernels are written so that they also compile as plain C++ against the emulation of blocks,
// barriers and warps in tests/emulation, which is how they are tested without a GPU. Three things
// differ there and go through this header: launches (`launch`), shared memory (`NATIVE_SHARED`) and
// functions that must not be inlined (`NATIVE_NOINLINE`).
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <utility>

#include "native/cuda_host.h"

#if defined(__CUDACC__)
// An array of `count` (a constant) in the block's shared memory.
#define NATIVE_SHARED(type, name, count) __shared__ type name[count]
#define NATIVE_NOINLINE __noinline__
#else
#define NATIVE_SHARED(type, name, count) \
  type* const name = ::emulation::shared_array<type>(__FILE__, __LINE__, count)
#define NATIVE_NOINLINE __attribute__((noinline))
#endif

namespace native {

namespace cg = cooperative_groups;

constexpr unsigned kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Blocks of `block` threads that cover `count` items.
inline unsigned blocks_for(std::int64_t count, unsigned block) {
  const std::int64_t blocks = (count + block - 1) / block;
  if (blocks > 0x7fffffff) throw std::length_error("more blocks than a CUDA grid can have");
  return static_cast<unsigned>(blocks);
}

// kernel<<<grid, block, 0, stream>>>(arguments...); nothing is launched for an empty grid.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(__CUDACC__)
  kernel<<<grid, block, 0, stream>>>(std::forward<A>(arguments)...);
#else
  emulation::launch(kernel, grid, block, stream, std::forward<A>(arguments)...);
#endif
  check(cudaGetLastError(), "launching a CUDA kernel");
}

// Index of the calling thread along x over the whole grid.
__device__ __forceinline__ std::int64_t global_index() {
  return std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace native
