// Front-to-back blending of the splats of each tile.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "blend_batch.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// A tile while it is being blended: planes of kTileRows rows of 16 pixels. A pixel that has stopped
// keeps its transmittance negated: so the next batch knows it.
template <typename S>
struct Tile {
  S *transmittance, *last;  // last: position of the last contributor
  S* planes;                // (sums of a pixel, kPixels)
  std::uint32_t live[kGroups<S>];  // bit b set while a pixel of the group in band b goes on

  std::uint32_t live_bands() const {
    std::uint32_t bands = 0;
    for (std::uint32_t of_group : live) bands |= of_group;
    return bands;
  }

  void start(int sums, int columns, int rows) {
    std::fill_n(planes, sums * kPixels, S(0));
    std::fill_n(last, kPixels, S(-1));
    for (int y = 0; y < kTileRows; ++y) {
      for (int x = 0; x < kTile; ++x) {
        transmittance[y * kTile + x] = x < columns && y < rows ? S(1) : S(-1);
      }
    }
    const int bands = (rows + kBand - 1) / kBand;
    for (int g = 0; g < kGroups<S>; ++g) {
      live[g] = g * Pack<S>::lanes < columns ? (1u << bands) - 1 : 0;
    }
  }
};

// Blends the splats of `bits` into group g of a band, all in registers; false if no pixel of it goes
// on. K is the number of features, and of sums; or 0 for `features` and any sums.
//
// `left` is multiplied on beyond the splat at which a pixel stops: it only falls, so that it tells
// for each splat by itself whether the pixel still goes on, and a splat waits for nothing but one
// multiply-add of the splat before. `t` is what is left after the last splat that was drawn.
//
// Inlined: otherwise each band begins by loading a dozen constants.
template <typename S, int K, bool Keep>
NATIVE_INLINE bool blend_pack(const Batch<S>& batch, std::uint64_t bits, const Tile<S>& tile,
                              int band, int g, int features) {
  using P = Pack<S>;
  const int pixel = band * kBand * kTile + g * P::lanes;
  const int count = K > 0 ? K : features;
  const P zero = broadcast(S(0), P()), least = broadcast(S(kMinTransmittance), P());
  P t[kBand], left[kBand], last[kBand];
  P own_sums[kBand][K > 0 ? K : 1];
  for (int r = 0; r < kBand; ++r) {
    const int at = pixel + r * kTile;
    t[r] = left[r] = load(tile.transmittance + at, P());
    last[r] = Keep ? load(tile.last + at, P()) : zero;
    for (int k = 0; k < K; ++k) own_sums[r][k] = load(tile.planes + k * kPixels + at, P());
  }
  const auto blend = [&](int i, const P* raws) {
    P weight[kBand];
    for (int r = 0; r < kBand; ++r) {
      const auto seen = at_least(raws[r], broadcast(S(kMinAlpha), P()));
      const P alpha = masked(seen, min(raws[r], broadcast(S(kMaxAlpha), P())));
      const P next = fnma(alpha, left[r], left[r]);
      const auto goes_on = at_least(next, least);
      weight[r] = masked(goes_on, alpha * left[r]);
      t[r] = select(goes_on, next, t[r]);
      left[r] = next;
      if (Keep) last[r] = select(both(seen, goes_on), broadcast(batch.place[i], P()), last[r]);
    }
    const S* feature = batch.template features<K>(i, 0);
    for (int k = 0; k < K; ++k) {
      for (int r = 0; r < kBand; ++r) {
        own_sums[r][k] = fma(weight[r], broadcast(feature[k], P()), own_sums[r][k]);
      }
    }
    for (int k = 0; K == 0 && k < count; ++k) {
      S* sums = tile.planes + (batch.plane[i] + k) * kPixels + pixel;
      for (int r = 0; r < kBand; ++r, sums += kTile) {
        store(sums, fma(weight[r], broadcast(feature[k], P()), load(sums, P())));
      }
    }
  };
  visit_splats<2>(batch, bits, g, blend, [&] {
    bool more = false;
    for (int r = 0; r < kBand; ++r) more = more | any(at_least(left[r], least));
    return more;
  });
  bool live = false;
  for (int r = 0; r < kBand; ++r) {
    const int at = pixel + r * kTile;
    const auto goes_on = at_least(left[r], least);
    store(tile.transmittance + at, select(goes_on, t[r], minus_abs(t[r])));
    if (Keep) store(tile.last + at, last[r]);
    for (int k = 0; k < K; ++k) store(tile.planes + k * kPixels + at, own_sums[r][k]);
    live = live | any(goes_on);
  }
  return live;
}

template <typename S, int K, bool Keep>
void blend_batch(Batch<S>& batch, int count, int features, Tile<S>& tile) {
  for (std::uint32_t bands = tile.live_bands(); bands != 0; bands &= bands - 1) {
    const int band = lowest_bit(bands);
    bool started = false;
    for (int g = 0; g < kGroups<S>; ++g) {
      const std::uint64_t bits = batch.touching[g][band];
      if (bits == 0 || (tile.live[g] >> band & 1u) == 0) continue;
      if (!started) batch.start_band(band, count);
      started = true;
      if (!blend_pack<S, K, Keep>(batch, bits, tile, band, g, features)) {
        tile.live[g] &= ~(1u << band);
      }
    }
  }
}

// Tile `index` of the view.
template <typename S, int K, bool Keep>
void blend_tile(const Inputs<S>& in, const ViewState<S>& state, int index, Batch<S>& batch,
                Tile<S>& tile) {
  const std::uint32_t first = state.tile_start[index], end = state.tile_start[index + 1];
  for (std::uint32_t p = first; p < end && tile.live_bands() != 0; p += kBatch) {
    const int count = static_cast<int>(std::min<std::uint32_t>(kBatch, end - p));
    batch.template stage<K, 1>(state, first, p, count, 0);
    blend_batch<S, K, Keep>(batch, count, in.features(), tile);
  }
}

// The first columns of a row of a tile. Whole rows are copied as a constant number of bytes.
template <typename S>
inline void write_row(const S* from, int columns, S* to) {
  if (columns == kTile) {
    std::memcpy(to, from, kTile * sizeof(S));
  } else {
    std::copy_n(from, columns, to);
  }
}

// Writes the tile to one image; `planes` are its sums. It gets `share` of the background's light.
template <typename S>
void write_tile(const Inputs<S>& in, std::size_t image, int tx, int ty, const Tile<S>& tile,
                const S* planes, S share, const Outputs<S>& out) {
  const int columns = std::min(kTile, in.width - tx * kTile);
  const int rows = std::min(kTileRows, in.height - ty * kTileRows);
  const std::size_t plane = std::size_t(in.width) * in.height;
  const std::size_t corner = std::size_t(ty * kTileRows) * in.width + tx * kTile;
  for (int y = 0; y < rows; ++y) {
    const S *t = tile.transmittance + y * kTile, *sums = planes + y * kTile;
    const std::size_t row = corner + std::size_t(y) * in.width;
    S line[kTile];
    for (int k = 0; k < in.planes(); ++k, sums += kPixels) {
      const S behind = share * in.background[k];
      for (int x = 0; x < kTile; ++x) line[x] = sums[x] + t[x] * behind;
      write_row(line, columns, out.color + (image * in.planes() + k) * plane + row);
    }
    for (int x = 0; x < kTile; ++x) line[x] = in.shared ? sums[x] : S(1) - t[x];
    write_row(line, columns, out.alpha + image * plane + row);
    const S* depths = planes + in.depth_feature() * kPixels + y * kTile;
    write_row(depths, columns, out.depth + image * plane + row);
  }
}

// Writes the tile of a stack to the images of its layers; what stays is what the backward pass needs.
template <typename S>
void finish_tile(const Inputs<S>& in, int v, int stack, int tx, int ty, const Tile<S>& tile,
                 const Outputs<S>& out) {
  for (int i = 0; i < kPixels; ++i) tile.transmittance[i] = std::fabs(tile.transmittance[i]);
  const std::size_t first = std::size_t(v) * in.layers;
  if (!in.shared) return write_tile(in, first + stack, tx, ty, tile, tile.planes, S(1), out);
  for (int layer = 0; layer < in.layers; ++layer) {
    const S* planes = tile.planes + layer * in.features() * kPixels;
    write_tile(in, first + layer, tx, ty, tile, planes, S(1) / S(in.layers), out);
  }
}

// Fetches what a tile will be written to.
template <typename S>
void fetch_outputs(const Inputs<S>& in, std::size_t image, int tx, int ty, const Outputs<S>& out) {
  const std::size_t plane = std::size_t(in.width) * in.height;
  for (int k = 0; k < in.planes(); ++k) {
    fetch_rows<true>(in, tx, ty, out.color + (image * in.planes() + k) * plane);
  }
  fetch_rows<true>(in, tx, ty, out.alpha + image * plane);
  fetch_rows<true>(in, tx, ty, out.depth + image * plane);
}

template <typename S, int K>
void blend_tiles(const Inputs<S>& in, int v, int threads, bool keep, ViewState<S>& state,
                 const Outputs<S>& out) {
  const int tiles_x = in.tiles_x(), per_stack = tiles_per_stack(in), features = in.features();
  Buffer<Batch<S>> batches;
  // Per thread: the features of its batch, the sums of its tile, what of the tile is not kept.
  Buffer<S> memory;
  const std::size_t staged = std::size_t(features) * Batch<S>::kSize;
  const std::size_t per_thread = staged + std::size_t(in.sums() + 2) * kPixels;
  batches.resize(threads);
  memory.resize(per_thread * threads);
  parallel_for(tile_count(in), threads, [&](int t, int worker) {
    const int stack = t / per_stack, tx = t % per_stack % tiles_x, ty = t % per_stack / tiles_x;
    const std::size_t kept = std::size_t(t) * kPixels;
    Batch<S>& batch = batches[worker];
    batch.start(memory.data() + per_thread * worker, features, tx, ty);
    S* planes = batch.far_features + staged;
    S* spare = planes + std::size_t(in.sums()) * kPixels;
    Tile<S> tile{keep ? state.transmittance.data() + kept : spare,
                 keep ? state.last.data() + kept : spare + kPixels, planes, {}};
    tile.start(in.sums(), in.width - tx * kTile, std::min(kTileRows, in.height - ty * kTileRows));
    if (!in.shared) fetch_outputs(in, std::size_t(v) * in.layers + stack, tx, ty, out);
    // In double precision the compiler chooses what to contract: one version, so the same bits.
    if (keep || std::is_same<S, double>::value) {
      blend_tile<S, K, true>(in, state, t, batch, tile);
    } else {
      blend_tile<S, K, false>(in, state, t, batch, tile);
    }
    finish_tile(in, v, stack, tx, ty, tile, out);
  });
}

}  // namespace

template <typename S>
void blend_view(const Inputs<S>& in, int v, int threads, bool keep, ViewState<S>& state,
                const Outputs<S>& out) {
  const std::size_t pixels = keep ? std::size_t(tile_count(in)) * kPixels : 0;
  state.transmittance.resize(pixels);
  state.last.resize(pixels);
  const int sums = in.shared ? 0 : in.features();
  if (sums == 4) {
    blend_tiles<S, 4>(in, v, threads, keep, state, out);
  } else if (sums == 7) {  // three further features beside RGB and depth
    blend_tiles<S, 7>(in, v, threads, keep, state, out);
  } else {
    blend_tiles<S, 0>(in, v, threads, keep, state, out);
  }
}

template void blend_view(const Inputs<float>&, int, int, bool, ViewState<float>&,
                         const Outputs<float>&);
template void blend_view(const Inputs<double>&, int, int, bool, ViewState<double>&,
                         const Outputs<double>&);

}  // namespace NATIVE_LEVEL
}  // namespace gr
