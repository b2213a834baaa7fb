// The alpha of one splat along a row of 16 pixels: shared by the forward and backward kernels, so
// that both see the same bits and take the same decisions.
#pragma once

#include "simd.h"
#include "stages.h"

namespace gr {
namespace NATIVE_LEVEL {

// Number of zeros below the lowest set bit; bits != 0.
inline int lowest_bit(std::uint32_t bits) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctz(bits);
#else
  int at = 0;
  for (; (bits & 1u) == 0; bits >>= 1) ++at;
  return at;
#endif
}

template <typename S>
constexpr int kGroups = kTile / Pack<S>::lanes;  // packs in a row of a tile

template <typename S>
struct SplatRow {
  Pack<S> dx[kGroups<S>];       // centre minus pixel, along x
  Pack<S> quad_x[kGroups<S>];   // part of the exponent without dy
  Pack<S> quad_xy[kGroups<S>];  // coefficient of dy
  Pack<S> quad_yy;              // coefficient of dy^2
  Pack<S> opacity;
  S y;                          // centre, relative to the tile

  SplatRow(const S* record, int tile_x, int tile_y) {
    alignas(64) S lane[kTile];
    for (int i = 0; i < kTile; ++i) lane[i] = S(i);
    const Pack<S> x = broadcast(record[kX] - S(tile_x * kTile), Pack<S>());
    const Pack<S> xx = broadcast(record[kQuadXX], Pack<S>());
    const Pack<S> xy = broadcast(record[kQuadXY], Pack<S>());
    for (int g = 0; g < kGroups<S>; ++g) {
      dx[g] = x - load(lane + g * Pack<S>::lanes, Pack<S>());
      quad_x[g] = xx * dx[g] * dx[g];
      quad_xy[g] = xy * dx[g];
    }
    quad_yy = broadcast(record[kQuadYY], Pack<S>());
    opacity = broadcast(record[kOpacity], Pack<S>());
    y = record[kY] - S(tile_y * kTile);
  }

  // opacity * exp(power), before the cap. The conic is positive definite, so the exponent can be
  // above 0 by rounding only.
  Pack<S> alpha(int g, Pack<S> dy) const {
    const Pack<S> quad = fma(dy, fma(dy, quad_yy, quad_xy[g]), quad_x[g]);
    return opacity * exp2_of(min(quad, broadcast(S(0), Pack<S>())));
  }
};

}  // namespace NATIVE_LEVEL
}  // namespace gr
