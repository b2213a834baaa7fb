// Front-to-back blending of the splats of each tile.
#include <algorithm>
#include <cstdint>

#include "blend_row.h"
#include "thread_pool.h"

namespace gr {
namespace {

// A tile while it is being blended. A pixel that has stopped keeps its transmittance negated, so
// that every later splat fails the transmittance test there without a mask of its own.
template <typename S>
struct Tile {
  alignas(64) S transmittance[kTilePixels];
  alignas(64) S last[kTilePixels];
  S* sums;             // (K, 256)
  std::uint32_t live;  // bit y set while a pixel of row y goes on

  void start(int features, int columns, int rows) {
    for (int y = 0; y < kTile; ++y) {
      for (int x = 0; x < kTile; ++x) {
        transmittance[y * kTile + x] = x < columns && y < rows ? S(1) : S(-1);
      }
    }
    std::fill_n(last, kTilePixels, S(-1));
    std::fill_n(sums, features * kTilePixels, S(0));
    live = (1u << rows) - 1;
  }

  bool row_goes_on(int y) const {
    bool on = false;
    for (int x = 0; x < kTile; x += Pack<S>::lanes) {
      on |= any(at_least(load(transmittance + y * kTile + x, Pack<S>()),
                         broadcast(S(0), Pack<S>())));
    }
    return on;
  }
};

// Blends group g of row y; K is the number of features or 0 for `features`.
template <typename S, int K>
inline void blend_group(Tile<S>& tile, const SplatRow<S>& splat, const S* feature, int features,
                        int y, int g, Pack<S> dy, Pack<S> position) {
  using P = Pack<S>;
  const int at = y * kTile + g * P::lanes;
  const P raw = splat.alpha(g, dy);
  const auto seen = at_least(raw, broadcast(S(kMinAlpha), P()));
  if (!any(seen)) return;
  const P t = load(tile.transmittance + at, P());
  const P weight = min(raw, broadcast(S(kMaxAlpha), P())) * t;
  const P next = t - weight;
  const auto goes_on = at_least(next, broadcast(S(kMinTransmittance), P()));
  const P zero = broadcast(S(0), P());
  const auto drawn = both(seen, goes_on);
  const auto stops = both(without(seen, goes_on), at_least(t, zero));
  P left = select(drawn, next, t);
  if (any(stops)) {
    left = select(stops, zero - t, left);
    store(tile.transmittance + at, left);
    if (!tile.row_goes_on(y)) tile.live &= ~(1u << y);
  }
  if (!any(drawn)) return;
  store(tile.transmittance + at, left);
  store(tile.last + at, select(drawn, position, load(tile.last + at, P())));
  const P w = select(drawn, weight, zero);
  const int count = K > 0 ? K : features;
  for (int k = 0; k < count; ++k) {
    S* sum = tile.sums + k * kTilePixels + at;
    store(sum, fma(w, broadcast(feature[k], P()), load(sum, P())));
  }
}

template <typename S, int K>
void blend_tile(const Inputs<S>& in, const ViewState<S>& state, int tx, int ty, Tile<S>& tile) {
  const int index = ty * in.tiles_x() + tx;
  const std::uint32_t first = state.tile_start[index], end = state.tile_start[index + 1];
  tile.start(in.features(), in.width - tx * kTile, std::min(kTile, in.height - ty * kTile));
  for (std::uint32_t p = first; p < end && tile.live != 0; ++p) {
    if (p + kAhead < end) prefetch(state.record(p + kAhead));
    std::uint32_t rows = state.rows[p] & tile.live;
    if (rows == 0) continue;
    const S* record = state.record(p);
    const SplatRow<S> splat(record, tx, ty);
    const Pack<S> position = broadcast(S(p - first), Pack<S>());
    for (int y = 0; rows != 0; ++y, rows >>= 1) {
      if ((rows & 1u) == 0) continue;
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
  for (int i = 0; i < kTilePixels; ++i) t[i] = std::fabs(tile.transmittance[i]);
  std::copy_n(tile.last, kTilePixels, state.last.data() + kept);

  const int columns = std::min(kTile, in.width - tx * kTile);
  const int rows = std::min(kTile, in.height - ty * kTile);
  const std::size_t plane = std::size_t(in.width) * in.height;
  const std::size_t corner = std::size_t(ty * kTile) * in.width + tx * kTile;
  for (int y = 0; y < rows; ++y) {
    const std::size_t row = corner + std::size_t(y) * in.width;
    const int from = y * kTile;
    for (int k = 0; k < in.channels; ++k) {
      S* color = out.color + (std::size_t(v) * in.channels + k) * plane + row;
      const S* sum = tile.sums + k * kTilePixels + from;
      for (int x = 0; x < columns; ++x) color[x] = sum[x] + t[from + x] * in.background[k];
    }
    S* alpha = out.alpha + v * plane + row;
    S* depth = out.depth + v * plane + row;
    const S* sum = tile.sums + in.channels * kTilePixels + from;
    for (int x = 0; x < columns; ++x) {
      alpha[x] = S(1) - t[from + x];
      depth[x] = sum[x];
    }
  }
}

template <typename S, int K>
void blend_tiles(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                 const Outputs<S>& out) {
  const int tiles_x = in.tiles_x(), tiles = tiles_x * in.tiles_y();
  Buffer<S> sums;
  const std::size_t per_thread = std::size_t(in.features()) * kTilePixels;
  sums.resize(per_thread * threads);
  parallel_for(tiles, threads, [&](int t, int worker) {
    Tile<S> tile;
    tile.sums = sums.data() + per_thread * worker;
    blend_tile<S, K>(in, state, t % tiles_x, t / tiles_x, tile);
    finish_tile(in, v, t % tiles_x, t / tiles_x, tile, state, out);
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

}  // namespace gr
