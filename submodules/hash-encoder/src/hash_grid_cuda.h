// Forward and backward of the encoder over many points, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "layout.h"

namespace hashgrid {

// All arrays are in device memory; the levels of `grid` are copied into the launches.

// features (N, L * F) = encode(x (N, D), table (rows, F)); a row with a NaN coordinate becomes NaN.
template <typename T>
void forward(const T* x, std::int64_t count, const T* table, const Grid<T>& grid, T* features,
             cudaStream_t stream);

// Adds d(loss)/d(table) to `grad_table` (rows, F), which the caller has zeroed. Rows are added to
// atomically, so their last bits vary from run to run. NaN points pass no gradient.
template <typename T>
void backward_table(const T* x, std::int64_t count, const Grid<T>& grid, const T* grad_features,
                    T* grad_table, cudaStream_t stream);

// d(loss)/d(x) (N, D), overwritten, the same bits every time; 0 for NaN points and along axes on
// which a point lies outside.
template <typename T>
void backward_points(const T* x, std::int64_t count, const T* table, const Grid<T>& grid,
                     const T* grad_features, T* grad_x, cudaStream_t stream);

}  // namespace hashgrid
