// Which 16x16 tiles, and which pixel rows in them, a splat can touch.
//
// The published rule is a square of `radius` around the centre, rounded to tiles. The image depends
// on it, so it bounds everything here. Inside it, tiles and rows in which alpha stays below 1/255
// at every pixel are left out: those pixels skip the splat anyway, so the image is unchanged.
#pragma once

#include "gaussian_rasterizer/projection.h"

namespace gr {

constexpr int kTile = 16;
constexpr int kTilePixels = kTile * kTile;
constexpr double kMinAlpha = 1.0 / 255.0;
constexpr double kMaxAlpha = 0.99;
constexpr double kMinTransmittance = 1e-4;

struct TileRect {
  int x0, y0, x1, y1;  // tiles, end exclusive
};

// floor(v / 16) limited to [0, count] before the conversion, so that no input can overflow; 0 of NaN.
template <typename S>
GR_HD int tile_index(S v, int count) {
  return static_cast<int>(min_of(max_of(S(0), v * (S(1) / S(kTile))), S(count)));
}

template <typename S>
GR_HD TileRect tile_rect(const Splat<S>& s, int tiles_x, int tiles_y) {
  const S margin = S(kTile - 1);
  return {tile_index(s.x - s.radius, tiles_x), tile_index(s.y - s.radius, tiles_y),
          tile_index(s.x + s.radius + margin, tiles_x),
          tile_index(s.y + s.radius + margin, tiles_y)};
}

GR_HD bool is_empty(const TileRect& r) { return r.x0 >= r.x1 || r.y0 >= r.y1; }

// One axis of an ellipse K(d, d) <= tau about the origin: what its extent along the axis needs.
template <typename S>
struct EllipseAxis {
  S half;      // extent along the axis
  S at_half;   // the other coordinate where that extent is reached
  S slope;     // -b / a: the middle of the chord at other coordinate u is slope * u
  S square;    // tau / a
  S shrink;    // det / a^2: the half chord at u is sqrt(square - shrink * u^2)
};

// The ellipse within which alpha can reach 1/255, centred on (x, y).
template <typename S>
struct Footprint {
  S x, y;
  EllipseAxis<S> along_x, along_y;
  TileRect rect;
};

// An interval of pixels or tiles, end inclusive; empty if first > last.
struct Span {
  int first, last;
};

// `a` belongs to the axis, `cov` is the variance along it.
template <typename S>
GR_HD EllipseAxis<S> ellipse_axis(S a, S b, S cov, S cov_xy, S det, S tau) {
  const S inv_a = S(1) / a;
  const S half = std::sqrt(tau * cov);
  return {half, half * cov_xy / cov, -b * inv_a, tau * inv_a, inv_a * inv_a * det};
}

// Slack for rounding of an extent, in pixels.
template <typename S>
GR_HD S pad(const EllipseAxis<S>& e) {
  return S(1e-2) + S(1e-5) * e.half;
}

// Where d^T K d is at most `level`, with slack for rounding: the kernel's quadratic form loses a
// relative epsilon times the condition. Without a branch.
template <typename S>
GR_HD Footprint<S> footprint_within(const Splat<S>& s, S level, const TileRect& rect) {
  const S slack = S(1e-5) + S(1e-6) * s.conic_xx * s.cov_xx;
  const S tau = level * (S(1) + slack) + S(1e-4) + slack;
  const S det = s.conic_xx / s.cov_yy;  // of the conic; a difference of products would cancel
  return {s.x, s.y, ellipse_axis(s.conic_xx, s.conic_xy, s.cov_xx, s.cov_xy, det, tau),
          ellipse_axis(s.conic_yy, s.conic_xy, s.cov_yy, s.cov_xy, det, tau), rect};
}

// Nowhere if the opacity is below that of the faintest pixel.
template <typename S>
GR_HD Footprint<S> footprint(const Splat<S>& s, S opacity, TileRect rect) {
  if (!(opacity >= S(kMinAlpha))) rect.y1 = rect.y0;
  return footprint_within(s, max_of(S(2) * std::log(opacity * S(255)), S(0)), rect);
}

// Extent along an axis of the part of the ellipse whose other coordinate is in [low, high]
// (relative to the centre), limited to +-half_other; false if there is none. Here and in the spans
// nothing branches, so that the CPU takes many at a time.
template <typename S>
GR_HD bool slab_extent(const EllipseAxis<S>& e, S half_other, S low, S high, S& first, S& last) {
  low = max_of(low, -half_other);
  high = min_of(high, half_other);
  const S u_last = clamp(e.at_half, low, high), u_first = clamp(-e.at_half, low, high);
  const S chord_last = std::sqrt(max_of(e.square - e.shrink * u_last * u_last, S(0)));
  const S chord_first = std::sqrt(max_of(e.square - e.shrink * u_first * u_first, S(0)));
  last = u_last == e.at_half ? e.half : e.slope * u_last + chord_last;
  first = u_first == -e.at_half ? -e.half : e.slope * u_first - chord_first;
  return low <= high;
}

// Tiles that the footprint touches in the pixel rows [top, end).
template <typename S>
GR_HD Span tile_span(const Footprint<S>& f, int top, int end) {
  S first, last;
  const S pad_x = pad(f.along_x), pad_y = pad(f.along_y);
  const bool any = slab_extent(f.along_x, f.along_y.half, S(top) - f.y - pad_y,
                               S(end - 1) - f.y + pad_y, first, last);
  const S low = f.x + first - pad_x - S(kTile - 1), high = f.x + last + pad_x;
  const S inv_tile = S(1) / S(kTile);
  const S tile_low = std::ceil(clamp(low * inv_tile, S(f.rect.x0), S(f.rect.x1)));
  const int t1 = static_cast<int>(clamp(high * inv_tile, S(0), S(f.rect.x1)));
  const int tile_end = t1 < f.rect.x1 ? t1 : f.rect.x1 - 1;
  return {static_cast<int>(tile_low), any & (high >= S(0)) ? tile_end : -1};
}

// Pixel rows of [top, end) that the footprint touches in `columns` pixel columns from `left` on.
template <typename S>
GR_HD Span row_span(const Footprint<S>& f, int left, int columns, int top, int end) {
  const S low_x = S(left) - f.x, high_x = S(left + columns - 1) - f.x;
  S first, last;
  const S pad_x = pad(f.along_x), pad_y = pad(f.along_y);
  const bool any = slab_extent(f.along_y, f.along_x.half, low_x - pad_x, high_x + pad_x, first,
                               last);
  const S low = clamp(f.y + first - pad_y, S(top), S(end));
  const S high = clamp(f.y + last + pad_y, S(top - 1), S(end - 1));
  return {static_cast<int>(std::ceil(low)),
          any ? static_cast<int>(std::floor(high)) : top - 1};
}

}  // namespace gr
