// One Gaussian from what the caller hands over to what the image needs of it, and the way back: the
// per-Gaussian half of the rasteriser, for host and device.
#pragma once

#include <cstdint>

#include "gaussian_rasterizer/spherical_harmonics.h"
#include "gaussian_rasterizer/tiles.h"

namespace gr {

// A tensor with a leading batch dimension; stride 0 means that all views share one entry.
template <typename T>
struct Batched {
  T* data = nullptr;
  std::int64_t stride = 0;  // elements

  GR_HD explicit operator bool() const { return data != nullptr; }
  GR_HD T* at(int view) const { return data + view * stride; }
  // The first view that writes an entry sets it, later ones add to it.
  GR_HD bool adds(int view) const { return stride == 0 && view > 0; }
};

// A view is one stack of splats, or one for each layer: each stack has its own transmittance. With
// `shared` the splats of all layers are in one stack, and each layer has its own sums.
template <typename S>
struct Inputs {
  int views = 0, gaussians = 0, width = 0, height = 0;
  int channels = 0, extras = 0;      // of colour; further ones, blended beside it
  int layers = 1;                    // runs of successive Gaussians
  bool shared = false;
  int sh_rows = 0, sh_degree = 0;  // coefficients stored, degree used
  S scale_modifier = 1;
  S near_plane = S(kNearPlane);
  bool raw = false;  // scales are logarithms, opacities logits, quaternions of any length
  Batched<const S> means, opacities;            // (N, 3), (N, 1)
  Batched<const S> sh, colors, extra;           // (N, sh_rows, 3) or (N, C); (N, F)
  Batched<const S> scales, rotations, cov3d;    // (N, 3) and (N, 4), or (N, 6)
  Batched<const S> view, projection;            // (16) column-major
  Batched<const S> position, tan_fov;           // (3), (2)
  const S* background = nullptr;                // (C + F)
  const std::int32_t* layer_start = nullptr;    // (layers + 1)
  // On the CPU tensors may be those of one layer: then here are the inputs of each.
  const Inputs* parts = nullptr;

  GR_HD int tiles_x() const { return (width + kTile - 1) / kTile; }
  GR_HD int tiles_y() const { return (height + kTile - 1) / kTile; }
  GR_HD int stacks() const { return shared ? 1 : layers; }  // of one view
  GR_HD int tiles() const { return stacks() * tiles_x() * tiles_y(); }  // of one view
  GR_HD int planes() const { return channels + extras; }  // of an image
  // Of a Gaussian: planes, with `shared` a 1 whose sum is the layer's alpha, depth.
  GR_HD int features() const { return planes() + (shared ? 2 : 1); }
  GR_HD int depth_feature() const { return features() - 1; }
  GR_HD int sums() const { return features() * (shared ? layers : 1); }  // of a pixel
  // The layer of Gaussian i: the last one that starts at or before it, empty ones passed over.
  GR_HD int layer_of(std::int64_t i) const {
    int low = 0, high = layers;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      if (layer_start[middle] <= i) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
  GR_HD Camera<S> camera(int v) const {
    return make_camera(view.at(v), projection.at(v), position.at(v), tan_fov.at(v), width, height,
                       near_plane);
  }
};

template <typename S>
struct Outputs {
  S *color, *alpha, *depth;  // (B, layers, C + F, H, W), (B, layers, H, W) twice
  std::int32_t* radii;       // (B, N)
};

template <typename S>
struct ImageGradients {
  const S *color, *alpha, *depth;  // as Outputs; null for none
};

template <typename S>
struct InputGradients {
  Batched<S> means, means2d, opacities, sh, colors, extra;  // null for none
  Batched<S> scales, rotations, cov3d;
};

// What the pixels have to gather: the moments of the shape, or only features [first, end).
struct Wanted {
  bool moments;
  int first, end;

  GR_HD int count() const { return end - first; }
};

template <typename S>
inline Wanted wanted_of(const Inputs<S>& in, const InputGradients<S>& grad, bool has_depth) {
  if (grad.means || grad.means2d || grad.opacities || grad.scales || grad.rotations || grad.cov3d) {
    return {true, 0, has_depth ? in.features() : in.features() - 1};
  }
  return {false, grad.sh || grad.colors ? 0 : in.channels,
          grad.extra ? in.planes() : in.channels};
}

template <typename S>
GR_HD S opacity_of_logit(S logit) {
  return S(1) / (S(1) + exp_of(-logit));
}

template <typename S>
GR_HD S input_opacity(const Inputs<S>& in, int v, std::int64_t i) {
  const S value = in.opacities.at(v)[i];
  return in.raw ? opacity_of_logit(value) : value;
}

constexpr double kMinLength = 1e-12;  // quaternions shorter than this are divided by it

// Scales and quaternion of Gaussian i in view v after their activations.
template <typename S>
struct Shape {
  S scale[3], rotation[4];
  S length;  // of the quaternion that was given
};

// Of logarithms of scales, and a quaternion of any length.
template <typename S>
GR_HD Shape<S> activated_shape(const S* s, const S* q) {
  const S square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
  const S length = max_of(std::sqrt(square), S(kMinLength)), inverse = S(1) / length;
  return {{exp_of(s[0]), exp_of(s[1]), exp_of(s[2])},
          {inverse * q[0], inverse * q[1], inverse * q[2], inverse * q[3]},
          length};
}

template <typename S>
GR_HD Shape<S> input_shape(const Inputs<S>& in, int v, std::int64_t i) {
  const S* s = in.scales.at(v) + 3 * i;
  const S* q = in.rotations.at(v) + 4 * i;
  if (in.raw) return activated_shape(s, q);
  return {{s[0], s[1], s[2]}, {q[0], q[1], q[2], q[3]}, S(1)};
}

// From the gradients of the activated scales and quaternion to those of what was given.
template <typename S>
GR_HD void activation_backward(const Shape<S>& shape, S* grad_scale, S* grad_rotation) {
  for (int k = 0; k < 3; ++k) grad_scale[k] *= shape.scale[k];
  const S* q = shape.rotation;
  S along = S(0);
  for (int k = 0; k < 4; ++k) along += grad_rotation[k] * q[k];
  for (int k = 0; k < 4; ++k) grad_rotation[k] = (grad_rotation[k] - along * q[k]) / shape.length;
}

template <typename S>
GR_HD Sym3<S> input_covariance(const Inputs<S>& in, int v, std::int64_t i) {
  if (in.cov3d) {
    const S* c = in.cov3d.at(v) + 6 * i;
    return {c[0], c[1], c[2], c[3], c[4], c[5]};
  }
  const Shape<S> shape = input_shape(in, v, i);
  return covariance_3d(shape.scale, shape.rotation, in.scale_modifier);
}

template <typename S>
GR_HD Vec3<S> input_mean(const Inputs<S>& in, int v, std::int64_t i) {
  const S* m = in.means.at(v) + 3 * i;
  return {m[0], m[1], m[2]};
}

// Where Gaussian i lands on the image; false if it does not.
template <typename S>
GR_HD bool project_gaussian(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                            Splat<S>& splat, TileRect& rect) {
  if (!is_finite(input_opacity(in, v, i))) return false;
  if (!project(camera, input_mean(in, v, i), input_covariance(in, v, i), splat)) return false;
  rect = tile_rect(splat, in.tiles_x(), in.tiles_y());
  return !is_empty(rect);
}

constexpr double kLog2E = 1.4426950408889634;

// The exponent of 2 in the falloff: xx dx^2 + xy dx dy + yy dy^2.
template <typename S>
struct Falloff {
  S xx, xy, yy;
};

template <typename S>
GR_HD Falloff<S> falloff(const Splat<S>& splat) {
  return {S(-0.5 * kLog2E) * splat.conic_xx, S(-kLog2E) * splat.conic_xy,
          S(-0.5 * kLog2E) * splat.conic_yy};
}

// Sums over the pixels, per splat and tile, of q = dL/dpower times 1, dx, dy, dx^2, dx dy, dy^2.
constexpr int kMoments = 6;

// The published clamp at 0; false if a channel is not finite.
template <typename S>
GR_HD bool clamp_color(Vec3<S> rgb, S* features) {
  features[0] = max_of(rgb.x, S(0));
  features[1] = max_of(rgb.y, S(0));
  features[2] = max_of(rgb.z, S(0));
  return is_finite(rgb);
}

// The gradient before the clamp. `features` are clamped: exactly 0 where the clamp was active.
template <typename S>
GR_HD Vec3<S> clamp_color_backward(const S* features, const S* grad) {
  return {features[0] > S(0) ? grad[0] : S(0), features[1] > S(0) ? grad[1] : S(0),
          features[2] > S(0) ? grad[2] : S(0)};
}

// Copies `count` values; false if one is not finite.
template <typename S>
GR_HD bool copy_features(const S* from, int count, S* to) {
  bool finite = true;
  for (int k = 0; k < count; ++k) {
    to[k] = from[k];
    finite = finite && is_finite(from[k]);
  }
  return finite;
}

// Colour channels of Gaussian i into `features`; false if one is not finite.
template <typename S>
GR_HD bool color_features(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                          Vec3<S> mean, S* features) {
  if (in.sh) {
    const S* sh = in.sh.at(v) + i * in.sh_rows * 3;
    return clamp_color(sh_color(in.sh_degree, mean - camera.position, sh), features);
  }
  return copy_features(in.colors.at(v) + i * in.channels, in.channels, features);
}

// The rest of them; false if one is not finite.
template <typename S>
GR_HD bool further_features(const Inputs<S>& in, int v, std::int64_t i, S depth, S* features) {
  if (in.shared) features[in.planes()] = S(1);
  features[in.depth_feature()] = depth;
  return copy_features(in.extra.at(v) + i * in.extras, in.extras, features + in.channels);
}

// Sets or adds `count` values.
template <typename S>
GR_HD void emit(const Batched<S>& target, int v, std::int64_t i, int count, const S* values) {
  if (!target) return;
  S* out = target.at(v) + i * count;
  if (target.adds(v)) {
    for (int k = 0; k < count; ++k) out[k] += values[k];
  } else {
    for (int k = 0; k < count; ++k) out[k] = values[k];
  }
}

template <typename S>
GR_HD void emit_zero(const Batched<S>& target, int v, std::int64_t i, int count) {
  if (!target || target.adds(v)) return;
  S* out = target.at(v) + i * count;
  for (int k = 0; k < count; ++k) out[k] = S(0);
}

template <typename S>
GR_HD void emit_zeros(const Inputs<S>& in, int v, std::int64_t i, const InputGradients<S>& grad) {
  emit_zero(grad.means, v, i, 3);
  emit_zero(grad.means2d, v, i, 3);
  emit_zero(grad.opacities, v, i, 1);
  emit_zero(grad.sh, v, i, 3 * in.sh_rows);
  emit_zero(grad.colors, v, i, in.channels);
  emit_zero(grad.extra, v, i, in.extras);
  emit_zero(grad.scales, v, i, 3);
  emit_zero(grad.rotations, v, i, 4);
  emit_zero(grad.cov3d, v, i, 6);
}

// From the moments of q = dL/dpower over the pixels to the gradient of the splat.
template <typename S>
GR_HD SplatGrad<S> splat_gradient(const Splat<S>& splat, const S* m) {
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
GR_HD Vec3<S> color_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                             Vec3<S> mean, const S* features, const S* grad_color,
                             const InputGradients<S>& grad) {
  if (!in.sh) {
    emit(grad.colors, v, i, in.channels, grad_color);
    return {S(0), S(0), S(0)};
  }
  const Vec3<S> g = clamp_color_backward(features, grad_color);
  const std::int64_t row = i * in.sh_rows * 3;
  S* out = grad.sh ? grad.sh.at(v) + row : nullptr;
  if (out != nullptr && !grad.sh.adds(v)) {
    for (int k = 3 * sh_coefficients(in.sh_degree); k < 3 * in.sh_rows; ++k) out[k] = S(0);
  }
  return sh_color_backward(in.sh_degree, mean - camera.position, in.sh.at(v) + row, g,
                           grad.sh.adds(v), out);
}

// The gradients of a Gaussian's projection from what the pixels gathered: the moments, dL/d(depth).
template <typename S>
GR_HD ProjectionGrad<S> projection_gradient(const Camera<S>& camera, Vec3<S> mean,
                                            const Sym3<S>& cov, const Splat<S>& splat,
                                            const S* moments, S grad_depth) {
  SplatGrad<S> g = splat_gradient(splat, moments);
  g.depth = grad_depth;
  return project_backward(camera, mean, cov, splat, g);
}

// The gradient of the opacity that was given; `opacity` is the one that was blended.
template <typename S>
GR_HD S opacity_gradient(bool raw, S opacity, const S* moments) {
  return raw ? moments[0] * (S(1) - opacity) : moments[0] / opacity;
}

template <typename S>
GR_HD void emit_projection(int v, std::int64_t i, Vec3<S> grad_mean, S ndc_x, S ndc_y,
                           S grad_opacity, const InputGradients<S>& grad) {
  const S by_mean[3] = {grad_mean.x, grad_mean.y, grad_mean.z};
  const S by_ndc[3] = {ndc_x, ndc_y, S(0)};
  emit(grad.means, v, i, 3, by_mean);
  emit(grad.means2d, v, i, 3, by_ndc);
  emit(grad.opacities, v, i, 1, &grad_opacity);
}

template <typename S>
GR_HD void emit_covariance(int v, std::int64_t i, const Sym3<S>& g,
                           const InputGradients<S>& grad) {
  const S values[6] = {g.xx, S(2) * g.xy, S(2) * g.xz, g.yy, S(2) * g.yz, g.zz};
  emit(grad.cov3d, v, i, 6, values);
}

// From the gradient of the covariance to those of the scales and the quaternion that were given.
template <typename S>
GR_HD void shape_gradient(const Shape<S>& shape, S modifier, bool raw, const Sym3<S>& g,
                          S* grad_scale, S* grad_rotation) {
  covariance_3d_backward(shape.scale, shape.rotation, modifier, g, grad_scale, grad_rotation);
  if (raw) activation_backward(shape, grad_scale, grad_rotation);
}

template <typename S>
GR_HD void shape_backward(const Inputs<S>& in, int v, std::int64_t i, const Sym3<S>& g,
                          const InputGradients<S>& grad) {
  if (in.cov3d) return emit_covariance(v, i, g, grad);
  if (!grad.scales && !grad.rotations) return;
  S grad_scale[3], grad_rotation[4];
  shape_gradient(input_shape(in, v, i), in.scale_modifier, in.raw, g, grad_scale, grad_rotation);
  emit(grad.scales, v, i, 3, grad_scale);
  emit(grad.rotations, v, i, 4, grad_rotation);
}

// The gradients of Gaussian i in view v, but for those of its planes. `opacity` is the one that was
// blended; `moments` and `grad_depth` are what the pixels gathered. `by_color(mean)` does the colour
// and returns its part for the mean.
template <typename S, typename ByColor>
GR_HD void gaussian_backward(const Inputs<S>& in, int v, std::int64_t i, const Camera<S>& camera,
                             S opacity, const S* moments, S grad_depth,
                             const InputGradients<S>& grad, const ByColor& by_color) {
  const Vec3<S> mean = input_mean(in, v, i);
  const Sym3<S> cov = input_covariance(in, v, i);
  Splat<S> splat;
  if (!project(camera, mean, cov, splat)) return emit_zeros(in, v, i, grad);
  const ProjectionGrad<S> p =
      projection_gradient(camera, mean, cov, splat, moments, grad_depth);
  emit_projection(v, i, p.mean + by_color(mean), p.ndc_x, p.ndc_y,
                  opacity_gradient(in.raw, opacity, moments), grad);
  shape_backward(in, v, i, p.cov, grad);
}

}  // namespace gr
