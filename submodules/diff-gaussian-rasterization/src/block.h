// Gaussians taken many at a time: read from the tensors of their layers, and projected.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "stages.h"

namespace gr {
namespace NATIVE_LEVEL {

// Goes through the Gaussians of all layers in ascending order and says where the tensors of each are.
template <typename S>
class Walk {
 public:
  Walk(const Inputs<S>& in, int first) : in_(in), layer_(in.layer_of(first)) { to(first); }

  void to(int i) {
    while (layer_ + 1 < in_.layers && i >= in_.layer_start[layer_ + 1]) ++layer_;
    local_ = in_.parts != nullptr ? i - in_.layer_start[layer_] : i;
  }
  // The Gaussians from i, where it is, up to `end` that are of the same layer.
  int run(int i, int end) const {
    return (layer_ + 1 < in_.layers ? std::min(end, in_.layer_start[layer_ + 1]) : end) - i;
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

template <int Value>
struct Degree {
  static constexpr int value = Value;
};

// Calls visit(Degree<n>()) for the degree of harmonics, which is a constant inside then.
template <typename Visit>
auto with_degree(int degree, const Visit& visit) {
  if (degree <= 0) return visit(Degree<0>());
  if (degree == 1) return visit(Degree<1>());
  if (degree == 2) return visit(Degree<2>());
  return visit(Degree<3>());
}

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
  alignas(64) S basis[kMaxShCoefficients][kSize];  // of the harmonics

  // Takes `n` successive ones of a layer as they are given; returns the place of the first.
  NATIVE_INLINE int push(const Walk<S>& at, int v, int n) {
    const Inputs<S>& in = at.inputs();
    const int first = std::exchange(count, count + n);
    for (int k = 0; k < n; ++k) local[first + k] = at.local() + k;
    std::fill_n(inputs + first, n, &in);
    take_rows(in.means, v, at.local(), n, mean, first);
    if (in.cov3d) {
      take_rows(in.cov3d, v, at.local(), n, cov, first);
    } else {
      take_rows(in.scales, v, at.local(), n, scale, first);
      take_rows(in.rotations, v, at.local(), n, rotation, first);
    }
    return first;
  }

  // Columns from rows; fetches as many as are most likely taken next.
  template <int Width>
  NATIVE_INLINE static void take_rows(const Batched<const S>& from, int v, std::int64_t i, int n,
                                      S (&columns)[Width][kSize], int first) {
    const S* rows = from.at(v) + Width * i;
    for (int k = 0; k < n; ++k) {
      for (int d = 0; d < Width; ++d) columns[d][first + k] = rows[Width * k + d];
    }
    for (std::int64_t at = 0; at < Width * n; at += kLine<S>) prefetch(rows + Width * n + at);
  }

  // From what is given to covariances.
  void find_shapes(bool raw, S modifier) {
    if (raw) activate();
    find_covariances(modifier);
  }

  void activate() {
    for (int k = 0; k < kSize; ++k) {
      const Shape<S> given = shape_at(k), shape = activated_shape(given.scale, given.rotation);
      for (int d = 0; d < 3; ++d) scale[d][k] = shape.scale[d];
      for (int d = 0; d < 4; ++d) rotation[d][k] = shape.rotation[d];
      length[k] = shape.length;
    }
  }

  void find_covariances(S modifier) {
    for (int k = 0; k < kSize; ++k) {
      const Shape<S> shape = shape_at(k);
      put(covariance_3d(shape.scale, shape.rotation, modifier), cov, k);
    }
  }

  void find_basis(int degree, Vec3<S> eye) {
    with_degree(degree, [&](auto d) { this->template find_basis_of<d.value>(eye); });
  }

  template <int Degree>
  void find_basis_of(Vec3<S> eye) {
    for (int k = 0; k < kSize; ++k) {
      S inv_length;
      const Vec3<S> d = normalized(mean_at(k) - eye, inv_length);
      sh_basis_each(Degree, d, [&](int j, S value) { basis[j][k] = value; });
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

template <typename S>
void prefetch_color(const Inputs<S>& in, int v, std::int64_t i) {
  const std::int64_t size = in.sh ? 3 * in.sh_rows : in.channels;
  const S* color = (in.sh ? in.sh : in.colors).at(v) + i * size;
  for (std::int64_t at = 0; at < size; at += kLine<S>) prefetch(color + at);
}

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
  alignas(64) S opacity[kSize] = {}, level[kSize], splat[9][kSize], radius[kSize];
  alignas(64) S along_x[5][kSize], along_y[5][kSize];  // of the footprint
  int rect[4][kSize], valid[kSize];

  // The first of `n` is Gaussian i.
  NATIVE_INLINE void push(const Walk<S>& at, int v, int i, int n) {
    const int first = Gaussians<S>::push(at, v, n);
    for (int k = 0; k < n; ++k) gaussian[first + k] = i + k;
    std::fill_n(layer + first, n, at.layer());
    std::copy_n(at.inputs().opacities.at(v) + at.local(), n, opacity + first);
  }

  void activate_opacities() {
    for (int k = 0; k < kSize; ++k) opacity[k] = opacity_of_logit(opacity[k]);
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
      const S log = log_of(opacity[k]), reach = max_of(S(2) * (log + S(kLog255)), S(0));
      level[k] = log * S(kLog2E);
      const Footprint<S> f = footprint_within(splat_of(k), reach, TileRect{});
      put(f.along_x, along_x, k);
      put(f.along_y, along_y, k);
    }
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
};

// The RGB of a Gaussian of a block before the clamp, from its basis and harmonics.
template <int Degree, typename S>
Vec3<S> block_sh_sum_of(const S* basis, const S* sh) {
  return sh_sum_of<Degree>(basis, Block<S>::kSize, sh);
}
#if defined(__GNUC__) || defined(__clang__)
// Four values at a time, the fourth of which is of the next coefficient and not used, and two sums that
// do not wait for each other. In arrays instead of these vectors, GCC keeps the sums in memory.
template <int Degree>
Vec3<float> block_sh_sum_of(const float* basis, const float* sh) {
  typedef float Four __attribute__((vector_size(16)));
  constexpr int stride = Block<float>::kSize, last = sh_coefficients(Degree) - 1;
  Four sums[2] = {{0.5f, 0.5f, 0.5f, 0.0f}, {}};
  for (int j = 0; j < last; ++j) {
    Four values;
    std::memcpy(&values, sh + 3 * j, sizeof values);
    sums[j % 2] += basis[j * stride] * values;
  }
  const float* end = sh + 3 * last;
  sums[last % 2] += basis[last * stride] * Four{end[0], end[1], end[2], 0.0f};
  const Four all = sums[0] + sums[1];
  return {all[0], all[1], all[2]};
}
#endif

template <typename S>
Vec3<S> block_sh_sum(int degree, const S* basis, const S* sh) {
  return with_degree(degree, [&](auto d) { return block_sh_sum_of<d.value>(basis, sh); });
}

// The colour of Gaussian k of a block; false if a channel is not finite.
template <typename S>
bool block_color(const Inputs<S>& in, int v, const Block<S>& block, int k, S* features) {
  const std::int64_t i = block.local[k];
  if (!in.sh) return copy_features(in.colors.at(v) + i * in.channels, in.channels, features);
  const S* sh = in.sh.at(v) + i * in.sh_rows * 3;
  return clamp_color(block_sh_sum(in.sh_degree, &block.basis[0][k], sh), features);
}

}  // namespace NATIVE_LEVEL
}  // namespace gr
