// Real spherical harmonics up to degree 3, with the signs of the published rasteriser
// (degree 1 is -y, +z, -x), and their derivatives by direction.
#pragma once

#include "gaussian_rasterizer/math.h"

namespace gr {

constexpr int kMaxShDegree = 3;
constexpr int kMaxShCoefficients = 16;

constexpr double kSh0 = 0.28209479177387814;
constexpr double kSh1 = 0.4886025119029199;
// Scalars, because device code cannot read the elements of a host's array.
constexpr double kSh2_0 = 1.0925484305920792;
constexpr double kSh2_1 = -1.0925484305920792;
constexpr double kSh2_2 = 0.31539156525252005;
constexpr double kSh2_3 = -1.0925484305920792;
constexpr double kSh2_4 = 0.5462742152960396;
constexpr double kSh3_0 = -0.5900435899266435;
constexpr double kSh3_1 = 2.890611442640554;
constexpr double kSh3_2 = -0.4570457994644658;
constexpr double kSh3_3 = 0.3731763325901154;
constexpr double kSh3_4 = -0.4570457994644658;
constexpr double kSh3_5 = 1.445305721320277;
constexpr double kSh3_6 = -0.5900435899266435;

GR_HD constexpr int sh_coefficients(int degree) { return (degree + 1) * (degree + 1); }

// Calls put(j, value) for the basis values j < (degree+1)^2 at the unit direction d.
template <typename S, typename Put>
GR_HD void sh_basis_each(int degree, Vec3<S> d, const Put& put) {
  const S x = d.x, y = d.y, z = d.z;
  put(0, S(kSh0));
  if (degree < 1) return;
  put(1, -S(kSh1) * y);
  put(2, S(kSh1) * z);
  put(3, -S(kSh1) * x);
  if (degree < 2) return;
  const S xx = x * x, yy = y * y, zz = z * z;
  put(4, S(kSh2_0) * x * y);
  put(5, S(kSh2_1) * y * z);
  put(6, S(kSh2_2) * (S(2) * zz - xx - yy));
  put(7, S(kSh2_3) * x * z);
  put(8, S(kSh2_4) * (xx - yy));
  if (degree < 3) return;
  put(9, S(kSh3_0) * y * (S(3) * xx - yy));
  put(10, S(kSh3_1) * x * y * z);
  put(11, S(kSh3_2) * y * (S(4) * zz - xx - yy));
  put(12, S(kSh3_3) * z * (S(2) * zz - S(3) * xx - S(3) * yy));
  put(13, S(kSh3_4) * x * (S(4) * zz - xx - yy));
  put(14, S(kSh3_5) * z * (xx - yy));
  put(15, S(kSh3_6) * x * (xx - S(3) * yy));
}

// The same into the first (degree+1)^2 entries.
template <typename S>
GR_HD void sh_basis(int degree, Vec3<S> d, S* basis) {
  sh_basis_each(degree, d, [basis](int j, S value) { basis[j] = value; });
}

// Gradient by the unit direction of sum_j weight[j] * basis[j](d).
template <typename S>
GR_HD Vec3<S> sh_basis_backward(int degree, Vec3<S> d, const S* weight) {
  const S x = d.x, y = d.y, z = d.z;
  Vec3<S> g{S(0), S(0), S(0)};
  if (degree < 1) return g;
  g = {-S(kSh1) * weight[3], -S(kSh1) * weight[1], S(kSh1) * weight[2]};
  if (degree < 2) return g;
  const S w4 = S(kSh2_0) * weight[4], w5 = S(kSh2_1) * weight[5], w6 = S(kSh2_2) * weight[6];
  const S w7 = S(kSh2_3) * weight[7], w8 = S(kSh2_4) * weight[8];
  g.x += w4 * y - S(2) * w6 * x + w7 * z + S(2) * w8 * x;
  g.y += w4 * x + w5 * z - S(2) * w6 * y - S(2) * w8 * y;
  g.z += w5 * y + S(4) * w6 * z + w7 * x;
  if (degree < 3) return g;
  const S xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  const S w9 = S(kSh3_0) * weight[9], w10 = S(kSh3_1) * weight[10];
  const S w11 = S(kSh3_2) * weight[11], w12 = S(kSh3_3) * weight[12];
  const S w13 = S(kSh3_4) * weight[13], w14 = S(kSh3_5) * weight[14];
  const S w15 = S(kSh3_6) * weight[15];
  g.x += S(6) * w9 * xy + w10 * yz - S(2) * w11 * xy - S(6) * w12 * xz +
         w13 * (S(4) * zz - S(3) * xx - yy) + S(2) * w14 * xz + S(3) * w15 * (xx - yy);
  g.y += S(3) * w9 * (xx - yy) + w10 * xz + w11 * (S(4) * zz - xx - S(3) * yy) -
         S(6) * w12 * yz - S(2) * w13 * xy - S(2) * w14 * yz - S(6) * w15 * xy;
  g.z += w10 * xy + S(8) * w11 * yz + w12 * (S(6) * zz - S(3) * xx - S(3) * yy) +
         S(8) * w13 * xz + w14 * (xx - yy);
  return g;
}

// The same by the offset that points in the direction; `inv_length` is that of the offset.
template <typename S>
GR_HD Vec3<S> sh_offset_backward(int degree, Vec3<S> d, S inv_length, const S* weight) {
  const Vec3<S> g = sh_basis_backward(degree, d, weight);
  return inv_length * (g - dot(g, d) * d);
}

// Unit vector; the zero vector stays zero instead of becoming NaN.
template <typename S>
GR_HD Vec3<S> normalized(Vec3<S> v, S& inv_length) {
  const S length = std::sqrt(dot(v, v));
  inv_length = length > S(0) ? S(1) / length : S(0);
  return inv_length * v;
}

// The degree is a constant inside, so that a GPU's compiler keeps the basis in registers.

// RGB before the clamp at 0: 0.5 + sum_j basis_j sh_j; basis values are `stride` apart.
template <int Degree, typename S>
GR_HD Vec3<S> sh_sum_of(const S* basis, int stride, const S* sh) {
  Vec3<S> rgb{S(0.5), S(0.5), S(0.5)};
  GR_UNROLL
  for (int j = 0; j < sh_coefficients(Degree); ++j) {
    rgb = rgb + basis[j * stride] * Vec3<S>{sh[3 * j], sh[3 * j + 1], sh[3 * j + 2]};
  }
  return rgb;
}

template <typename S>
GR_HD Vec3<S> sh_sum(int degree, const S* basis, int stride, const S* sh) {
  if (degree <= 0) return sh_sum_of<0>(basis, stride, sh);
  if (degree == 1) return sh_sum_of<1>(basis, stride, sh);
  if (degree == 2) return sh_sum_of<2>(basis, stride, sh);
  return sh_sum_of<3>(basis, stride, sh);
}

// The same seen from `offset` = mean - camera position.
template <int Degree, typename S>
GR_HD Vec3<S> sh_color_of(Vec3<S> offset, const S* sh) {
  S basis[kMaxShCoefficients], inv_length;
  sh_basis(Degree, normalized(offset, inv_length), basis);
  return sh_sum_of<Degree>(basis, 1, sh);
}

template <typename S>
GR_HD Vec3<S> sh_color(int degree, Vec3<S> offset, const S* sh) {
  if (degree <= 0) return sh_color_of<0>(offset, sh);
  if (degree == 1) return sh_color_of<1>(offset, sh);
  if (degree == 2) return sh_color_of<2>(offset, sh);
  return sh_color_of<3>(offset, sh);
}

// `grad` is already zero where the colour was clamped. Writes (Degree+1)^2 x 3 gradients to
// grad_sh (adding to what is there if `add`) and returns the gradient by the mean.
template <int Degree, typename S>
GR_HD Vec3<S> sh_color_backward_of(Vec3<S> offset, const S* sh, Vec3<S> grad, bool add,
                                   S* grad_sh) {
  S basis[kMaxShCoefficients], weight[kMaxShCoefficients] = {}, inv_length;
  const Vec3<S> d = normalized(offset, inv_length);
  sh_basis(Degree, d, basis);
  GR_UNROLL
  for (int j = 0; j < sh_coefficients(Degree); ++j) {
    weight[j] = sh[3 * j] * grad.x + sh[3 * j + 1] * grad.y + sh[3 * j + 2] * grad.z;
    if (grad_sh == nullptr) continue;
    S* out = grad_sh + 3 * j;
    out[0] = (add ? out[0] : S(0)) + basis[j] * grad.x;
    out[1] = (add ? out[1] : S(0)) + basis[j] * grad.y;
    out[2] = (add ? out[2] : S(0)) + basis[j] * grad.z;
  }
  return sh_offset_backward(Degree, d, inv_length, weight);
}

template <typename S>
GR_HD Vec3<S> sh_color_backward(int degree, Vec3<S> offset, const S* sh, Vec3<S> grad, bool add,
                                S* grad_sh) {
  if (degree <= 0) return sh_color_backward_of<0>(offset, sh, grad, add, grad_sh);
  if (degree == 1) return sh_color_backward_of<1>(offset, sh, grad, add, grad_sh);
  if (degree == 2) return sh_color_backward_of<2>(offset, sh, grad, add, grad_sh);
  return sh_color_backward_of<3>(offset, sh, grad, add, grad_sh);
}

}  // namespace gr
