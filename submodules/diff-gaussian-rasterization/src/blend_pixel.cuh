// What the forward and the backward kernel must see alike, to the last bit: which pixel a thread
// has, and what a splat does to it. Products that are added are fused by hand, because the compiler
// may fuse them in one kernel and not in the other.
#pragma once

#include "cuda_rasterizer.h"
#include "native/cuda.cuh"

namespace gr {
namespace cuda {

// A pixel of a tile by its number: 32 neighbouring numbers, a warp's, are a block of 8 x 4 pixels,
// which few splats cross compared with two whole rows.
__device__ __forceinline__ int pixel_x(unsigned number) {
  return static_cast<int>((number & 7u) | ((number >> 2) & 8u));
}
__device__ __forceinline__ int pixel_y(unsigned number) {
  return static_cast<int>(((number >> 3) & 3u) | ((number >> 4) & 12u));
}

// The size of the image and of its tiles, for all stacks of all views.
struct Frame {
  int width, height, tiles_x, tiles;  // tiles of one stack
  int stacks;                         // of all views
  int images;                         // of one stack: of all layers, or of one
  int planes, features, sums;         // of an image, of one of its layers, of a pixel
  bool shared;
};

template <typename S>
Frame frame_of(const Inputs<S>& in) {
  const int tiles = in.tiles_x() * in.tiles_y(), stacks = in.views * in.stacks();
  return {in.width,    in.height,     in.tiles_x(), tiles,    stacks, in.shared ? in.layers : 1,
          in.planes(), in.features(), in.sums(),    in.shared};
}

// Where one of the sums of a pixel of a stack belongs.
struct SumPlace {
  std::int64_t image;
  int feature;
};

__device__ __forceinline__ SumPlace place_of(const Frame& frame, std::int64_t stack, int sum) {
  if (!frame.shared) return {stack, sum};
  return {stack * frame.images + sum / frame.features, sum % frame.features};
}

// With the centre relative to the first pixel of the tile.
template <typename S>
__device__ __forceinline__ Geometry<S> in_tile(Geometry<S> g, const Frame& frame, int tile) {
  g.x -= S(tile % frame.tiles_x * kTile);
  g.y -= S(tile / frame.tiles_x * kTile);
  return g;
}

template <typename S>
struct Touched {
  bool drawn;  // alpha reaches 1/255
  S raw;       // opacity times falloff, before the cap
  S alpha;     // after it
};

// dx, dy: centre minus pixel. The conic is positive definite, so the exponent can be above 0 by
// rounding only.
template <typename S>
__device__ __forceinline__ Touched<S> touch(const Geometry<S>& g, S dx, S dy) {
  const S quad = min_of(std::fma(dy, std::fma(dy, g.quad.yy, g.quad.xy * dx), g.quad.xx * dx * dx), S(0));
  if (quad < g.reach) return {false, S(0), S(0)};
  const S raw = g.opacity * std::exp2(quad);
  return {raw >= S(kMinAlpha), raw, min_of(raw, S(kMaxAlpha))};
}

template <typename S>
__device__ __forceinline__ S transmitted(S transmittance, S alpha) {
  return std::fma(-alpha, transmittance, transmittance);
}

// K features of a splat, from `first` on; zeros beyond the last.
template <typename S, int K>
struct alignas(16) FeatureRow {
  S at[K];
};

template <typename S>
struct alignas(16) Four {
  S at[4];
};

template <typename S, int K>
__device__ __forceinline__ void load_features(const SplatArrays<S>& splats, std::int64_t number,
                                              int first, FeatureRow<S, K>& row) {
  const S* features = splats.features + number * splats.feature_stride;
#pragma unroll
  for (int k = 0; k < K; k += 4) {
    Four<S> four{};
    if (first + k < splats.feature_stride) {
      four = *reinterpret_cast<const Four<S>*>(features + first + k);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) row.at[k + j] = four.at[j];
  }
}

// Features are blended K at a time: 4 for RGB and depth, 8 with three more, else 16. Calls
// run(K, first feature).
template <typename Run>
void for_feature_groups(int first, int end, const Run& run) {
  while (first < end) {
    if (end - first <= 4) {
      run(std::integral_constant<int, 4>(), first);
      first += 4;
    } else if (end - first <= 8) {
      run(std::integral_constant<int, 8>(), first);
      first += 8;
    } else {
      run(std::integral_constant<int, 16>(), first);
      first += 16;
    }
  }
}

}  // namespace cuda
}  // namespace gr
