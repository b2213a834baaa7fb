// Per-Gaussian stages before blending: projection, colour, and the tiles that are touched.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "block.h"
#include "thread_pool.h"
#include "tile_lister.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

template <typename S>
void geometry_record(const Splat<S>& splat, S level, S opacity, S* record) {
  const Falloff<S> quad = falloff(splat);
  record[kX] = splat.x;
  record[kY] = splat.y;
  record[kQuadXX] = quad.xx;
  record[kQuadXY] = quad.xy;
  record[kQuadYY] = quad.yy;
  record[kLevel] = level;
  record[kOpacity] = opacity;
}

// Writes the record of Gaussian k of a block; false if a feature is not finite.
template <typename S>
bool finish_record(int v, const Block<S>& block, int k, S* record) {
  const Inputs<S>& in = *block.inputs[k];
  const Splat<S> splat = block.splat_of(k);
  S* features = record + kGeometry;
  if (!block_color(in, v, block, k, features)) return false;
  if (!further_features(in, v, block.local[k], splat.depth, features)) return false;
  geometry_record(splat, block.level[k], block.opacity[k], record);
  record[kPlane] = in.shared ? S(block.layer[k] * in.features()) : S(0);
  return true;
}

// A chunk of Gaussians on its way from the tensors to the lists of its tiles.
template <typename S>
class ChunkProjection {
 public:
  ChunkProjection(const Inputs<S>& in, int v, ViewState<S>& state, std::int32_t* radii,
                  Touches& touches, std::uint32_t* tile_count)
      : in_(in), v_(v), camera_(in.camera(v)), state_(state), radii_(radii),
        tiles_(in.tiles_x(), touches, tile_count) {}

  // Gaussians [begin, end). Fills `drawn`, and returns how many are.
  int run(int begin, int end, Drawn<S>* drawn) {
    std::fill(radii_ + begin, radii_ + end, 0);
    std::fill_n(state_.first_slot.data() + begin, end - begin, 0u);
    Walk<S> at(in_, begin);
    for (int i = begin; i < end;) {
      at.to(i);
      const int run = std::min(at.run(i, end), Block<S>::kSize - block_.count);
      block_.push(at, v_, i, run);
      i += run;
      if (block_.count == Block<S>::kSize || i == end) take_block();
    }
    tiles_.finish();
    int count = 0;
    for (int c = 0; c < seen_; ++c) {
      state_.first_slot[splats_[c].gaussian] = tiles_.count(c);
      drawn[count] = splats_[c];
      count += tiles_.count(c) != 0;
    }
    return count;
  }

 private:
  // Projects the block and lists the tiles of those that land on the image.
  void take_block() {
    const bool has_cov = bool(block_.inputs[0]->cov3d), has_sh = bool(block_.inputs[0]->sh);
    if (!has_cov) block_.find_shapes(in_.raw, in_.scale_modifier);
    if (in_.raw) block_.activate_opacities();
    block_.project(camera_, in_.tiles_x(), in_.tiles_y());
    int on[Block<S>::kSize], count = 0;
    for (int k = 0; k < block_.count; ++k) {
      on[count] = k;
      count += block_.valid[k] != 0;
    }
    block_.count = 0;
    if (count == 0) return;
    constexpr int ahead = 8;
    const auto fetch = [&](int n) {
      if (n < count) prefetch_color(*block_.inputs[on[n]], v_, block_.local[on[n]]);
    };
    for (int n = 0; n < ahead; ++n) fetch(n);
    block_.find_footprints();
    if (has_sh) block_.find_basis(in_.sh_degree, camera_.position);
    for (int n = 0; n < count; ++n) {
      fetch(n + ahead);
      take(on[n]);
    }
  }

  void take(int k) {
    const int i = block_.gaussian[k];
    S* record = state_.records.data() + std::size_t(i) * state_.record_stride;
    if (!finish_record(v_, block_, k, record)) return;
    radii_[i] = static_cast<std::int32_t>(block_.radius[k]);
    const int stack = in_.shared ? 0 : block_.layer[k];
    tiles_.add(seen_, block_.footprint_of(k), stack * tiles_per_stack(in_));
    splats_[seen_++] = {block_.splat[0][k], static_cast<std::uint32_t>(i)};
  }

  const Inputs<S>& in_;
  const int v_;
  const Camera<S> camera_;
  ViewState<S>& state_;
  std::int32_t* radii_;
  TileLister<S> tiles_;
  Block<S> block_;
  Drawn<S> splats_[kChunk];
  int seen_ = 0;
};

// From numbers of tiles to their running sum.
template <typename S>
void accumulate_slots(int n, int threads, const Projected<S>& projected,
                      Buffer<std::uint32_t>& first_slot) {
  const int chunks = chunk_count(n);
  Buffer<std::uint32_t> before;
  before.resize(chunks);
  std::uint64_t total = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    before[chunk] = static_cast<std::uint32_t>(total);
    total += projected.touches[chunk].size();
  }
  if (total > 0xffffffffu) throw std::length_error("more than 2^32 splat-tile pairs in one view");
  parallel_for(chunks, threads, [&](int chunk, int) {
    std::uint32_t sum = before[chunk];
    const int end = std::min(n, (chunk + 1) * kChunk);
    for (int i = chunk * kChunk; i < end; ++i) sum += std::exchange(first_slot[i], sum);
  });
  first_slot[n] = static_cast<std::uint32_t>(total);
}

// Features start at a multiple of 16 bytes; the record of a float RGB splat is one cache line. It is
// never shorter than what blending copies of it (kStaged).
int record_stride(int features) {
  const int stride = (kGeometry + features + 3) / 4 * 4;
  return stride == 12 ? 16 : stride;
}

}  // namespace

template <typename S>
void project_view(const Inputs<S>& in, int v, int threads, ViewState<S>& state,
                  std::int32_t* radii, Projected<S>& projected) {
  const int n = in.gaussians;
  if (tile_count(in) > 1 << Touch::kTileBits) {
    throw std::length_error("more than 2^24 tiles in one view");
  }
  state.record_stride = record_stride(in.features());
  state.records.resize(static_cast<std::size_t>(n) * state.record_stride);
  state.first_slot.resize(n + 1);
  projected.drawn.resize(n);
  projected.drawn_count.resize(chunk_count(n));
  projected.tile_count.resize(std::size_t(threads) * tile_count(in));
  projected.tile_count.zero();
  parallel_for(chunk_count(n), threads, [&](int chunk, int worker) {
    const int begin = chunk * kChunk, end = std::min(n, begin + kChunk);
    ChunkProjection<S> projection(in, v, state, radii, projected.touches[chunk],
                                  projected.tile_count.data() + std::size_t(worker) * tile_count(in));
    projected.drawn_count[chunk] = projection.run(begin, end, projected.drawn.data() + begin);
  });
  accumulate_slots(n, threads, projected, state.first_slot);
}

template void project_view(const Inputs<float>&, int, int, ViewState<float>&, std::int32_t*,
                           Projected<float>&);
template void project_view(const Inputs<double>&, int, int, ViewState<double>&, std::int32_t*,
                           Projected<double>&);

}  // namespace NATIVE_LEVEL
}  // namespace gr
