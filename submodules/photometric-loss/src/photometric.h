// The mathematics of one pixel of SSIM and of the error, for host and device.
//
// With blur = the 11x11 Gaussian window of sigma 1.5, zeros beyond the border, and m = blur(x),
// n = blur(y), p = blur(xy), q = blur(xx + yy), the structural similarity of Wang et al. (2004) is
//   S = (2mn + C1) (2(p - mn) + C2) / ((mm + nn + C1) (q - mm - nn + C2))
// and, as the window is symmetric, the derivative of the sum of S over the image is
//   dS/dx = blur(dS/dm) + y blur(dS/dp) + 2x blur(dS/dq).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define PHOTOMETRIC_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define PHOTOMETRIC_HD __forceinline
#else
#define PHOTOMETRIC_HD inline __attribute__((always_inline))
#endif

namespace photometric {

constexpr int kRadius = 5;
constexpr int kTaps = 2 * kRadius + 1;
constexpr int kMaps = 4;    // x, y, xy, xx + yy
constexpr int kSlopes = 3;  // dS/dp, dS/dq, dS/dm

enum class Error : int { kNone, kAbsolute, kSquared };

// What is compared. Plane b * C + c is channel c of image b.
template <typename T>
struct Inputs {
  const T* images;            // (B, C, H, W), contiguous
  const void* targets;        // (B, C, H, W): T, or unsigned char where `bytes`
  std::int64_t stride[4];     // of the targets, in elements
  const unsigned char* mask;  // (B, 1, H, W), contiguous, 0 or 1; null: every pixel counts
  int batch, channels, height, width;
  bool bytes;

  PHOTOMETRIC_HD int planes() const { return batch * channels; }
  PHOTOMETRIC_HD std::int64_t count() const { return std::int64_t(planes()) * height * width; }
  PHOTOMETRIC_HD std::int64_t row_index(int plane, int row) const {
    return std::int64_t(plane) * height + row;
  }
  // Where a row begins.
  PHOTOMETRIC_HD std::int64_t image_row(int plane, int row) const {
    return row_index(plane, row) * width;
  }
  PHOTOMETRIC_HD std::int64_t target_row(int plane, int row) const {
    return plane / channels * stride[0] + plane % channels * stride[1] + row * stride[2];
  }
  PHOTOMETRIC_HD std::int64_t mask_row(int plane, int row) const {
    return row_index(plane / channels, row) * width;
  }
};

template <typename T>
PHOTOMETRIC_HD T unit_range(unsigned char value) {
  return T(value) / T(255);
}

// Weight of the window at a distance of k >= 0 from its centre: exp(-kk / (2 * 1.5 * 1.5)),
// normalised.
template <typename T>
PHOTOMETRIC_HD constexpr T weight(int k) {
  return k == 0   ? T(0.26601172486179436)
         : k == 1 ? T(0.2130055377112537)
         : k == 2 ? T(0.10936068950970002)
         : k == 3 ? T(0.03600077212843083)
         : k == 4 ? T(0.007598758135239185)
                  : T(0.00102838008447911);
}

// Values at a constant stride around a centre: a row or a column of an array.
template <typename T>
struct Line {
  const T* centre;
  std::ptrdiff_t stride;
  PHOTOMETRIC_HD T operator()(int k) const { return centre[k * stride]; }
};

// The window along one axis; at(k) is the value at a distance k in [-5, 5].
template <typename T, typename At>
PHOTOMETRIC_HD T blur(const At& at) {
  T sum = weight<T>(0) * at(0);
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 5
#endif
  for (int k = 1; k <= kRadius; ++k) sum += weight<T>(k) * (at(-k) + at(k));
  return sum;
}

// S at one pixel and its derivatives by the blurred maps p, q and m.
template <typename T>
struct Similarity {
  T value, by_p, by_q, by_m;
};

template <typename T>
PHOTOMETRIC_HD Similarity<T> similarity(T m, T n, T p, T q) {
  constexpr T c1 = T(0.01 * 0.01), c2 = T(0.03 * 0.03);
  const T mn = m * n, squares = m * m + n * n;
  const T luminance = T(2) * mn + c1, structure = T(2) * (p - mn) + c2;
  const T base = squares + c1, spread = q - squares + c2;
  const T inverse = T(1) / (base * spread);
  Similarity<T> s;
  s.value = luminance * structure * inverse;
  s.by_p = T(2) * luminance * inverse;
  s.by_q = -s.value * base * inverse;
  const T cross = T(2) * (structure - luminance) * inverse;      // by mn
  const T own = T(2) * (s.value * spread * inverse + s.by_q);    // minus twice that by mm + nn
  s.by_m = cross * n - own * m;
  return s;
}

// The derivative of the sum of S by x, of the blurred derivatives.
template <typename T>
PHOTOMETRIC_HD T similarity_slope(T x, T y, T by_p, T by_q, T by_m) {
  return by_m + y * by_p + T(2) * x * by_q;
}

template <typename T>
PHOTOMETRIC_HD T error_of(T x, T y, Error kind) {
  const T difference = x - y;
  if (kind == Error::kSquared) return difference * difference;
  return difference < T(0) ? -difference : difference;
}

// d(error) / dx; of the absolute error 0 where x = y, and NaN where either is.
template <typename T>
PHOTOMETRIC_HD T error_slope(T x, T y, Error kind) {
  const T difference = x - y;
  if (kind == Error::kSquared) return T(2) * difference;
  return difference > T(0) ? T(1) : difference < T(0) ? T(-1) : difference - difference;
}

}  // namespace photometric
