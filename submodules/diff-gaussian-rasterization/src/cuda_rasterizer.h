// The rasteriser on a GPU: its stages, in the order in which they run, and what passes between them.
//
// All memory is the caller's. A "splat" is a Gaussian in a view, number view * N + Gaussian; a "pair"
// is a splat in a tile it touches. Tiles are those of all stacks of all views. Pairs have two numbers: their slot, in which those of a splat are
// neighbours, and their place, in which those of a tile are neighbours, front to back. A bucket is a
// run of 32 places of one tile; the forward pass keeps each pixel's state at the start of every
// bucket, so that the backward pass can work on all of them at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "gaussian_rasterizer/gaussian.h"

namespace gr {
namespace cuda {

constexpr int kBucket = 32;
constexpr int kMaxPairs = 0x7fffffff;

// Depths are positive, so their bits sort as unsigned integers.
template <typename S>
using DepthKey = std::conditional_t<sizeof(S) == 8, std::uint64_t, std::uint32_t>;

// What every pixel needs of a splat, in two loads of 16 bytes (float).
template <typename S>
struct alignas(16) Geometry {
  S x, y;           // centre, pixels
  Falloff<S> quad;  // exponent of 2
  S opacity;
  S reach;          // exponents below it leave alpha under 1/255 for certain
  S depth;
};

template <typename S>
struct SplatArrays {
  Geometry<S>* geometry;
  // (splats, feature_stride): one value for each of a pixel's sums, zeros; with `shared` zero in the
  // sums of other layers.
  S* features;
  Footprint<S>* footprints;
  std::int32_t* tiles;       // number of tiles touched
  std::int32_t* first_slot;
  DepthKey<S>* keys;         // all ones where there is nothing to draw
  std::uint32_t* numbers;    // 0, 1, 2, ...: what the sort by depth permutes
  int feature_stride;        // a multiple of 4
};

struct PairArrays {
  const std::uint32_t* slots;         // by place
  const std::int32_t* splats;         // by slot
  const std::int32_t* tile_start;     // (tiles + 1), first place
  const std::int32_t* bucket_start;   // (tiles + 1), first bucket; null if nothing is kept
};

// What the backward pass needs of the forward one; null pointers if there will be none.
template <typename S>
struct KeptArrays {
  S* checkpoints;             // (buckets, 1 + sums, 256): transmittance and sums before a bucket
  S* final_sums;              // (tiles, sums, 256)
  S* final_transmittance;     // (tiles, 256)
  std::int32_t* last;         // (tiles, 256): place in the tile of the last one drawn, or -1
};

template <typename S>
void project(const Inputs<S>& in, const SplatArrays<S>& splats, std::int32_t* radii,
             cudaStream_t stream);

// Bytes of scratch for the two functions below.
std::int64_t sort_bytes(std::int64_t count, int key_bytes);
std::int64_t scan_bytes(std::int64_t count);

// Sorts by the lowest `bits` of the keys, stable.
template <typename Key>
void sort(void* scratch, std::int64_t bytes, const Key* keys, Key* sorted_keys,
          const std::uint32_t* values, std::uint32_t* sorted_values, std::int64_t count, int bits,
          cudaStream_t stream);

// offsets (splats + 1): where the pairs of each splat start when splats come in `order`; the last is
// the number of pairs. `counts` (splats + 1) is scratch.
void place_splats(void* scratch, std::int64_t bytes, const std::uint32_t* order,
                  const std::int32_t* tiles, std::int64_t splats, std::int64_t* counts,
                  std::int64_t* offsets, cudaStream_t stream);

// Lists the pairs by slot. Key: the tile's number in 32 bits; or in 64 bits, above
// the bits of the depth.
template <typename S, typename Key>
void list_pairs(const Inputs<S>& in, const SplatArrays<S>& splats, const std::uint32_t* order,
                const std::int64_t* offsets, Key* keys, std::uint32_t* slots,
                std::int32_t* splat_of_slot, cudaStream_t stream);

// tile_start (tiles + 1) from the sorted keys; with `buckets` also bucket_start.
template <typename Key>
void find_tiles(void* scratch, std::int64_t bytes, const Key* keys, int pairs, int tiles,
                std::int32_t* tile_start, std::int32_t* buckets, std::int32_t* bucket_start,
                cudaStream_t stream);

template <typename S>
void blend(const Inputs<S>& in, const SplatArrays<S>& splats, const PairArrays& pairs,
           const Outputs<S>& out, const KeptArrays<S>& kept, cudaStream_t stream);

// Moments and gradients of the sums per slot: (pairs, value_stride(sums)). Only wanted ones are set.
GR_HD constexpr int value_stride(int sums) { return (kMoments + sums + 3) / 4 * 4; }

// The sums of a pixel whose gradients are wanted: with `shared`, all of them.
struct WantedSums {
  int first, end;
};

template <typename S>
WantedSums wanted_sums(const Inputs<S>& in, const Wanted& wanted) {
  if (wanted.moments || in.shared) return {0, in.sums()};
  return {wanted.first, wanted.end};
}

template <typename S>
void blend_backward(const Inputs<S>& in, const SplatArrays<S>& splats, const PairArrays& pairs,
                    std::int64_t most_buckets, const ImageGradients<S>& image,
                    const Wanted& wanted, const KeptArrays<S>& kept, S* pair_values,
                    cudaStream_t stream);

// Adds up the pairs of every splat, in the order of the slots, into sums (splats, value_stride), and
// takes them on to the inputs.
template <typename S>
void project_backward(const Inputs<S>& in, const SplatArrays<S>& splats, const S* pair_values,
                      S* sums, const Wanted& wanted, const InputGradients<S>& grad,
                      cudaStream_t stream);

template <typename S>
void mark_visible(const S* positions, const S* view, std::int64_t count, bool* visible,
                  cudaStream_t stream);

}  // namespace cuda
}  // namespace gr
