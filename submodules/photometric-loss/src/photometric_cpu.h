// SSIM and the error of whole images, forward and backward, on the CPU.
#pragma once

#include "native/isa.h"
#include "photometric.h"

namespace photometric {

// The upstream gradients of the two means; 0 where there is none.
struct Upstream {
  double ssim, error;
};

template <typename T>
struct Routines {
  // Means over all pixels and channels. `ssim` may be null: not wanted; `error` is without effect for
  // Error::kNone. `slope` (B, C, H, W) receives the derivative of the *sum* of SSIM by the images,
  // where the mask is without effect; null: not wanted. The bits do not depend on `threads`.
  void (*forward)(const Inputs<T>& inputs, Error kind, int threads, T* ssim, T* error, T* slope);

  // `gradient` (B, C, H, W) by the images; 0 where the mask is. `slope` as of `forward`; null: there
  // is none, and `upstream.ssim` is without effect.
  void (*backward)(const Inputs<T>& inputs, Error kind, int threads, const T* slope,
                   const Upstream& upstream, T* gradient);
};

// What is compiled once per level, see native/isa.h.
struct Kernels {
  Routines<float> f32;
  Routines<double> f64;
};

}  // namespace photometric
