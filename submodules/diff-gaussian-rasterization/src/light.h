// For benchmarks only: what an image cannot do without, counted and timed at the level in use.
#pragma once

#include <cstdint>

#include "rasterizer.h"

namespace gr {

// Of one view of a render.
struct WorkCounts {
  // (pixel, splat) pairs
  std::int64_t looked_at = 0;       // in a group that the splat touches, of a pixel that goes on
  std::int64_t blended = 0;         // and the splat is drawn there
  std::int64_t lanes = 0;           // looked at by whole groups
  std::int64_t looked_at_back = 0;  // up to the pixel's last contributor
  // splats
  std::int64_t listed = 0;      // in at least one tile
  std::int64_t tiles = 0;       // (splat, tile) pairs in the lists
  std::int64_t drawn = 0;       // in at least one pixel
};

enum class BareWork {
  // of a (pixel, splat) pair
  kLook,         // alpha, and its comparison with 1/255
  kBlend,        // the same, and the blending of four features
  kGather,       // the same as kLook, and the gradients of three features and of alpha
  // of a Gaussian, harmonics of degree 3
  kProject,       // its covariance, from scales and rotation, and its splat
  kFootprint,     // the two axes of its footprint
  kSpans,         // in one tile: which rows of each group the footprint touches
  kColor,         // from the harmonics
  kProjectBack,   // from moments to the gradients of position, scales, rotation and opacity
  kColorBack,     // from that of the colour to those of the harmonics and the position
  // of no more than itself
  kMultiplyAdd,
};

}  // namespace gr

#if defined(NATIVE_LEVEL)
namespace gr {
namespace NATIVE_LEVEL {

// Goes through the lists of a finished view once more.
template <typename S>
WorkCounts count_work(const Inputs<S>& in, const ViewState<S>& state, int threads);

// Nanoseconds of one thread per item (pair, Gaussian, ...), over at least `count` of them, float32:
// the arithmetic of the kernels without their bookkeeping, on data that stays in registers and in
// the first cache.
double bare_kernel_ns(std::int64_t count, BareWork work);

// The same of what is done per Gaussian.
double bare_gaussian_ns(std::int64_t count, BareWork work);

}  // namespace NATIVE_LEVEL
}  // namespace gr
#endif
