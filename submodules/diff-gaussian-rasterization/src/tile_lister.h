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

  // `tile_count`: per tile, what is listed is added to it.
  TileLister(int tiles_x, Touches& touches, std::uint32_t* tile_count)
      : tiles_x_(tiles_x), touches_(touches), tile_count_(tile_count) {
    touches_.clear();
  }

  // Footprints come in ascending order; `first_tile` is the number of the first tile of its stack.
  void add(int c, const Footprint<S>& f, int first_tile) {
    S along_x[kSide];
    fill_side(f, f.along_x, f.along_y, along_x);
    fill_side(f, f.along_y, f.along_x, along_y_[c]);
    first_tile_[c] = first_tile;
    counts_[c] = 0;
    if (is_empty(f.rect)) return;  // its axes may not even be numbers
    const int top = f.rect.y0 * kTile, end = f.rect.y1 * kTile;
    for (int ty = top / kTileRows; ty * kTileRows < end; ++ty) {
      x0_[rows_.count] = f.rect.x0;
      x1_[rows_.count] = f.rect.x1;
      rows_.push(c, along_x, 0, ty, std::max(top, ty * kTileRows),
                 std::min(end, (ty + 1) * kTileRows));
      if (rows_.count == kItems) list_tiles();
    }
  }

  void finish() {
    list_tiles();
    list_rows();
  }

  std::uint32_t count(int c) const { return counts_[c]; }  // tiles of a footprint

 private:
  // Pairs as arrays. Places beyond `count` hold earlier ones, or zeros: computed, but not listed.
  struct Items {
    int count = 0;
    int number[kItems], tx[kItems] = {}, ty[kItems] = {};
    int top[kItems] = {}, end[kItems] = {};  // pixel rows of the rectangle in them
    alignas(64) S side[kSide][kItems] = {};

    void push(int c, const S* values, int x, int y, int top_, int end_) {
      for (int k = 0; k < kSide; ++k) side[k][count] = values[k];
      number[count] = c;
      tx[count] = x;
      ty[count] = y;
      top[count] = top_;
      end[count] = end_;
      ++count;
    }
    EllipseAxis<S> along(int i) const {
      return {side[kHalf][i], side[kAtHalf][i], side[kSlope][i], side[kSquare][i],
              side[kShrink][i]};
    }
    EllipseAxis<S> other(int i) const { return {side[kOtherHalf][i], S(0), S(0), S(0), S(0)}; }
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
    int first[kItems], last[kItems];
    for (int k = 0; k < kItems; ++k) {
      const Footprint<S> f{rows_.side[kCentreX][k], rows_.side[kCentreY][k], rows_.along(k),
                           rows_.other(k), {x0_[k], 0, x1_[k], 0}};
      const Span span = tile_span(f, rows_.top[k], rows_.end[k]);
      first[k] = span.first;
      last[k] = span.last;
    }
    for (int k = 0; k < rows_.count; ++k) {
      const int c = rows_.number[k];
      for (int tx = first[k]; tx <= last[k]; ++tx) {
        tiles_.push(c, along_y_[c], tx, rows_.ty[k], rows_.top[k], rows_.end[k]);
        if (tiles_.count == kItems) list_rows();
      }
    }
    rows_.count = 0;
  }

  void list_rows() {
    if (tiles_.count == 0) return;
    int first[kGroups<S>][kItems], end[kGroups<S>][kItems];
    for (int g = 0; g < kGroups<S>; ++g) {
      for (int k = 0; k < kItems; ++k) {
        const Footprint<S> f{tiles_.side[kCentreX][k], tiles_.side[kCentreY][k], tiles_.other(k),
                             tiles_.along(k), {}};
        constexpr int columns = kTile / kGroups<S>;
        const Span span = row_span(f, tiles_.tx[k] * kTile + g * columns, columns, tiles_.top[k],
                                   tiles_.end[k]);
        const bool any = span.first <= span.last;
        first[g][k] = any ? span.first - tiles_.ty[k] * kTileRows : 0;
        end[g][k] = any ? span.last + 1 - tiles_.ty[k] * kTileRows : 0;
      }
    }
    for (int k = 0; k < tiles_.count; ++k) {
      Spans spans = 0;
      for (int g = 0; g < kGroups<S>; ++g) spans |= span_of(g, first[g][k], end[g][k]);
      if (spans == 0) continue;
      const int c = tiles_.number[k];
      const int tile = first_tile_[c] + tiles_.ty[k] * tiles_x_ + tiles_.tx[k];
      touches_.push({static_cast<std::uint32_t>(tile), spans});
      ++tile_count_[tile];
      ++counts_[c];
    }
    tiles_.count = 0;
  }

  S along_y_[kChunk][kSide];
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
