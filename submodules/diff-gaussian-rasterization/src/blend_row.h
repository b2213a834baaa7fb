// The alpha of splats along a row of 16 pixels: shared by the forward and backward kernels, so that
// both see the same bits and take the same decisions.
#pragma once

#include "simd.h"
#include "stages.h"

namespace gr {
namespace NATIVE_LEVEL {

// Number of zeros below the lowest set bit; bits != 0.
inline int lowest_bit(std::uint64_t bits) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctzll(bits);
#else
  int at = 0;
  for (; (bits & 1u) == 0; bits >>= 1) ++at;
  return at;
#endif
}

template <typename S>
constexpr int kGroups = kTile / Pack<S>::lanes;  // packs in a row of a tile

// The x of the pixels of group g, relative to the tile.
template <typename S>
inline Pack<S> lane_numbers(int g) {
  alignas(64) S lane[kTile];
  for (int i = 0; i < kTile; ++i) lane[i] = S(i);
  return load(lane + g * Pack<S>::lanes, Pack<S>());
}

// Along a row the exponent is a polynomial of dx = centre minus pixel: xx dx^2 + slope dx + offset.
// dy is that of the row.
template <typename P>
inline P row_slope(P xy, P dy) {
  return xy * dy;
}
template <typename P>
inline P row_offset(P yy, P dy) {
  return yy * dy * dy;
}

// opacity * exp(power), before the cap. The conic is positive definite, so the exponent can be
// above 0 by rounding only.
template <typename S>
inline Pack<S> alpha_along(Pack<S> dx, Pack<S> xx, Pack<S> slope, Pack<S> offset, Pack<S> opacity) {
  const Pack<S> power = fma(dx, fma(dx, xx, slope), offset);
  return opacity * exp2_of(min(power, broadcast(S(0), Pack<S>())));
}

// One splat over all rows of a tile.
template <typename S>
struct SplatRows {
  Pack<S> dx[kGroups<S>];
  Pack<S> xx, opacity;
  alignas(64) S dy[kTile], slope[kTile], offset[kTile];

  SplatRows(const S* record, int tile_x, int tile_y) {
    const Pack<S> x = broadcast(record[kX] - S(tile_x * kTile), Pack<S>());
    const Pack<S> y = broadcast(record[kY] - S(tile_y * kTile), Pack<S>());
    const Pack<S> xy = broadcast(record[kQuadXY], Pack<S>());
    const Pack<S> yy = broadcast(record[kQuadYY], Pack<S>());
    xx = broadcast(record[kQuadXX], Pack<S>());
    opacity = broadcast(record[kOpacity], Pack<S>());
    for (int g = 0; g < kGroups<S>; ++g) {
      const Pack<S> lane = lane_numbers<S>(g);
      dx[g] = x - lane;
      const Pack<S> row_dy = y - lane;  // as many rows as columns
      store(dy + g * Pack<S>::lanes, row_dy);
      store(slope + g * Pack<S>::lanes, row_slope(xy, row_dy));
      store(offset + g * Pack<S>::lanes, row_offset(yy, row_dy));
    }
  }

  Pack<S> alpha(int y, int g) const {
    return alpha_along<S>(dx[g], xx, broadcast(slope[y], Pack<S>()),
                          broadcast(offset[y], Pack<S>()), opacity);
  }
};

}  // namespace NATIVE_LEVEL
}  // namespace gr
