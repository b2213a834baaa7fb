// Back-to-front gradients of the blending: per tile and splat, six moments of dL/dpower over the
// pixels and the gradients of the features. No two threads write the same place and nothing is
// added atomically, so the result has the same bits for any number of threads.
#include <algorithm>
#include <cstdint>

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

  static std::size_t size(int gradients) {
    return std::size_t(kGradients + gradients) * kTilePixels;
  }

  S& at(int y, int x, int field) const {
    return cells[(y * kGroups<S> + x / kLanes) * cell_size + field * kLanes + x % kLanes];
  }
};

// What one splat gathers over the pixels of the tile, still spread over the lanes.
template <typename S>
struct Gathered {
  Pack<S> q, qy, qyy;
};

template <typename S>
struct Kernel {
  const Inputs<S>& in;
  const ViewState<S>& state;
  const ImageGradients<S>& image;
  const Wanted& wanted;
  int v;

  int gradients() const { return wanted.count() * (in.shared ? in.layers : 1); }

  // dL/d(feature k) at a pixel of an image.
  S gradient(std::size_t at, int k, std::size_t pixel) const {
    const std::size_t plane = std::size_t(in.width) * in.height;
    if (k < in.planes()) {
      return image.color ? image.color[(at * in.planes() + k) * plane + pixel] : S(0);
    }
    const S* gradients = k == in.depth_feature() ? image.depth : image.alpha;
    return gradients ? gradients[at * plane + pixel] : S(0);
  }

  // Fills one pixel inside the image.
  void start_pixel(const TileBack<S>& tile, int stack, int y, int x, std::size_t pixel) const {
    const std::size_t plane = std::size_t(in.width) * in.height;
    const std::size_t first = std::size_t(v) * in.layers + stack;
    S by_final = !in.shared && image.alpha ? -image.alpha[first * plane + pixel] : S(0);
    int field = TileBack<S>::kGradients;
    for (int layer = 0; layer < (in.shared ? in.layers : 1); ++layer) {
      for (int k = wanted.first; k < wanted.end; ++k, ++field) {
        const S g = gradient(first + layer, k, pixel);
        tile.at(y, x, field) = g;
        if (k < in.planes()) by_final += in.background[k] * g;
      }
    }
    if (in.shared) by_final *= S(1) / S(in.layers);
    tile.at(y, x, TileBack<S>::kBehind) = by_final * tile.at(y, x, TileBack<S>::kTransmittance);
  }

  // Tile (tx, ty) of a stack. Returns the position after the last contributor.
  int start(int stack, int tx, int ty, S* memory, TileBack<S>& tile) const {
    tile.cells = memory;
    tile.cell_size = (TileBack<S>::kGradients + gradients()) * TileBack<S>::kLanes;
    std::fill_n(memory, TileBack<S>::size(gradients()), S(0));
    const std::size_t number = (std::size_t(stack) * in.tiles_y() + ty) * in.tiles_x() + tx;
    const std::size_t kept = number * kTilePixels;
    const int columns = std::min(kTile, in.width - tx * kTile);
    const int rows = std::min(kTile, in.height - ty * kTile);
    for (int y = 0; y < kTile; ++y) {
      const S* t = state.transmittance.data() + kept + y * kTile;
      const S* last = state.last.data() + kept + y * kTile;
      tile.row_last[y] = *std::max_element(last, last + kTile);
      const std::size_t row = std::size_t(ty * kTile + y) * in.width + tx * kTile;
      for (int x = 0; x < kTile; ++x) {
        tile.at(y, x, TileBack<S>::kTransmittance) = t[x];
        tile.at(y, x, TileBack<S>::kLast) = last[x];
        if (y < rows && x < columns) start_pixel(tile, stack, y, x, row + x);
      }
    }
    return static_cast<int>(*std::max_element(tile.row_last, tile.row_last + kTile)) + 1;
  }
};

// The wanted features of a splat, and where their gradients lie in a cell.
template <typename S>
struct FeatureList {
  const S* values;
  int count, first_field;
};

// Returns whether a pixel of the group was drawn. K as in the forward pass.
template <typename S, int K, bool Moments>
inline bool gather_group(const TileBack<S>& tile, const SplatRows<S>& splat,
                         const FeatureList<S>& features, int y, int g, Pack<S> dy,
                         Pack<S> position, Gathered<S>& sums, Pack<S>* feature_sums) {
  using P = Pack<S>;
  using T = TileBack<S>;
  const P zero = broadcast(S(0), P()), one = broadcast(S(1), P());
  const int count = K > 0 ? K : features.count;
  const int cell_size = K > 0 ? (T::kGradients + K) * P::lanes : tile.cell_size;
  S* cell = tile.cells + (y * kGroups<S> + g) * cell_size;
  const S* gradients = cell + (K > 0 ? int(T::kGradients) : features.first_field) * P::lanes;
  const P raw = splat.alpha(y, g);
  const auto drawn = both(at_least(raw, broadcast(S(kMinAlpha), P())),
                          at_least(load(cell + T::kLast * P::lanes, P()), position));
  if (!any(drawn)) return false;
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
  if (!Moments) return true;
  const P behind = load(cell + T::kBehind * P::lanes, P());
  const P grad_alpha = t * along - behind * inverse;
  const P q = select(drawn, raw * grad_alpha, zero);
  store(cell + T::kBehind * P::lanes, fma(weight, along, behind));
  sums.q = sums.q + q;
  const P qy = q * dy;
  sums.qy = sums.qy + qy;
  sums.qyy = fma(qy, dy, sums.qyy);
  return true;
}

// Moments of q about the splat's centre: 1, dx, dy, dx^2, dx dy, dy^2.
template <typename S>
void write_moments(const SplatRows<S>& splat, const Gathered<S>* gathered, S* out) {
  std::fill_n(out, kMoments, S(0));
  for (int g = 0; g < kGroups<S>; ++g) {
    const Gathered<S>& a = gathered[g];
    const Pack<S> qx = a.q * splat.dx[g];
    out[0] += sum(a.q);
    out[1] += sum(qx);
    out[2] += sum(a.qy);
    out[3] += sum(qx * splat.dx[g]);
    out[4] += sum(a.qy * splat.dx[g]);
    out[5] += sum(a.qyy);
  }
}

// Gathers one splat; `shared_sums` is memory for the features where K = 0.
template <typename S, int K, bool Moments>
void gather_splat(const Kernel<S>& kernel, const TileBack<S>& tile, int tx, int ty,
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
  bool seen = false;
  for (std::uint32_t rows = kernel.state.rows[p]; rows != 0; rows &= rows - 1) {
    const int y = lowest_bit(rows);
    if (tile.row_last[y] < S(place)) continue;
    const P dy = broadcast(splat.dy[y], P());
    for (int g = 0; g < kGroups<S>; ++g) {
      seen |= gather_group<S, K, Moments>(tile, splat, features, y, g, dy, position, gathered[g],
                                          feature_sums);
    }
  }
  if (!seen) return;
  S* out = pairs.values.data() + std::size_t(pair.slot) * pairs.stride;
  if (Moments) write_moments(splat, gathered, out);
  if (Moments) out += kMoments;
  for (int k = 0; k < count; ++k) out[k] = sum(feature_sums[k]);
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
