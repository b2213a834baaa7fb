// Forward and backward of the encoder over many points, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "hexplane.h"

namespace hexplane {

// Channels-last feature grids in device memory. `Value` is `const T` for values, `T` for gradients.
template <typename Value>
struct DeviceGrids {
  Value* data[kFactors];  // planes (height, width, C), then lines (length, C); gradients: null for
                          // grids that want none
  int width[kFactors];    // 1 for lines
  int height[kFactors];   // the length for lines
  int channels;
};

// features (N, C) = encode(xyz (N, 3)); a row with a NaN coordinate becomes NaN.
template <typename T>
void forward(const T* xyz, std::int64_t count, const DeviceGrids<const T>& grids, T* features,
             cudaStream_t stream);

// Vector-Jacobian product. `grad_xyz` (N, 3) may be null: not wanted. `grad_grids` are zeroed by the
// caller and added to atomically, so their last bits vary from run to run. NaN points pass no
// gradient.
template <typename T>
void backward(const T* xyz, std::int64_t count, const DeviceGrids<const T>& grids,
              const T* grad_features, T* grad_xyz, const DeviceGrids<T>& grad_grids,
              cudaStream_t stream);

}  // namespace hexplane
