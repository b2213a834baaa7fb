// Depth sort and tile lists: a stable sort by depth of each stack, then a stable counting sort by tile.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "rasterizer.h"
#include "thread_pool.h"

namespace gr {
namespace {

constexpr int kMostDigitBits = 14;
constexpr int kSegment = 4096;  // splats below which a second thread is not worth its waking

int segments_of(std::size_t count, int threads) {
  return std::min<int>(threads, 1 + int(count / kSegment));
}

template <typename S>
struct Range {
  S least, most;
};

// Joins the drawn splats of all chunks, in ascending order; returns the range of their depths.
template <typename S>
Range<S> join_drawn(int chunks, int threads, Projected<S>& projected) {
  std::vector<std::uint32_t> first(chunks + 1, 0);
  for (int c = 0; c < chunks; ++c) first[c + 1] = first[c] + projected.drawn_count[c];
  projected.items.resize(first[chunks]);
  projected.spare.resize(first[chunks]);
  projected.order.resize(first[chunks]);
  constexpr S infinity = std::numeric_limits<S>::infinity();
  std::vector<Range<S>> ranges(chunks);
  parallel_for(chunks, threads, [&](int c, int) {
    const Drawn<S>* from = projected.drawn.data() + std::size_t(c) * kChunk;
    Drawn<S>* to = projected.items.data() + first[c];
    Range<S> range{infinity, 0};
    for (std::uint32_t k = 0; k < projected.drawn_count[c]; ++k) {
      to[k] = from[k];
      range = {std::min(range.least, from[k].depth), std::max(range.most, from[k].depth)};
    }
    ranges[c] = range;
  });
  Range<S> all{infinity, 0};
  for (const Range<S>& range : ranges) {
    all = {std::min(all.least, range.least), std::max(all.most, range.most)};
  }
  return all;
}

// How depths are taken for a radix sort: as integers above the least of them, digit by digit. Depths
// are positive, so their bits sort as they do.
struct Digits {
  std::uint32_t least = 0;
  int bits = 1, passes = 1;

  int radix() const { return 1 << bits; }
  int of(float depth, int pass) const {
    return (key_of(depth) - least) >> (pass * bits) & (radix() - 1);
  }

  static std::uint32_t key_of(float depth) {
    std::uint32_t key;
    std::memcpy(&key, &depth, sizeof key);
    return key;
  }
};

// Those that sort `count` depths of a range soonest: each pass goes through all of them, and all values
// of a digit.
Digits digits_for(std::size_t count, Range<float> depths) {
  if (count == 0) return {};
  Digits best;
  best.least = Digits::key_of(depths.least);
  const std::uint32_t highest = Digits::key_of(depths.most) - best.least;
  int width = 1;
  while (width < 32 && highest >> width != 0) ++width;
  double shortest = std::numeric_limits<double>::infinity();
  for (int passes = 1; passes <= width; ++passes) {
    const int bits = (width + passes - 1) / passes;
    if (bits > kMostDigitBits) continue;
    const double time = passes * (4.0 * double(count) + double(1 << bits));
    if (time >= shortest) continue;
    shortest = time;
    best.bits = bits;
    best.passes = passes;
  }
  return best;
}
Digits digits_for(std::size_t, Range<double>) { return {}; }  // these are not sorted by digits

// A stretch of what is sorted: the memory that it needs.
template <typename S>
struct Stretch {
  Drawn<S>*items, *spare;
  std::uint32_t *order, *counts;  // counts: of each value of a digit, for each segment
  std::size_t count;
};

// From the counts per (segment, digit) to the place of each segment's first item of each digit.
void place_digits(int segments, int radix, std::uint32_t* start) {
  std::uint32_t total = 0;
  for (int d = 0; d < radix; ++d) {
    for (int s = 0; s < segments; ++s) total += std::exchange(start[s * radix + d], total);
  }
}

// Stable least-significant-digit radix sort. Segments keep their order, so that the result is the same
// for any number of threads.
void sort_by_depth(Stretch<float> s, const Digits& digits, int segments, int threads) {
  const auto begin = [&](int segment) { return s.count * segment / segments; };
  const int radix = digits.radix();
  for (int pass = 0; pass < digits.passes; ++pass) {
    parallel_for(segments, threads, [&](int segment, int) {
      std::uint32_t* histogram = s.counts + std::size_t(segment) * radix;
      std::fill_n(histogram, radix, 0);
      for (std::size_t k = begin(segment); k < begin(segment + 1); ++k) {
        ++histogram[digits.of(s.items[k].depth, pass)];
      }
    });
    place_digits(segments, radix, s.counts);
    parallel_for(segments, threads, [&](int segment, int) {
      std::uint32_t* start = s.counts + std::size_t(segment) * radix;
      for (std::size_t k = begin(segment); k < begin(segment + 1); ++k) {
        const std::uint32_t at = start[digits.of(s.items[k].depth, pass)]++;
        if (pass + 1 == digits.passes) {
          s.order[at] = s.items[k].gaussian;
        } else {
          s.spare[at] = s.items[k];
        }
      }
    });
    std::swap(s.items, s.spare);
  }
}

void sort_by_depth(Stretch<double> s, const Digits&, int, int) {
  std::stable_sort(s.items, s.items + s.count, [](const Drawn<double>& a, const Drawn<double>& b) {
    return a.depth < b.depth;
  });
  for (std::size_t k = 0; k < s.count; ++k) s.order[k] = s.items[k].gaussian;
}

// Sorts each stack by itself.
template <typename S>
void sort_stacks(const Inputs<S>& in, int threads, Range<S> depths, Projected<S>& p) {
  const std::size_t count = p.items.size();
  const int stacks = in.stacks(), segments = stacks == 1 ? segments_of(count, threads) : stacks;
  const Digits digits = digits_for(count, depths);
  p.counts.resize(std::size_t(segments) * digits.radix());
  if (stacks == 1) {
    const Stretch<S> all{p.items.data(), p.spare.data(), p.order.data(), p.counts.data(), count};
    return sort_by_depth(all, digits, segments, threads);
  }
  const auto first_of = [&](int stack) {
    const auto before = [](const Drawn<S>& a, std::uint32_t i) { return a.gaussian < i; };
    const Drawn<S>*begin = p.items.data(), *end = begin + count;
    return std::lower_bound(begin, end, std::uint32_t(in.layer_start[stack]), before) - begin;
  };
  std::vector<std::size_t> first(stacks + 1, count);
  for (int stack = 0; stack < stacks; ++stack) first[stack] = first_of(stack);
  parallel_for(stacks, threads, [&](int stack, int) {
    const std::size_t at = first[stack];
    sort_by_depth({p.items.data() + at, p.spare.data() + at, p.order.data() + at,
                   p.counts.data() + std::size_t(stack) * digits.radix(), first[stack + 1] - at},
                  digits, 1, 1);
  });
}

// Calls visit(i, slot, touch) for all tiles of `count` splats, those at `order`, order + Step, ...
template <int Step, typename S, typename Visit>
void for_each_touch(const ViewState<S>& state, const Projected<S>& projected,
                    const std::uint32_t* order, std::size_t count, Visit visit) {
  const std::uint32_t* first_slot = state.first_slot.data();
  const auto touches_of = [&](std::uint32_t i) {
    const std::uint32_t chunk = i / kChunk;
    return projected.touches[chunk].data() + (first_slot[i] - first_slot[chunk * kChunk]);
  };
  for (std::size_t k = 0; k < count; ++k, order += Step) {
    if (k + 2 * kAhead < count) prefetch(first_slot + order[Step * 2 * int(kAhead)]);
    if (k + kAhead < count) {
      const Touch* later = touches_of(order[Step * int(kAhead)]);
      prefetch(later);
      prefetch(later + 2);  // most splats have no more than three, which may be in two lines
    }
    const std::uint32_t i = *order;
    const Touch* touch = touches_of(i);
    for (std::uint32_t slot = first_slot[i]; slot < first_slot[i + 1]; ++slot, ++touch) {
      visit(i, slot, *touch);
    }
  }
}

// Where in the list of each tile each segment puts its next pair. The last of several segments
// fills the lists from their ends, so that only those between it and the first need counting.
template <typename S>
void place_segments(int segments, int tiles, int threads, const ViewState<S>& state,
                    Projected<S>& p) {
  const std::size_t count = p.order.size();
  p.cursors.resize(std::size_t(segments) * tiles);
  std::uint32_t* cursors = p.cursors.data();
  std::copy_n(state.tile_start.data(), tiles, cursors);
  const int counted = std::max(0, segments - 2);
  parallel_for(counted, threads, [&](int s, int) {
    std::uint32_t* next = cursors + std::size_t(s + 1) * tiles;
    std::fill_n(next, tiles, 0);
    const std::size_t begin = count * s / segments, end = count * (s + 1) / segments;
    for_each_touch<1>(state, p, p.order.data() + begin, end - begin,
                      [&](std::uint32_t, std::uint32_t, Touch touch) { ++next[touch.tile()]; });
  });
  for (int s = 1; s <= counted; ++s) {
    std::uint32_t* at = cursors + std::size_t(s) * tiles;
    for (int t = 0; t < tiles; ++t) at[t] += at[t - tiles];
  }
  if (segments > 1) {
    std::copy_n(state.tile_start.data() + 1, tiles, cursors + std::size_t(segments - 1) * tiles);
  }
}

// From the pairs that each thread has listed per tile to the place of each tile's list.
template <typename S>
void place_tiles(int tiles, int threads, const Projected<S>& projected, ViewState<S>& state) {
  state.tile_start.resize(tiles + 1);
  std::uint32_t total = 0;
  for (int t = 0; t < tiles; ++t) {
    state.tile_start[t] = total;
    for (int w = 0; w < threads; ++w) total += projected.tile_count[std::size_t(w) * tiles + t];
    if (total - state.tile_start[t] >= (1u << 24)) {
      throw std::length_error("more than 2^24 splats in one tile");
    }
  }
  state.tile_start[tiles] = total;
}

}  // namespace

template <typename S>
void bin_view(const Inputs<S>& in, int threads, Projected<S>& projected, ViewState<S>& state) {
  const int tiles = tile_count(in);
  place_tiles(tiles, threads, projected, state);
  const Range<S> depths = join_drawn(chunk_count(in.gaussians), threads, projected);
  sort_stacks(in, threads, depths, projected);
  const std::size_t count = projected.order.size();
  const int segments = segments_of(count, threads);
  place_segments(segments, tiles, threads, state, projected);
  state.pairs.resize(state.tile_start[tiles]);
  parallel_for(segments, threads, [&](int s, int) {
    std::uint32_t* cursor = projected.cursors.data() + std::size_t(s) * tiles;
    const std::size_t begin = count * s / segments, size = count * (s + 1) / segments - begin;
    const std::uint32_t* order = projected.order.data() + begin;
    const auto put = [&](std::uint32_t at, std::uint32_t i, std::uint32_t slot, Touch touch) {
      state.pairs[at] = {i, slot, touch.spans()};
    };
    if (s > 0 && s == segments - 1) {
      for_each_touch<-1>(state, projected, order + size - 1, size,
                         [&](std::uint32_t i, std::uint32_t slot, Touch touch) {
                           put(--cursor[touch.tile()], i, slot, touch);
                         });
    } else {
      for_each_touch<1>(state, projected, order, size,
                        [&](std::uint32_t i, std::uint32_t slot, Touch touch) {
                          put(cursor[touch.tile()]++, i, slot, touch);
                        });
    }
  });
}

template void bin_view(const Inputs<float>&, int, Projected<float>&, ViewState<float>&);
template void bin_view(const Inputs<double>&, int, Projected<double>&, ViewState<double>&);

}  // namespace gr
