// Forward and backward of the encoder over many points, on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "hash_grid.h"

namespace hashgrid {

template <typename T>
struct Grid {
  std::vector<Level<T>> levels;
  std::int64_t rows;  // of the whole table
  int dims;           // D, kMinDims to kMaxDims
  int features;       // F of a level
  bool smooth;        // smoothstep weights, else linear

  std::int64_t width() const { return static_cast<std::int64_t>(levels.size()) * features; }
  std::int64_t end(int level) const {  // one past the last row of a level
    const bool last = level + 1 == static_cast<int>(levels.size());
    return last ? rows : levels[level + 1].offset;
  }
};

// features (N, L * F) = encode(x (N, D), table (rows, F)); a row with a NaN coordinate becomes NaN.
template <typename T>
void forward(const T* x, std::int64_t count, const T* table, const Grid<T>& grid, int threads,
             T* features);

// d(loss)/d(table) (rows, F), overwritten. Each row is summed in the order of the points by one
// thread, so the bits do not depend on the number of threads. NaN points pass no gradient.
template <typename T>
void backward_table(const T* x, std::int64_t count, const Grid<T>& grid, const T* grad_features,
                    int threads, T* grad_table);

// d(loss)/d(x) (N, D), overwritten; 0 for NaN points and along axes on which a point lies outside.
template <typename T>
void backward_points(const T* x, std::int64_t count, const T* table, const Grid<T>& grid,
                     const T* grad_features, int threads, T* grad_x);

}  // namespace hashgrid
