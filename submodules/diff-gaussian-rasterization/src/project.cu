// Per-Gaussian stages on a GPU, a thread per Gaussian: projection, the list of tiles, the way back.
#include "cuda_rasterizer.h"
#include "native/vectors.cuh"

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
  return tile_span(*footprint, ty * kTile, (ty + 1) * kTile);
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

// ---------------------------------------------------------------- harmonics, 16 bytes at a time

template <typename S>
constexpr int kWide = 16 / int(sizeof(S));

__device__ __forceinline__ bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

// Count numbers into registers: loops must unroll, indices be constants.
template <int Count, typename S>
__device__ __forceinline__ void read_row(const S* from, S* row) {
  constexpr int step = kWide<S>, whole = Count / step * step;
  if (is_aligned(from)) {
#pragma unroll
    for (int k = 0; k < whole; k += step) {
      const auto vector = native::load<S, step>(from + k);
#pragma unroll
      for (int j = 0; j < step; ++j) row[k + j] = vector.at[j];
    }
  } else {
#pragma unroll
    for (int k = 0; k < whole; ++k) row[k] = from[k];
  }
#pragma unroll
  for (int k = whole; k < Count; ++k) row[k] = from[k];
}

template <int Count, typename S>
__device__ __forceinline__ void write_row(const S* row, S* to) {
  constexpr int step = kWide<S>, whole = Count / step * step;
  if (is_aligned(to)) {
#pragma unroll
    for (int k = 0; k < whole; k += step) {
      native::Vector<S, step> vector;
#pragma unroll
      for (int j = 0; j < step; ++j) vector.at[j] = row[k + j];
      native::store(to + k, vector);
    }
  } else {
#pragma unroll
    for (int k = 0; k < whole; ++k) to[k] = row[k];
  }
#pragma unroll
  for (int k = whole; k < Count; ++k) to[k] = row[k];
}

// Calls run(degree as a constant).
template <typename Run>
__device__ __forceinline__ auto with_degree(int degree, const Run& run) {
  if (degree <= 0) return run(std::integral_constant<int, 0>());
  if (degree == 1) return run(std::integral_constant<int, 1>());
  if (degree == 2) return run(std::integral_constant<int, 2>());
  return run(std::integral_constant<int, 3>());
}

// As color_features of gaussian.h.
template <typename S>
__device__ bool fetch_color(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                            Vec3<S> mean, S* features) {
  if (!in.sh) return color_features(in, v, i, camera, mean, features);
  const S* stored = in.sh.at(v) + i * in.sh_rows * 3;
  const Vec3<S> rgb = with_degree(in.sh_degree, [&](auto degree) {
    constexpr int count = 3 * sh_coefficients(decltype(degree)::value);
    S sh[count];
    read_row<count>(stored, sh);
    return sh_color_of<decltype(degree)::value>(mean - camera.position, sh);
  });
  return clamp_color(rgb, features);
}

// Four coefficients of a Gaussian at a time: what they contribute to the gradient of the basis, and
// their own gradient, to `out`.
template <int Count, typename S>
__device__ __forceinline__ void pass_coefficients(const S* sh, const S* basis, Vec3<S> g, bool adds,
                                                  S* weight, S* out) {
  S row[3 * Count], grad[3 * Count];
  read_row<3 * Count>(sh, row);
  if (adds) read_row<3 * Count>(out, grad);
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    weight[j] = dot(Vec3<S>{row[3 * j], row[3 * j + 1], row[3 * j + 2]}, g);
    const Vec3<S> own = basis[j] * g;
    grad[3 * j] = (adds ? grad[3 * j] : S(0)) + own.x;
    grad[3 * j + 1] = (adds ? grad[3 * j + 1] : S(0)) + own.y;
    grad[3 * j + 2] = (adds ? grad[3 * j + 2] : S(0)) + own.z;
  }
  write_row<3 * Count>(grad, out);
}

// As sh_color_backward_of, a few coefficients in registers at a time.
template <int Degree, typename S>
__device__ __forceinline__ Vec3<S> fetch_sh_backward(Vec3<S> offset, const S* sh, Vec3<S> g,
                                                     bool adds, S* out) {
  constexpr int count = sh_coefficients(Degree), fours = count / 4 * 4;
  S basis[kMaxShCoefficients], weight[kMaxShCoefficients] = {}, inv_length;
  const Vec3<S> d = normalized(offset, inv_length);
  sh_basis(Degree, d, basis);
#pragma unroll
  for (int j = 0; j < fours; j += 4) {
    pass_coefficients<4>(sh + 3 * j, basis + j, g, adds, weight + j, out + 3 * j);
  }
  if constexpr (fours < count) {
    pass_coefficients<count - fours>(sh + 3 * fours, basis + fours, g, adds, weight + fours,
                                     out + 3 * fours);
  }
  const Vec3<S> by_direction = sh_basis_backward(Degree, d, weight);
  return inv_length * (by_direction - dot(by_direction, d) * d);
}

// As color_backward of gaussian.h.
template <typename S>
__device__ Vec3<S> fetch_color_backward(const Inputs<S>& in, int v, std::int64_t i,
                                        const Camera<S>& camera, Vec3<S> mean, const S* features,
                                        const S* grad_color, const InputGradients<S>& grad) {
  if (!in.sh || !grad.sh) {
    return color_backward(in, v, i, camera, mean, features, grad_color, grad);
  }
  const Vec3<S> g = clamp_color_backward(features, grad_color);
  const std::int64_t row = i * in.sh_rows * 3;
  const S* sh = in.sh.at(v) + row;
  S* out = grad.sh.at(v) + row;
  const bool adds = grad.sh.adds(v);
  for (int k = 3 * sh_coefficients(in.sh_degree); !adds && k < 3 * in.sh_rows; ++k) out[k] = S(0);
  return with_degree(in.sh_degree, [&](auto degree) {
    return fetch_sh_backward<decltype(degree)::value>(mean - camera.position, sh, g, adds, out);
  });
}

// -------------------------------------------------------------------------------------- forward

__device__ __forceinline__ std::uint32_t depth_key(float depth) { return __float_as_uint(depth); }
__device__ __forceinline__ std::uint64_t depth_key(double depth) {
  return static_cast<std::uint64_t>(__double_as_longlong(depth));
}

// The place of a Gaussian's features among those of a splat.
template <typename S>
__device__ __forceinline__ int first_sum(const Inputs<S>& in, std::int64_t i) {
  return in.shared ? in.layer_of(i) * in.features() : 0;
}

// Fills the features of a splat; false if one is not finite.
template <typename S>
__device__ bool fill_features(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                              S depth, S* features, int stride) {
  const int first = first_sum(in, i), end = first + in.features();
  for (int k = 0; k < first; ++k) features[k] = S(0);
  for (int k = end; k < stride; ++k) features[k] = S(0);
  return fetch_color(in, v, i, camera, input_mean(in, v, i), features + first) &&
         further_features(in, v, i, depth, features + first);
}

// Fills the rest about a splat that is drawn; returns the number of its tiles.
template <typename S>
__device__ int fill_splat(std::int64_t number, const Splat<S>& splat, const TileRect& rect,
                          S opacity, const SplatArrays<S>& out) {
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
      fill_features(in, v, i, camera, splat.depth, out.features + number * out.feature_stride,
                    out.feature_stride)) {
    radius = static_cast<int>(splat.radius);
    tiles = fill_splat(number, splat, rect, input_opacity(in, v, i), out);
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
  const int stack = in.shared ? 0 : in.layer_of(number % in.gaussians);
  const std::uint32_t first_tile = std::uint32_t(number / in.gaussians * in.stacks() + stack) *
                                   std::uint32_t(in.tiles_x() * in.tiles_y());
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

// Columns [first, first + count) of the values of a pair.
struct Columns {
  int first, count, stride;
};

// Consecutive threads add up consecutive numbers of a splat, so that a warp reads whole rows.
template <typename S>
__global__ void __launch_bounds__(kBlock)
reduce_kernel(SplatArrays<S> splats, std::int64_t count, Columns columns, const S* pair_values,
              S* sums) {
  const std::int64_t at = native::global_index();
  if (at >= count * columns.count) return;
  const std::int64_t number = at / columns.count;
  const int column = columns.first + static_cast<int>(at % columns.count);
  const int tiles = splats.tiles[number];
  if (tiles == 0) return;
  const std::int64_t slot = splats.first_slot[number];
  const S* value = pair_values + slot * columns.stride + column;
  S sum = *value;
  for (int k = 1; k < tiles; ++k) sum += value[std::int64_t(k) * columns.stride];
  sums[number * columns.stride + column] = sum;
}

// Everything that splat `number`, Gaussian i in view v, hands on; `sum` is what its pairs add up to.
template <typename S>
__device__ void splat_backward(const Inputs<S>& in, const SplatArrays<S>& splats, int v,
                               std::int64_t i, std::int64_t number, const S* sum,
                               const Wanted& wanted, const InputGradients<S>& grad) {
  const Camera<S> camera = in.camera(v);
  const int first = first_sum(in, i);
  const S* features = splats.features + number * splats.feature_stride + first;
  const S* by_feature = sum + kMoments + first;
  emit(grad.extra, v, i, in.extras, by_feature + in.channels);
  const auto by_color = [&](Vec3<S> mean) {
    return fetch_color_backward(in, v, i, camera, mean, features, by_feature, grad);
  };
  if (wanted.moments) {
    gaussian_backward(in, v, i, camera, splats.geometry[number].opacity, sum,
                      by_feature[in.depth_feature()], grad, by_color);
  } else if (wanted.first == 0) {
    by_color(input_mean(in, v, i));
  }
}

// All views of a Gaussian by one thread, one after the other: shared gradients need no atomics.
template <typename S>
__global__ void __launch_bounds__(kBlock)
backward_kernel(Inputs<S> in, SplatArrays<S> splats, int stride, const S* sums, Wanted wanted,
                InputGradients<S> grad) {
  const std::int64_t i = native::global_index();
  if (i >= in.gaussians) return;
  for (int v = 0; v < in.views; ++v) {
    const std::int64_t number = std::int64_t(v) * in.gaussians + i;
    if (splats.tiles[number] == 0) {
      emit_zeros(in, v, i, grad);
    } else {
      splat_backward(in, splats, v, i, number, sums + number * stride, wanted, grad);
    }
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
                      S* sums, const Wanted& wanted, const InputGradients<S>& grad,
                      cudaStream_t stream) {
  const std::int64_t count = std::int64_t(in.views) * in.gaussians;
  const int stride = value_stride(in.sums());
  const WantedSums range = wanted_sums(in, wanted);
  const Columns columns = wanted.moments
                              ? Columns{0, stride, stride}
                              : Columns{kMoments + range.first, range.end - range.first, stride};
  native::launch(reduce_kernel<S>, dim3(native::blocks_for(count * columns.count, kBlock)),
                 dim3(kBlock), stream, splats, count, columns, pair_values, sums);
  native::launch(backward_kernel<S>, dim3(native::blocks_for(in.gaussians, kBlock)), dim3(kBlock),
                 stream, in, splats, stride, sums, wanted, grad);
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
                                 const Wanted&, const InputGradients<S>&, cudaStream_t);         \
  template void mark_visible(const S*, const S*, std::int64_t, bool*, cudaStream_t);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)
template void list_pairs(const Inputs<float>&, const SplatArrays<float>&, const std::uint32_t*,
                         const std::int64_t*, std::uint64_t*, std::uint32_t*, std::int32_t*,
                         cudaStream_t);

}  // namespace cuda
}  // namespace gr
