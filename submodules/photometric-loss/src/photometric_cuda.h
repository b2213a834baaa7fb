// SSIM and the error of whole images, forward and backward, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "photometric.h"

namespace photometric {

// Blocks that cover the images; `partials` of `forward` has two doubles for each.
std::int64_t blocks(int planes, int height, int width);

// Means over all pixels and channels, one number each. `ssim` may be null: not wanted; `error` is
// without effect for Error::kNone. `slopes` (3, B, C, H, W) receives the derivatives of SSIM by its
// blurred maps, for `backward`; null: not wanted. No atomics: the same bits in every run.
template <typename T>
void forward(const Inputs<T>& inputs, Error kind, T* ssim, T* error, T* slopes, double* partials,
             cudaStream_t stream);

// `gradient` (B, C, H, W) by the images; 0 where the mask is. `grad_ssim` and `grad_error` are the
// upstream gradients of the two means, on the device; null: there is none.
template <typename T>
void backward(const Inputs<T>& inputs, Error kind, const T* slopes, const T* grad_ssim,
              const T* grad_error, T* gradient, cudaStream_t stream);

}  // namespace photometric
