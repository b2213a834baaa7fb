// The mathematics of one point in a HexPlane at one time, for host and device.
//
// A point (x, y, z) in [-1, 1]^3 has six factors per channel: bilinear lookups in the planes over
// (x, y), (x, z), (y, z) and linear lookups in the lines over x, y, z. The feature is their product.
// Samples lie on the corners of the cube (align_corners) and coordinates outside are clamped to it.
#pragma once

#include <cstddef>

#if defined(__CUDACC__)
#define HEXPLANE_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define HEXPLANE_HD __forceinline
#else
#define HEXPLANE_HD inline __attribute__((always_inline))
#endif

namespace hexplane {

constexpr int kPlanes = 3;
constexpr int kLines = 3;
constexpr int kFactors = kPlanes + kLines;

// Axes of plane k: its width runs along the first, its height along the second.
HEXPLANE_HD int plane_width_axis(int k) { return k == 2 ? 1 : 0; }
HEXPLANE_HD int plane_height_axis(int k) { return k == 0 ? 1 : 2; }

// Where a coordinate falls among `resolution` samples.
template <typename T>
struct AxisSample {
  int low;   // [0, resolution - 1]
  int high;  // low + 1, or low where there is but one sample
  T weight;  // of the high sample, [0, 1]
  T slope;   // d(position among the samples) / d(coordinate); 0 on the border and outside
};

// `u` must not be NaN; infinities are clamped like any other coordinate outside.
template <typename T>
HEXPLANE_HD AxisSample<T> sample_axis(T u, int resolution) {
  const bool inside = u > T(-1) && u < T(1);
  const T clamped = u > T(-1) ? (u < T(1) ? u : T(1)) : T(-1);
  const T position = (clamped + T(1)) * T(0.5) * T(resolution - 1);
  const int last = resolution > 1 ? resolution - 2 : 0;
  int low = static_cast<int>(position);
  low = low < last ? low : last;
  AxisSample<T> sample;
  sample.low = low;
  sample.high = resolution > 1 ? low + 1 : low;
  sample.weight = position - T(low);
  sample.slope = inside ? T(0.5) * T(resolution - 1) : T(0);
  return sample;
}

// Offsets and weights of the four samples around a point in a plane (height, width, channels).
template <typename T>
struct PlaneCell {
  std::ptrdiff_t o00, o01, o10, o11;  // first digit: height, second: width
  AxisSample<T> a, b;                 // width, height
};

template <typename T>
HEXPLANE_HD PlaneCell<T> plane_cell(const AxisSample<T>& a, const AxisSample<T>& b, int width,
                                    int channels) {
  const std::ptrdiff_t row0 = std::ptrdiff_t(b.low) * width;
  const std::ptrdiff_t row1 = std::ptrdiff_t(b.high) * width;
  return {(row0 + a.low) * channels, (row0 + a.high) * channels, (row1 + a.low) * channels,
          (row1 + a.high) * channels, a, b};
}

template <typename T>
HEXPLANE_HD T bilinear(const T* plane, const PlaneCell<T>& cell, int channel) {
  const T wa = cell.a.weight, wb = cell.b.weight;
  const T bottom = (T(1) - wa) * plane[cell.o00 + channel] + wa * plane[cell.o01 + channel];
  const T top = (T(1) - wa) * plane[cell.o10 + channel] + wa * plane[cell.o11 + channel];
  return (T(1) - wb) * bottom + wb * top;
}

// d(bilinear) / d(coordinate along the width)
template <typename T>
HEXPLANE_HD T bilinear_da(const T* plane, const PlaneCell<T>& cell, int channel) {
  const T wb = cell.b.weight;
  const T bottom = plane[cell.o01 + channel] - plane[cell.o00 + channel];
  const T top = plane[cell.o11 + channel] - plane[cell.o10 + channel];
  return cell.a.slope * ((T(1) - wb) * bottom + wb * top);
}

// d(bilinear) / d(coordinate along the height)
template <typename T>
HEXPLANE_HD T bilinear_db(const T* plane, const PlaneCell<T>& cell, int channel) {
  const T wa = cell.a.weight;
  const T left = plane[cell.o10 + channel] - plane[cell.o00 + channel];
  const T right = plane[cell.o11 + channel] - plane[cell.o01 + channel];
  return cell.b.slope * ((T(1) - wa) * left + wa * right);
}

template <typename T>
HEXPLANE_HD T linear(const T* line, const AxisSample<T>& s, int channels, int channel) {
  const T low = line[std::ptrdiff_t(s.low) * channels + channel];
  const T high = line[std::ptrdiff_t(s.high) * channels + channel];
  return (T(1) - s.weight) * low + s.weight * high;
}

// d(linear) / d(coordinate)
template <typename T>
HEXPLANE_HD T linear_du(const T* line, const AxisSample<T>& s, int channels, int channel) {
  const T low = line[std::ptrdiff_t(s.low) * channels + channel];
  const T high = line[std::ptrdiff_t(s.high) * channels + channel];
  return s.slope * (high - low);
}

}  // namespace hexplane
