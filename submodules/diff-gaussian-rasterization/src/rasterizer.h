// The CPU rasteriser: what goes in, what comes out, and what is kept for the backward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "gaussian_rasterizer/gaussian.h"
#include "native/isa.h"

namespace gr {

// Where the pieces of a splat's record lie; features follow the geometry.
// kLevel: the logarithm of the opacity to base 2. kPlane: the first of the pixel's sums that the
// features are added to.
enum RecordField { kX, kY, kQuadXX, kQuadXY, kQuadYY, kLevel, kOpacity, kPlane, kGeometry };

// The CPU lists splats by tiles that are taller than the published ones: a fourth fewer pairs.
constexpr int kTileRows = 32;
constexpr int kPixels = kTile * kTileRows;
// Rows that are blended together, on the way forward and back: what belongs to a splat is read and
// written once for both. (A splat that touches one of them has nowhere an alpha in the other.)
constexpr int kBand = 2, kBands = kTileRows / kBand;

template <typename S>
NATIVE_INLINE int tile_rows(const Inputs<S>& in) {
  return (in.height + kTileRows - 1) / kTileRows;
}
template <typename S>
NATIVE_INLINE int tiles_per_stack(const Inputs<S>& in) {
  return in.tiles_x() * tile_rows(in);
}
template <typename S>
NATIVE_INLINE int tile_count(const Inputs<S>& in) {  // of one view
  return in.stacks() * tiles_per_stack(in);
}

// The pixels of a tile that a splat touches: of each group of columns, as many as a vector has
// lanes, the first row and the last, five bits each, or 2 and 1. From the lowest bit on.
using Spans = std::uint64_t;
constexpr int kMostGroups = 4, kSpanBits = 10;
static_assert(kTileRows == 32, "a row is five bits");

NATIVE_INLINE Spans span_of(int group, int first, int end) {
  return static_cast<Spans>(first | (end - 1) << 5) << (kSpanBits * group);
}
NATIVE_INLINE int first_row(Spans spans, int group) { return (spans >> (kSpanBits * group)) & 31; }
NATIVE_INLINE int end_row(Spans spans, int group) {
  return ((spans >> (kSpanBits * group + 5)) & 31) + 1;
}
// The same in bands; equal if there are none.
static_assert(kBand == 2, "a band is a row without its lowest bit");
NATIVE_INLINE int first_band(Spans spans, int group) {
  return (spans >> (kSpanBits * group + 1)) & 15;
}
NATIVE_INLINE int end_band(Spans spans, int group) {
  return ((spans >> (kSpanBits * group + 6)) & 15) + 1;
}
NATIVE_INLINE constexpr Spans no_spans(int groups) {
  Spans none = 0;
  for (int g = 0; g < groups; ++g) none |= Spans(2 | 1 << 5) << (kSpanBits * g);
  return none;
}

// One splat in one tile.
struct Pair {
  std::uint32_t gaussian;
  std::uint32_t slot;  // its place among the splat's tiles, ordered by Gaussian
  Spans spans;
};

// Everything that the backward pass of one view needs. Tiles are those of all its stacks, one after
// the other.
template <typename S>
struct ViewState {
  int record_stride = 0;
  Buffer<S> records;                 // (N, record_stride), valid for drawn splats
  Buffer<std::uint32_t> first_slot;  // (N + 1)
  Buffer<std::uint32_t> tile_start;  // (tiles + 1)
  Buffer<Pair> pairs;                // by tile, then front to back
  // Only if there will be a backward pass:
  Buffer<S> transmittance;           // (tiles, kPixels) after the last contributor
  Buffer<S> last;                    // (tiles, kPixels) position of the last contributor, -1 if none

  NATIVE_INLINE const S* record(std::uint32_t pair) const {
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

// With `keep` returns what the backward pass needs, else null.
template <typename S>
std::unique_ptr<RenderState<S>> render(const Inputs<S>& in, const Outputs<S>& out, bool keep,
                                       int threads);

// `grads`: of each of in.parts, or one.
template <typename S>
void render_backward(const Inputs<S>& in, const RenderState<S>& state,
                     const ImageGradients<S>& image, const std::vector<InputGradients<S>>& grads,
                     int threads);

// True where the view-space z of a position is beyond the near plane.
template <typename S>
void mark_visible(const S* positions, const S* view, int count, bool* visible);

// ------------------------------------------------------------------------ the stages of a render

constexpr int kChunk = 512;  // Gaussians handed to a thread at a time

NATIVE_INLINE int chunk_count(int n) { return (n + kChunk - 1) / kChunk; }

// A tile that a splat touches, and what of it.
class Touch {
 public:
  static constexpr int kTileBits = 64 - kSpanBits * kMostGroups;

  NATIVE_INLINE Touch(std::uint32_t tile, Spans spans)
      : bits_(Spans(tile) << (64 - kTileBits) | spans) {}
  NATIVE_INLINE std::uint32_t tile() const { return bits_ >> (64 - kTileBits); }
  NATIVE_INLINE Spans spans() const { return bits_; }  // above them is the tile

 private:
  Spans bits_;
};

// The tiles of a chunk of Gaussians, in the order of the slots. It grows outside the kernels.
class Touches {
 public:
  NATIVE_INLINE void clear() { size_ = 0; }
  // Where the next `count` may be put, of which `add` then says how many were.
  NATIVE_INLINE Touch* next(std::size_t count) {
    if (size_ + count > memory_.size()) grow(count);
    return memory_.data() + size_;
  }
  NATIVE_INLINE void add(std::size_t count) { size_ += count; }
  NATIVE_INLINE std::size_t size() const { return size_; }
  NATIVE_INLINE const Touch* data() const { return memory_.data(); }

 private:
  void grow(std::size_t count);
  Buffer<Touch> memory_;
  std::size_t size_ = 0;
};

// A splat that is drawn.
template <typename S>
struct Drawn {
  S depth;
  std::uint32_t gaussian;
};

// What the projection of a view hands to its binning, and the memory of the latter.
template <typename S>
struct Projected {
  std::vector<Touches> touches;       // per chunk of Gaussians, at least
  Buffer<Drawn<S>> drawn;             // (N): of each chunk its first ones, in ascending order
  Buffer<std::uint32_t> drawn_count;  // per chunk
  Buffer<std::uint32_t> tile_count;   // (threads, tiles): pairs, by the thread that listed them
  Buffer<Drawn<S>> items, spare;      // (drawn)
  Buffer<std::uint32_t> order;        // (drawn): Gaussians, stack by stack, each front to back
  Buffer<std::uint32_t> counts, cursors;
};

// Sorts the drawn splats by depth and lists them tile by tile.
template <typename S>
void bin_view(const Inputs<S>& in, int threads, Projected<S>& projected, ViewState<S>& state);

// Sums, per pair, of the gradients over the pixels of a tile: the moments, then the features, of
// which only the wanted ones.
template <typename S>
struct PairGradients {
  int stride = 0;
  Buffer<S> values;              // (pairs, stride) by slot
  Buffer<std::uint8_t> written;  // (pairs)
};

struct WorkCounts;    // of light.h, as BareWork
enum class BareWork;

// The stages that are compiled for several instruction sets; stages.h says what they do.
template <typename S>
struct Stages {
  void (*project)(const Inputs<S>&, int v, int threads, ViewState<S>&, std::int32_t* radii,
                  Projected<S>&);
  void (*blend)(const Inputs<S>&, int v, int threads, bool keep, ViewState<S>&, const Outputs<S>&);
  void (*blend_backward)(const Inputs<S>&, int v, int threads, const ViewState<S>&,
                         const ImageGradients<S>&, const Wanted&, PairGradients<S>&);
  void (*project_backward)(const Inputs<S>&, int v, int threads, const ViewState<S>&,
                           const PairGradients<S>&, const Wanted&, const InputGradients<S>* grads);
  WorkCounts (*count_work)(const Inputs<S>&, const ViewState<S>&, int threads);
};

struct Kernels {
  Stages<float> f32;
  Stages<double> f64;
  double (*bare_kernel_ns)(std::int64_t count, BareWork work);
};

const native::Levels<Kernels>& levels();
inline const Stages<float>& stages(float) { return levels().kernels().f32; }
inline const Stages<double>& stages(double) { return levels().kernels().f64; }

// GCC takes a function that does nothing but fetch for one without effect, and leaves its calls out:
// the empty statement is an effect.
NATIVE_INLINE void prefetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
  __asm__ volatile("");
#else
  (void)address;
#endif
}

NATIVE_INLINE void prefetch_for_write(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1);
  __asm__ volatile("");
#else
  (void)address;
#endif
}

constexpr std::uint32_t kAhead = 12;  // records are scattered: fetched this many pairs ahead

}  // namespace gr
