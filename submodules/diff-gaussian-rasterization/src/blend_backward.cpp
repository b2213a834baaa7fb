// Back-to-front gradients of the blending: per tile and splat, six moments of dL/dpower over the
// pixels and the gradients of the features. No two threads write the same place and nothing is
// added atomically, so the result has the same bits for any number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "blend_row.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// A tile on its way back: one cell per pack of pixels, holding side by side transmittance, the part
// of dL/dT that comes from behind the current splat, the position of the last contributor, and
// dL/d(image) of each wanted feature: with `shared`, of each layer.
template <typename S>
struct TileBack {
  static constexpr int kLanes = Pack<S>::lanes;
  enum { kTransmittance, kBehind, kLast, kGradients };

  S* cells;               // (16 * groups, kGradients + gradients, lanes)
  int cell_size;          // in elements
  S row_last[kTile];      // position of the last contributor of each row
  std::uint32_t rows_on;  // bit y set if row_last[y] has been reached
  S next_last;            // the highest row_last that has not

  static std::size_t size(int gradients) {
    return std::size_t(kGradients + gradients) * kTilePixels;
  }

  // Splats come back to front: at `place`, the rows that it or one in front of it was drawn in.
  std::uint32_t rows_at(int place) {
    if (S(place) > next_last) return rows_on;
    rows_on = 0;
    next_last = S(-1);
    for (int y = 0; y < kTile; ++y) {
      if (row_last[y] >= S(place)) {
        rows_on |= 1u << y;
      } else {
        next_last = std::max(next_last, row_last[y]);
      }
    }
    return rows_on;
  }

  void set_row(int y, int field, const S* row) const {
    for (int g = 0; g < kGroups<S>; ++g) {
      S* cell = cells + (y * kGroups<S> + g) * cell_size;
      for (int x = 0; x < kLanes; ++x) cell[field * kLanes + x] = row[g * kLanes + x];
    }
  }
};

// What one splat gathers over the pixels of the tile, still spread over the lanes.
template <typename S>
struct Gathered {
  Pack<S> q, qy, qyy;
};

// The first columns of a row of a tile, then zeros; all zeros if there is none.
template <typename S>
inline void read_row(const S* from, int columns, S* to) {
  if (from != nullptr && columns == kTile) {
    std::memcpy(to, from, kTile * sizeof(S));
  } else {
    std::fill_n(to, kTile, S(0));
    if (from != nullptr) std::copy_n(from, columns, to);
  }
}

template <typename S>
struct Kernel {
  const Inputs<S>& in;
  const ViewState<S>& state;
  const ImageGradients<S>& image;
  const Wanted& wanted;
  int v;

  int gradients() const { return wanted.count() * (in.shared ? in.layers : 1); }

  // dL/d(feature k) of an image, from a pixel on; null for none.
  const S* gradient(std::size_t at, int k, std::size_t pixel) const {
    const std::size_t plane = std::size_t(in.width) * in.height;
    if (k < in.planes()) {
      return image.color ? image.color + (at * in.planes() + k) * plane + pixel : nullptr;
    }
    const S* gradients = k == in.depth_feature() ? image.depth : image.alpha;
    return gradients ? gradients + at * plane + pixel : nullptr;
  }

  // Fills row y, whose first pixel is `pixel`; beyond its columns everything is 0.
  void start_row(const TileBack<S>& tile, int stack, int y, const S* t, const S* last,
                 std::size_t pixel, int columns) const {
    const std::size_t first = std::size_t(v) * in.layers + stack;
    S line[kTile], by_final[kTile] = {};
    if (!in.shared && image.alpha) {
      const std::size_t plane = std::size_t(in.width) * in.height;
      read_row(image.alpha + first * plane + pixel, columns, line);
      for (int x = 0; x < kTile; ++x) by_final[x] = -line[x];
    }
    int field = TileBack<S>::kGradients;
    for (int layer = 0; layer < (in.shared ? in.layers : 1); ++layer) {
      for (int k = wanted.first; k < wanted.end; ++k, ++field) {
        read_row(gradient(first + layer, k, pixel), columns, line);
        tile.set_row(y, field, line);
        if (k >= in.planes()) continue;
        for (int x = 0; x < kTile; ++x) by_final[x] += in.background[k] * line[x];
      }
    }
    const S share = in.shared ? S(1) / S(in.layers) : S(1);
    for (int x = 0; x < kTile; ++x) line[x] = by_final[x] * share * t[x];
    tile.set_row(y, TileBack<S>::kBehind, line);
    tile.set_row(y, TileBack<S>::kTransmittance, t);
    tile.set_row(y, TileBack<S>::kLast, last);
  }

  // Tile (tx, ty) of a stack. Returns the position after the last contributor.
  int start(int stack, int tx, int ty, S* memory, TileBack<S>& tile) const {
    tile.cells = memory;
    tile.cell_size = (TileBack<S>::kGradients + gradients()) * TileBack<S>::kLanes;
    const std::size_t number = (std::size_t(stack) * in.tiles_y() + ty) * in.tiles_x() + tx;
    const std::size_t kept = number * kTilePixels;
    const int columns = std::min(kTile, in.width - tx * kTile);
    const int rows = std::min(kTile, in.height - ty * kTile);
    std::fill_n(tile.row_last, kTile, S(-1));  // rows outside of the image are never looked at
    for (int y = 0; y < rows; ++y) {
      const S* t = state.transmittance.data() + kept + y * kTile;
      const S* last = state.last.data() + kept + y * kTile;
      tile.row_last[y] = *std::max_element(last, last + kTile);
      const std::size_t pixel = std::size_t(ty * kTile + y) * in.width + tx * kTile;
      start_row(tile, stack, y, t, last, pixel, columns);
    }
    tile.rows_on = 0;
    tile.next_last = *std::max_element(tile.row_last, tile.row_last + kTile);
    return static_cast<int>(tile.next_last) + 1;
  }
};

// The wanted features of a splat, and where their gradients lie in a cell.
template <typename S>
struct FeatureList {
  const S* values;
  int count, first_field;
};

template <typename S>
struct RowAlphas {
  int y;
  Pack<S> raw[kGroups<S>];

  RowAlphas(const SplatRows<S>& splat, int row) : y(row) {
    for (int g = 0; g < kGroups<S>; ++g) raw[g] = splat.alpha(row, g);
  }
};

// One group of pixels, whose alphas are `raw`; whether the splat was drawn in one of them. Where it
// was not its alpha is 0, which changes nothing: a pack of a whole row is seldom without a pixel that
// was drawn, so there nothing branches on it. K as in the forward pass.
template <typename S, int K, bool Moments>
inline bool gather_group(const TileBack<S>& tile, const FeatureList<S>& features, int y, int g,
                         Pack<S> raw, Pack<S> dy, Pack<S> position, Gathered<S>& sums,
                         Pack<S>* feature_sums) {
  using P = Pack<S>;
  using T = TileBack<S>;
  const P zero = broadcast(S(0), P()), one = broadcast(S(1), P());
  const int count = K > 0 ? K : features.count;
  const int cell_size = K > 0 ? (T::kGradients + K) * P::lanes : tile.cell_size;
  S* cell = tile.cells + (y * kGroups<S> + g) * cell_size;
  const S* gradients = cell + (K > 0 ? int(T::kGradients) : features.first_field) * P::lanes;
  const auto drawn = both(at_least(raw, broadcast(S(kMinAlpha), P())),
                          at_least(load(cell + T::kLast * P::lanes, P()), position));
  const bool seen = any(drawn);
  if (kGroups<S> > 1 && !seen) return false;
  const P alpha = select(drawn, min(raw, broadcast(S(kMaxAlpha), P())), zero);
  const P inverse = one / (one - alpha);
  const P t = load(cell, P()) * inverse;
  const P weight = alpha * t;
  P along = zero;  // dL / d(weight)
  for (int k = 0; k < count; ++k) {
    const P g_k = load(gradients + k * P::lanes, P());
    if (Moments) along = fma(g_k, broadcast(features.values[k], P()), along);
    feature_sums[k] = fma(weight, g_k, feature_sums[k]);
  }
  store(cell, t);
  if (!Moments) return seen;
  const P behind = load(cell + T::kBehind * P::lanes, P());
  const P grad_alpha = t * along - behind * inverse;
  const P q = select(drawn, raw * grad_alpha, zero);
  store(cell + T::kBehind * P::lanes, fma(weight, along, behind));
  sums.q = sums.q + q;
  const P qy = q * dy;
  sums.qy = sums.qy + qy;
  sums.qyy = fma(qy, dy, sums.qyy);
  return seen;
}

// Moments of q about the splat's centre: 1, dx, dy, dx^2, dx dy, dy^2.
template <typename S>
inline void find_moments(const SplatRows<S>& splat, const Gathered<S>* gathered, Pack<S>* out) {
  for (int g = 0; g < kGroups<S>; ++g) {
    const Gathered<S>& a = gathered[g];
    const Pack<S> qx = a.q * splat.dx[g];
    const Pack<S> moments[kMoments] = {a.q, qx, a.qy, qx * splat.dx[g], a.qy * splat.dx[g], a.qyy};
    for (int k = 0; k < kMoments; ++k) out[k] = g == 0 ? moments[k] : out[k] + moments[k];
  }
}

// Gathers one splat; `shared_sums` is memory for the features where K = 0.
template <typename S, int K, bool Moments>
void gather_splat(const Kernel<S>& kernel, TileBack<S>& tile, int tx, int ty,
                  std::uint32_t p, int place, Pack<S>* shared_sums, PairGradients<S>& pairs) {
  using P = Pack<S>;
  const Pair pair = kernel.state.pairs[p];
  const S* record = kernel.state.record(p);
  const SplatRows<S> splat(record, tx, ty);
  const P zero = broadcast(S(0), P()), position = broadcast(S(place), P());
  Gathered<S> gathered[kGroups<S>];
  for (auto& g : gathered) g = {zero, zero, zero};
  P own_sums[K > 0 ? K : 1];
  P* feature_sums = K > 0 ? own_sums : shared_sums;
  const Wanted& wanted = kernel.wanted;
  const int count = K > 0 ? K : wanted.count();
  // With `shared` the planes are those of the layer, of which a cell has the wanted ones only.
  const int layer = kernel.in.shared ? int(record[kPlane]) / kernel.in.features() : 0;
  const FeatureList<S> features{record + kGeometry + wanted.first, count,
                                TileBack<S>::kGradients + layer * count};
  for (int k = 0; k < count; ++k) feature_sums[k] = zero;
  std::uint32_t rows = kernel.state.rows[p] & tile.rows_at(place);
  if (rows == 0) return;
  // The alphas of the next row are begun before this row is gathered: they are what takes long.
  bool seen = false;
  RowAlphas<S> row(splat, lowest_bit(rows)), next = row;
  for (bool more = true; more; row = next) {
    rows &= rows - 1;
    more = rows != 0;
    next = RowAlphas<S>(splat, more ? lowest_bit(rows) : row.y);
    const P dy = broadcast(splat.dy[row.y], P());
    for (int g = 0; g < kGroups<S>; ++g) {
      seen |= gather_group<S, K, Moments>(tile, features, row.y, g, row.raw[g], dy, position,
                                          gathered[g], feature_sums);
    }
  }
  if (!seen) return;
  S* out = pairs.values.data() + std::size_t(pair.slot) * pairs.stride;
  constexpr int moments = Moments ? kMoments : 0;
  P all[moments + K + 1];
  if (Moments) find_moments(splat, gathered, all);
  for (int k = 0; k < K; ++k) all[moments + k] = own_sums[k];
  sum_each<moments + K>(all, out);
  for (int k = 0; K == 0 && k < count; ++k) out[moments + k] = sum(shared_sums[k]);
  pairs.written[pair.slot] = 1;
}

template <typename S, int K, bool Moments>
void gather_tiles(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  const int tiles_x = kernel.in.tiles_x(), per_stack = tiles_x * kernel.in.tiles_y();
  Buffer<S> memory;
  Buffer<Pack<S>> feature_sums;
  const std::size_t per_thread = TileBack<S>::size(kernel.gradients());
  const std::size_t count = kernel.wanted.count();
  memory.resize(per_thread * threads);
  feature_sums.resize(count * threads);
  parallel_for(kernel.in.tiles(), threads, [&](int t, int worker) {
    const std::uint32_t first = kernel.state.tile_start[t];
    if (first == kernel.state.tile_start[t + 1]) return;
    const int stack = t / per_stack, tx = t % per_stack % tiles_x, ty = t % per_stack / tiles_x;
    TileBack<S> tile;
    Pack<S>* sums = feature_sums.data() + count * worker;
    const int end = kernel.start(stack, tx, ty, memory.data() + per_thread * worker, tile);
    for (int place = end - 1; place >= 0; --place) {
      if (place >= int(kAhead)) prefetch(kernel.state.record(first + place - kAhead));
      gather_splat<S, K, Moments>(kernel, tile, tx, ty, first + place, place, sums, pairs);
    }
  });
}

// Only the gradients of features.
template <typename S>
void gather_features(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  if (kernel.gradients() == 3) return gather_tiles<S, 3, false>(kernel, threads, pairs);
  gather_tiles<S, 0, false>(kernel, threads, pairs);
}

template <typename S>
void gather_all(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  switch (kernel.in.shared ? 0 : kernel.gradients()) {
    case 3: return gather_tiles<S, 3, true>(kernel, threads, pairs);
    case 4: return gather_tiles<S, 4, true>(kernel, threads, pairs);
    case 6: return gather_tiles<S, 6, true>(kernel, threads, pairs);
    default: return gather_tiles<S, 0, true>(kernel, threads, pairs);
  }
}

}  // namespace

template <typename S>
void blend_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                         const ImageGradients<S>& image, const Wanted& wanted,
                         PairGradients<S>& pairs) {
  pairs.stride = (wanted.moments ? kMoments : 0) + wanted.count();
  pairs.values.resize(state.pairs.size() * pairs.stride);
  pairs.written.resize(state.pairs.size());
  pairs.written.zero();
  const Kernel<S> kernel{in, state, image, wanted, v};
  if (wanted.moments) {
    gather_all(kernel, threads, pairs);
  } else {
    gather_features(kernel, threads, pairs);
  }
}

template void blend_view_backward(const Inputs<float>&, int, int, const ViewState<float>&,
                                  const ImageGradients<float>&, const Wanted&,
                                  PairGradients<float>&);
template void blend_view_backward(const Inputs<double>&, int, int, const ViewState<double>&,
                                  const ImageGradients<double>&, const Wanted&,
                                  PairGradients<double>&);

}  // namespace NATIVE_LEVEL
}  // namespace gr
