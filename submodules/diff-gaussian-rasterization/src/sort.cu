// The orders in which splats and pairs are visited: sorts and scans by CUB, and where tiles begin.
#include <cub/cub.cuh>

#include "cuda_rasterizer.h"
#include "native/cuda.cuh"

namespace gr {
namespace cuda {
namespace {

constexpr unsigned kBlock = 256;

__global__ void __launch_bounds__(kBlock)
count_kernel(const std::uint32_t* order, const std::int32_t* tiles, std::int64_t splats,
             std::int64_t* counts) {
  const std::int64_t rank = native::global_index();
  if (rank > splats) return;
  counts[rank] = rank < splats ? tiles[order[rank]] : 0;
}

__device__ __forceinline__ std::uint32_t tile_of(std::uint32_t key) { return key; }
__device__ __forceinline__ std::uint32_t tile_of(std::uint64_t key) {
  return static_cast<std::uint32_t>(key >> 32);
}

// The first place whose tile is `tile` or a later one.
template <typename Key>
__device__ int lower_bound(const Key* keys, int pairs, std::uint32_t tile) {
  int low = 0, high = pairs;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (tile_of(keys[middle]) < tile) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename Key>
__global__ void __launch_bounds__(kBlock)
tiles_kernel(const Key* keys, int pairs, int tiles, std::int32_t* tile_start,
             std::int32_t* buckets) {
  const std::int64_t tile = native::global_index();
  if (tile > tiles) return;
  const int start = lower_bound(keys, pairs, static_cast<std::uint32_t>(tile));
  tile_start[tile] = start;
  if (buckets == nullptr) return;
  const int end = tile < tiles ? lower_bound(keys, pairs, static_cast<std::uint32_t>(tile + 1)) : start;
  buckets[tile] = (end - start + kBucket - 1) / kBucket;
}

int checked_count(std::int64_t count) {
  if (count > kMaxPairs) throw std::length_error("more than 2^31 items to sort");
  return static_cast<int>(count);
}

template <typename Key>
std::size_t sort_bytes_of(int count) {
  std::size_t bytes = 0;
  native::check(cub::DeviceRadixSort::SortPairs(
                    nullptr, bytes, static_cast<const Key*>(nullptr), static_cast<Key*>(nullptr),
                    static_cast<const std::uint32_t*>(nullptr),
                    static_cast<std::uint32_t*>(nullptr), count),
                "cub::DeviceRadixSort");
  return bytes;
}

template <typename T>
std::size_t scan_bytes_of(int count) {
  std::size_t bytes = 0;
  native::check(cub::DeviceScan::ExclusiveSum(nullptr, bytes, static_cast<const T*>(nullptr),
                                              static_cast<T*>(nullptr), count),
                "cub::DeviceScan");
  return bytes;
}

template <typename T>
void scan(void* scratch, std::int64_t bytes, const T* in, T* out, int count, cudaStream_t stream) {
  std::size_t size = static_cast<std::size_t>(bytes);
  native::check(cub::DeviceScan::ExclusiveSum(scratch, size, in, out, count, stream),
                "cub::DeviceScan");
}

}  // namespace

std::int64_t sort_bytes(std::int64_t count, int key_bytes) {
  const int items = checked_count(count);
  return static_cast<std::int64_t>(key_bytes == 8 ? sort_bytes_of<std::uint64_t>(items)
                                                  : sort_bytes_of<std::uint32_t>(items));
}

std::int64_t scan_bytes(std::int64_t count) {
  const int items = checked_count(count);
  const std::size_t wide = scan_bytes_of<std::int64_t>(items);
  const std::size_t narrow = scan_bytes_of<std::int32_t>(items);
  return static_cast<std::int64_t>(wide > narrow ? wide : narrow);
}

template <typename Key>
void sort(void* scratch, std::int64_t bytes, const Key* keys, Key* sorted_keys,
          const std::uint32_t* values, std::uint32_t* sorted_values, std::int64_t count, int bits,
          cudaStream_t stream) {
  if (count == 0) return;
  std::size_t size = static_cast<std::size_t>(bytes);
  native::check(cub::DeviceRadixSort::SortPairs(scratch, size, keys, sorted_keys, values,
                                                sorted_values, checked_count(count), 0, bits,
                                                stream),
                "cub::DeviceRadixSort");
}

void place_splats(void* scratch, std::int64_t bytes, const std::uint32_t* order,
                  const std::int32_t* tiles, std::int64_t splats, std::int64_t* counts,
                  std::int64_t* offsets, cudaStream_t stream) {
  native::launch(count_kernel, dim3(native::blocks_for(splats + 1, kBlock)), dim3(kBlock), stream,
                 order, tiles, splats, counts);
  scan(scratch, bytes, counts, offsets, checked_count(splats + 1), stream);
}

template <typename Key>
void find_tiles(void* scratch, std::int64_t bytes, const Key* keys, int pairs, int tiles,
                std::int32_t* tile_start, std::int32_t* buckets, std::int32_t* bucket_start,
                cudaStream_t stream) {
  native::launch(tiles_kernel<Key>, dim3(native::blocks_for(tiles + 1, kBlock)), dim3(kBlock),
                 stream, keys, pairs, tiles, tile_start, buckets);
  if (buckets != nullptr) scan(scratch, bytes, buckets, bucket_start, tiles + 1, stream);
}

#define GR_INSTANTIATE(Key)                                                                      \
  template void sort(void*, std::int64_t, const Key*, Key*, const std::uint32_t*,                \
                     std::uint32_t*, std::int64_t, int, cudaStream_t);                           \
  template void find_tiles(void*, std::int64_t, const Key*, int, int, std::int32_t*,             \
                           std::int32_t*, std::int32_t*, cudaStream_t);
GR_INSTANTIATE(std::uint32_t)
GR_INSTANTIATE(std::uint64_t)

}  // namespace cuda
}  // namespace gr
