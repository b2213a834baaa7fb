// Per-Gaussian stages on a GPU, a thread per Gaussian: projection, the list of tiles, the way back.
#include "cuda_rasterizer.h"
#include "native/cuda.cuh"

namespace gr {
namespace cuda {
namespace {

constexpr unsigned kBlock = 128;
constexpr int kAlone = 16;  // tiles that one thread lists by itself; more are listed by its warp

// Counting tiles and listing them must agree to the last bit, or pairs would be lost or overlap. So
// both call this very function on the same stored footprint: compiled into two kernels it could
// round differently in each.
template <typename S>
NATIVE_NOINLINE __device__ Span stored_span(const Footprint<S>* footprint, int ty) {
  return tile_span(*footprint, ty);
}

__device__ __forceinline__ int width_of(const Span& span) {
  return span.last >= span.first ? span.last - span.first + 1 : 0;
}

template <typename S>
__device__ Geometry<S> geometry_of(const Splat<S>& splat, S opacity) {
  // Far above what the exponent and the logarithm can be off by together.
  constexpr S slack = S(1e-3);
  const S reach = opacity > S(0) ? -std::log2(opacity * S(255)) - slack : S(0);
  return {splat.x, splat.y, falloff(splat), opacity, reach, splat.depth};
}

__device__ __forceinline__ std::uint32_t depth_key(float depth) { return __float_as_uint(depth); }
__device__ __forceinline__ std::uint64_t depth_key(double depth) {
  return static_cast<std::uint64_t>(__double_as_longlong(depth));
}

// Fills everything about a splat that is drawn; returns the number of its tiles.
template <typename S>
__device__ int fill_splat(const Inputs<S>& in, std::int64_t number, const Splat<S>& splat,
                          const TileRect& rect, S opacity, const SplatArrays<S>& out) {
  S* features = out.features + number * out.feature_stride;
  features[in.channels] = splat.depth;
  for (int k = in.features(); k < out.feature_stride; ++k) features[k] = S(0);
  out.geometry[number] = geometry_of(splat, opacity);
  Footprint<S>* footprint = out.footprints + number;
  *footprint = gr::footprint(splat, opacity, rect);
  int count = 0;
  for (int ty = footprint->rect.y0; ty < footprint->rect.y1; ++ty) {
    count += width_of(stored_span(footprint, ty));
  }
  return count;
}

template <typename S>
__global__ void __launch_bounds__(kBlock)
project_kernel(Inputs<S> in, SplatArrays<S> out, std::int32_t* radii) {
  const std::int64_t i = native::global_index();
  if (i >= in.gaussians) return;
  const int v = static_cast<int>(blockIdx.y);
  const std::int64_t number = std::int64_t(v) * in.gaussians + i;
  const Camera<S> camera = in.camera(v);
  Splat<S> splat;
  TileRect rect;
  int tiles = 0, radius = 0;
  if (project_gaussian(in, v, i, camera, splat, rect) &&
      color_features(in, v, i, camera, input_mean(in, v, i),
                     out.features + number * out.feature_stride)) {
    radius = static_cast<int>(splat.radius);
    tiles = fill_splat(in, number, splat, rect, in.opacities.at(v)[i], out);
  }
  radii[number] = radius;
  out.tiles[number] = tiles;
  out.keys[number] = tiles > 0 ? depth_key(splat.depth) : ~DepthKey<S>(0);
  out.numbers[number] = static_cast<std::uint32_t>(number);
}

// Where a list of pairs goes.
template <typename Key>
struct PairList {
  Key* keys;
  std::uint32_t* slots;
  std::int32_t* splats;
};

__device__ __forceinline__ void set_key(std::uint32_t& key, std::uint32_t tile, std::uint64_t) {
  key = tile;
}
__device__ __forceinline__ void set_key(std::uint64_t& key, std::uint32_t tile,
                                        std::uint64_t depth) {
  key = (std::uint64_t(tile) << 32) | depth;
}

// Lists every `step`-th tile of each row of tiles, beginning with tile `offset`.
template <typename S, typename Key>
__device__ void list_tiles(const Inputs<S>& in, const SplatArrays<S>& splats, std::int32_t number,
                           std::int64_t slot, int offset, int step, const PairList<Key>& list) {
  const Footprint<S>* footprint = splats.footprints + number;
  const std::uint32_t first_tile =
      std::uint32_t(number / in.gaussians) * std::uint32_t(in.tiles_x() * in.tiles_y());
  for (int ty = footprint->rect.y0; ty < footprint->rect.y1; ++ty) {
    const Span span = stored_span(footprint, ty);
    for (int tx = span.first + offset; tx <= span.last; tx += step) {
      const std::int64_t at = slot + (tx - span.first);
      set_key(list.keys[at], first_tile + std::uint32_t(ty * in.tiles_x() + tx),
              splats.keys[number]);
      list.slots[at] = static_cast<std::uint32_t>(at);
      list.splats[at] = number;
    }
    slot += width_of(span);
  }
}

template <typename S, typename Key>
__global__ void __launch_bounds__(kBlock)
list_kernel(Inputs<S> in, SplatArrays<S> splats, std::int64_t count, const std::uint32_t* order,
            const std::int64_t* offsets, PairList<Key> list) {
  const auto warp = native::cg::tiled_partition<32>(native::cg::this_thread_block());
  const std::int64_t rank = native::global_index();
  std::int32_t number = 0;
  std::int64_t slot = 0;
  int tiles = 0;
  if (rank < count) {
    number = static_cast<std::int32_t>(order[rank]);
    tiles = splats.tiles[number];
    slot = offsets[rank];
    splats.first_slot[number] = static_cast<std::int32_t>(slot);
  }
  if (tiles > 0 && tiles <= kAlone) list_tiles(in, splats, number, slot, 0, 1, list);
  for (unsigned large = warp.ballot(tiles > kAlone); large != 0; large &= large - 1) {
    const int owner = __ffs(static_cast<int>(large)) - 1;
    list_tiles(in, splats, warp.shfl(number, owner), warp.shfl(slot, owner),
               static_cast<int>(warp.thread_rank()), 32, list);
  }
}

// Consecutive threads add up consecutive numbers of a splat, so that a warp reads whole rows.
template <typename S>
__global__ void __launch_bounds__(kBlock)
reduce_kernel(SplatArrays<S> splats, std::int64_t count, int stride, const S* pair_values,
              S* sums) {
  const std::int64_t at = native::global_index();
  if (at >= count * stride) return;
  const std::int64_t number = at / stride;
  const int tiles = splats.tiles[number];
  if (tiles == 0) return;
  const S* value = pair_values + std::int64_t(splats.first_slot[number]) * stride + at % stride;
  S sum = *value;
  for (int k = 1; k < tiles; ++k) sum += value[std::int64_t(k) * stride];
  sums[at] = sum;
}

// All views of a Gaussian by one thread, one after the other: shared gradients need no atomics.
template <typename S>
__global__ void __launch_bounds__(kBlock)
backward_kernel(Inputs<S> in, SplatArrays<S> splats, int stride, const S* sums,
                InputGradients<S> grad) {
  const std::int64_t i = native::global_index();
  if (i >= in.gaussians) return;
  for (int v = 0; v < in.views; ++v) {
    const std::int64_t number = std::int64_t(v) * in.gaussians + i;
    if (splats.tiles[number] == 0) {
      emit_zeros(in, v, i, grad);
      continue;
    }
    gaussian_backward(in, v, i, in.camera(v), splats.features + number * splats.feature_stride,
                      splats.geometry[number].opacity, sums + number * stride, true, grad);
  }
}

template <typename S>
__global__ void __launch_bounds__(kBlock)
visible_kernel(const S* positions, const S* view, std::int64_t count, bool* visible) {
  const std::int64_t i = native::global_index();
  if (i >= count) return;
  const S* p = positions + 3 * i;
  visible[i] = view[2] * p[0] + view[6] * p[1] + view[10] * p[2] + view[14] > S(kNearPlane);
}

}  // namespace

template <typename S>
void project(const Inputs<S>& in, const SplatArrays<S>& splats, std::int32_t* radii,
             cudaStream_t stream) {
  const dim3 blocks(native::blocks_for(in.gaussians, kBlock), in.views);
  native::launch(project_kernel<S>, blocks, dim3(kBlock), stream, in, splats, radii);
}

template <typename S, typename Key>
void list_pairs(const Inputs<S>& in, const SplatArrays<S>& splats, const std::uint32_t* order,
                const std::int64_t* offsets, Key* keys, std::uint32_t* slots,
                std::int32_t* splat_of_slot, cudaStream_t stream) {
  const std::int64_t count = std::int64_t(in.views) * in.gaussians;
  native::launch(list_kernel<S, Key>, dim3(native::blocks_for(count, kBlock)), dim3(kBlock),
                 stream, in, splats, count, order, offsets,
                 PairList<Key>{keys, slots, splat_of_slot});
}

template <typename S>
void project_backward(const Inputs<S>& in, const SplatArrays<S>& splats, const S* pair_values,
                      S* sums, const InputGradients<S>& grad, cudaStream_t stream) {
  const std::int64_t count = std::int64_t(in.views) * in.gaussians;
  const int stride = value_stride(in.features());
  native::launch(reduce_kernel<S>, dim3(native::blocks_for(count * stride, kBlock)), dim3(kBlock),
                 stream, splats, count, stride, pair_values, sums);
  native::launch(backward_kernel<S>, dim3(native::blocks_for(in.gaussians, kBlock)), dim3(kBlock),
                 stream, in, splats, stride, sums, grad);
}

template <typename S>
void mark_visible(const S* positions, const S* view, std::int64_t count, bool* visible,
                  cudaStream_t stream) {
  native::launch(visible_kernel<S>, dim3(native::blocks_for(count, kBlock)), dim3(kBlock), stream,
                 positions, view, count, visible);
}

#define GR_INSTANTIATE(S)                                                                        \
  template void project(const Inputs<S>&, const SplatArrays<S>&, std::int32_t*, cudaStream_t);   \
  template void list_pairs(const Inputs<S>&, const SplatArrays<S>&, const std::uint32_t*,        \
                           const std::int64_t*, std::uint32_t*, std::uint32_t*, std::int32_t*,   \
                           cudaStream_t);                                                        \
  template void project_backward(const Inputs<S>&, const SplatArrays<S>&, const S*, S*,          \
                                 const InputGradients<S>&, cudaStream_t);                        \
  template void mark_visible(const S*, const S*, std::int64_t, bool*, cudaStream_t);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)
template void list_pairs(const Inputs<float>&, const SplatArrays<float>&, const std::uint32_t*,
                         const std::int64_t*, std::uint64_t*, std::uint32_t*, std::int32_t*,
                         cudaStream_t);

}  // namespace cuda
}  // namespace gr
