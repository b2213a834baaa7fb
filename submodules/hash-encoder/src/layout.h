// The levels of a grid as the kernels of every device take them, made and checked from what Python
// describes: whoever has a Grid can index its table without a look at the bounds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "hash_grid.h"
#include "native/isa.h"

namespace hashgrid {

// A grid as `hash_encoder.HashGrid` describes it.
struct Layout {
  std::vector<std::vector<double>> scales;    // (L, D)
  std::vector<std::vector<int>> resolutions;  // (L, D)
  std::vector<std::int64_t> offsets;          // (L + 1)
  std::vector<bool> hashed;                   // (L)
  int features;
  bool smooth;
};

template <typename T>
struct Grid {
  std::vector<Level<T>> levels;
  std::int64_t rows;  // of the whole table
  int dims;           // D, kMinDims to kMaxDims
  int features;       // F of a level
  bool smooth;        // smoothstep weights, else linear

  NATIVE_INLINE std::int64_t width() const { return static_cast<std::int64_t>(levels.size()) * features; }
  NATIVE_INLINE std::int64_t end(int level) const {  // one past the last row of a level
    const bool last = level + 1 == static_cast<int>(levels.size());
    return last ? rows : levels[level + 1].offset;
  }
};

inline void check(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);  // ValueError in Python
}

// Axes of one level; returns the rows that a dense level needs.
template <typename T>
std::int64_t make_axes(const std::vector<double>& scales, const std::vector<int>& resolutions,
                       Level<T>& level) {
  std::int64_t stride = 1;
  for (std::size_t d = 0; d < scales.size(); ++d) {
    const int resolution = resolutions[d];
    check(resolution >= 1 && scales[d] >= 0 && scales[d] <= resolution - 1,
          "axis beyond its samples");
    LevelAxis<T>& axis = level.axes[d];
    axis.scale = static_cast<T>(scales[d]);
    axis.last = std::max(resolution - 2, 0);
    axis.unit = level.hashed ? prime(static_cast<int>(d)) : static_cast<std::uint32_t>(stride);
    axis.step = resolution > 1 ? axis.unit : 0;
    check(level.hashed || stride <= (std::int64_t(1) << 31) / resolution, "dense level too large");
    if (!level.hashed) stride *= resolution;
  }
  return stride;
}

template <typename T>
Grid<T> make_grid(const Layout& layout) {
  const std::size_t levels = layout.hashed.size();
  check(levels > 0 && layout.scales.size() == levels && layout.resolutions.size() == levels &&
            layout.offsets.size() == levels + 1 && layout.offsets[0] == 0 && layout.features > 0,
        "lists of levels that do not fit each other");
  const std::size_t dims = layout.scales[0].size();
  check(dims >= kMinDims && dims <= kMaxDims, "dims must be 2 to 4");
  Grid<T> grid{std::vector<Level<T>>(levels), layout.offsets[levels], static_cast<int>(dims),
               layout.features, layout.smooth};
  for (std::size_t l = 0; l < levels; ++l) {
    check(layout.scales[l].size() == dims && layout.resolutions[l].size() == dims, "ragged levels");
    Level<T>& level = grid.levels[l];
    const std::int64_t rows = layout.offsets[l + 1] - layout.offsets[l];
    level.hashed = layout.hashed[l];
    level.offset = layout.offsets[l];
    level.mask = static_cast<std::uint32_t>(rows - 1);
    const std::int64_t needed = make_axes(layout.scales[l], layout.resolutions[l], level);
    const bool power_of_two = rows > 0 && (rows & (rows - 1)) == 0;
    check(level.hashed ? power_of_two : rows >= needed, "level with too few rows");
  }
  return grid;
}

}  // namespace hashgrid
