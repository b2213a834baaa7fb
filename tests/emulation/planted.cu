// Kernels with the mistakes that the emulation and the sanitizers must find, and beside each of them
// the kernel without its mistake, in which they must find nothing.
#include "runner.h"

namespace {

constexpr int kThreads = 64;

__device__ int& own(int* data) { return data[native::global_index()]; }

// Every thread reads what its neighbour has written.
template <bool Right>
__global__ void barrier_between(int* data, int) {
  NATIVE_SHARED(int, values, kThreads);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (Right) __syncthreads();
  own(data) = values[(threadIdx.x + 1) % kThreads];
}

// The array is used for a second round before all threads have read the first.
template <bool Right>
__global__ void barrier_after(int* data, int) {
  NATIVE_SHARED(int, values, kThreads);
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = round + static_cast<int>(threadIdx.x);
    __syncthreads();
    sum += values[(threadIdx.x + 1) % kThreads];
    if (Right) __syncthreads();
  }
  own(data) = sum;
}

// The lanes of a warp exchange values through shared memory.
template <bool Right>
__global__ void warp_barrier(int* data, int) {
  NATIVE_SHARED(int, values, kThreads);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (Right) __syncwarp();
  own(data) = values[threadIdx.x ^ 1];
}

template <bool Right>
__global__ void beyond_shared(int* data, int) {
  NATIVE_SHARED(int, values, kThreads);
  const unsigned i = threadIdx.x + (Right ? 0 : 1);
  values[i] = 1;
  __syncthreads();
  own(data) = values[i];
}

template <bool Right>
__global__ void beyond_global(int* data, int count) {
  const int i = static_cast<int>(native::global_index());
  if (i < count) data[Right ? i : i + 1] = i;
}

// All threads add to one number.
template <bool Right>
__global__ void sum_of_blocks(int* data, int) {
  if (threadIdx.x != 0) return;  // one thread of each block
  if (Right) {
    atomicAdd(data, 1);
  } else {
    data[0] += 1;
  }
}

template <bool Right>
__global__ void sum_of_threads(int* data, int) {
  if (Right) {
    atomicAdd(data, 1);
  } else {
    data[0] += 1;
  }
}

template <bool Right>
__global__ void misaligned(int* data, int) {
  const int4 four = *reinterpret_cast<const int4*>(data + (Right ? 4 : 1));
  if (threadIdx.x == 0) data[0] = four.x + four.w;
}

template <bool Right>
__global__ void overflow(int* data, int) {
  const int large = 0x7fffffff - (Right ? static_cast<int>(threadIdx.x) : 0);
  own(data) = large + static_cast<int>(threadIdx.x);
}

// Half of the threads wait for the block, the other half for their warp.
template <bool Right>
__global__ void divergent_barrier(int* data, int) {
  if (Right || threadIdx.x % 2 == 0) __syncthreads();
  __syncwarp();
  own(data) = 1;
}

// A shuffle that names lanes which never come.
template <bool Right>
__global__ void absent_lanes(int* data, int) {
  const unsigned mask = Right ? 0xffffu : 0xffffffffu;
  if (threadIdx.x < 16) own(data) = __shfl_sync(mask, static_cast<int>(threadIdx.x), 0);
  __syncthreads();
}

// A shuffle whose mask leaves out the lane that calls it.
template <bool Right>
__global__ void left_out_lane(int* data, int) {
  const unsigned mask = Right ? 0xffffffffu : 0xfffffffeu;
  own(data) = __shfl_sync(mask, static_cast<int>(threadIdx.x), 1);
}

}  // namespace

#define BOTH(name) {#name, name<false>}, {#name "_right", name<true>}
RUNNER_EXPORTS(BOTH(barrier_between), BOTH(barrier_after), BOTH(warp_barrier), BOTH(beyond_shared),
               BOTH(beyond_global), BOTH(sum_of_blocks), BOTH(sum_of_threads), BOTH(misaligned),
               BOTH(overflow), BOTH(divergent_barrier), BOTH(absent_lanes), BOTH(left_out_lane))
