// Forward and backward of the encoder over many points, on the CPU.
#pragma once

#include <cstdint>

#include "hexplane.h"
#include "native/isa.h"

namespace hexplane {

// Points that one pass of the backward handles; the scratch below is sized by it. Smaller blocks stay
// in the cache, larger ones wait less often for threads to be scheduled on a busy machine.
constexpr std::int64_t kBlockPoints = 16384;

// Channels-last feature grids. `Value` is `const T` for values and `T` for gradients.
template <typename Value>
struct Grids {
  Value* data[kFactors];  // planes (height, width, C), then lines (length, C)
  int width[kFactors];    // 1 for lines
  int height[kFactors];   // the length for lines
  int channels;
};

template <typename T>
struct BackwardOutputs {
  T* xyz;                 // (N, 3), or null: not wanted
  const Grids<T>* grids;  // zeroed by the caller, or null: not wanted
  T* partials;            // scratch (kBlockPoints or N, 6, C)
  std::int32_t* rows;     // scratch (6, kBlockPoints or N)
};

template <typename T>
struct Routines {
  // features (N, C) = encode(xyz (N, 3)); a row with a NaN coordinate becomes NaN.
  void (*forward)(const T* xyz, std::int64_t count, const Grids<const T>& grids, int threads,
                  T* features);

  // Vector-Jacobian product. Every gradient cell is summed in the order of the points by one thread,
  // so the bits do not depend on the number of threads. NaN points pass no gradient.
  void (*backward)(const T* xyz, std::int64_t count, const Grids<const T>& grids,
                   const T* grad_features, int threads, const BackwardOutputs<T>& out);
};

// What is compiled once per level, see native/isa.h.
struct Kernels {
  Routines<float> f32;
  Routines<double> f64;
};

}  // namespace hexplane
