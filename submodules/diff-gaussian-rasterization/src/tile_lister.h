// From footprints to the tiles that they touch, and the rows of pixels in them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blend_row.h"

namespace gr {
namespace NATIVE_LEVEL {

// One axis of a footprint, as an array: what a span along it needs.
enum SideField { kCentreX, kCentreY, kHalf, kAtHalf, kSlope, kSquare, kShrink, kOtherHalf, kSide };

// The tiles that the footprints of a chunk touch: first the (footprint, row of tiles) pairs, which
// give (footprint, tile) pairs, which give spans of rows. Each kind is gathered until there are
// kItems, which the compiler then takes side by side; all keep their order.
template <typename S>
class TileLister {
 public:
  static constexpr int kItems = 64;
  // Wide vectors take rows of numbers apart in little time, so that an item is one copy; and two are
  // put at a time, whether or not there is a second: most often there are one or two, and which of
  // both the processor would guess wrong. With others columns, filled one by one, are as fast.
  static constexpr bool kRowsOfItems = Pack<S>::lanes >= 16;
  static constexpr int kPut = kRowsOfItems ? 2 : 1;

  // `tile_count`: per tile, what is listed is added to it.
  TileLister(int tiles_x, Touches& touches, std::uint32_t* tile_count)
      : tiles_x_(tiles_x), touches_(touches), tile_count_(tile_count) {
    touches_.clear();
  }

  // Footprints come in ascending order; `first_tile` is the number of the first tile of its stack.
  void add(int c, const Footprint<S>& f, int first_tile) {
    alignas(64) S along_x[kSide];
    fill_side(f, f.along_x, f.along_y, along_x);
    fill_side(f, f.along_y, f.along_x, along_y_[c]);
    first_tile_[c] = first_tile;
    counts_[c] = 0;
    if (is_empty(f.rect)) return;  // its axes may not even be numbers
    const int top = f.rect.y0 * kTile, end = f.rect.y1 * kTile;
    const int ty = top / kTileRows, rows = (end + kTileRows - 1) / kTileRows - ty;
    for (int j = 0; j < rows; j += kPut) {
      if (rows_.count > kItems - kPut) list_tiles();
      for (int at = j; at < j + kPut; ++at) {
        const int first = (ty + at) * kTileRows, k = rows_.count + at - j;
        x0_[k] = f.rect.x0;
        x1_[k] = f.rect.x1;
        rows_.put(k, c, along_x, 0, ty + at, std::max(top, first),
                  std::min(end, first + kTileRows));
      }
      rows_.count += std::min(rows - j, kPut);
    }
  }

  void finish() {
    list_tiles();
    list_rows();
  }

  std::uint32_t count(int c) const { return counts_[c]; }  // tiles of a footprint

 private:
  // Pairs. Places beyond `count` hold those that are none, or earlier ones, or zeros: computed, but not
  // listed.
  struct Items {
    int count = 0;
    int number[kItems], tx[kItems] = {}, ty[kItems] = {};
    int top[kItems] = {}, end[kItems] = {};  // pixel rows of the rectangle in them
    alignas(64) S side[kItems * kSide] = {};

    void put(int k, int c, const S* values, int x, int y, int top_, int end_) {
      if (kRowsOfItems) std::copy_n(values, kSide, side + place(0, k));
      for (int f = 0; !kRowsOfItems && f < kSide; ++f) side[place(f, k)] = values[f];
      number[k] = c;
      tx[k] = x;
      ty[k] = y;
      top[k] = top_;
      end[k] = end_;
    }
    Footprint<S> footprint(int k, TileRect rect) const {
      const auto s = [&](int field) { return side[place(field, k)]; };
      return {s(kCentreX), s(kCentreY), {s(kHalf), s(kAtHalf), s(kSlope), s(kSquare), s(kShrink)},
              {s(kOtherHalf), S(0), S(0), S(0), S(0)}, rect};
    }
    static constexpr int place(int field, int k) {
      return kRowsOfItems ? k * kSide + field : field * kItems + k;
    }
  };

  static void fill_side(const Footprint<S>& f, const EllipseAxis<S>& along,
                        const EllipseAxis<S>& other, S* side) {
    side[kCentreX] = f.x;
    side[kCentreY] = f.y;
    side[kHalf] = along.half;
    side[kAtHalf] = along.at_half;
    side[kSlope] = along.slope;
    side[kSquare] = along.square;
    side[kShrink] = along.shrink;
    side[kOtherHalf] = other.half;
  }

  void list_tiles() {
    if (rows_.count == 0) return;
    int first[kItems], count[kItems];
    for (int k = 0; k < kItems; ++k) {
      const Footprint<S> f = rows_.footprint(k, {x0_[k], 0, x1_[k], 0});
      const Span span = tile_span(f, rows_.top[k], rows_.end[k]);
      first[k] = span.first;
      count[k] = span.last + 1 - span.first;
    }
    for (int k = 0; k < rows_.count; ++k) {
      const int c = rows_.number[k];
      for (int j = 0; j < count[k]; j += kPut) {
        if (tiles_.count > kItems - kPut) list_rows();
        for (int at = 0; at < kPut; ++at) {
          tiles_.put(tiles_.count + at, c, along_y_[c], first[k] + j + at, rows_.ty[k],
                     rows_.top[k], rows_.end[k]);
        }
        tiles_.count += std::min(count[k] - j, kPut);
      }
    }
    rows_.count = 0;
  }

  void list_rows() {
    if (tiles_.count == 0) return;
    int first[kGroups<S>][kItems], end[kGroups<S>][kItems];
    for (int g = 0; g < kGroups<S>; ++g) {
      for (int k = 0; k < kItems; ++k) {
        const Footprint<S> along = tiles_.footprint(k, {});
        const Footprint<S> f{along.x, along.y, along.along_y, along.along_x, {}};
        constexpr int columns = kTile / kGroups<S>;
        const Span span = row_span(f, tiles_.tx[k] * kTile + g * columns, columns, tiles_.top[k],
                                   tiles_.end[k]);
        const bool any = span.first <= span.last;
        first[g][k] = any ? span.first - tiles_.ty[k] * kTileRows : 2;
        end[g][k] = any ? span.last + 1 - tiles_.ty[k] * kTileRows : 2;
      }
    }
    Touch* out = touches_.next(tiles_.count);
    int listed = 0;
    for (int k = 0; k < tiles_.count; ++k) {
      Spans spans = 0;
      for (int g = 0; g < kGroups<S>; ++g) spans |= span_of(g, first[g][k], end[g][k]);
      const int c = tiles_.number[k];
      const int tile = first_tile_[c] + tiles_.ty[k] * tiles_x_ + tiles_.tx[k];
      const bool any = spans != no_spans(kGroups<S>);
      out[listed] = Touch(static_cast<std::uint32_t>(tile), spans);
      listed += any;
      tile_count_[tile] += any;
      counts_[c] += any;
    }
    touches_.add(listed);
    tiles_.count = 0;
  }

  alignas(64) S along_y_[kChunk][kSide];
  int first_tile_[kChunk];
  std::uint32_t counts_[kChunk];
  Items rows_, tiles_;
  int x0_[kItems] = {}, x1_[kItems] = {};  // the columns of tiles of rows_
  const int tiles_x_;
  Touches& touches_;
  std::uint32_t* tile_count_;
};

}  // namespace NATIVE_LEVEL
}  // namespace gr
