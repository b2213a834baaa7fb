// A decoder of several heads over many rows, forward and backward, on the CPU.
//
//   h = x A^T + a            (N, W); or h = x, if there is no first layer
//   z_k = relu(relu(h) W_k^T + w_k)          (N, W), for each of K heads
//   y_k = z_k V_k^T + v_k                    (N, S_k)
//
// A few rows at a time go through all of it, so that nothing between x and y is ever in memory; the
// backward pass computes it again.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace decoder {

constexpr int kMaxHeads = 8;
// Rows are cut into as many slices whatever the number of threads: each sums the gradients of its
// rows, and the slices' sums are added up in their order. So the bits are the same for any number.
constexpr int kSlices = 16;

template <typename T>
struct Layers {
  int inputs, width, heads;  // F, W, K
  const T* first;            // A (W, F), or null: x is h, and F = W
  const T* first_bias;       // a (W,)
  const T* inner;            // W_k (K, W, W)
  const T* inner_bias;       // w_k (K, W)
  const T* last[kMaxHeads];  // V_k (S_k, W)
  const T* last_bias[kMaxHeads];
  int outputs[kMaxHeads];  // S_k
};

template <typename T>
struct Gradients {
  T* x;  // (N, F), or null: not wanted
  T *first, *first_bias, *inner, *inner_bias;
  T* last[kMaxHeads];
  T* last_bias[kMaxHeads];
};

template <typename T>
struct Routines {
  void (*forward)(const T* x, std::int64_t count, const Layers<T>& layers, int threads,
                  T* const* outputs);

  // Vector-Jacobian product; a head without a gradient (null) has none to pass on. `grads` are
  // overwritten.
  void (*backward)(const T* x, std::int64_t count, const Layers<T>& layers,
                   const T* const* grad_outputs, int threads, const Gradients<T>& grads);
};

// What is compiled once per level, see native/isa.h.
struct Kernels {
  Routines<float> f32;
  Routines<double> f64;
};

}  // namespace decoder
