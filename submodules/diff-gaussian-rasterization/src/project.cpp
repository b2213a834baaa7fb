// Per-Gaussian stages: projection and colour before blending, their gradients after it.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "gaussian_rasterizer/spherical_harmonics.h"
#include "rasterizer.h"
#include "simd.h"
#include "thread_pool.h"

namespace gr {
namespace {

// Colour channels of Gaussian i into `features`; false if one is not finite.
template <typename S>
bool color_features(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                    Vec3<S> mean, S* features) {
  if (in.sh) {
    const S* sh = in.sh.at(v) + i * in.sh_rows * 3;
    const Vec3<S> rgb = sh_color(in.sh_degree, mean - camera.position, sh);
    features[0] = max_of(rgb.x, S(0));
    features[1] = max_of(rgb.y, S(0));
    features[2] = max_of(rgb.z, S(0));
    return is_finite(rgb);
  }
  const S* color = in.colors.at(v) + i * in.channels;
  bool finite = true;
  for (int k = 0; k < in.channels; ++k) {
    features[k] = color[k];
    finite = finite && is_finite(color[k]);
  }
  return finite;
}

// The conic is stored so that 2^(quad) is the falloff: scaled by -log2(e), halved on the diagonal.
template <typename S>
void geometry_record(const Splat<S>& splat, S opacity, S* record) {
  record[kX] = splat.x;
  record[kY] = splat.y;
  record[kQuadXX] = S(-0.5 * kLog2E) * splat.conic_xx;
  record[kQuadXY] = S(-kLog2E) * splat.conic_xy;
  record[kQuadYY] = S(-0.5 * kLog2E) * splat.conic_yy;
  record[kOpacity] = opacity;
}

std::uint16_t row_bits(Span span) {
  if (span.first > span.last) return 0;
  return static_cast<std::uint16_t>((2u << span.last) - (1u << span.first));
}

// Appends the tiles that the footprint touches.
template <typename S>
void list_touches(const Footprint<S>& f, int tiles_x, std::vector<Touch>& touches) {
  for (int ty = f.rect.y0; ty < f.rect.y1; ++ty) {
    const Span span = tile_span(f, ty);
    for (int tx = span.first; tx <= span.last; ++tx) {
      const std::uint16_t rows = row_bits(row_span(f, tx, ty));
      if (rows != 0) touches.push_back({static_cast<std::uint32_t>(ty * tiles_x + tx), rows});
    }
  }
}

// A Gaussian that lands on the image.
template <typename S>
struct Candidate {
  int gaussian;
  Splat<S> splat;
  TileRect rect;
};

template <typename S>
bool find_candidate(const Inputs<S>& in, int v, int i, const Camera<S>& camera,
                    Candidate<S>& candidate) {
  if (!is_finite(in.opacities.at(v)[i])) return false;
  if (!project(camera, input_mean(in, v, i), input_covariance(in, v, i), candidate.splat)) {
    return false;
  }
  candidate.gaussian = i;
  candidate.rect = tile_rect(candidate.splat, in.tiles_x(), in.tiles_y());
  return !is_empty(candidate.rect);
}

// Writes the record of a candidate and lists its tiles; false if its colour is not finite.
template <typename S>
bool finish_candidate(const Inputs<S>& in, int v, const Camera<S>& camera,
                      const Candidate<S>& candidate, S* record, std::vector<Touch>& touches) {
  const int i = candidate.gaussian;
  const S opacity = in.opacities.at(v)[i];
  if (!color_features(in, v, i, camera, input_mean(in, v, i), record + kGeometry)) return false;
  record[kGeometry + in.channels] = candidate.splat.depth;
  geometry_record(candidate.splat, opacity, record);
  list_touches(footprint(candidate.splat, opacity, candidate.rect), in.tiles_x(), touches);
  return true;
}

template <typename S>
void prefetch_color(const Inputs<S>& in, int v, std::int64_t i) {
  constexpr std::int64_t line = 64 / sizeof(S);
  const std::int64_t size = in.sh ? 3 * in.sh_rows : in.channels;
  const S* color = (in.sh ? in.sh : in.colors).at(v) + i * size;
  for (std::int64_t at = 0; at < size; at += line) prefetch(color + at);
}

// Projects Gaussians [begin, end): first all shapes, then the colours of those on the image.
template <typename S>
void project_chunk(const Inputs<S>& in, int v, int begin, int end, ViewState<S>& state,
                   std::int32_t* radii, S* depths, std::vector<Touch>& touches) {
  const Camera<S> camera = in.camera(v);
  Candidate<S> found[kChunk];
  int count = 0;
  for (int i = begin; i < end; ++i) {
    radii[i] = 0;
    state.first_slot[i] = 0;
    count += find_candidate(in, v, i, camera, found[count]) ? 1 : 0;
  }
  touches.clear();
  for (int c = 0; c < count; ++c) {
    constexpr int ahead = 4;
    if (c + ahead < count) prefetch_color(in, v, found[c + ahead].gaussian);
    const int i = found[c].gaussian;
    const std::size_t before = touches.size();
    S* record = state.records.data() + std::size_t(i) * state.record_stride;
    if (!finish_candidate(in, v, camera, found[c], record, touches)) continue;
    radii[i] = static_cast<std::int32_t>(found[c].splat.radius);
    depths[i] = found[c].splat.depth;
    state.first_slot[i] = static_cast<std::uint32_t>(touches.size() - before);
  }
}

// From numbers of tiles to their running sum.
void accumulate_slots(Buffer<std::uint32_t>& first_slot, int n) {
  std::uint64_t total = 0;
  for (int i = 0; i <= n; ++i) {
    const std::uint32_t count = i < n ? first_slot[i] : 0;
    first_slot[i] = static_cast<std::uint32_t>(total);
    total += count;
  }
  if (total > 0xffffffffu) throw std::length_error("more than 2^32 splat-tile pairs in one view");
}

// Features start at a multiple of 16 bytes; the record of a float RGB splat is one cache line.
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
  projected.depths.resize(n);
  if (static_cast<int>(projected.touches.size()) < chunk_count(n)) {
    projected.touches.resize(chunk_count(n));
  }
  parallel_for(chunk_count(n), threads, [&](int chunk, int) {
    project_chunk(in, v, chunk * kChunk, std::min(n, (chunk + 1) * kChunk), state, radii,
                  projected.depths.data(), projected.touches[chunk]);
  });
  accumulate_slots(state.first_slot, n);
}

// ------------------------------------------------------------------------------------- backward

namespace {

// Sets or adds `count` values.
template <typename S>
void emit(const Batched<S>& target, int v, std::int64_t i, int count, const S* values) {
  if (!target) return;
  S* out = target.at(v) + i * count;
  if (target.adds(v)) {
    for (int k = 0; k < count; ++k) out[k] += values[k];
  } else {
    for (int k = 0; k < count; ++k) out[k] = values[k];
  }
}

template <typename S>
void emit_zero(const Batched<S>& target, int v, std::int64_t i, int count) {
  if (!target || target.adds(v)) return;
  std::fill_n(target.at(v) + i * count, count, S(0));
}

template <typename S>
void emit_zeros(const Inputs<S>& in, int v, std::int64_t i, const InputGradients<S>& grad) {
  emit_zero(grad.means, v, i, 3);
  emit_zero(grad.means2d, v, i, 3);
  emit_zero(grad.opacities, v, i, 1);
  emit_zero(grad.sh, v, i, 3 * in.sh_rows);
  emit_zero(grad.colors, v, i, in.channels);
  emit_zero(grad.scales, v, i, 3);
  emit_zero(grad.rotations, v, i, 4);
  emit_zero(grad.cov3d, v, i, 6);
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

// From the moments of q = dL/dpower over the pixels to the gradient of the splat.
template <typename S>
SplatGrad<S> splat_gradient(const Splat<S>& splat, const S* m) {
  const S q_x = m[1], q_y = m[2], q_xx = m[3], q_xy = m[4], q_yy = m[5];
  SplatGrad<S> g;
  g.depth = S(0);
  g.x = -(splat.conic_xx * q_x + splat.conic_xy * q_y);
  g.y = -(splat.conic_xy * q_x + splat.conic_yy * q_y);
  g.conic_xx = S(-0.5) * q_xx;
  g.conic_xy = -q_xy;
  g.conic_yy = S(-0.5) * q_yy;
  return g;
}

// Gradient of the colour; returns its part for the mean (through the viewing direction).
template <typename S>
Vec3<S> color_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                       Vec3<S> mean, const S* features, const S* grad_color,
                       const InputGradients<S>& grad) {
  if (!in.sh) {
    emit(grad.colors, v, i, in.channels, grad_color);
    return {S(0), S(0), S(0)};
  }
  // The record holds the clamped colour: exactly 0 where the clamp was active.
  const Vec3<S> g{features[0] > S(0) ? grad_color[0] : S(0),
                  features[1] > S(0) ? grad_color[1] : S(0),
                  features[2] > S(0) ? grad_color[2] : S(0)};
  const std::int64_t row = i * in.sh_rows * 3;
  S* out = grad.sh ? grad.sh.at(v) + row : nullptr;
  const int used = sh_coefficients(in.sh_degree);
  if (out != nullptr && !grad.sh.adds(v)) std::fill(out + 3 * used, out + 3 * in.sh_rows, S(0));
  return sh_color_backward(in.sh_degree, mean - camera.position, in.sh.at(v) + row, g,
                           grad.sh.adds(v), out);
}

template <typename S>
void shape_backward(const Inputs<S>& in, int v, std::int64_t i, const Sym3<S>& g,
                    const InputGradients<S>& grad) {
  if (in.cov3d) {
    const S values[6] = {g.xx, S(2) * g.xy, S(2) * g.xz, g.yy, S(2) * g.yz, g.zz};
    emit(grad.cov3d, v, i, 6, values);
    return;
  }
  if (!grad.scales && !grad.rotations) return;
  S grad_scale[3], grad_rotation[4];
  covariance_3d_backward(in.scales.at(v) + 3 * i, in.rotations.at(v) + 4 * i, in.scale_modifier,
                         g, grad_scale, grad_rotation);
  emit(grad.scales, v, i, 3, grad_scale);
  emit(grad.rotations, v, i, 4, grad_rotation);
}

template <typename S>
void project_one_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                          const ViewState<S>& state, const S* sum, bool has_depth,
                          const InputGradients<S>& grad) {
  const Vec3<S> mean = input_mean(in, v, i);
  const Sym3<S> cov = input_covariance(in, v, i);
  const S* record = state.records.data() + i * state.record_stride;
  Splat<S> splat;
  if (!project(camera, mean, cov, splat)) return emit_zeros(in, v, i, grad);
  SplatGrad<S> g = splat_gradient(splat, sum);
  if (has_depth) g.depth = sum[kMoments + in.channels];
  const ProjectionGrad<S> p = project_backward(camera, mean, cov, splat, g);
  const Vec3<S> by_color = color_backward(in, v, i, camera, mean, record + kGeometry,
                                          sum + kMoments, grad);
  const S grad_mean[3] = {p.mean.x + by_color.x, p.mean.y + by_color.y, p.mean.z + by_color.z};
  const S grad_ndc[3] = {p.ndc_x, p.ndc_y, S(0)};
  const S grad_opacity = sum[0] / record[kOpacity];
  emit(grad.means, v, i, 3, grad_mean);
  emit(grad.means2d, v, i, 3, grad_ndc);
  emit(grad.opacities, v, i, 1, &grad_opacity);
  shape_backward(in, v, i, p.cov, grad);
}

}  // namespace

template <typename S>
void project_view_backward(const Inputs<S>& in, int v, int threads, const ViewState<S>& state,
                           const PairGradients<S>& pairs, bool has_depth,
                           const InputGradients<S>& grad) {
  const Camera<S> camera = in.camera(v);
  const int n = in.gaussians;
  parallel_for(chunk_count(n), threads, [&](int chunk, int) {
    std::vector<S> sum(pairs.stride);
    const int end = std::min(n, (chunk + 1) * kChunk);
    for (int i = chunk * kChunk; i < end; ++i) {
      constexpr int ahead = 8;
      if (i + ahead < end && state.first_slot[i + ahead] < state.first_slot[i + ahead + 1]) {
        prefetch_color(in, v, i + ahead);
        prefetch(state.records.data() + std::size_t(i + ahead) * state.record_stride);
      }
      if (reduce_pairs(pairs, state.first_slot[i], state.first_slot[i + 1], sum.data())) {
        project_one_backward(in, v, i, camera, state, sum.data(), has_depth, grad);
      } else {
        emit_zeros(in, v, i, grad);
      }
    }
  });
}

template <typename S>
void mark_visible(const S* positions, const S* view, int count, bool* visible) {
  for (int i = 0; i < count; ++i) {
    const S* p = positions + 3 * static_cast<std::int64_t>(i);
    visible[i] = view[2] * p[0] + view[6] * p[1] + view[10] * p[2] + view[14] > S(kNearPlane);
  }
}

#define GR_INSTANTIATE(S)                                                                        \
  template void project_view(const Inputs<S>&, int, int, ViewState<S>&, std::int32_t*,           \
                             Projected<S>&);                                                     \
  template void project_view_backward(const Inputs<S>&, int, int, const ViewState<S>&,           \
                                      const PairGradients<S>&, bool, const InputGradients<S>&);  \
  template void mark_visible(const S*, const S*, int, bool*);
GR_INSTANTIATE(float)
GR_INSTANTIATE(double)

}  // namespace gr
