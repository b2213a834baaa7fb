// The alpha of splats along a row of 16 pixels: shared by the forward and backward kernels, so that
// both see the same bits and take the same decisions.
#pragma once

#include <algorithm>

#if defined(__BMI__) && defined(__x86_64__)
#include <immintrin.h>
#endif

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

// The same; 64 if there is none. One instruction where there is one, as the processor would guess
// wrong at the end of almost every band.
inline int lowest_bit_or_64(std::uint64_t bits) {
#if defined(__BMI__) && defined(__x86_64__)
  return static_cast<int>(_tzcnt_u64(bits));
#else
  return bits != 0 ? lowest_bit(bits) : 64;
#endif
}

template <typename S>
constexpr int kGroups = kTile / Pack<S>::lanes;  // packs in a row of a tile
static_assert(kGroups<float> <= kMostGroups && kGroups<double> <= kMostGroups, "of Spans");

// The x of the pixels of group g, relative to the tile.
template <typename S>
inline Pack<S> lane_numbers(int g) {
  alignas(64) S lane[kTile];
  for (int i = 0; i < kTile; ++i) lane[i] = S(i);
  return load(lane + g * Pack<S>::lanes, Pack<S>());
}

// Fetches the rows of tile (tx, ty) of an image plane, each a line or two of the caches.
template <bool Write, typename S>
inline void fetch_rows(const Inputs<S>& in, int tx, int ty, const S* plane) {
  const int columns = std::min(kTile, in.width - tx * kTile);
  const int rows = std::min(kTileRows, in.height - ty * kTileRows);
  const S* row = plane + std::size_t(ty * kTileRows) * in.width + tx * kTile;
  for (int y = 0; y < rows; ++y, row += in.width) {
    if (Write) {
      prefetch_for_write(row);
      prefetch_for_write(row + columns - 1);
    } else {
      prefetch(row);
      prefetch(row + columns - 1);
    }
  }
}

// Along a row the exponent is a polynomial of dx = centre minus pixel: xx dx^2 + slope dx + offset.
// dy is that of the row; `level` is the logarithm of the opacity, which saves a product per pixel.
template <typename P>
inline P row_slope(P xy, P dy) {
  return xy * dy;
}
template <typename P>
inline P row_offset(P yy, P dy, P level) {
  return fma(yy * dy, dy, level);
}

// opacity * exp(power), before the cap. The conic is positive definite, so power can be above 0 by
// rounding only.
template <typename S>
inline Pack<S> alpha_along(Pack<S> dx, Pack<S> xx, Pack<S> slope, Pack<S> offset, Pack<S> level) {
  return exp2_of(min(fma(dx, fma(dx, xx, slope), offset), level));
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
