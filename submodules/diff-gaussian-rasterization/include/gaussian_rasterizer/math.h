// Small vectors and the macros shared by the CPU path and the CUDA path.
#pragma once

#include <cmath>

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
