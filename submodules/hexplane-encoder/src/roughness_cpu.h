// How rough feature planes are, and the derivative of it, on the CPU.
//
// Of a plane p (H, W, C): the sum of the squared second differences along the height, that along the
// width, and the sum of |1 - p|; each in one pass.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace roughness {

constexpr int kMeasures = 3;

template <typename T>
struct Plane {
  const T* data;
  std::int64_t height, width, channels;
  // What of the sums is asked for; backward: factors of their derivatives. 0: nothing.
  T weight[kMeasures];
};

template <typename T>
struct Routines {
  // sums (planes, 3). A row is summed in T, rows in double and in their order.
  void (*forward)(const Plane<T>* planes, int count, int threads, double* sums);

  // grads[i] (H, W, C) = sum over the measures of weight x d(measure)/d(plane i)
  void (*backward)(const Plane<T>* planes, int count, int threads, T* const* grads);
};

// What is compiled once per level, see native/isa.h.
struct Kernels {
  Routines<float> f32;
  Routines<double> f64;
};

}  // namespace roughness
