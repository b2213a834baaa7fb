// Geometry of one Gaussian: 3D covariance, perspective projection, its 2D covariance by the local
// affine approximation (Zwicker et al., "EWA Volume Splatting", 2001), and the gradients of each.
#pragma once

#include "gaussian_rasterizer/camera.h"
#include "gaussian_rasterizer/math.h"

namespace gr {

constexpr double kDilation = 0.3;        // px^2, added to the diagonal of the 2D covariance
constexpr double kFrustumMargin = 1.3;   // x/z and y/z are clamped to this multiple of tan(fov/2)
constexpr double kMinDiscriminant = 0.1; // floor of the discriminant in the eigenvalue formula
constexpr double kMaxRadius = 1e9;       // px; beyond it a splat counts as not finite

// ---------------------------------------------------------------- covariance from scale, rotation

// Rows of the matrix of quaternion q = (w, x, y, z), used as given: not normalised.
template <typename S>
struct Rotation {
  Vec3<S> row0, row1, row2;
};

template <typename S>
GR_HD Rotation<S> rotation_matrix(const S* q) {
  const S w = q[0], x = q[1], y = q[2], z = q[3];
  return {{S(1) - S(2) * (y * y + z * z), S(2) * (x * y - w * z), S(2) * (x * z + w * y)},
          {S(2) * (x * y + w * z), S(1) - S(2) * (x * x + z * z), S(2) * (y * z - w * x)},
          {S(2) * (x * z - w * y), S(2) * (y * z + w * x), S(1) - S(2) * (x * x + y * y)}};
}

template <typename S>
GR_HD Vec3<S> scale_columns(Vec3<S> row, Vec3<S> s) {
  return {row.x * s.x, row.y * s.y, row.z * s.z};
}

// Sigma = L L^T with L = R diag(modifier * scale).
template <typename S>
GR_HD Sym3<S> covariance_3d(const S* scale, const S* q, S modifier) {
  const Vec3<S> s{modifier * scale[0], modifier * scale[1], modifier * scale[2]};
  const Rotation<S> r = rotation_matrix(q);
  const Vec3<S> l0 = scale_columns(r.row0, s);
  const Vec3<S> l1 = scale_columns(r.row1, s);
  const Vec3<S> l2 = scale_columns(r.row2, s);
  return {dot(l0, l0), dot(l0, l1), dot(l0, l2), dot(l1, l1), dot(l1, l2), dot(l2, l2)};
}

// Gradient of a loss with respect to the quaternion, given that for the rotation matrix.
template <typename S>
GR_HD void rotation_matrix_backward(const S* q, const Rotation<S>& g, S* grad_q) {
  const S w = q[0], x = q[1], y = q[2], z = q[3];
  const Vec3<S> a = g.row0, b = g.row1, c = g.row2;
  grad_q[0] = S(2) * (z * (b.x - a.y) + y * (a.z - c.x) + x * (c.y - b.z));
  grad_q[1] = S(2) * (y * (a.y + b.x) + z * (a.z + c.x) + w * (c.y - b.z)) -
              S(4) * x * (b.y + c.z);
  grad_q[2] = S(2) * (x * (a.y + b.x) + z * (b.z + c.y) + w * (a.z - c.x)) -
              S(4) * y * (a.x + c.z);
  grad_q[3] = S(2) * (x * (a.z + c.x) + y * (b.z + c.y) + w * (b.x - a.y)) -
              S(4) * z * (a.x + b.y);
}

// `g` is the gradient with respect to the full symmetric matrix Sigma (each off-diagonal entry
// counted once per occurrence).
template <typename S>
GR_HD void covariance_3d_backward(const S* scale, const S* q, S modifier, const Sym3<S>& g,
                                  S* grad_scale, S* grad_q) {
  const Vec3<S> s{modifier * scale[0], modifier * scale[1], modifier * scale[2]};
  const Rotation<S> r = rotation_matrix(q);
  // dL/dL_ij = 2 (g L)_ij, formed column by column: column j of g L is s_j g R_j.
  const Vec3<S> c0 = S(2) * (g * Vec3<S>{r.row0.x, r.row1.x, r.row2.x});
  const Vec3<S> c1 = S(2) * (g * Vec3<S>{r.row0.y, r.row1.y, r.row2.y});
  const Vec3<S> c2 = S(2) * (g * Vec3<S>{r.row0.z, r.row1.z, r.row2.z});
  grad_scale[0] = modifier * s.x * (r.row0.x * c0.x + r.row1.x * c0.y + r.row2.x * c0.z);
  grad_scale[1] = modifier * s.y * (r.row0.y * c1.x + r.row1.y * c1.y + r.row2.y * c1.z);
  grad_scale[2] = modifier * s.z * (r.row0.z * c2.x + r.row1.z * c2.y + r.row2.z * c2.z);
  const Vec3<S> s2{s.x * s.x, s.y * s.y, s.z * s.z};
  const Rotation<S> grad_r{{s2.x * c0.x, s2.y * c1.x, s2.z * c2.x},
                           {s2.x * c0.y, s2.y * c1.y, s2.z * c2.y},
                           {s2.x * c0.z, s2.y * c1.z, s2.z * c2.z}};
  rotation_matrix_backward(q, grad_r, grad_q);
}

// --------------------------------------------------------------------------------- projection

// What the image needs to know of a Gaussian's shape.
template <typename S>
struct Splat {
  S depth;                    // view-space z
  S x, y;                     // pixel coordinates, pixel centres at integers
  S cov_xx, cov_xy, cov_yy;   // px^2, dilated
  S conic_xx, conic_xy, conic_yy;
  S radius;                   // px, ceil(3 sigma) along the longer axis
};

// Gradient of a loss with respect to a Splat.
template <typename S>
struct SplatGrad {
  S depth, x, y, conic_xx, conic_xy, conic_yy;
};

// The 2x3 matrix J W of the affine approximation, and what its backward needs.
template <typename S>
struct AffineMap {
  Vec3<S> row0, row1;
  S tx, ty;                   // clamped camera-space x and y
  bool clamped_x, clamped_y;
};

template <typename S>
GR_HD AffineMap<S> affine_map(const Camera<S>& camera, Vec3<S> t) {
  const S limit_x = S(kFrustumMargin) * camera.tan_x, limit_y = S(kFrustumMargin) * camera.tan_y;
  const S ratio_x = t.x / t.z, ratio_y = t.y / t.z;
  AffineMap<S> map;
  map.clamped_x = ratio_x < -limit_x || ratio_x > limit_x;
  map.clamped_y = ratio_y < -limit_y || ratio_y > limit_y;
  map.tx = clamp(ratio_x, -limit_x, limit_x) * t.z;
  map.ty = clamp(ratio_y, -limit_y, limit_y) * t.z;
  const S inv_z = S(1) / t.z;
  const Vec3<S> w2 = view_row(camera, 2);
  const S fx = camera.focal_x * inv_z, fy = camera.focal_y * inv_z;
  map.row0 = fx * view_row(camera, 0) + (-fx * map.tx * inv_z) * w2;
  map.row1 = fy * view_row(camera, 1) + (-fy * map.ty * inv_z) * w2;
  return map;
}

// Clip-space position before division.
template <typename S>
struct Clip {
  S x, y, inv_w;
};

template <typename S>
GR_HD Clip<S> to_clip(const Camera<S>& camera, Vec3<S> p) {
  const S* m = camera.projection;
  const S w = dot(projection_row(camera, 3), p) + m[15];
  return {dot(projection_row(camera, 0), p) + m[12], dot(projection_row(camera, 1), p) + m[13],
          S(1) / (w + S(kHomogeneousBias))};
}

// Conic and radius from the dilated 2D covariance; false unless it is finite, positive definite.
// Nothing branches, so that the CPU takes many at a time.
template <typename S>
GR_HD bool finish_splat(Splat<S>& splat) {
  const S a = splat.cov_xx, b = splat.cov_xy, c = splat.cov_yy;
  const S det = a * c - b * b;
  const bool positive = (det > S(0)) & (a > S(0)) & is_finite(det);
  const S inv_det = S(1) / det;
  splat.conic_xx = c * inv_det;
  splat.conic_xy = -b * inv_det;
  splat.conic_yy = a * inv_det;
  const S mid = S(0.5) * (a + c);
  const S spread = std::sqrt(max_of(S(kMinDiscriminant), mid * mid - det));
  splat.radius = std::ceil(S(3) * std::sqrt(mid + spread));
  return positive & (splat.radius <= S(kMaxRadius)) & is_finite(splat.x) & is_finite(splat.y);
}

// What `project` does beyond the near plane; t is the mean in camera space. Without a branch.
template <typename S>
GR_HD bool project_beyond(const Camera<S>& camera, Vec3<S> mean, Vec3<S> t, const Sym3<S>& cov,
                          Splat<S>& splat) {
  const Clip<S> clip = to_clip(camera, mean);
  splat.depth = t.z;
  splat.x = ((clip.x * clip.inv_w + S(1)) * S(camera.width) - S(1)) * S(0.5);
  splat.y = ((clip.y * clip.inv_w + S(1)) * S(camera.height) - S(1)) * S(0.5);
  const AffineMap<S> map = affine_map(camera, t);
  const Vec3<S> v0 = cov * map.row0, v1 = cov * map.row1;
  splat.cov_xx = dot(map.row0, v0) + S(kDilation);
  splat.cov_xy = dot(map.row0, v1);
  splat.cov_yy = dot(map.row1, v1) + S(kDilation);
  return finish_splat(splat);
}

template <typename S>
GR_HD bool is_beyond(const Camera<S>& camera, Vec3<S> t, const Sym3<S>& cov) {
  return (t.z > camera.near_plane) & is_finite(t) & is_finite(cov);
}

// Projects one Gaussian; false when it is culled: at or behind the near plane, not finite, or
// with a 2D covariance that is not positive definite.
template <typename S>
GR_HD bool project(const Camera<S>& camera, Vec3<S> mean, const Sym3<S>& cov, Splat<S>& splat) {
  const Vec3<S> t = to_camera(camera, mean);
  return is_beyond(camera, t, cov) && project_beyond(camera, mean, t, cov, splat);
}

// Gradient through t -> J W; the clamped coordinate counts as a constant, as published.
template <typename S>
GR_HD Vec3<S> affine_map_backward(const Camera<S>& camera, Vec3<S> t, const AffineMap<S>& map,
                                  Vec3<S> grad_row0, Vec3<S> grad_row1) {
  const Vec3<S> w2 = view_row(camera, 2);
  const S j00 = dot(grad_row0, view_row(camera, 0)), j02 = dot(grad_row0, w2);
  const S j11 = dot(grad_row1, view_row(camera, 1)), j12 = dot(grad_row1, w2);
  const S inv_z = S(1) / t.z, fx = camera.focal_x * inv_z, fy = camera.focal_y * inv_z;
  Vec3<S> grad;
  grad.x = map.clamped_x ? S(0) : -fx * inv_z * j02;
  grad.y = map.clamped_y ? S(0) : -fy * inv_z * j12;
  grad.z = -inv_z * (fx * j00 + fy * j11) +
           S(2) * inv_z * inv_z * (fx * map.tx * j02 + fy * map.ty * j12);
  return grad;
}

// Gradient of the conic with respect to the covariance is -K dK K; returns (xx, xy, yy), with xy
// the derivative by the single shared off-diagonal number.
template <typename S>
GR_HD Vec3<S> conic_backward(const Splat<S>& s, const SplatGrad<S>& g) {
  const S a = s.conic_xx, b = s.conic_xy, c = s.conic_yy;
  return {-(a * a * g.conic_xx + a * b * g.conic_xy + b * b * g.conic_yy),
          -(S(2) * a * b * g.conic_xx + (a * c + b * b) * g.conic_xy + S(2) * b * c * g.conic_yy),
          -(b * b * g.conic_xx + b * c * g.conic_xy + c * c * g.conic_yy)};
}

template <typename S>
struct ProjectionGrad {
  Vec3<S> mean;
  Sym3<S> cov;       // with respect to the full symmetric matrix
  S ndc_x, ndc_y;    // what the published interface puts into means2D.grad
};

template <typename S>
GR_HD ProjectionGrad<S> project_backward(const Camera<S>& camera, Vec3<S> mean,
                                         const Sym3<S>& cov, const Splat<S>& splat,
                                         const SplatGrad<S>& grad) {
  ProjectionGrad<S> out;
  const Vec3<S> t = to_camera(camera, mean);
  const AffineMap<S> map = affine_map(camera, t);
  const Vec3<S> k = conic_backward(splat, grad);
  const Vec3<S> m0 = map.row0, m1 = map.row1;
  const Vec3<S> h0 = k.x * m0 + (S(0.5) * k.y) * m1;  // rows of the 2x2 gradient times J W
  const Vec3<S> h1 = (S(0.5) * k.y) * m0 + k.z * m1;
  out.cov = {m0.x * h0.x + m1.x * h1.x, m0.x * h0.y + m1.x * h1.y, m0.x * h0.z + m1.x * h1.z,
             m0.y * h0.y + m1.y * h1.y, m0.y * h0.z + m1.y * h1.z, m0.z * h0.z + m1.z * h1.z};
  Vec3<S> grad_t = affine_map_backward(camera, t, map, S(2) * (cov * h0), S(2) * (cov * h1));
  grad_t.z += grad.depth;

  out.ndc_x = grad.x * S(0.5) * S(camera.width);
  out.ndc_y = grad.y * S(0.5) * S(camera.height);
  const Clip<S> clip = to_clip(camera, mean);
  const S along_w = -(out.ndc_x * clip.x + out.ndc_y * clip.y) * clip.inv_w * clip.inv_w;
  out.mean = (out.ndc_x * clip.inv_w) * projection_row(camera, 0) +
             (out.ndc_y * clip.inv_w) * projection_row(camera, 1) +
             along_w * projection_row(camera, 3);
  out.mean = out.mean + grad_t.x * view_row(camera, 0) + grad_t.y * view_row(camera, 1) +
             grad_t.z * view_row(camera, 2);
  return out;
}

}  // namespace gr
