// Splats of a tile that are blended together, on the way forward and back: staged in the first
// cache, then gone through band by band.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "blend_row.h"

namespace gr {
namespace NATIVE_LEVEL {

// Splats staged at a time, one bit each in the mask of a band: few enough for the first cache.
constexpr int kBatch = 64;
constexpr int kFar = 40;  // pairs; staging does little else than wait for their records

// Features that are staged with the geometry, all at once: the first ones of a record, which has at
// least so many fields.
constexpr int kNear = 8;
constexpr int kStaged = kGeometry + kNear;

// Successive splats of a tile. At kBatch is one that is nowhere seen.
template <typename S>
struct Batch {
  static constexpr int kNone = kBatch, kSize = kBatch + Pack<S>::lanes;
  alignas(64) S splats[kBatch + 1][kStaged];             // the first fields of their records
  alignas(64) S y[kSize], xy[kSize], yy[kSize], level[kSize];  // of which a row is made, as arrays
  alignas(64) S place[kSize];                            // position in the list of the tile
  alignas(64) S dy[kBand][kSize], slope[kBand][kSize], offset[kBand][kSize];  // of each row now
  int plane[kSize];            // the first plane of the pixel that the features belong to
  std::uint64_t touching[kGroups<S>][kBands];  // bit i set if splat i touches the group there
  S* far_features;             // (kSize, size), where `features` does not find them in splats
  int size;                    // features that are blended
  int top;                     // pixel row at which the tile begins
  Pack<S> columns[kGroups<S>]; // x of its pixels

  // For tile (tx, ty) of the image.
  void start(S* memory, int size_, int tx, int ty) {
    far_features = memory;
    size = size_;
    top = ty * kTileRows;
    for (int g = 0; g < kGroups<S>; ++g) {
      columns[g] = broadcast(S(tx * kTile), Pack<S>()) + lane_numbers<S>(g);
    }
    plane[kNone] = 0;
    place[kNone] = S(0);
    std::fill_n(splats[kNone], kStaged, S(0));
    splats[kNone][kLevel] = S(-100);  // far below what is seen
    for (int r = 0; r < kBand; ++r) {
      dy[r][kNone] = slope[r][kNone] = S(0);
      offset[r][kNone] = splats[kNone][kLevel];
    }
    std::fill_n(far_features + kNone * size, size, S(0));
  }

  // Stages `count` pairs of the list that begins at `first`: p, p + Step, ..., and of each the
  // features from `feature` on: K of them, or with 0 `size`, and the plane.
  template <int K, int Step>
  void stage(const ViewState<S>& state, std::uint32_t first, std::uint32_t p, int count,
             int feature) {
    std::uint64_t toggles[kGroups<S>][kBands + 1] = {};
    for (int i = 0; i < kBatch; ++i) place[i] = S(static_cast<int>(p - first) + Step * i);
    for (int i = 0; i < count; ++i, p += Step) {
      const std::int64_t far = std::int64_t(p) + Step * kFar;
      if (far >= 0 && far < std::int64_t(state.pairs.size())) prefetch(state.record(far));
      const S* record = state.record(p);
      std::memcpy(splats[i], record, sizeof splats[i]);
      y[i] = record[kY];
      xy[i] = record[kQuadXY];
      yy[i] = record[kQuadYY];
      level[i] = record[kLevel];
      if (K == 0) {
        plane[i] = static_cast<int>(record[kPlane]);
        std::copy_n(record + kGeometry + feature, size, far_features + i * size);
      }
      const Spans spans = state.pairs[p].spans;
      const std::uint64_t bit = std::uint64_t(1) << i;
      for (int g = 0; g < kGroups<S>; ++g) {
        toggles[g][first_band(spans, g)] ^= bit;
        toggles[g][end_band(spans, g)] ^= bit;
      }
    }
    for (int g = 0; g < kGroups<S>; ++g) {
      std::uint64_t bits = 0;
      for (int band = 0; band < kBands; ++band) touching[g][band] = bits ^= toggles[g][band];
    }
  }

  // The staged features of splat i; K and `feature` as they were staged.
  template <int K>
  const S* features(int i, int feature) const {
    return K > 0 ? splats[i] + kGeometry + feature : far_features + i * size;
  }

  // The rows of band `band` of the tile.
  void start_band(int band, int count) {
    for (int r = 0; r < kBand; ++r) {
      const Pack<S> at = broadcast(S(top + band * kBand + r), Pack<S>());
      for (int i = 0; i < count; i += Pack<S>::lanes) {
        const Pack<S> d = load(y + i, Pack<S>()) - at;
        store(dy[r] + i, d);
        store(slope[r] + i, row_slope(load(xy + i, Pack<S>()), d));
        store(offset[r] + i, row_offset(load(yy + i, Pack<S>()), d, load(level + i, Pack<S>())));
      }
    }
  }

  // At the pixels of group g of row r of the band.
  Pack<S> alpha(int i, int g, int r) const {
    using P = Pack<S>;
    const S* splat = splats[i];
    return alpha_along<S>(broadcast(splat[kX], P()) - columns[g], broadcast(splat[kQuadXX], P()),
                          broadcast(slope[r][i], P()), broadcast(offset[r][i], P()),
                          broadcast(splat[kLevel], P()));
  }
};

// Visits the splats of `bits` over group g of the band: visit(i, alphas at the pixels of each row,
// before the cap). Alphas take some 50 cycles, and processors do not look ahead far enough to begin the
// next ones early: so those of a `Few` splats are computed before the few before them are visited. kNone
// fills up the last few. After each few, `more` says whether any more are wanted. Inlined, as it is all
// registers.
template <int Few, typename S, typename Visit, typename More>
NATIVE_INLINE void visit_splats(const Batch<S>& batch, std::uint64_t bits, int g, Visit visit,
                                More more) {
  int at[Few], next_at[Few];
  Pack<S> alpha[Few][kBand], next_alpha[Few][kBand];
  const auto begin = [&](int* where, Pack<S>(*alphas)[kBand]) {
    static_assert(Batch<S>::kNone == 64, "what is found where there are no more");
    for (int j = 0; j < Few; ++j, bits &= bits - 1) where[j] = lowest_bit_or_64(bits);
    for (int j = 0; j < Few; ++j) {
      for (int r = 0; r < kBand; ++r) alphas[j][r] = batch.alpha(where[j], g, r);
    }
  };
  begin(at, alpha);
  while (bits != 0) {
    begin(next_at, next_alpha);
    for (int j = 0; j < Few; ++j) visit(at[j], alpha[j]);
    if (!more()) return;
    for (int j = 0; j < Few; ++j) {
      at[j] = next_at[j];
      for (int r = 0; r < kBand; ++r) alpha[j][r] = next_alpha[j][r];
    }
  }
  for (int j = 0; j < Few; ++j) visit(at[j], alpha[j]);
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
