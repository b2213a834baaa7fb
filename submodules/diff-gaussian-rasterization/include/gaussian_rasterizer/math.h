// Small vectors and the macros shared by the CPU path and the CUDA path.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define GR_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define GR_HD __forceinline
#else
#define GR_HD inline __attribute__((always_inline))
#endif

// Unrolls the loop that follows, so that arrays indexed by its variable stay in registers.
#if defined(__CUDA_ARCH__)
#define GR_UNROLL _Pragma("unroll")
#else
#define GR_UNROLL
#endif

namespace gr {

template <typename S>
struct Vec3 {
  S x, y, z;
};

template <typename S>
GR_HD Vec3<S> operator+(Vec3<S> a, Vec3<S> b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}

template <typename S>
GR_HD Vec3<S> operator-(Vec3<S> a, Vec3<S> b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}

template <typename S>
GR_HD Vec3<S> operator*(S s, Vec3<S> a) {
  return {s * a.x, s * a.y, s * a.z};
}

template <typename S>
GR_HD S dot(Vec3<S> a, Vec3<S> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}

// False for NaN and both infinities; needs IEEE semantics (no -ffast-math).
template <typename S>
GR_HD bool is_finite(S x) {
  return x - x == S(0);
}

template <typename S>
GR_HD bool is_finite(Vec3<S> a) {
  return is_finite(a.x) & is_finite(a.y) & is_finite(a.z);
}

template <typename S>
GR_HD S min_of(S a, S b) {
  return b < a ? b : a;
}

template <typename S>
GR_HD S max_of(S a, S b) {
  return a < b ? b : a;
}

template <typename S>
GR_HD S clamp(S x, S low, S high) {
  return min_of(max_of(x, low), high);
}

template <typename S>
GR_HD S exp_of(S x) {
  return std::exp(x);
}

#if !defined(__CUDACC__)
// e^x to 1 unit of the last place, 0 below e^-87: unlike that of the library, many at a time.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts; e^r = 1 + r + r^2 q(r), to 3e-9 of itself.
GR_HD float exp_of(float x) {
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.4426950408889634f + to_integer, n = shifted - to_integer;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float q = 0.49999994f +
                  r * (0.16666521f + r * (0.04166839f + r * (0.0083687454f + r * 0.001381454f)));
  const float power = 1.0f + (r + r * r * q);
  std::uint32_t bits, exponent;
  std::memcpy(&bits, &power, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  const float beyond = x * std::numeric_limits<float>::infinity();  // of no number it is none
  return x < -87.0f ? 0.0f : x <= 88.7228f ? value : beyond;
}
#endif

// Symmetric 3x3 matrix stored as its upper triangle xx, xy, xz, yy, yz, zz.
template <typename S>
struct Sym3 {
  S xx, xy, xz, yy, yz, zz;
};

template <typename S>
GR_HD Vec3<S> operator*(const Sym3<S>& m, Vec3<S> v) {
  return {m.xx * v.x + m.xy * v.y + m.xz * v.z, m.xy * v.x + m.yy * v.y + m.yz * v.z,
          m.xz * v.x + m.yz * v.y + m.zz * v.z};
}

template <typename S>
GR_HD bool is_finite(const Sym3<S>& m) {
  return is_finite(m.xx) & is_finite(m.xy) & is_finite(m.xz) & is_finite(m.yy) &
         is_finite(m.yz) & is_finite(m.zz);
}

}  // namespace gr
