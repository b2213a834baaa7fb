// Depth sort and tile lists: a stable sort by depth of each stack, then a stable counting sort by tile.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "rasterizer.h"
#include "thread_pool.h"

namespace gr {
namespace {

constexpr int kRadixBits = 11;
constexpr int kRadix = 1 << kRadixBits;
constexpr int kSegment = 4096;  // splats below which a second thread is not worth its waking

struct KeyIndex {
  std::uint32_t key, index;
};

using Indices = std::vector<std::uint32_t>;

// Drawn splats among [begin, end) in the order of their index.
template <typename S>
void list_drawn(const ViewState<S>& state, int begin, int end, Indices& order) {
  order.reserve(end - begin);
  for (int i = begin; i < end; ++i) {
    if (state.first_slot[i + 1] > state.first_slot[i]) order.push_back(i);
  }
}

int segments_of(std::size_t count, int threads) {
  return std::min<int>(threads, 1 + int(count / kSegment));
}

template <typename S>
Indices list_all_drawn(int gaussians, int threads, const ViewState<S>& state) {
  const int segments = segments_of(gaussians, threads);
  const auto begin = [&](int s) { return int(std::int64_t(gaussians) * s / segments); };
  std::vector<Indices> parts(segments);
  parallel_for(segments, threads,
               [&](int s, int) { list_drawn(state, begin(s), begin(s + 1), parts[s]); });
  Indices all = std::move(parts[0]);
  for (int s = 1; s < segments; ++s) all.insert(all.end(), parts[s].begin(), parts[s].end());
  return all;
}

// From the counts per (segment, digit) to the place of each segment's first item of each digit.
void place_digits(int segments, std::uint32_t* start) {
  std::uint32_t total = 0;
  for (int d = 0; d < kRadix; ++d) {
    for (int s = 0; s < segments; ++s) total += std::exchange(start[s * kRadix + d], total);
  }
}

// Stable least-significant-digit radix sort; depths are positive, so their bits sort as integers.
// Segments keep their order, so that the result is the same for any number of threads.
void sort_by_depth(const Buffer<float>& depths, int threads, Indices& order) {
  const std::size_t count = order.size();
  const int segments = segments_of(count, threads);
  const auto begin = [&](int segment) { return count * segment / segments; };
  std::vector<KeyIndex> items(count), spare(count);
  std::vector<std::uint32_t> starts(std::size_t(segments) * kRadix);
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass * kRadixBits;
    parallel_for(segments, threads, [&](int s, int) {
      std::uint32_t* histogram = starts.data() + std::size_t(s) * kRadix;
      std::fill_n(histogram, kRadix, 0);
      for (std::size_t k = begin(s); k < begin(s + 1); ++k) {
        if (pass == 0) {
          items[k].index = order[k];
          std::memcpy(&items[k].key, &depths[order[k]], sizeof items[k].key);
        }
        ++histogram[(items[k].key >> shift) & (kRadix - 1)];
      }
    });
    place_digits(segments, starts.data());
    parallel_for(segments, threads, [&](int s, int) {
      std::uint32_t* start = starts.data() + std::size_t(s) * kRadix;
      for (std::size_t k = begin(s); k < begin(s + 1); ++k) {
        const std::uint32_t at = start[(items[k].key >> shift) & (kRadix - 1)]++;
        if (pass == 2) {
          order[at] = items[k].index;
        } else {
          spare[at] = items[k];
        }
      }
    });
    items.swap(spare);
  }
}

void sort_by_depth(const Buffer<double>& depths, int, Indices& order) {
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return depths[a] < depths[b];
  });
}

// The drawn splats stack by stack, each front to back, cut into segments, at most one per thread.
struct Order {
  Indices splats;
  int segments;
  std::size_t begin(int segment) const { return splats.size() * segment / segments; }
  std::size_t end(int segment) const { return begin(segment + 1); }
};

template <typename S>
Indices depth_order(const Inputs<S>& in, int threads, const Projected<S>& projected,
                    const ViewState<S>& state) {
  const int stacks = in.stacks();
  std::vector<Indices> orders(stacks);
  if (stacks == 1) {
    Indices all = list_all_drawn(in.gaussians, threads, state);
    sort_by_depth(projected.depths, threads, all);
    return all;
  }
  parallel_for(stacks, threads, [&](int stack, int) {
    list_drawn(state, in.layer_start[stack], in.layer_start[stack + 1], orders[stack]);
    sort_by_depth(projected.depths, 1, orders[stack]);
  });
  Indices joined = std::move(orders[0]);
  for (int stack = 1; stack < stacks; ++stack) {
    joined.insert(joined.end(), orders[stack].begin(), orders[stack].end());
  }
  return joined;
}

// Calls visit(i, slot, touch) for all tiles of all splats of a segment, front to back.
template <typename S, typename Visit>
void for_each_touch(const ViewState<S>& state, const Projected<S>& projected, const Order& order,
                    int segment, Visit visit) {
  const std::uint32_t* first_slot = state.first_slot.data();
  const auto touches_of = [&](std::uint32_t i) {
    const std::uint32_t chunk = i / kChunk;
    return projected.touches[chunk].data() + (first_slot[i] - first_slot[chunk * kChunk]);
  };
  const std::size_t end = order.end(segment);
  for (std::size_t k = order.begin(segment); k < end; ++k) {
    if (k + 2 * kAhead < end) prefetch(first_slot + order.splats[k + 2 * kAhead]);
    if (k + kAhead < end) prefetch(touches_of(order.splats[k + kAhead]));
    const std::uint32_t i = order.splats[k];
    const Touch* touch = touches_of(i);
    for (std::uint32_t slot = first_slot[i]; slot < first_slot[i + 1]; ++slot, ++touch) {
      visit(i, slot, *touch);
    }
  }
}

// From the counts per (segment, tile) to the place of each segment's first pair in each tile.
void place_segments(int segments, int tiles, std::vector<std::uint32_t>& cursor,
                    Buffer<std::uint32_t>& tile_start) {
  tile_start.resize(tiles + 1);
  std::uint32_t total = 0;
  for (int t = 0; t < tiles; ++t) {
    tile_start[t] = total;
    for (int s = 0; s < segments; ++s) {
      total += std::exchange(cursor[std::size_t(s) * tiles + t], total);
    }
    if (total - tile_start[t] >= (1u << 24)) {
      throw std::length_error("more than 2^24 splats in one tile");
    }
  }
  tile_start[tiles] = total;
}

}  // namespace

template <typename S>
void bin_view(const Inputs<S>& in, int threads, const Projected<S>& projected,
              ViewState<S>& state) {
  const int tiles = in.tiles();
  Order order{depth_order(in, threads, projected, state), 1};
  const int segments = segments_of(order.splats.size(), threads);
  order.segments = segments;

  std::vector<std::uint32_t> cursors(std::size_t(segments) * tiles, 0);
  parallel_for(segments, threads, [&](int s, int) {
    std::uint32_t* count = cursors.data() + std::size_t(s) * tiles;
    for_each_touch(state, projected, order, s,
                   [&](std::uint32_t, std::uint32_t, Touch touch) { ++count[touch.tile]; });
  });
  place_segments(segments, tiles, cursors, state.tile_start);
  state.pairs.resize(state.tile_start[tiles]);
  state.rows.resize(state.tile_start[tiles]);
  parallel_for(segments, threads, [&](int s, int) {
    std::uint32_t* cursor = cursors.data() + std::size_t(s) * tiles;
    for_each_touch(state, projected, order, s,
                   [&](std::uint32_t i, std::uint32_t slot, Touch touch) {
                     const std::uint32_t at = cursor[touch.tile]++;
                     state.pairs[at] = {i, slot};
                     state.rows[at] = touch.rows;
                   });
  });
}

template void bin_view(const Inputs<float>&, int, const Projected<float>&, ViewState<float>&);
template void bin_view(const Inputs<double>&, int, const Projected<double>&, ViewState<double>&);

}  // namespace gr
