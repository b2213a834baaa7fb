// The CPU rasteriser: what goes in, what comes out, and what is kept for the backward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "gaussian_rasterizer/gaussian.h"

namespace gr {

// Where the pieces of a splat's record lie; features follow the geometry.
enum RecordField { kX, kY, kQuadXX, kQuadXY, kQuadYY, kOpacity, kGeometry = 8 };

// One splat in one tile.
struct Pair {
  std::uint32_t gaussian;
  std::uint32_t slot;  // its place among the splat's tiles, ordered by Gaussian
};

// Everything that the backward pass of one view needs.
template <typename S>
struct ViewState {
  int record_stride = 0;
  Buffer<S> records;                 // (N, record_stride), valid for drawn splats
  Buffer<std::uint32_t> first_slot;  // (N + 1)
  Buffer<std::uint32_t> tile_start;  // (tiles + 1)
  Buffer<Pair> pairs;                // by tile, then front to back
  Buffer<std::uint16_t> rows;        // per pair: bit y set if pixel row y of the tile is touched
  Buffer<S> transmittance;           // (tiles, 256) after the last contributor
  Buffer<S> last;                    // (tiles, 256) position of the last contributor, -1 if none

  const S* record(std::uint32_t pair) const {
    return records.data() + std::size_t(pairs[pair].gaussian) * record_stride;
  }
};

template <typename S>
struct RenderState {
  std::vector<ViewState<S>> views;
  RenderState() = default;
  RenderState(const RenderState&) = delete;
  ~RenderState();  // hands the memory to the next render
};

template <typename S>
std::unique_ptr<RenderState<S>> render(const Inputs<S>& in, const Outputs<S>& out, int threads);

template <typename S>
void render_backward(const Inputs<S>& in, const RenderState<S>& state,
                     const ImageGradients<S>& image, const InputGradients<S>& grad, int threads);

// True where the view-space z of a position is beyond the near plane.
template <typename S>
void mark_visible(const S* positions, const S* view, int count, bool* visible);

// ------------------------------------------------------------------------ the stages of a render

constexpr int kChunk = 512;  // Gaussians handed to a thread at a time

inline int chunk_count(int n) { return (n + kChunk - 1) / kChunk; }

// A tile that a splat touches, and the pixel rows in it.
struct Touch {
  std::uint32_t tile;
  std::uint16_t rows;
};

// What the projection of a view hands to its binning.
template <typename S>
struct Projected {
  Buffer<S> depths;                         // (N), valid for drawn splats
  std::vector<std::vector<Touch>> touches;  // per chunk of Gaussians, in the order of the slots
};

// Projects all Gaussians of one view; fills records, first_slot, radii and `projected`.
template <typename S>
void project_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                  std::int32_t* radii, Projected<S>& projected);

// Sorts the drawn splats by depth and lists them tile by tile.
template <typename S>
void bin_view(const Inputs<S>& in, int threads, const Projected<S>& projected,
              ViewState<S>& state);

template <typename S>
void blend_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                const Outputs<S>& out);

// Sums, per pair, of the gradients over the pixels of a tile: the moments, then the features.
template <typename S>
struct PairGradients {
  int stride = 0;                // kMoments + features with a gradient
  Buffer<S> values;              // (pairs, stride) by slot
  Buffer<std::uint8_t> written;  // (pairs)
};

template <typename S>
void blend_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                         const ImageGradients<S>& image, PairGradients<S>& pairs);

template <typename S>
void project_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                           const PairGradients<S>& pairs, bool has_depth,
                           const InputGradients<S>& grad);

inline void prefetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

constexpr std::uint32_t kAhead = 6;  // records are scattered: fetched this many pairs ahead

}  // namespace gr
