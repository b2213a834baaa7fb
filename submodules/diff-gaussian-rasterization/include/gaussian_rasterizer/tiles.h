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

// floor(v / 16) limited to [0, count] before the conversion, so that no input can overflow.
template <typename S>
GR_HD int tile_index(S v, int count) {
  return static_cast<int>(clamp(v / S(kTile), S(0), S(count)));
}

template <typename S>
GR_HD TileRect tile_rect(const Splat<S>& s, int tiles_x, int tiles_y) {
  const S margin = S(kTile - 1);
  return {tile_index(s.x - s.radius, tiles_x), tile_index(s.y - s.radius, tiles_y),
          tile_index(s.x + s.radius + margin, tiles_x),
          tile_index(s.y + s.radius + margin, tiles_y)};
}

GR_HD bool is_empty(const TileRect& r) { return r.x0 >= r.x1 || r.y0 >= r.y1; }

// The ellipse K(d, d) <= tau within which alpha can reach 1/255, centred on (x, y).
template <typename S>
struct Footprint {
  S x, y;
  S a, b, c;        // conic
  S tau;
  S half_x, half_y; // extents along the axes
  TileRect rect;
};

// An interval of pixels or tiles, end inclusive; empty if first > last.
struct Span {
  int first, last;
};

// Slack for rounding: the kernel's quadratic form loses a relative epsilon times the condition.
template <typename S>
GR_HD Footprint<S> footprint(const Splat<S>& s, S opacity, const TileRect& rect) {
  Footprint<S> f{s.x, s.y, s.conic_xx, s.conic_xy, s.conic_yy, S(-1), S(0), S(0), rect};
  if (!(opacity >= S(kMinAlpha))) {
    f.rect.y1 = f.rect.y0;
    return f;
  }
  const S tau = S(2) * std::log(opacity * S(255));
  const S slack = S(1e-5) + S(1e-6) * s.conic_xx * s.cov_xx;
  f.tau = max_of(tau, S(0)) * (S(1) + slack) + S(1e-4) + slack;
  f.half_x = std::sqrt(f.tau * s.cov_xx);
  f.half_y = std::sqrt(f.tau * s.cov_yy);
  return f;
}

// Extent along one axis of the part of the ellipse whose other coordinate is in [low, high]
// (relative to the centre). `a` belongs to the axis asked for, `c` to the other.
template <typename S>
GR_HD bool slab_extent(S a, S b, S c, S tau, S half, S half_other, S low, S high, S& first,
                       S& last) {
  low = max_of(low, -half_other);
  high = min_of(high, half_other);
  if (!(low <= high)) return false;
  const S at_max = -b * half / c;  // other coordinate of the extreme point along this axis
  const S y_max = clamp(at_max, low, high), y_min = clamp(-at_max, low, high);
  const S det = a * c - b * b, inv_a = S(1) / a;
  last = (-b * y_max + std::sqrt(max_of(a * tau - det * y_max * y_max, S(0)))) * inv_a;
  first = (-b * y_min - std::sqrt(max_of(a * tau - det * y_min * y_min, S(0)))) * inv_a;
  if (at_max >= low && at_max <= high) last = half;
  if (-at_max >= low && -at_max <= high) first = -half;
  return true;
}

template <typename S>
GR_HD S slack_of(S extent) {
  return S(1e-2) + S(1e-5) * std::fabs(extent);
}

// Tiles of tile row `ty` that the footprint touches.
template <typename S>
GR_HD Span tile_span(const Footprint<S>& f, int ty) {
  const S top = S(ty * kTile) - f.y;
  S first, last;
  const S slack = slack_of(f.half_y) ;
  if (!slab_extent(f.a, f.b, f.c, f.tau, f.half_x, f.half_y, top - slack,
                   top + S(kTile - 1) + slack, first, last)) {
    return {0, -1};
  }
  const S pad = slack_of(f.half_x);
  const S low = f.x + first - pad - S(kTile - 1), high = f.x + last + pad;
  if (!(high >= S(0))) return {0, -1};
  const S tile_low = std::ceil(clamp(low / S(kTile), S(f.rect.x0), S(f.rect.x1)));
  const int t1 = static_cast<int>(clamp(high / S(kTile), S(0), S(f.rect.x1)));
  return {static_cast<int>(tile_low), t1 < f.rect.x1 ? t1 : f.rect.x1 - 1};
}

// Pixel rows 0..15 of tile (tx, ty) that the footprint touches.
template <typename S>
GR_HD Span row_span(const Footprint<S>& f, int tx, int ty) {
  const S left = S(tx * kTile) - f.x, slack = slack_of(f.half_x);
  S first, last;
  if (!slab_extent(f.c, f.b, f.a, f.tau, f.half_y, f.half_x, left - slack,
                   left + S(kTile - 1) + slack, first, last)) {
    return {0, -1};
  }
  const S top = S(ty * kTile) - f.y, pad = slack_of(f.half_y);
  const S low = clamp(first - pad - top, S(0), S(kTile));
  const S high = clamp(last + pad - top, S(-1), S(kTile - 1));
  return {static_cast<int>(std::ceil(low)), static_cast<int>(std::floor(high))};
}

}  // namespace gr
