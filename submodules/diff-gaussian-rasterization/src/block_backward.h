// The way back of Gaussians taken many at a time.
#pragma once

#include "block.h"

namespace gr {
namespace NATIVE_LEVEL {

// Gaussians on their way back, with what the pixels gathered of them.
template <typename S>
struct BlockBack : Gaussians<S> {
  using Gaussians<S>::kSize;
  const InputGradients<S>* grads[kSize];
  alignas(64) S opacity[kSize] = {}, moments[kMoments][kSize] = {}, depth[kSize] = {};
  alignas(64) S color_grad[3][kSize] = {};  // before the clamp
  // What they hand on.
  alignas(64) S grad_mean[3][kSize], grad_cov[6][kSize], ndc[2][kSize], grad_opacity[kSize];
  alignas(64) S grad_scale[3][kSize], grad_rotation[4][kSize];
  alignas(64) S by_color[3][kSize] = {};  // the part of harmonics for the mean
  alignas(64) S weight[kMaxShCoefficients][kSize] = {};  // of the basis, in the colour's gradient
  int valid[kSize];

  int push(const Walk<S>& at, int v, const InputGradients<S>& grad) {
    const int k = Gaussians<S>::push(at, v, 1);
    grads[k] = &grad;
    return k;
  }

  // What was gathered of Gaussian k; `blended` is the opacity that was.
  void put_gathered(int k, S blended, const S* sums, S grad_depth) {
    opacity[k] = blended;
    for (int m = 0; m < kMoments; ++m) moments[m][k] = sums[m];
    depth[k] = grad_depth;
  }

  // Emits the gradients of the harmonics, and finds their parts for the means.
  void find_color_gradients(int v, int degree, Vec3<S> eye) {
    with_degree(degree, [&](auto d) {
      this->template find_color_gradients_of<d.value>(v, eye);
    });
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
  void finish(const Inputs<S>& in, int v, const Camera<S>& camera, const Wanted& wanted) {
    if (this->count == 0) return;
    if (wanted.first == 0 && this->inputs[0]->sh) {
      find_color_gradients(v, in.sh_degree, camera.position);
    }
    if (wanted.moments) finish_projection(in, v, camera);
    this->count = 0;
  }

 private:
  void finish_projection(const Inputs<S>& in, int v, const Camera<S>& camera) {
    const bool has_cov = bool(this->inputs[0]->cov3d);
    if (!has_cov) this->find_shapes(in.raw, in.scale_modifier);
    if (in.raw) {
      find_gradients<true>(camera);
      if (!has_cov) find_shape_gradients<true>(in.scale_modifier);
    } else {
      find_gradients<false>(camera);
      if (!has_cov) find_shape_gradients<false>(in.scale_modifier);
    }
    for (int k = 0; k < this->count; ++k) emit_one(v, k, has_cov);
  }

  template <int Degree>
  void find_color_gradients_of(int v, Vec3<S> eye) {
    this->template find_basis_of<Degree>(eye);
    for (int k = 0; k < this->count; ++k) emit_harmonics<Degree>(v, k);
    for (int k = 0; k < kSize; ++k) {
      S inv_length, weights[kMaxShCoefficients];
      const Vec3<S> d = normalized(this->mean_at(k) - eye, inv_length);
      for (int j = 0; j < sh_coefficients(Degree); ++j) weights[j] = weight[j][k];
      this->put(sh_offset_backward(Degree, d, inv_length, weights), by_color, k);
    }
  }

  template <int Degree>
  void emit_harmonics(int v, int k) {
    constexpr int coefficients = sh_coefficients(Degree);
    const Inputs<S>& in = *this->inputs[k];
    const Batched<S>& target = grads[k]->sh;
    const std::int64_t row = std::int64_t(this->local[k]) * in.sh_rows * 3;
    const S* sh = in.sh.at(v) + row;
    const S r = color_grad[0][k], g = color_grad[1][k], b = color_grad[2][k];
    alignas(64) S values[coefficients], weights[coefficients];
    for (int j = 0; j < coefficients; ++j) values[j] = this->basis[j][k];
    for (int j = 0; j < coefficients; ++j) {
      weights[j] = sh[3 * j] * r + sh[3 * j + 1] * g + sh[3 * j + 2] * b;
    }
    for (int j = 0; j < coefficients; ++j) weight[j][k] = weights[j];
    if (!target) return;
    S* out = target.at(v) + row;
    if (target.adds(v)) {
      for (int j = 0; j < coefficients; ++j) {
        out[3 * j] += values[j] * r;
        out[3 * j + 1] += values[j] * g;
        out[3 * j + 2] += values[j] * b;
      }
      return;
    }
    for (int j = 0; j < coefficients; ++j) {
      out[3 * j] = values[j] * r;
      out[3 * j + 1] = values[j] * g;
      out[3 * j + 2] = values[j] * b;
    }
    for (int n = 3 * coefficients; n < 3 * in.sh_rows; ++n) out[n] = S(0);
  }
};

}  // namespace NATIVE_LEVEL
}  // namespace gr
