// Kernels whose results say whether the emulated GPU does what a GPU does: test_emulation.py.
#include <cub/cub.cuh>

#include "runner.h"

namespace {

namespace cg = cooperative_groups;

// Row r of the results of a block of threads.
__device__ int& row(int* data, int r) { return data[r * blockDim.x + threadIdx.x]; }

__global__ void shuffles(int* data, int) {
  const int value = 10 * static_cast<int>(threadIdx.x);
  constexpr unsigned all = 0xffffffffu;
  row(data, 0) = __shfl_sync(all, value, 3);
  row(data, 1) = __shfl_up_sync(all, value, 2);
  row(data, 2) = __shfl_down_sync(all, value, 2);
  row(data, 3) = __shfl_xor_sync(all, value, 5);
  row(data, 4) = __shfl_sync(all, value, 1, 8);
  row(data, 5) = __shfl_up_sync(all, value, 3, 8);
  row(data, 6) = __shfl_down_sync(all, value, 3, 8);
  row(data, 7) = __shfl_xor_sync(all, value, 3, 8);
}

// Of blocks that need be no multiple of a warp.
__global__ void votes(int* data, int) {
  constexpr unsigned all = 0xffffffffu;
  const int t = static_cast<int>(threadIdx.x);
  row(data, 0) = static_cast<int>(__ballot_sync(all, t % 3 == 0));
  row(data, 1) = __any_sync(all, t == 33);
  row(data, 2) = __syncthreads_count(t % 3 == 0);
  row(data, 3) = __syncthreads_or(t == 5);
  row(data, 4) = __syncthreads_or(t < 0);
  row(data, 5) = __popc(0xf0u) + 10 * __ffs(8) + 100 * __clz(1);
}

__global__ void tiles(int* data, int) {
  const auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  const int t = static_cast<int>(threadIdx.x);
  int sum = t;
  for (unsigned d = 4; d > 0; d /= 2) sum += tile.shfl_xor(sum, d);
  row(data, 0) = sum;
  row(data, 1) = static_cast<int>(tile.thread_rank());
  row(data, 2) = static_cast<int>(tile.meta_group_rank());
  row(data, 3) = static_cast<int>(tile.ballot(t % 3 == 0));
  row(data, 4) = tile.any(t == 9);
  row(data, 5) = tile.all(t >= 8);
  row(data, 6) = tile.shfl(t, 2);
  row(data, 7) = tile.shfl_up(t, 1);
  row(data, 8) = tile.shfl_down(t, 1);
}

// Inclusive sums by log2(threads) rounds of two barriers.
__global__ void scan(int* data, int count) {
  NATIVE_SHARED(int, sums, 1024);
  const int t = static_cast<int>(threadIdx.x);
  if (t >= count) return;  // threads that have returned hold nobody up
  sums[t] = data[t];
  __syncthreads();
  for (int d = 1; d < count; d *= 2) {
    const int before = t >= d ? sums[t - d] : 0;
    __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  data[t] = sums[t];
}

// Which thread comes when.
__global__ void arrivals(int* data, int) {
  data[1 + threadIdx.x] = atomicAdd(data, 1);
}

__global__ void atomics(int* data, int) {
  const int t = static_cast<int>(threadIdx.x);
  atomicAdd(data, t);
  atomicMax(data + 1, t);
  atomicMin(data + 2, -t);
  float* values = reinterpret_cast<float*>(data);
  atomicAdd(values + 3, 0.5f);
  atomicAdd(reinterpret_cast<float4*>(values + 4), make_float4(1, 2, 3, 4));
  atomicAdd(reinterpret_cast<float2*>(values + 8), make_float2(5, 6));
  atomicAdd(reinterpret_cast<double*>(data + 10), 0.25);
}

// Blocks leave something behind for the next to find, if shared memory were not made anew.
__global__ void unwritten(int* data, int) {
  NATIVE_SHARED(float, values, 4);
  data[blockIdx.x] = values[1] != values[1];
  __syncthreads();
  values[1] = 0;
}

__global__ void coordinates(int* data, int count) {
  const int i = static_cast<int>(native::global_index());
  if (i < count) data[i] = static_cast<int>(1000 * blockIdx.x + threadIdx.x + 100000 * gridDim.x);
}

// Keys, values, sorted keys, sorted values: a quarter of `data` each; by bits 4 to 8.
void sort(int* data, int count) {
  const int n = count / 4;
  auto* keys = reinterpret_cast<unsigned*>(data);
  std::size_t bytes = 0;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, keys + 2 * n, data + n, data + 3 * n, n, 4,
                                  8);
  std::vector<char> temporary(bytes);
  cub::DeviceRadixSort::SortPairs(temporary.data(), bytes, keys, keys + 2 * n, data + n,
                                  data + 3 * n, n, 4, 8);
}

// Values, and their sums without their own.
void sums(int* data, int count) {
  const int n = count / 2;
  std::size_t bytes = 0;
  cub::DeviceScan::ExclusiveSum(nullptr, bytes, data, data + n, n);
  std::vector<char> temporary(bytes);
  cub::DeviceScan::ExclusiveSum(temporary.data(), bytes, data, data + n, n);
}

}  // namespace

RUNNER_EXPORTS({"shuffles", shuffles}, {"votes", votes}, {"tiles", tiles}, {"scan", scan},
               {"arrivals", arrivals}, {"atomics", atomics}, {"unwritten", unwritten},
               {"coordinates", coordinates}, {"sort", sort, false}, {"sums", sums, false})
