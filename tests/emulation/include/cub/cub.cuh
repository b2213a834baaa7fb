// Stand-ins for the CUB device algorithms that the kernels use: same signatures, same results.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../cuda_runtime.h"

namespace cub {

namespace emulated {
// CUB's protocol: without temporary storage a call only says how much it needs.
inline bool asks_for_size(void* temporary, std::size_t& bytes) {
  if (temporary == nullptr) bytes = 16;
  return temporary == nullptr;
}
}  // namespace emulated

struct DeviceRadixSort {
  // Stable, by bits [begin, end) of unsigned keys.
  template <typename Key, typename Value, typename Count>
  static cudaError_t SortPairs(void* temporary, std::size_t& bytes, const Key* keys_in,
                               Key* keys_out, const Value* values_in, Value* values_out,
                               Count count, int begin_bit = 0, int end_bit = sizeof(Key) * 8,
                               cudaStream_t = nullptr) {
    static_assert(std::is_unsigned_v<Key>, "only unsigned keys are emulated");
    if (emulated::asks_for_size(temporary, bytes)) return cudaSuccess;
    const auto digits = [&](Key key) {
      const int width = end_bit - begin_bit;
      const Key kept = width >= int(sizeof(Key) * 8) ? ~Key(0) : Key((Key(1) << width) - 1);
      return Key((key >> begin_bit) & kept);
    };
    std::vector<std::size_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return digits(keys_in[a]) < digits(keys_in[b]);
    });
    for (std::size_t i = 0; i < order.size(); ++i) {
      keys_out[i] = keys_in[order[i]];
      values_out[i] = values_in[order[i]];
    }
    return cudaSuccess;
  }
};

struct DeviceScan {
  template <typename In, typename Out, typename Count>
  static cudaError_t ExclusiveSum(void* temporary, std::size_t& bytes, In in, Out out, Count count,
                                  cudaStream_t = nullptr) {
    using Sum = std::decay_t<decltype(out[0])>;
    static_assert(std::is_same_v<Sum, std::decay_t<decltype(in[0])>>,
                  "CUB sums in the type of its input, which would overflow unseen here");
    if (emulated::asks_for_size(temporary, bytes)) return cudaSuccess;
    Sum total = 0;
    for (Count i = 0; i < count; ++i) {
      const auto value = in[i];
      out[i] = total;
      total += value;
    }
    return cudaSuccess;
  }
};

}  // namespace cub
