// Gradients of the blending: a warp per bucket, a lane per splat. The pixels of the tile stream
// through the lanes, front to back: at each step every lane hands the state of its pixel on to the
// lane of the next splat, and lane 0 takes a new pixel from the checkpoint. So a splat's sums stay in
// the registers of one lane, are written once and need no atomics: the bits are the same every time.
// (The mapping is that of Mallick et al., "Taming 3DGS", SIGGRAPH Asia 2024, section 4.3; there the
// sums are added atomically.)
#include "blend_pixel.cuh"

namespace gr {
namespace cuda {
namespace {

constexpr int kPart = 32;                      // pixels that are skipped or streamed together
constexpr int kParts = kTilePixels / kPart;

template <typename S, int K>
constexpr int kWarps = sizeof(S) * K <= 16 ? 4 : 1;  // per block, within 48 KB of shared memory

// The pixels of a tile as they enter the stream.
template <typename S, int K>
struct TilePixels {
  S transmittance[kTilePixels];
  S behind[kTilePixels];        // dL/dT times T of all that lies behind, background included
  S gradient[K][kTilePixels];   // dL/d(feature)
  int last[kTilePixels];
};

// Where the bucket lies.
struct Bucket {
  std::int64_t number, tile;
  int stack, tile_in_stack;
  int first_place, size;  // within the tile
};

// The tile with the greatest start at or before the bucket, among those that have buckets.
__device__ __forceinline__ Bucket find_bucket(const Frame& frame, const PairArrays& pairs,
                                              std::int64_t number, int tiles) {
  int low = 0, high = tiles;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (pairs.bucket_start[middle] <= number) {
      low = middle;
    } else {
      high = middle;
    }
  }
  Bucket bucket;
  bucket.number = number;
  bucket.tile = low;
  bucket.stack = low / frame.tiles;
  bucket.tile_in_stack = low % frame.tiles;
  bucket.first_place = static_cast<int>(number - pairs.bucket_start[low]) * kBucket;
  const int count = pairs.tile_start[low + 1] - pairs.tile_start[low];
  bucket.size = min_of(count - bucket.first_place, kBucket);
  return bucket;
}

// The sums of a pixel that a kernel works on: at most K from `first` on, none from `end` on.
struct Group {
  int first, end;
};

template <typename S>
__device__ __forceinline__ S image_gradient(const Frame& frame, const ImageGradients<S>& image,
                                            const SumPlace& place, std::int64_t at) {
  const std::int64_t plane = std::int64_t(frame.width) * frame.height;
  if (place.feature < frame.planes) {
    if (image.color == nullptr) return S(0);
    return image.color[(place.image * frame.planes + place.feature) * plane + at];
  }
  const S* from = place.feature == frame.features - 1 ? image.depth : image.alpha;
  return from == nullptr ? S(0) : from[place.image * plane + at];
}

// Fills pixel `p`, which goes on beyond the start of the bucket.
template <typename S, int K, bool Moments>
__device__ __forceinline__ void start_pixel(const Frame& frame, const S* background,
                                            const ImageGradients<S>& image,
                                            const KeptArrays<S>& kept, const Group& group,
                                            const Bucket& bucket, unsigned p,
                                            TilePixels<S, K>& pixels) {
  const int x = bucket.tile_in_stack % frame.tiles_x * kTile + pixel_x(p);
  const int y = bucket.tile_in_stack / frame.tiles_x * kTile + pixel_y(p);
  const std::int64_t plane = std::int64_t(frame.width) * frame.height;
  const std::int64_t at = std::int64_t(y) * frame.width + x;
  const S* checkpoint =
      kept.checkpoints + bucket.number * (1 + frame.sums) * kTilePixels + p;
  const S share = frame.shared ? S(1) / S(frame.images) : S(1);
  S behind = S(0), by_final = S(0);
  if (Moments && group.first == 0 && !frame.shared && image.alpha != nullptr) {
    by_final = -image.alpha[bucket.stack * plane + at];
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int sum = group.first + k;
    S g = S(0);
    if (sum < group.end) {
      const SumPlace place = place_of(frame, bucket.stack, sum);
      g = image_gradient(frame, image, place, at);
      if (Moments) {
        if (place.feature < frame.planes) by_final += share * background[place.feature] * g;
        const S total = kept.final_sums[(bucket.tile * frame.sums + sum) * kTilePixels + p];
        behind += g * (total - checkpoint[(1 + sum) * kTilePixels]);
      }
    }
    pixels.gradient[k][p] = g;
  }
  pixels.transmittance[p] = checkpoint[0];
  if (Moments) {
    pixels.behind[p] = behind + by_final * kept.final_transmittance[bucket.tile * kTilePixels + p];
  }
}

// What a lane sums up for its splat.
template <typename S, int K>
struct Gathered {
  S moments[kMoments];
  S features[K];
};

// Pixel `p` passes the lane's splat; updates the pixel's transmittance and what lies behind.
template <typename S, int K, bool Moments>
__device__ __forceinline__ void pass(const Geometry<S>& g, const FeatureRow<S, K>& row, S dx, S dy,
                                     const TilePixels<S, K>& pixels, unsigned p, S& transmittance,
                                     S& behind, Gathered<S, K>& sum) {
  const Touched<S> t = touch(g, dx, dy);
  if (!t.drawn) return;
  const S weight = t.alpha * transmittance;
  S along = S(0);  // dL / d(weight)
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const S gradient = pixels.gradient[k][p];
    if (Moments) along = std::fma(gradient, row.at[k], along);
    sum.features[k] = std::fma(weight, gradient, sum.features[k]);
  }
  const S before = transmittance;
  transmittance = transmitted(transmittance, t.alpha);
  if (!Moments) return;
  behind = std::fma(-weight, along, behind);
  const S grad_alpha = before * along - behind / (S(1) - t.alpha);
  const S q = t.raw * grad_alpha;
  const S qx = q * dx, qy = q * dy;
  sum.moments[0] += q;
  sum.moments[1] += qx;
  sum.moments[2] += qy;
  sum.moments[3] = std::fma(qx, dx, sum.moments[3]);
  sum.moments[4] = std::fma(qx, dy, sum.moments[4]);
  sum.moments[5] = std::fma(qy, dy, sum.moments[5]);
}

template <typename S, int K>
__device__ __forceinline__ void write_features(const Gathered<S, K>& sum, const Group& group,
                                               S* values) {
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (group.first + k < group.end) values[kMoments + group.first + k] = sum.features[k];
  }
}

// The first group of features sets the moments, later ones add theirs: they are linear in dL/dimage.
template <typename S, int K>
__device__ __forceinline__ void write_sums(const Gathered<S, K>& sum, const Group& group, int all,
                                           S* values) {
  if (K == 4 && all <= 4) {
    auto* fours = reinterpret_cast<Four<S>*>(values);
    fours[0] = {sum.moments[0], sum.moments[1], sum.moments[2], sum.moments[3]};
    fours[1] = {sum.moments[4], sum.moments[5], sum.features[0], sum.features[1]};
    if (all > 2) fours[2] = {sum.features[2], sum.features[3], S(0), S(0)};
    return;
  }
#pragma unroll
  for (int m = 0; m < kMoments; ++m) {
    values[m] = group.first == 0 ? sum.moments[m] : values[m] + sum.moments[m];
  }
  write_features<S, K>(sum, group, values);
  if (group.first != 0) return;
  for (int k = kMoments + all; k < value_stride(all); ++k) values[k] = S(0);
}

template <typename S, int K, bool Moments>
__global__ void __launch_bounds__(32 * kWarps<S, K>)
backward_kernel(Frame frame, const S* background, SplatArrays<S> splats, PairArrays pairs,
                int tiles, Group group, ImageGradients<S> image, KeptArrays<S> kept,
                S* pair_values) {
  using Pixels = TilePixels<S, K>;
  NATIVE_SHARED(Pixels, shared, (kWarps<S, K>));
  const auto warp = native::cg::tiled_partition<32>(native::cg::this_thread_block());
  const int lane = static_cast<int>(warp.thread_rank());
  const int rank = static_cast<int>(threadIdx.x / 32);
  const std::int64_t number = std::int64_t(blockIdx.x) * kWarps<S, K> + rank;
  if (number >= pairs.bucket_start[tiles]) return;  // the whole warp; there are no block barriers
  const Bucket bucket = find_bucket(frame, pairs, number, tiles);
  Pixels& pixels = shared[rank];

  unsigned parts = 0;  // the numbers of the parts that have live pixels, 4 bits each
  int live = 0;
  for (unsigned part = 0; part < kParts; ++part) {
    const unsigned p = part * kPart + static_cast<unsigned>(lane);
    const int last = kept.last[bucket.tile * kTilePixels + p];
    const bool on = last >= bucket.first_place;
    pixels.last[p] = last;
    if (on) start_pixel<S, K, Moments>(frame, background, image, kept, group, bucket, p, pixels);
    if (!warp.any(on)) continue;
    parts |= part << (4 * live);
    ++live;
  }
  warp.sync();

  const int place = bucket.first_place + lane;
  const std::int64_t at = std::int64_t(pairs.tile_start[bucket.tile]) + place;
  const bool has_splat = lane < bucket.size;
  Geometry<S> g{};
  FeatureRow<S, K> row{};
  std::uint32_t slot = 0;
  if (has_splat) {
    slot = pairs.slots[at];
    const std::int64_t splat = pairs.splats[slot];
    g = in_tile(splats.geometry[splat], frame, bucket.tile_in_stack);
    if (Moments) load_features(splats, splat, group.first, row);
  }

  Gathered<S, K> sum{};
  S transmittance = S(0), behind = S(0);
  const int steps = live == 0 ? 0 : live * kPart + bucket.size - 1;
  for (int step = 0; step < steps; ++step) {
    transmittance = warp.shfl_up(transmittance, 1);
    if (Moments) behind = warp.shfl_up(behind, 1);
    const int queue = step - lane;  // which pixel of the stream is here
    if (queue < 0 || queue >= live * kPart || !has_splat) continue;
    const unsigned part = (parts >> (4 * (queue / kPart))) & 15u;
    const unsigned p = part * kPart + static_cast<unsigned>(queue % kPart);
    if (lane == 0) {
      transmittance = pixels.transmittance[p];
      if (Moments) behind = pixels.behind[p];
    }
    if (place > pixels.last[p]) continue;
    pass<S, K, Moments>(g, row, g.x - S(pixel_x(p)), g.y - S(pixel_y(p)), pixels, p, transmittance,
                        behind, sum);
  }
  if (has_splat) {
    S* values = pair_values + std::int64_t(slot) * value_stride(frame.sums);
    if (Moments) {
      write_sums<S, K>(sum, group, frame.sums, values);
    } else {
      write_features<S, K>(sum, group, values);
    }
  }
}

}  // namespace

template <typename S>
void blend_backward(const Inputs<S>& in, const SplatArrays<S>& splats, const PairArrays& pairs,
                    std::int64_t most_buckets, const ImageGradients<S>& image,
                    const Wanted& wanted, const KeptArrays<S>& kept, S* pair_values,
                    cudaStream_t stream) {
  const Frame frame = frame_of(in);
  const WantedSums range = wanted_sums(in, wanted);
  for_feature_groups(range.first, range.end, [&](auto size, int first) {
    constexpr int K = decltype(size)::value;
    const auto kernel = wanted.moments ? backward_kernel<S, K, true> : backward_kernel<S, K, false>;
    const dim3 blocks(native::blocks_for(most_buckets, kWarps<S, K>));
    native::launch(kernel, blocks, dim3(32 * kWarps<S, K>), stream, frame, in.background, splats,
                   pairs, frame.tiles * frame.stacks, Group{first, range.end}, image, kept,
                   pair_values);
  });
}

#define GR_INSTANTIATE(S)                                                                       \
  template void blend_backward(const Inputs<S>&, const SplatArrays<S>&, const PairArrays&,      \
                               std::int64_t, const ImageGradients<S>&, const Wanted&,           \
                               const KeptArrays<S>&, S*, cudaStream_t);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace cuda
}  // namespace gr
