// Front-to-back blending of the splats of each tile.
#include <algorithm>
#include <cstdint>

#include "blend_row.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// A tile while it is being blended: one cell per pack of pixels, holding side by side
// transmittance, position of the last contributor, and the sum of each feature.
//
// A pixel that has stopped keeps its transmittance negated, so that every later splat fails the
// transmittance test there without a mask of its own.
template <typename S>
struct Tile {
  static constexpr int kLanes = Pack<S>::lanes;
  enum { kTransmittance, kLast, kSums };

  S* cells;            // (16 * groups, kSums + features, lanes)
  int cell_size;       // in elements
  std::uint32_t live;  // bit y set while a pixel of row y goes on

  static int size(int features) { return (kSums + features) * kTilePixels; }

  S* cell(int y, int g) const { return cells + (y * kGroups<S> + g) * cell_size; }
  S& at(int y, int x, int field) const {
    return cell(y, x / kLanes)[field * kLanes + x % kLanes];
  }

  void start(S* memory, int features, int columns, int rows) {
    cells = memory;
    cell_size = (kSums + features) * kLanes;
    std::fill_n(cells, size(features), S(0));
    for (int y = 0; y < kTile; ++y) {
      for (int x = 0; x < kTile; ++x) {
        at(y, x, kTransmittance) = x < columns && y < rows ? S(1) : S(-1);
        at(y, x, kLast) = S(-1);
      }
    }
    live = (1u << rows) - 1;
  }

  bool row_goes_on(int y) const {
    bool on = false;
    for (int g = 0; g < kGroups<S>; ++g) {
      on |= any(at_least(load(cell(y, g), Pack<S>()), broadcast(S(0), Pack<S>())));
    }
    return on;
  }
};

// Blends group g of row y; K is the number of features or 0 for `features`.
template <typename S, int K>
inline void blend_group(Tile<S>& tile, const SplatRow<S>& splat, const S* feature, int features,
                        int y, int g, Pack<S> dy, Pack<S> position) {
  using P = Pack<S>;
  const P raw = splat.alpha(g, dy);
  const auto seen = at_least(raw, broadcast(S(kMinAlpha), P()));
  if (!any(seen)) return;
  const int count = K > 0 ? K : features;
  S* cell = tile.cells + (y * kGroups<S> + g) * (Tile<S>::kSums + count) * P::lanes;
  const P zero = broadcast(S(0), P());
  const P t = load(cell, P());
  const P weight = min(raw, broadcast(S(kMaxAlpha), P())) * t;
  const P next = t - weight;
  const auto goes_on = at_least(next, broadcast(S(kMinTransmittance), P()));
  const auto drawn = both(seen, goes_on);
  const auto stops = both(without(seen, goes_on), at_least(t, zero));
  P left = select(drawn, next, t);
  if (any(stops)) {
    left = select(stops, zero - t, left);
    store(cell, left);
    if (!tile.row_goes_on(y)) tile.live &= ~(1u << y);
  }
  if (!any(drawn)) return;
  store(cell, left);
  store(cell + P::lanes, select(drawn, position, load(cell + P::lanes, P())));
  const P w = select(drawn, weight, zero);
  for (int k = 0; k < count; ++k) {
    S* sum = cell + (Tile<S>::kSums + k) * P::lanes;
    store(sum, fma(w, broadcast(feature[k], P()), load(sum, P())));
  }
}

template <typename S, int K>
void blend_tile(const Inputs<S>& in, const ViewState<S>& state, int tx, int ty, Tile<S>& tile) {
  const int index = ty * in.tiles_x() + tx;
  const std::uint32_t first = state.tile_start[index], end = state.tile_start[index + 1];
  for (std::uint32_t p = first; p < end && tile.live != 0; ++p) {
    if (p + kAhead < end) prefetch(state.record(p + kAhead));
    std::uint32_t rows = state.rows[p] & tile.live;
    if (rows == 0) continue;
    const S* record = state.record(p);
    const SplatRow<S> splat(record, tx, ty);
    const Pack<S> position = broadcast(S(p - first), Pack<S>());
    for (; rows != 0; rows &= rows - 1) {
      const int y = lowest_bit(rows);
      const Pack<S> dy = broadcast(splat.y - S(y), Pack<S>());
      for (int g = 0; g < kGroups<S>; ++g) {
        blend_group<S, K>(tile, splat, record + kGeometry, in.features(), y, g, dy, position);
      }
    }
  }
}

// Writes the tile to the image and keeps what the backward pass needs.
template <typename S>
void finish_tile(const Inputs<S>& in, int v, int tx, int ty, const Tile<S>& tile,
                 ViewState<S>& state, const Outputs<S>& out) {
  const std::size_t kept = std::size_t(ty * in.tiles_x() + tx) * kTilePixels;
  S* t = state.transmittance.data() + kept;
  S* last = state.last.data() + kept;
  const int columns = std::min(kTile, in.width - tx * kTile);
  const int rows = std::min(kTile, in.height - ty * kTile);
  const std::size_t plane = std::size_t(in.width) * in.height;
  const std::size_t corner = std::size_t(ty * kTile) * in.width + tx * kTile;
  for (int y = 0; y < kTile; ++y, t += kTile, last += kTile) {
    for (int x = 0; x < kTile; ++x) {
      t[x] = std::fabs(tile.at(y, x, Tile<S>::kTransmittance));
      last[x] = tile.at(y, x, Tile<S>::kLast);
    }
    if (y >= rows) continue;
    const std::size_t row = corner + std::size_t(y) * in.width;
    for (int k = 0; k < in.channels; ++k) {
      S* color = out.color + (std::size_t(v) * in.channels + k) * plane + row;
      for (int x = 0; x < columns; ++x) {
        color[x] = tile.at(y, x, Tile<S>::kSums + k) + t[x] * in.background[k];
      }
    }
    S* alpha = out.alpha + v * plane + row;
    S* depth = out.depth + v * plane + row;
    for (int x = 0; x < columns; ++x) {
      alpha[x] = S(1) - t[x];
      depth[x] = tile.at(y, x, Tile<S>::kSums + in.channels);
    }
  }
}

template <typename S, int K>
void blend_tiles(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                 const Outputs<S>& out) {
  const int tiles_x = in.tiles_x(), tiles = tiles_x * in.tiles_y();
  Buffer<S> memory;
  const std::size_t per_thread = Tile<S>::size(in.features());
  memory.resize(per_thread * threads);
  parallel_for(tiles, threads, [&](int t, int worker) {
    const int tx = t % tiles_x, ty = t / tiles_x;
    Tile<S> tile;
    tile.start(memory.data() + per_thread * worker, in.features(), in.width - tx * kTile,
               std::min(kTile, in.height - ty * kTile));
    blend_tile<S, K>(in, state, tx, ty, tile);
    finish_tile(in, v, tx, ty, tile, state, out);
  });
}

}  // namespace

template <typename S>
void blend_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                const Outputs<S>& out) {
  const std::size_t pixels = std::size_t(in.tiles_x()) * in.tiles_y() * kTilePixels;
  state.transmittance.resize(pixels);
  state.last.resize(pixels);
  if (in.channels == 3) {
    blend_tiles<S, 4>(in, v, threads, state, out);
  } else {
    blend_tiles<S, 0>(in, v, threads, state, out);
  }
}

template void blend_view(const Inputs<float>&, int, int, ViewState<float>&,
                         const Outputs<float>&);
template void blend_view(const Inputs<double>&, int, int, ViewState<double>&,
                         const Outputs<double>&);

}  // namespace NATIVE_LEVEL
}  // namespace gr
