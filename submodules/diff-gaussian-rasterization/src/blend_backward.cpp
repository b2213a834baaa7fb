// Back-to-front gradients of the blending: per tile and splat, six moments of dL/dpower over the
// pixels and the gradients of the features. No two threads write the same place and nothing is
// added atomically, so the result has the same bits for any number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "blend_batch.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

// A tile on its way back, as planes of kTileRows rows of 16 pixels.
template <typename S>
struct TileBack {
  S* transmittance;   // behind the splats that are still to come
  S* behind;          // the part of dL/dT that comes from behind them
  S* gradients;       // dL/d(image) of each wanted feature: with `shared`, of each layer
  const S* last;      // position of the last contributor
  S band_last[kBands];  // the highest of each band

  static std::size_t size(int gradients) { return std::size_t(2 + gradients) * kPixels; }

  TileBack(S* memory, const S* last_)
      : transmittance(memory), behind(memory + kPixels), gradients(behind + kPixels),
        last(last_) {}
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

// The greatest of Count values.
template <int Count, typename S>
inline S greatest(const S* values) {
  S at[Count];
  std::memcpy(at, values, sizeof at);
  for (int half = Count / 2; half > 0; half /= 2) {
    for (int x = 0; x < half; ++x) at[x] = at[x] < at[x + half] ? at[x + half] : at[x];
  }
  return at[0];
}

template <typename S>
struct Kernel {
  const Inputs<S>& in;
  const ViewState<S>& state;
  const ImageGradients<S>& image;
  const Wanted& wanted;
  int v;

  int gradients() const { return wanted.count() * (in.shared ? in.layers : 1); }
  // The same if the features lie in the staged records, and each pixel has one sum of each; or 0.
  int near_gradients() const { return in.shared || wanted.end > kNear ? 0 : wanted.count(); }

  // dL/d(feature k) of an image, from a pixel on; null for none.
  const S* gradient(std::size_t at, int k, std::size_t pixel) const {
    const std::size_t plane = std::size_t(in.width) * in.height;
    if (k < in.planes()) {
      return image.color ? image.color + (at * in.planes() + k) * plane + pixel : nullptr;
    }
    const S* gradients = k == in.depth_feature() ? image.depth : image.alpha;
    return gradients ? gradients + at * plane + pixel : nullptr;
  }

  // Fills row y, whose first pixel is `pixel`; beyond its columns, of which a row outside of the image
  // has none, everything is 0.
  void start_row(const TileBack<S>& tile, int stack, int y, const S* t, std::size_t pixel,
                 int columns) const {
    const std::size_t first = std::size_t(v) * in.layers + stack;
    S by_final[kTile] = {};
    if (!in.shared && image.alpha) {
      S line[kTile];
      const std::size_t plane = std::size_t(in.width) * in.height;
      read_row(image.alpha + first * plane + pixel, columns, line);
      for (int x = 0; x < kTile; ++x) by_final[x] = -line[x];
    }
    S* row = tile.gradients + y * kTile;
    for (int layer = 0; layer < (in.shared ? in.layers : 1); ++layer) {
      for (int k = wanted.first; k < wanted.end; ++k, row += kPixels) {
        read_row(gradient(first + layer, k, pixel), columns, row);
        if (k >= in.planes()) continue;
        for (int x = 0; x < kTile; ++x) by_final[x] += in.background[k] * row[x];
      }
    }
    const S share = in.shared ? S(1) / S(in.layers) : S(1);
    for (int x = 0; x < kTile; ++x) {
      tile.transmittance[y * kTile + x] = t[x];
      tile.behind[y * kTile + x] = by_final[x] * share * t[x];
    }
  }

  // Fetches the gradients of the image that `start` will read.
  void fetch(int stack, int tx, int ty) const {
    for (int k = wanted.first; k < wanted.end; ++k) {
      const S* plane = gradient(std::size_t(v) * in.layers + stack, k, 0);
      if (plane != nullptr) fetch_rows<false>(in, tx, ty, plane);
    }
  }

  // Tile (tx, ty) of a stack. Returns the position after the last contributor.
  int start(int stack, int tx, int ty, TileBack<S>& tile, const S* transmittance) const {
    const int columns = std::min(kTile, in.width - tx * kTile);
    const int rows = std::min(kTileRows, in.height - ty * kTileRows);
    std::fill_n(tile.band_last, kBands, S(-1));  // those outside of the image are never looked at
    for (int y = 0; y < rows; y += kBand) {
      tile.band_last[y / kBand] = greatest<kBand * kTile>(tile.last + y * kTile);
      for (int at = y; at < y + kBand; ++at) {
        const int inside = std::min(at, rows - 1);
        const std::size_t pixel = std::size_t(ty * kTileRows + inside) * in.width + tx * kTile;
        start_row(tile, stack, at, transmittance + at * kTile, pixel, at < rows ? columns : 0);
      }
    }
    return static_cast<int>(greatest<kBands>(tile.band_last)) + 1;
  }
};

// What the splats of a batch gather, still spread over the lanes: of each splat, for each group of
// columns the sums of q = dL/dpower, q dy and q dy^2; then the features.
template <typename S, bool Moments>
struct Sums {
  static constexpr int kFeatures = Moments ? 3 * kGroups<S> : 0;
  Pack<S>* packs;  // (kBatch + 1, kFeatures + features)
  int features;

  static std::size_t size(int features) {
    return std::size_t(kBatch + 1) * (kFeatures + features);
  }

  // K: the number of features, or 0 for `features`.
  template <int K>
  Pack<S>* of(int splat) const {
    return packs + splat * (kFeatures + (K > 0 ? K : features));
  }
  void start(int splats) {
    std::fill_n(packs, splats * (kFeatures + features), broadcast(S(0), Pack<S>()));
  }
};

// Gathers the splats of `bits` over group g of a band, from back to front; returns those that were
// drawn. K as in the forward pass.
template <typename S, int K, bool Moments>
NATIVE_INLINE std::uint64_t gather_pack(const Batch<S>& batch, std::uint64_t bits,
                                        const TileBack<S>& tile, int band, int g, int feature,
                                        const Sums<S, Moments>& sums) {
  using P = Pack<S>;
  const int pixel = band * kBand * kTile + g * P::lanes;
  const int count = K > 0 ? K : sums.features;
  const P zero = broadcast(S(0), P()), one = broadcast(S(1), P());
  P last[kBand], t[kBand], behind[kBand];
  for (int r = 0; r < kBand; ++r) {
    last[r] = load(tile.last + pixel + r * kTile, P());
    t[r] = load(tile.transmittance + pixel + r * kTile, P());
    behind[r] = load(tile.behind + pixel + r * kTile, P());
  }
  std::uint64_t drawn_ones = 0;
  const auto gather = [&](int i, const P* raws) {
    const S* features = batch.template features<K>(i, feature);
    // Read each time: there are not registers enough for them.
    const S* gradients = tile.gradients + (K > 0 ? 0 : batch.plane[i]) * kPixels + pixel;
    const auto gradient = [&](int k, int r) { return load(gradients + k * kPixels + r * kTile, P()); };
    P weight[kBand], q[kBand], inverse[kBand], along[kBand];  // along: dL / d(weight)
    typename P::Mask drawn[kBand];
    const auto find_q = [&](int r) {
      q[r] = masked(drawn[r], raws[r] * (t[r] * along[r] - behind[r] * inverse[r]));
      behind[r] = fma(weight[r], along[r], behind[r]);
    };
    // Loops over features that are unrolled are faster apart, others together: up to 20 %.
    constexpr bool apart = Moments && K > 0, together = Moments && K == 0;
    bool ever = false;
    for (int r = 0; r < kBand; ++r) {
      drawn[r] = both(at_least(raws[r], broadcast(S(kMinAlpha), P())),
                      at_least(last[r], broadcast(batch.place[i], P())));
      ever = ever | any(drawn[r]);
      const P alpha = masked(drawn[r], min(raws[r], broadcast(S(kMaxAlpha), P())));
      inverse[r] = one / (one - alpha);
      t[r] = t[r] * inverse[r];
      weight[r] = alpha * t[r];
      along[r] = zero;
      for (int k = 0; apart && k < K; ++k) {
        along[r] = fma(gradient(k, r), broadcast(features[k], P()), along[r]);
      }
      if (apart) find_q(r);
    }
    // To branch on it is slower. (kNone, which is nowhere drawn, counts as 0.)
    drawn_ones |= std::uint64_t(ever) << (i % kBatch);
    P* sum = sums.template of<K>(i);
    for (int k = 0; k < count; ++k) {
      P& by_feature = sum[Sums<S, Moments>::kFeatures + k];
      P all = by_feature;
      for (int r = 0; r < kBand; ++r) {
        const P g_k = gradient(k, r);
        if (together) along[r] = fma(g_k, broadcast(features[k], P()), along[r]);
        all = fma(weight[r], g_k, all);
      }
      by_feature = all;
    }
    for (int r = 0; together && r < kBand; ++r) find_q(r);
    if (!Moments) return;
    sum += 3 * g;
    P by_q = sum[0], by_qy = sum[1], by_qyy = sum[2];
    for (int r = 0; r < kBand; ++r) {
      const P dy = broadcast(batch.dy[r][i], P()), qy = q[r] * dy;
      by_q = by_q + q[r];
      by_qy = by_qy + qy;
      by_qyy = fma(qy, dy, by_qyy);
    }
    sum[0] = by_q;
    sum[1] = by_qy;
    sum[2] = by_qyy;
  };
  constexpr int few = P::lanes >= 16 && K > 0 ? 2 : 1;  // what the registers hold
  visit_splats<few>(batch, bits, g, gather, [] { return true; });
  for (int r = 0; r < kBand; ++r) {
    store(tile.transmittance + pixel + r * kTile, t[r]);
    store(tile.behind + pixel + r * kTile, behind[r]);
  }
  return drawn_ones;
}

// Moments of q about the splat's centre: 1, dx, dy, dx^2, dx dy, dy^2.
template <typename S>
inline void find_moments(const Pack<S>* sums, S x, const Pack<S>* columns, Pack<S>* out) {
  for (int g = 0; g < kGroups<S>; ++g, sums += 3) {
    const Pack<S> dx = broadcast(x, Pack<S>()) - columns[g], qx = sums[0] * dx;
    const Pack<S> moments[kMoments] = {sums[0], qx, sums[1], qx * dx, sums[1] * dx, sums[2]};
    for (int k = 0; k < kMoments; ++k) out[k] = g == 0 ? moments[k] : out[k] + moments[k];
  }
}

// Writes what splat i of a batch has gathered to its slot.
template <typename S, int K, bool Moments>
void finish_splat(const Batch<S>& batch, int i, const Sums<S, Moments>& sums, S* out) {
  constexpr int moments = Moments ? kMoments : 0;
  const Pack<S>* own = sums.template of<K>(i);
  const Pack<S>* features = own + Sums<S, Moments>::kFeatures;
  Pack<S> all[moments + K + 1];
  if (Moments) find_moments(own, batch.splats[i][kX], batch.columns, all);
  for (int k = 0; k < K; ++k) all[moments + k] = features[k];
  sum_each<moments + K>(all, out);
  for (int k = 0; K == 0 && k < sums.features; ++k) out[moments + k] = sum(features[k]);
}

// Gathers the staged splats, the first of which is at position `top` of the tile's list; returns
// those that were drawn.
template <typename S, int K, bool Moments>
std::uint64_t gather_batch(Batch<S>& batch, int top, int count, int feature,
                           const TileBack<S>& tile, const Sums<S, Moments>& sums) {
  std::uint64_t drawn = 0;
  for (int band = 0; band < kBands; ++band) {
    const int behind = std::max(0, top - static_cast<int>(tile.band_last[band]));
    if (behind >= count) continue;
    bool started = false;
    for (int g = 0; g < kGroups<S>; ++g) {
      const std::uint64_t bits = batch.touching[g][band] & (~std::uint64_t(0) << behind);
      if (bits == 0) continue;
      if (!started) batch.start_band(band, count);
      started = true;
      drawn |= gather_pack<S, K, Moments>(batch, bits, tile, band, g, feature, sums);
    }
  }
  return drawn;
}

// Fetches what `count` pairs, from p downwards, will be written to: all over the memory.
template <typename S>
void fetch_slots(const ViewState<S>& state, std::uint32_t p, int count,
                 const PairGradients<S>& pairs) {
  for (int i = 0; i < count; ++i) {
    const std::uint32_t slot = state.pairs[p - i].slot;
    const S* out = pairs.values.data() + std::size_t(slot) * pairs.stride;
    prefetch_for_write(out);
    prefetch_for_write(out + pairs.stride - 1);
    prefetch_for_write(&pairs.written[slot]);
  }
}

template <typename S, int K, bool Moments>
void gather_tile(const Kernel<S>& kernel, std::uint32_t first, int end,
                 Batch<S>& batch, const TileBack<S>& tile, Sums<S, Moments>& sums,
                 PairGradients<S>& pairs) {
  const Inputs<S>& in = kernel.in;
  for (int top = end - 1; top >= 0; top -= kBatch) {
    const int count = std::min(kBatch, top + 1);
    const std::uint32_t p = first + top;
    const int feature = kernel.wanted.first;
    batch.template stage<K, -1>(kernel.state, first, p, count, feature);
    // With `shared` the planes are those of the layer, of which there are the wanted ones only.
    for (int i = 0; K == 0 && i < count; ++i) {
      batch.plane[i] = batch.plane[i] / in.features() * kernel.wanted.count();
    }
    sums.start(count);
    fetch_slots(kernel.state, p, count, pairs);
    std::uint64_t drawn = gather_batch<S, K, Moments>(batch, top, count, feature, tile, sums);
    for (; drawn != 0; drawn &= drawn - 1) {
      const int i = lowest_bit(drawn);
      const std::uint32_t slot = kernel.state.pairs[p - i].slot;
      S* out = pairs.values.data() + std::size_t(slot) * pairs.stride;
      finish_splat<S, K, Moments>(batch, i, sums, out);
      pairs.written[slot] = 1;
    }
  }
}

template <typename S, int K, bool Moments>
void gather_tiles(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  const Inputs<S>& in = kernel.in;
  const int tiles_x = in.tiles_x(), per_stack = tiles_per_stack(in);
  Buffer<Batch<S>> batches;
  Buffer<S> memory;  // per thread: the features of its batch, its tile
  Buffer<Pack<S>> packs;
  const std::size_t staged = std::size_t(kernel.wanted.count()) * Batch<S>::kSize;
  const std::size_t per_thread = staged + TileBack<S>::size(kernel.gradients());
  const int count = kernel.wanted.count();
  batches.resize(threads);
  memory.resize(per_thread * threads);
  packs.resize(Sums<S, Moments>::size(count) * threads);
  parallel_for(tile_count(in), threads, [&](int t, int worker) {
    const std::uint32_t first = kernel.state.tile_start[t];
    if (first == kernel.state.tile_start[t + 1]) return;
    const int stack = t / per_stack, tx = t % per_stack % tiles_x, ty = t % per_stack / tiles_x;
    const std::size_t kept = std::size_t(t) * kPixels;
    Batch<S>& batch = batches[worker];
    batch.start(memory.data() + per_thread * worker, count, tx, ty);
    TileBack<S> tile(batch.far_features + staged, kernel.state.last.data() + kept);
    Sums<S, Moments> sums{packs.data() + Sums<S, Moments>::size(count) * worker, count};
    sums.start(kBatch + 1);
    const int next = t + 1;  // most likely
    if (!in.shared && next < tile_count(in)) {
      kernel.fetch(next / per_stack, next % per_stack % tiles_x, next % per_stack / tiles_x);
    }
    const int end = kernel.start(stack, tx, ty, tile, kernel.state.transmittance.data() + kept);
    gather_tile<S, K, Moments>(kernel, first, end, batch, tile, sums, pairs);
  });
}

// Only the gradients of features.
template <typename S>
void gather_features(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  if (kernel.near_gradients() == 3) return gather_tiles<S, 3, false>(kernel, threads, pairs);
  gather_tiles<S, 0, false>(kernel, threads, pairs);
}

template <typename S>
void gather_all(const Kernel<S>& kernel, int threads, PairGradients<S>& pairs) {
  switch (kernel.near_gradients()) {
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
