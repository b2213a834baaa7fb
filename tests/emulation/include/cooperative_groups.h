// The part of cooperative groups that the kernels use, over the emulated intrinsics.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class thread_block {
 public:
  void sync() const { __syncthreads(); }
  unsigned thread_rank() const {
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  }
  unsigned size() const { return blockDim.x * blockDim.y * blockDim.z; }
  dim3 group_index() const { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  dim3 thread_index() const { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
};

inline thread_block this_thread_block() { return {}; }

template <unsigned Size>
class thread_block_tile {
  static_assert(Size <= 32 && (Size & (Size - 1)) == 0, "tiles are a power of two, up to a warp");

 public:
  unsigned thread_rank() const { return emulation::lane() % Size; }
  unsigned meta_group_rank() const { return this_thread_block().thread_rank() / Size; }
  static constexpr unsigned size() { return Size; }
  void sync() const { __syncwarp(mask()); }
  template <typename T>
  T shfl(T value, int source) const { return __shfl_sync(mask(), value, source, Size); }
  template <typename T>
  T shfl_up(T value, unsigned delta) const { return __shfl_up_sync(mask(), value, delta, Size); }
  template <typename T>
  T shfl_down(T value, unsigned delta) const {
    return __shfl_down_sync(mask(), value, delta, Size);
  }
  template <typename T>
  T shfl_xor(T value, unsigned bits) const { return __shfl_xor_sync(mask(), value, bits, Size); }
  bool any(int predicate) const { return __any_sync(mask(), predicate); }
  bool all(int predicate) const { return __all_sync(mask(), predicate); }
  unsigned ballot(int predicate) const {
    return __ballot_sync(mask(), predicate) >> (emulation::lane() / Size * Size);
  }

 private:
  static unsigned mask() {
    if (Size == 32) return 0xffffffffu;
    return ((1u << (Size % 32)) - 1) << (emulation::lane() / Size * Size);
  }
};

template <unsigned Size>
thread_block_tile<Size> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups
