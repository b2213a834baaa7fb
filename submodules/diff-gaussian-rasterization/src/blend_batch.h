// Splats of a tile that are blended together, on the way forward and back: staged in the first
// cache, then gone through row by row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blend_row.h"

namespace gr {
namespace NATIVE_LEVEL {

// Splats staged at a time, one bit each in the mask of a row: few enough for the first cache.
constexpr int kBatch = 64;
constexpr int kFar = 24;  // pairs; staging does little else than wait for their records

// Splats whose alphas are computed at a time: each takes some 60 cycles, and processors do not look
// ahead far enough to begin the next ones early.
template <typename S>
constexpr int kAtOnce = Pack<S>::lanes >= 16 ? 4 : 2;

// Successive splats of a tile as a structure of arrays. At kBatch is one that is nowhere seen.
template <typename S>
struct Batch {
  static constexpr int kNone = kBatch, kSize = kBatch + Pack<S>::lanes;
  alignas(64) S x[kSize], y[kSize];  // relative to the tile
  alignas(64) S xx[kSize], xy[kSize], yy[kSize], opacity[kSize];
  alignas(64) S place[kSize];                            // position in the list of the tile
  alignas(64) S dy[kSize], slope[kSize], offset[kSize];  // of the row that is drawn
  int plane[kSize];            // the first plane of the pixel that the features belong to
  std::uint64_t rows[kTile];   // bit i set if splat i touches the row
  S* features;                 // (kSize, size)
  int size;                    // features that are staged

  void start(S* memory, int size_) {
    features = memory;
    size = size_;
    for (S* array : {x, y, xx, xy, yy, opacity, place, dy, slope, offset}) array[kNone] = S(0);
    plane[kNone] = 0;
    std::fill_n(features + kNone * size, size, S(0));
  }

  // Stages `count` pairs of the list that begins at `first`: p, p + Step, ..., and of each the
  // features from `feature` on: K of them, or with 0 `size`.
  template <int K, int Step>
  void stage(const ViewState<S>& state, int tx, int ty, std::uint32_t first, std::uint32_t p,
             int count, int feature) {
    std::uint64_t toggles[kTile + 1] = {};  // a splat touches successive rows
    for (int i = 0; i < count; ++i, p += Step) {
      const std::int64_t far = std::int64_t(p) + Step * kFar;
      if (far >= 0 && far < std::int64_t(state.pairs.size())) prefetch(state.record(far));
      const S* record = state.record(p);
      x[i] = record[kX] - S(tx * kTile);
      y[i] = record[kY] - S(ty * kTile);
      xx[i] = record[kQuadXX];
      xy[i] = record[kQuadXY];
      yy[i] = record[kQuadYY];
      opacity[i] = record[kOpacity];
      place[i] = S(p - first);
      plane[i] = static_cast<int>(record[kPlane]);
      const int width = K > 0 ? K : size;
      for (int k = 0; k < width; ++k) features[i * width + k] = record[kGeometry + feature + k];
      const std::uint64_t touched = state.rows[p], bit = std::uint64_t(1) << i;
      const std::uint64_t lowest = touched & (~touched + 1);
      toggles[lowest_bit(touched)] ^= bit;
      toggles[lowest_bit(touched + lowest)] ^= bit;  // the row after the last
    }
    std::uint64_t touching = 0;
    for (int row = 0; row < kTile; ++row) rows[row] = touching ^= toggles[row];
  }

  void start_row(int row, int count) {
    const Pack<S> at = broadcast(S(row), Pack<S>());
    for (int i = 0; i < count; i += Pack<S>::lanes) {
      const Pack<S> d = load(y + i, Pack<S>()) - at;
      store(dy + i, d);
      store(slope + i, row_slope(load(xy + i, Pack<S>()), d));
      store(offset + i, row_offset(load(yy + i, Pack<S>()), d));
    }
  }

  Pack<S> alpha(int i, Pack<S> lane) const {
    using P = Pack<S>;
    return alpha_along<S>(broadcast(x[i], P()) - lane, broadcast(xx[i], P()),
                          broadcast(slope[i], P()), broadcast(offset[i], P()),
                          broadcast(opacity[i], P()));
  }
};

// A few successive splats of a row and their alphas.
template <typename S>
struct Few {
  int at[kAtOnce<S>];
  Pack<S> raw[kAtOnce<S>];

  // Takes the first splats out of `bits`; kNone where there are no more.
  void take(const Batch<S>& batch, std::uint64_t& bits, Pack<S> lane) {
    for (int& i : at) {
      i = bits != 0 ? lowest_bit(bits) : Batch<S>::kNone;
      bits &= bits - 1;
    }
    for (int j = 0; j < kAtOnce<S>; ++j) raw[j] = batch.alpha(at[j], lane);
  }
};

}  // namespace NATIVE_LEVEL
}  // namespace gr
