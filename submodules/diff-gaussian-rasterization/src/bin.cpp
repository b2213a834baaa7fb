// Depth sort and tile lists: one stable global sort by depth, then a stable counting sort by tile.
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

struct KeyIndex {
  std::uint32_t key, index;
};

// Drawn splats in the order of their index.
template <typename S>
void list_drawn(const ViewState<S>& state, int n, std::vector<std::uint32_t>& order) {
  order.clear();
  for (int i = 0; i < n; ++i) {
    if (state.first_slot[i + 1] > state.first_slot[i]) order.push_back(i);
  }
}

// Stable least-significant-digit radix sort; depths are positive, so their bits sort as integers.
void sort_by_depth(const Buffer<float>& depths, std::vector<std::uint32_t>& order) {
  std::vector<KeyIndex> items(order.size()), spare(order.size());
  std::vector<std::uint32_t> histogram(3 * kRadix, 0);
  for (std::size_t k = 0; k < order.size(); ++k) {
    std::uint32_t key;
    std::memcpy(&key, &depths[order[k]], sizeof key);
    items[k] = {key, order[k]};
    for (int pass = 0; pass < 3; ++pass) {
      ++histogram[pass * kRadix + ((key >> (pass * kRadixBits)) & (kRadix - 1))];
    }
  }
  for (int pass = 0; pass < 3; ++pass) {
    std::uint32_t* start = histogram.data() + pass * kRadix;
    std::uint32_t total = 0;
    for (int d = 0; d < kRadix; ++d) total += std::exchange(start[d], total);
    for (const KeyIndex& item : items) {
      spare[start[(item.key >> (pass * kRadixBits)) & (kRadix - 1)]++] = item;
    }
    items.swap(spare);
  }
  for (std::size_t k = 0; k < order.size(); ++k) order[k] = items[k].index;
}

void sort_by_depth(const Buffer<double>& depths, std::vector<std::uint32_t>& order) {
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return depths[a] < depths[b];
  });
}

// Calls visit(tx, ty, slot) for the splat's tiles in tile rows [begin, end), in a fixed order.
template <typename S, typename Visit>
void for_each_tile(const Footprint<S>& f, std::uint32_t slot, int begin, int end, Visit visit) {
  if (f.rect.y0 >= end || f.rect.y1 <= begin) return;
  const int stop = std::min(f.rect.y1, end);
  for (int ty = f.rect.y0; ty < stop; ++ty) {
    const Span span = tile_span(f, ty);
    for (int tx = span.first; tx <= span.last; ++tx, ++slot) {
      if (ty >= begin) visit(tx, ty, slot);
    }
  }
}

// Tile rows [begin, end) of band `band`.
struct Bands {
  int count, rows;
  int begin(int band) const { return static_cast<int>(std::int64_t(band) * rows / count); }
  int end(int band) const { return begin(band + 1); }
};

template <typename S>
void count_tiles(const ViewState<S>& state, const std::vector<std::uint32_t>& order, int tiles_x,
                 int begin, int end, std::uint32_t* count) {
  std::fill(count + begin * tiles_x, count + end * tiles_x, 0u);
  for (const std::uint32_t i : order) {
    for_each_tile(state.footprints[i], 0, begin, end,
                  [&](int tx, int ty, std::uint32_t) { ++count[ty * tiles_x + tx]; });
  }
}

std::uint16_t row_bits(Span span) {
  if (span.first > span.last) return 0;
  return static_cast<std::uint16_t>((2u << span.last) - (1u << span.first));
}

template <typename S>
void list_pairs(ViewState<S>& state, const std::vector<std::uint32_t>& order, int tiles_x,
                int begin, int end, std::uint32_t* cursor) {
  for (const std::uint32_t i : order) {
    const Footprint<S>& f = state.footprints[i];
    for_each_tile(f, state.first_slot[i], begin, end, [&](int tx, int ty, std::uint32_t slot) {
      const std::uint32_t at = cursor[ty * tiles_x + tx]++;
      state.pairs[at] = {i, slot};
      state.rows[at] = row_bits(row_span(f, tx, ty));
    });
  }
}

}  // namespace

template <typename S>
void bin_view(const Inputs<S>& in, int threads, const Buffer<S>& depths, ViewState<S>& state) {
  const int tiles_x = in.tiles_x(), tiles_y = in.tiles_y(), tiles = tiles_x * tiles_y;
  std::vector<std::uint32_t> order;
  list_drawn(state, in.gaussians, order);
  sort_by_depth(depths, order);

  const Bands bands{std::min(tiles_y, 4 * threads), tiles_y};
  std::vector<std::uint32_t> cursor(tiles);
  parallel_for(bands.count, threads, [&](int b, int) {
    count_tiles(state, order, tiles_x, bands.begin(b), bands.end(b), cursor.data());
  });
  state.tile_start.resize(tiles + 1);
  std::uint32_t total = 0;
  for (int t = 0; t < tiles; ++t) {
    if (cursor[t] >= (1u << 24)) throw std::length_error("more than 2^24 splats in one tile");
    state.tile_start[t] = total;
    total += cursor[t];
    cursor[t] = state.tile_start[t];
  }
  state.tile_start[tiles] = total;
  state.pairs.resize(total);
  state.rows.resize(total);
  parallel_for(bands.count, threads, [&](int b, int) {
    list_pairs(state, order, tiles_x, bands.begin(b), bands.end(b), cursor.data());
  });
}

template void bin_view(const Inputs<float>&, int, const Buffer<float>&, ViewState<float>&);
template void bin_view(const Inputs<double>&, int, const Buffer<double>&, ViewState<double>&);

}  // namespace gr
