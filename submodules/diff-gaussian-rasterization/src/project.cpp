// Per-Gaussian stages: projection and colour before blending, their gradients after it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "blend_row.h"
#include "stages.h"
#include "thread_pool.h"

namespace gr {
namespace NATIVE_LEVEL {
namespace {

template <typename S>
void geometry_record(const Splat<S>& splat, S opacity, S* record) {
  const Falloff<S> quad = falloff(splat);
  record[kX] = splat.x;
  record[kY] = splat.y;
  record[kQuadXX] = quad.xx;
  record[kQuadXY] = quad.xy;
  record[kQuadYY] = quad.yy;
  record[kOpacity] = opacity;
}

// One axis of a footprint, as an array: what a span along it needs.
enum SideField { kCentreX, kCentreY, kHalf, kAtHalf, kSlope, kSquare, kShrink, kOtherHalf, kSide };

// The tiles that the footprints of a chunk touch: first the (footprint, row of tiles) pairs, which
// give (footprint, tile) pairs, which give spans of rows. Each kind is gathered until there are
// kItems, which the compiler then takes side by side; all keep their order.
template <typename S>
class TileLister {
 public:
  static constexpr int kItems = 64;

  // `tile_count`: per tile, what is listed is added to it.
  TileLister(int tiles_x, Touches& touches, std::uint32_t* tile_count)
      : tiles_x_(tiles_x), touches_(touches), tile_count_(tile_count) {
    touches_.clear();
  }

  // Footprints come in ascending order; `first_tile` is the number of the first tile of its stack.
  void add(int c, const Footprint<S>& f, int first_tile) {
    S along_x[kSide];
    fill_side(f, f.along_x, f.along_y, along_x);
    fill_side(f, f.along_y, f.along_x, along_y_[c]);
    first_tile_[c] = first_tile;
    counts_[c] = 0;
    if (is_empty(f.rect)) return;  // its axes may not even be numbers
    const int top = f.rect.y0 * kTile, end = f.rect.y1 * kTile;
    for (int ty = top / kTileRows; ty * kTileRows < end; ++ty) {
      x0_[rows_.count] = f.rect.x0;
      x1_[rows_.count] = f.rect.x1;
      rows_.push(c, along_x, 0, ty, std::max(top, ty * kTileRows),
                 std::min(end, (ty + 1) * kTileRows));
      if (rows_.count == kItems) list_tiles();
    }
  }

  void finish() {
    list_tiles();
    list_rows();
  }

  std::uint32_t count(int c) const { return counts_[c]; }  // tiles of a footprint

 private:
  // Pairs as arrays. Places beyond `count` hold earlier ones, or zeros: computed, but not listed.
  struct Items {
    int count = 0;
    int number[kItems], tx[kItems] = {}, ty[kItems] = {};
    int top[kItems] = {}, end[kItems] = {};  // pixel rows of the rectangle in them
    alignas(64) S side[kSide][kItems] = {};

    void push(int c, const S* values, int x, int y, int top_, int end_) {
      for (int k = 0; k < kSide; ++k) side[k][count] = values[k];
      number[count] = c;
      tx[count] = x;
      ty[count] = y;
      top[count] = top_;
      end[count] = end_;
      ++count;
    }
    EllipseAxis<S> along(int i) const {
      return {side[kHalf][i], side[kAtHalf][i], side[kSlope][i], side[kSquare][i],
              side[kShrink][i]};
    }
    EllipseAxis<S> other(int i) const { return {side[kOtherHalf][i], S(0), S(0), S(0), S(0)}; }
  };

  static void fill_side(const Footprint<S>& f, const EllipseAxis<S>& along,
                        const EllipseAxis<S>& other, S* side) {
    side[kCentreX] = f.x;
    side[kCentreY] = f.y;
    side[kHalf] = along.half;
    side[kAtHalf] = along.at_half;
    side[kSlope] = along.slope;
    side[kSquare] = along.square;
    side[kShrink] = along.shrink;
    side[kOtherHalf] = other.half;
  }

  void list_tiles() {
    if (rows_.count == 0) return;
    int first[kItems], last[kItems];
    for (int k = 0; k < kItems; ++k) {
      const Footprint<S> f{rows_.side[kCentreX][k], rows_.side[kCentreY][k], rows_.along(k),
                           rows_.other(k), {x0_[k], 0, x1_[k], 0}};
      const Span span = tile_span(f, rows_.top[k], rows_.end[k]);
      first[k] = span.first;
      last[k] = span.last;
    }
    for (int k = 0; k < rows_.count; ++k) {
      const int c = rows_.number[k];
      for (int tx = first[k]; tx <= last[k]; ++tx) {
        tiles_.push(c, along_y_[c], tx, rows_.ty[k], rows_.top[k], rows_.end[k]);
        if (tiles_.count == kItems) list_rows();
      }
    }
    rows_.count = 0;
  }

  void list_rows() {
    if (tiles_.count == 0) return;
    int first[kGroups<S>][kItems], end[kGroups<S>][kItems];
    for (int g = 0; g < kGroups<S>; ++g) {
      for (int k = 0; k < kItems; ++k) {
        const Footprint<S> f{tiles_.side[kCentreX][k], tiles_.side[kCentreY][k], tiles_.other(k),
                             tiles_.along(k), {}};
        constexpr int columns = kTile / kGroups<S>;
        const Span span = row_span(f, tiles_.tx[k] * kTile + g * columns, columns, tiles_.top[k],
                                   tiles_.end[k]);
        const bool any = span.first <= span.last;
        first[g][k] = any ? span.first - tiles_.ty[k] * kTileRows : 0;
        end[g][k] = any ? span.last + 1 - tiles_.ty[k] * kTileRows : 0;
      }
    }
    for (int k = 0; k < tiles_.count; ++k) {
      Spans spans = 0;
      for (int g = 0; g < kGroups<S>; ++g) spans |= span_of(g, first[g][k], end[g][k]);
      if (spans == 0) continue;
      const int c = tiles_.number[k];
      const int tile = first_tile_[c] + tiles_.ty[k] * tiles_x_ + tiles_.tx[k];
      touches_.push({static_cast<std::uint32_t>(tile), spans});
      ++tile_count_[tile];
      ++counts_[c];
    }
    tiles_.count = 0;
  }

  S along_y_[kChunk][kSide];
  int first_tile_[kChunk];
  std::uint32_t counts_[kChunk];
  Items rows_, tiles_;
  int x0_[kItems] = {}, x1_[kItems] = {};  // the columns of tiles of rows_
  const int tiles_x_;
  Touches& touches_;
  std::uint32_t* tile_count_;
};

// Goes through the Gaussians of all layers in ascending order and says where the tensors of each are.
template <typename S>
class Walk {
 public:
  Walk(const Inputs<S>& in, int first) : in_(in), layer_(in.layer_of(first)) { to(first); }

  void to(int i) {
    while (layer_ + 1 < in_.layers && i >= in_.layer_start[layer_ + 1]) ++layer_;
    local_ = in_.parts != nullptr ? i - in_.layer_start[layer_] : i;
  }
  int layer() const { return layer_; }
  int local() const { return local_; }  // its row
  int part() const { return in_.parts != nullptr ? layer_ : 0; }
  const Inputs<S>& inputs() const { return in_.parts != nullptr ? in_.parts[layer_] : in_; }

 private:
  const Inputs<S>& in_;
  int layer_, local_ = 0;
};

template <typename S>
constexpr std::int64_t kLine = 64 / sizeof(S);  // values in a line of the caches

// Gaussians as arrays: the compiler takes many of them side by side. Places that are not filled
// hold earlier ones, or zeros: computed, but not looked at.
template <typename S>
struct Gaussians {
  static constexpr int kSize = 64;
  int count = 0;
  int local[kSize];                // their rows
  const Inputs<S>* inputs[kSize];  // where their tensors are
  alignas(64) S mean[3][kSize] = {}, scale[3][kSize] = {}, rotation[4][kSize] = {};
  alignas(64) S length[kSize] = {}, cov[6][kSize] = {};

  // Returns the place of the new one.
  int push(const Walk<S>& at, int v) {
    const Inputs<S>& in = at.inputs();
    const int k = count++;
    local[k] = at.local();
    inputs[k] = &in;
    put(input_mean(in, v, local[k]), mean, k);
    if (in.cov3d) {
      const S* c = in.cov3d.at(v) + std::int64_t(6) * local[k];
      for (int d = 0; d < 6; ++d) cov[d][k] = c[d];
    } else {
      const Shape<S> shape = input_shape(in, v, local[k]);
      for (int d = 0; d < 3; ++d) scale[d][k] = shape.scale[d];
      for (int d = 0; d < 4; ++d) rotation[d][k] = shape.rotation[d];
      length[k] = shape.length;
    }
    return k;
  }

  void find_covariances(S modifier) {
    for (int k = 0; k < kSize; ++k) {
      const Shape<S> shape = shape_at(k);
      put(covariance_3d(shape.scale, shape.rotation, modifier), cov, k);
    }
  }

  Vec3<S> mean_at(int k) const { return {mean[0][k], mean[1][k], mean[2][k]}; }
  Shape<S> shape_at(int k) const {
    return {{scale[0][k], scale[1][k], scale[2][k]},
            {rotation[0][k], rotation[1][k], rotation[2][k], rotation[3][k]},
            length[k]};
  }
  Sym3<S> cov_at(int k) const {
    return {cov[0][k], cov[1][k], cov[2][k], cov[3][k], cov[4][k], cov[5][k]};
  }

  static void put(Vec3<S> value, S (&columns)[3][kSize], int k) {
    columns[0][k] = value.x;
    columns[1][k] = value.y;
    columns[2][k] = value.z;
  }
  static void put(const Sym3<S>& m, S (&columns)[6][kSize], int k) {
    columns[0][k] = m.xx;
    columns[1][k] = m.xy;
    columns[2][k] = m.xz;
    columns[3][k] = m.yy;
    columns[4][k] = m.yz;
    columns[5][k] = m.zz;
  }
};

// Natural logarithm of a positive normal number, to 1e-7 of 1 or of itself: unlike that of the
// library, many at a time. By atanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)).
GR_HD float log_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::int32_t exponent = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;  // sqrt(1/2)
  bits -= static_cast<std::uint32_t>(exponent) << 23;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float r = (m - 1.0f) / (m + 1.0f), rr = r * r;
  const float series = 1.0f + rr * (1.0f / 3 + rr * (1.0f / 5 + rr * (1.0f / 7 + rr / 9)));
  return float(exponent) * 0.69314718f + 2.0f * r * series;
}
GR_HD double log_of(double x) { return std::log(x); }
constexpr double kLog255 = 5.541263545158426;

// Gaussians on their way to the image.
template <typename S>
struct Block : Gaussians<S> {
  using Gaussians<S>::kSize;
  int gaussian[kSize], layer[kSize];
  alignas(64) S opacity[kSize] = {}, splat[9][kSize], radius[kSize];
  alignas(64) S along_x[5][kSize], along_y[5][kSize];  // of the footprint
  alignas(64) S basis[kMaxShCoefficients][kSize];      // of the harmonics
  int rect[4][kSize], valid[kSize];

  void push(const Walk<S>& at, int v, int i) {
    const int k = Gaussians<S>::push(at, v);
    gaussian[k] = i;
    layer[k] = at.layer();
    opacity[k] = input_opacity(at.inputs(), v, at.local());
  }

  // As `project_gaussian`.
  void project(const Camera<S> camera, int tiles_x, int tiles_y) {
    for (int k = 0; k < kSize; ++k) {
      const Vec3<S> p = this->mean_at(k), t = to_camera(camera, p);
      const Sym3<S> m = this->cov_at(k);
      Splat<S> s;
      const bool on = project_beyond(camera, p, t, m, s);
      splat[0][k] = s.depth;
      splat[1][k] = s.x;
      splat[2][k] = s.y;
      splat[3][k] = s.cov_xx;
      splat[4][k] = s.cov_xy;
      splat[5][k] = s.cov_yy;
      splat[6][k] = s.conic_xx;
      splat[7][k] = s.conic_xy;
      splat[8][k] = s.conic_yy;
      radius[k] = s.radius;
      valid[k] = on & is_beyond(camera, t, m) & is_finite(opacity[k]);
    }
    for (int k = 0; k < kSize; ++k) {
      const TileRect r = tile_rect(splat_of(k), tiles_x, tiles_y);
      rect[0][k] = r.x0;
      rect[1][k] = r.y0;
      rect[2][k] = r.x1;
      rect[3][k] = r.y1;
      valid[k] &= (r.x0 < r.x1) & (r.y0 < r.y1);
    }
  }

  // As `footprint`, but for the rectangle.
  void find_footprints() {
    for (int k = 0; k < kSize; ++k) {
      const S level = max_of(S(2) * (log_of(opacity[k]) + S(kLog255)), S(0));
      const Footprint<S> f = footprint_within(splat_of(k), level, TileRect{});
      put(f.along_x, along_x, k);
      put(f.along_y, along_y, k);
    }
  }

  void find_basis(int degree, Vec3<S> eye) {
    if (degree <= 0) return find_basis_of<0>(eye);
    if (degree == 1) return find_basis_of<1>(eye);
    if (degree == 2) return find_basis_of<2>(eye);
    find_basis_of<3>(eye);
  }

  Splat<S> splat_of(int k) const {
    const auto f = [&](int n) { return splat[n][k]; };
    return {f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), radius[k]};
  }

  Footprint<S> footprint_of(int k) const {
    const auto x = [&](int n) { return along_x[n][k]; };
    const auto y = [&](int n) { return along_y[n][k]; };
    const bool faint = !(opacity[k] >= S(kMinAlpha));
    return {splat[1][k], splat[2][k], {x(0), x(1), x(2), x(3), x(4)},
            {y(0), y(1), y(2), y(3), y(4)},
            {rect[0][k], rect[1][k], rect[2][k], faint ? rect[1][k] : rect[3][k]}};
  }

 private:
  using Gaussians<S>::put;
  static void put(const EllipseAxis<S>& e, S (&columns)[5][kSize], int k) {
    columns[0][k] = e.half;
    columns[1][k] = e.at_half;
    columns[2][k] = e.slope;
    columns[3][k] = e.square;
    columns[4][k] = e.shrink;
  }

  template <int Degree>
  void find_basis_of(Vec3<S> eye) {
    for (int k = 0; k < kSize; ++k) {
      S inv_length;
      const Vec3<S> d = normalized(this->mean_at(k) - eye, inv_length);
      sh_basis_each(Degree, d, [&](int j, S value) { basis[j][k] = value; });
    }
  }
};

// The colour of Gaussian k of a block; false if a channel is not finite.
template <typename S>
bool block_color(const Inputs<S>& in, int v, const Block<S>& block, int k, S* features) {
  const std::int64_t i = block.local[k];
  if (!in.sh) return copy_features(in.colors.at(v) + i * in.channels, in.channels, features);
  const S* sh = in.sh.at(v) + i * in.sh_rows * 3;
  const S* basis = &block.basis[0][k];
  return clamp_color(sh_sum(in.sh_degree, basis, Block<S>::kSize, sh), features);
}

// Writes the record of Gaussian k of a block; false if a feature is not finite.
template <typename S>
bool finish_record(int v, const Block<S>& block, int k, S* record) {
  const Inputs<S>& in = *block.inputs[k];
  const Splat<S> splat = block.splat_of(k);
  S* features = record + kGeometry;
  if (!block_color(in, v, block, k, features)) return false;
  if (!further_features(in, v, block.local[k], splat.depth, features)) return false;
  geometry_record(splat, block.opacity[k], record);
  record[kPlane] = in.shared ? S(block.layer[k] * in.features()) : S(0);
  return true;
}

template <typename S>
void prefetch_color(const Inputs<S>& in, int v, std::int64_t i) {
  const std::int64_t size = in.sh ? 3 * in.sh_rows : in.channels;
  const S* color = (in.sh ? in.sh : in.colors).at(v) + i * size;
  for (std::int64_t at = 0; at < size; at += kLine<S>) prefetch(color + at);
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
    Walk<S> at(in_, begin);
    for (int i = begin; i < end; ++i) {
      radii_[i] = 0;
      state_.first_slot[i] = 0;
      at.to(i);
      block_.push(at, v_, i);
      if (block_.count == Block<S>::kSize || i + 1 == end) take_block();
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
    if (!has_cov) block_.find_covariances(in_.scale_modifier);
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

// ------------------------------------------------------------------------------------- backward

namespace {

// The gradients of the colour and of the further features; returns the colour's part for the mean.
// `features` are those that were blended, `sum` their gradients from wanted.first on.
template <typename S>
Vec3<S> planes_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                        Vec3<S> mean, const S* features, const S* sum, const Wanted& wanted,
                        const InputGradients<S>& grad) {
  emit(grad.extra, v, i, in.extras, sum + (in.channels - wanted.first));
  if (wanted.first > 0) return {S(0), S(0), S(0)};
  return color_backward(in, v, i, camera, mean, features, sum, grad);
}

// The gradients of the harmonics, which are most of what is written.
template <typename S>
void prefetch_gradients(const Walk<S>& at, int v, const InputGradients<S>& grad) {
  if (!grad.sh) return;
  const std::int64_t size = 3 * at.inputs().sh_rows;
  const S* row = grad.sh.at(v) + at.local() * size;
  for (std::int64_t k = 0; k < size; k += kLine<S>) prefetch_for_write(row + k);
}

// Adds up the tiles of Gaussian i in a fixed order; false if no pixel saw it.
template <typename S>
bool reduce_pairs(const PairGradients<S>& pairs, std::uint32_t first, std::uint32_t last, S* sum) {
  bool any = false;
  for (std::uint32_t slot = first; slot < last; ++slot) {
    if (!pairs.written[slot]) continue;
    const S* values = pairs.values.data() + static_cast<std::size_t>(slot) * pairs.stride;
    for (int k = 0; k < pairs.stride; ++k) sum[k] = any ? sum[k] + values[k] : values[k];
    any = true;
  }
  return any;
}

// Gaussians on their way back, with what the pixels gathered of them.
template <typename S>
struct BlockBack : Gaussians<S> {
  using Gaussians<S>::kSize;
  const InputGradients<S>* grads[kSize];
  alignas(64) S opacity[kSize] = {}, moments[kMoments][kSize] = {}, depth[kSize] = {};
  alignas(64) S by_color[3][kSize];  // the colour's part for the mean
  // What they hand on.
  alignas(64) S grad_mean[3][kSize], grad_cov[6][kSize], ndc[2][kSize], grad_opacity[kSize];
  alignas(64) S grad_scale[3][kSize], grad_rotation[4][kSize];
  int valid[kSize];

  // `blended` is the opacity that was; `sums` and `grad_depth` are what was gathered.
  int push(const Walk<S>& at, int v, S blended, const S* sums, S grad_depth,
           const InputGradients<S>& grad) {
    const int k = Gaussians<S>::push(at, v);
    grads[k] = &grad;
    opacity[k] = blended;
    for (int m = 0; m < kMoments; ++m) moments[m][k] = sums[m];
    depth[k] = grad_depth;
    return k;
  }

  // The compiler makes vectors of this loop and the next only if it need not fear that the camera
  // is written to (hence a copy), and if nothing in them branches (hence Raw).
  template <bool Raw>
  void find_gradients(const Camera<S> camera) {
    for (int k = 0; k < kSize; ++k) {
      const Vec3<S> p = this->mean_at(k), t = to_camera(camera, p);
      const Sym3<S> m = this->cov_at(k);
      const S gathered[kMoments] = {moments[0][k], moments[1][k], moments[2][k],
                                    moments[3][k], moments[4][k], moments[5][k]};
      Splat<S> s;
      const bool on = project_beyond(camera, p, t, m, s);
      valid[k] = on & is_beyond(camera, t, m);
      const ProjectionGrad<S> g = projection_gradient(camera, p, m, s, gathered, depth[k]);
      this->put(g.mean, grad_mean, k);
      this->put(g.cov, grad_cov, k);
      ndc[0][k] = g.ndc_x;
      ndc[1][k] = g.ndc_y;
      grad_opacity[k] = opacity_gradient(Raw, opacity[k], gathered);
    }
  }

  template <bool Raw>
  void find_shape_gradients(S modifier) {
    for (int k = 0; k < kSize; ++k) {
      S by_scale[3], by_rotation[4];
      shape_gradient(this->shape_at(k), modifier, Raw, cov_gradient(k), by_scale, by_rotation);
      for (int d = 0; d < 3; ++d) grad_scale[d][k] = by_scale[d];
      for (int d = 0; d < 4; ++d) grad_rotation[d][k] = by_rotation[d];
    }
  }

  Sym3<S> cov_gradient(int k) const {
    const auto f = [&](int n) { return grad_cov[n][k]; };
    return {f(0), f(1), f(2), f(3), f(4), f(5)};
  }

  void emit_one(int v, int k, bool has_cov) const {
    const InputGradients<S>& grad = *grads[k];
    const int i = this->local[k];
    if (!valid[k]) return emit_zeros(*this->inputs[k], v, i, grad);
    const Vec3<S> mean{grad_mean[0][k] + by_color[0][k], grad_mean[1][k] + by_color[1][k],
                       grad_mean[2][k] + by_color[2][k]};
    emit_projection(v, i, mean, ndc[0][k], ndc[1][k], grad_opacity[k], grad);
    if (has_cov) return emit_covariance(v, i, cov_gradient(k), grad);
    const S by_scale[3] = {grad_scale[0][k], grad_scale[1][k], grad_scale[2][k]};
    const S by_rotation[4] = {grad_rotation[0][k], grad_rotation[1][k], grad_rotation[2][k],
                              grad_rotation[3][k]};
    emit(grad.scales, v, i, 3, by_scale);
    emit(grad.rotations, v, i, 4, by_rotation);
  }

  // Emits what the Gaussians hand on, as `gaussian_backward`, and is empty again.
  void finish(const Inputs<S>& in, int v, const Camera<S>& camera) {
    if (this->count == 0) return;
    const bool has_cov = bool(this->inputs[0]->cov3d);
    if (!has_cov) this->find_covariances(in.scale_modifier);
    if (in.raw) {
      find_gradients<true>(camera);
      if (!has_cov) find_shape_gradients<true>(in.scale_modifier);
    } else {
      find_gradients<false>(camera);
      if (!has_cov) find_shape_gradients<false>(in.scale_modifier);
    }
    for (int k = 0; k < this->count; ++k) emit_one(v, k, has_cov);
    this->count = 0;
  }
};

// Takes a Gaussian that pixels saw, from what they gathered: its planes now, all else in blocks.
template <typename S>
void splat_backward(const Walk<S>& at, int v, const Camera<S>& camera, const S* record,
                    const S* sum, const Wanted& wanted, const InputGradients<S>& grad,
                    BlockBack<S>& block) {
  const Inputs<S>& in = at.inputs();
  const int i = at.local();
  const S* by_feature = sum + (wanted.moments ? kMoments : 0);
  const Vec3<S> by_color = planes_backward(in, v, i, camera, input_mean(in, v, i),
                                           record + kGeometry, by_feature, wanted, grad);
  if (!wanted.moments) return;
  const bool has_depth = wanted.end > in.depth_feature();
  const S grad_depth = has_depth ? by_feature[in.depth_feature()] : S(0);
  const int k = block.push(at, v, record[kOpacity], sum, grad_depth, grad);
  block.put(by_color, block.by_color, k);
}

}  // namespace

template <typename S>
void project_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                           const PairGradients<S>& pairs, const Wanted& wanted,
                           const InputGradients<S>* grads) {
  const Camera<S> camera = in.camera(v);
  const int n = in.gaussians;
  Buffer<S> sums;
  sums.resize(std::size_t(pairs.stride) * threads);
  parallel_for(chunk_count(n), threads, [&](int chunk, int worker) {
    S* sum = sums.data() + std::size_t(pairs.stride) * worker;
    const int begin = chunk * kChunk, end = std::min(n, begin + kChunk);
    Walk<S> at(in, begin), next(in, begin);
    BlockBack<S> block;
    for (int i = begin; i < end; ++i) {
      at.to(i);
      constexpr int ahead = 16;
      if (i + ahead < end) {
        next.to(i + ahead);
        prefetch_gradients(next, v, grads[next.part()]);
      }
      if (i + ahead < end && state.first_slot[i + ahead] < state.first_slot[i + ahead + 1]) {
        if (wanted.first == 0) prefetch_color(next.inputs(), v, next.local());
        prefetch(state.records.data() + std::size_t(i + ahead) * state.record_stride);
      }
      const InputGradients<S>& grad = grads[at.part()];
      if (reduce_pairs(pairs, state.first_slot[i], state.first_slot[i + 1], sum)) {
        const S* record = state.records.data() + std::size_t(i) * state.record_stride;
        splat_backward(at, v, camera, record, sum, wanted, grad, block);
        if (block.count == BlockBack<S>::kSize) block.finish(in, v, camera);
      } else {
        emit_zeros(at.inputs(), v, at.local(), grad);
      }
    }
    block.finish(in, v, camera);
  });
}

#define GR_INSTANTIATE(S)                                                                       \
  template void project_view(const Inputs<S>&, int, int, ViewState<S>&, std::int32_t*,          \
                             Projected<S>&);                                                    \
  template void project_view_backward(const Inputs<S>&, int, int, const ViewState<S>&,          \
                                      const PairGradients<S>&, const Wanted&,                   \
                                      const InputGradients<S>*);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace NATIVE_LEVEL
}  // namespace gr
