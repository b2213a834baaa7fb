// For benchmarks only: what the blending of an image cannot do without, counted and timed at the level
// in use.
#pragma once

#include <cstdint>

#include "rasterizer.h"

namespace gr {

// (pixel, splat) pairs of one view of a render.
struct PairCounts {
  std::int64_t looked_at = 0;       // in a group that the splat touches, of a pixel that goes on
  std::int64_t blended = 0;         // and the splat is drawn there
  std::int64_t lanes = 0;           // looked at by whole groups, as the kernel does it
  std::int64_t looked_at_back = 0;  // up to the pixel's last contributor
};

enum class BareWork {
  kLook,         // alpha, and its comparison with 1/255
  kBlend,        // the same, and the blending of four features
  kGather,       // the same as kLook, and the gradients of three features and of alpha
  kMultiplyAdd,  // not of a pair: one multiplication and addition
};

}  // namespace gr

#if defined(NATIVE_LEVEL)
namespace gr {
namespace NATIVE_LEVEL {

// Goes through the lists of a finished view once more.
template <typename S>
PairCounts count_pairs(const Inputs<S>& in, const ViewState<S>& state, int threads);

// Nanoseconds of one thread per pair, over at least `pairs` of them, float32: the arithmetic of the
// row kernels without their bookkeeping, on data that stays in registers and in the first cache.
double bare_kernel_ns(std::int64_t pairs, BareWork work);

}  // namespace NATIVE_LEVEL
}  // namespace gr
#endif
