// Forward and backward of the encoder over many points, on the CPU.
#pragma once

#include <cstdint>

#include "layout.h"
#include "native/isa.h"

namespace hashgrid {

template <typename T>
struct Routines {
  // features (N, L * F) = encode(x (N, D), table (rows, F)); a row with a NaN coordinate becomes NaN.
  void (*forward)(const T* x, std::int64_t count, const T* table, const Grid<T>& grid, int threads,
                  T* features);

  // d(loss)/d(table) (rows, F), overwritten. Each row is summed in the order of the points by one
  // thread, so the bits do not depend on the number of threads. NaN points pass no gradient.
  void (*backward_table)(const T* x, std::int64_t count, const Grid<T>& grid,
                         const T* grad_features, int threads, T* grad_table);

  // d(loss)/d(x) (N, D), overwritten; 0 for NaN points and along axes on which a point lies outside.
  void (*backward_points)(const T* x, std::int64_t count, const T* table, const Grid<T>& grid,
                          const T* grad_features, int threads, T* grad_x);
};

// What is compiled once per level, see native/isa.h.
struct Kernels {
  Routines<float> f32;
  Routines<double> f64;
};

}  // namespace hashgrid
