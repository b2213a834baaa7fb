// The CPU rasteriser: what goes in, what comes out, and what is kept for the backward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "gaussian_rasterizer/tiles.h"

namespace gr {

// A tensor with a leading batch dimension; stride 0 means that all views share one entry.
template <typename T>
struct Batched {
  T* data = nullptr;
  std::int64_t stride = 0;  // elements

  explicit operator bool() const { return data != nullptr; }
  T* at(int view) const { return data + view * stride; }
  // The first view that writes an entry sets it, later ones add to it.
  bool adds(int view) const { return stride == 0 && view > 0; }
};

template <typename S>
struct Inputs {
  int views = 0, gaussians = 0, channels = 0, width = 0, height = 0;
  int sh_rows = 0, sh_degree = 0;  // coefficients stored, degree used
  S scale_modifier = 1;
  Batched<const S> means, opacities;            // (N, 3), (N, 1)
  Batched<const S> sh, colors;                  // (N, sh_rows, 3) or (N, C)
  Batched<const S> scales, rotations, cov3d;    // (N, 3) and (N, 4), or (N, 6)
  Batched<const S> view, projection;            // (16) column-major
  Batched<const S> position, tan_fov;           // (3), (2)
  const S* background = nullptr;                // (C)

  int tiles_x() const { return (width + kTile - 1) / kTile; }
  int tiles_y() const { return (height + kTile - 1) / kTile; }
  int features() const { return channels + 1; }  // the colour channels and depth
  Camera<S> camera(int v) const {
    return make_camera(view.at(v), projection.at(v), position.at(v), tan_fov.at(v), width, height);
  }
};

template <typename S>
struct Outputs {
  S *color, *alpha, *depth;  // (B, C, H, W), (B, 1, H, W), (B, 1, H, W)
  std::int32_t* radii;       // (B, N)
};

template <typename S>
struct ImageGradients {
  const S *color, *alpha, *depth;  // as Outputs; null for none
};

template <typename S>
struct InputGradients {
  Batched<S> means, means2d, opacities, sh, colors, scales, rotations, cov3d;  // null for none
};

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

// Sums, per pair, of the gradients over the pixels of a tile: six moments, then the features.
constexpr int kMoments = 6;

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

// Reads the shape of Gaussian i of view v.
template <typename S>
inline Sym3<S> input_covariance(const Inputs<S>& in, int v, std::int64_t i) {
  if (in.cov3d) {
    const S* c = in.cov3d.at(v) + 6 * i;
    return {c[0], c[1], c[2], c[3], c[4], c[5]};
  }
  return covariance_3d(in.scales.at(v) + 3 * i, in.rotations.at(v) + 4 * i, in.scale_modifier);
}

template <typename S>
inline Vec3<S> input_mean(const Inputs<S>& in, int v, std::int64_t i) {
  const S* m = in.means.at(v) + 3 * i;
  return {m[0], m[1], m[2]};
}

}  // namespace gr
