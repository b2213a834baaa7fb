// Front-to-back blending: a block of 256 threads per tile, a thread per pixel; splats come through
// shared memory in batches.
#include "blend_pixel.cuh"

namespace gr {
namespace cuda {
namespace {

template <int K>
constexpr int kBatch = K <= 4 ? kTilePixels : kTilePixels / 2;  // within 48 KB in double precision

template <typename S, int K>
__device__ __forceinline__ void keep_checkpoint(const KeptArrays<S>& kept, int all, int first,
                                                std::int64_t bucket, unsigned pixel,
                                                S transmittance, const S* sums) {
  S* at = kept.checkpoints + bucket * (1 + all) * kTilePixels + pixel;
  if (first == 0) at[0] = transmittance;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (first + k < all) at[(1 + first + k) * kTilePixels] = sums[k];
  }
}

// What a pixel ends with.
template <typename S, int K>
struct PixelSums {
  S transmittance;
  int last;
  S sums[K];
};

template <typename S, int K>
__device__ __forceinline__ void keep_end(const KeptArrays<S>& kept, int all, int first,
                                         std::int64_t tile, unsigned pixel,
                                         const PixelSums<S, K>& end) {
  if (first == 0) {
    kept.final_transmittance[tile * kTilePixels + pixel] = end.transmittance;
    kept.last[tile * kTilePixels + pixel] = end.last;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (first + k >= all) break;
    kept.final_sums[(tile * all + first + k) * kTilePixels + pixel] = end.sums[k];
  }
}

template <typename S, int K>
__device__ __forceinline__ void write_pixel(const Frame& frame, const S* background,
                                            const Outputs<S>& out, int first,
                                            std::int64_t stack, std::int64_t at,
                                            const PixelSums<S, K>& end) {
  const std::int64_t plane = std::int64_t(frame.width) * frame.height;
  const S light = frame.shared ? end.transmittance / S(frame.images) : end.transmittance;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (first + k >= frame.sums) break;
    const SumPlace place = place_of(frame, stack, first + k);
    if (place.feature < frame.planes) {
      out.color[(place.image * frame.planes + place.feature) * plane + at] =
          std::fma(light, background[place.feature], end.sums[k]);
    } else {
      S* image = place.feature == frame.features - 1 ? out.depth : out.alpha;
      image[place.image * plane + at] = end.sums[k];
    }
  }
  if (first == 0 && !frame.shared) out.alpha[stack * plane + at] = S(1) - end.transmittance;
}

template <typename S, int K, bool Keep>
__global__ void __launch_bounds__(kTilePixels)
blend_kernel(Frame frame, const S* background, SplatArrays<S> splats, PairArrays pairs, int first,
             Outputs<S> out, KeptArrays<S> kept) {
  NATIVE_SHARED(Geometry<S>, geometry, kBatch<K>);
  using Row = FeatureRow<S, K>;
  NATIVE_SHARED(Row, features, kBatch<K>);
  const auto block = native::cg::this_thread_block();
  const unsigned pixel = threadIdx.x;
  const int tile = static_cast<int>(blockIdx.x);
  const int stack = tile / frame.tiles, tile_in_stack = tile % frame.tiles;
  const int x = tile_in_stack % frame.tiles_x * kTile + pixel_x(pixel);
  const int y = tile_in_stack / frame.tiles_x * kTile + pixel_y(pixel);
  const bool inside = x < frame.width && y < frame.height;
  const int begin = pairs.tile_start[tile], count = pairs.tile_start[tile + 1] - begin;
  const std::int64_t bucket = Keep ? pairs.bucket_start[tile] : 0;

  PixelSums<S, K> state{S(1), -1, {}};
  bool done = !inside;
  for (int start = 0; start < count; start += kBatch<K>) {
    // Also keeps the batch before from being overwritten while a thread still reads it.
    if (__syncthreads_count(done) == kTilePixels) break;
    const int size = min_of(count - start, kBatch<K>);
    if (static_cast<int>(pixel) < size) {
      const std::int64_t number = pairs.splats[pairs.slots[begin + start + int(pixel)]];
      geometry[pixel] = in_tile(splats.geometry[number], frame, tile_in_stack);
      load_features(splats, number, first, features[pixel]);
    }
    block.sync();
    for (int j = 0; j < size && !done; ++j) {
      const int place = start + j;
      if (Keep && place % kBucket == 0) {
        keep_checkpoint<S, K>(kept, frame.sums, first, bucket + place / kBucket, pixel,
                              state.transmittance, state.sums);
      }
      const Geometry<S>& g = geometry[j];
      const Touched<S> t = touch(g, g.x - S(pixel_x(pixel)), g.y - S(pixel_y(pixel)));
      if (!t.drawn) continue;
      const S next = transmitted(state.transmittance, t.alpha);
      if (!(next >= S(kMinTransmittance))) {
        done = true;
        break;
      }
      const S weight = t.alpha * state.transmittance;
#pragma unroll
      for (int k = 0; k < K; ++k) state.sums[k] = std::fma(weight, features[j].at[k], state.sums[k]);
      state.transmittance = next;
      state.last = place;
    }
  }
  if (Keep) keep_end<S, K>(kept, frame.sums, first, tile, pixel, state);
  if (inside) {
    const std::int64_t at = std::int64_t(y) * frame.width + x;
    write_pixel<S, K>(frame, background, out, first, stack, at, state);
  }
}

}  // namespace

template <typename S>
void blend(const Inputs<S>& in, const SplatArrays<S>& splats, const PairArrays& pairs,
           const Outputs<S>& out, const KeptArrays<S>& kept, cudaStream_t stream) {
  const Frame frame = frame_of(in);
  const dim3 blocks(frame.tiles * frame.stacks);
  for_feature_groups(0, frame.sums, [&](auto group, int first) {
    constexpr int K = decltype(group)::value;
    const auto kernel = kept.last ? blend_kernel<S, K, true> : blend_kernel<S, K, false>;
    native::launch(kernel, blocks, dim3(kTilePixels), stream, frame, in.background, splats, pairs,
                   first, out, kept);
  });
}

template void blend(const Inputs<float>&, const SplatArrays<float>&, const PairArrays&,
                    const Outputs<float>&, const KeptArrays<float>&, cudaStream_t);
template void blend(const Inputs<double>&, const SplatArrays<double>&, const PairArrays&,
                    const Outputs<double>&, const KeptArrays<double>&, cudaStream_t);

}  // namespace cuda
}  // namespace gr
