// The mathematics of one point on one level of a hash grid, for host and device.
//
// Along each axis a level has `resolution` samples, and a coordinate u in [0, 1] lies at the
// position u * scale among them, scale <= resolution - 1. The 2^D samples around a point are its
// corners. The row of a corner in the level's table combines one term per axis: the sum of
// sample * stride on dense levels; on hashed ones the exclusive or of sample * prime, cut to the
// size of the table.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HASH_GRID_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define HASH_GRID_HD __forceinline
#else
#define HASH_GRID_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDA_ARCH__)
#define HASH_GRID_UNROLL _Pragma("unroll")  // arrays stay in registers only in unrolled loops
#else
#define HASH_GRID_UNROLL
#endif

namespace hashgrid {

constexpr int kMinDims = 2;
constexpr int kMaxDims = 4;

// Multipliers of the coordinates in the hash; the first is 1 so that neighbours share a cache line.
HASH_GRID_HD std::uint32_t prime(int axis) {
  constexpr std::uint32_t kPrimes[kMaxDims] = {1u, 2654435761u, 805459861u, 3674653429u};
  return kPrimes[axis];
}

template <typename T>
struct LevelAxis {
  T scale;             // position among the samples of u = 1
  std::int32_t last;   // low sample of the last cell: resolution - 2, or 0 if there is one sample
  std::uint32_t unit;  // what one step along the axis multiplies: the stride, or the prime
  std::uint32_t step;  // the same, or 0 where there is but one sample
};

template <typename T>
struct Level {
  LevelAxis<T> axes[kMaxDims];
  std::int64_t offset;  // first row of the level in the table
  std::uint32_t mask;   // rows - 1 of a hashed level, whose size is a power of two
  bool hashed;
};

// Where a coordinate falls along one axis of a level.
template <typename T>
struct AxisSample {
  std::uint32_t low, high;  // terms of the two samples
  T weight;                 // of the high sample, [0, 1]
  T slope;                  // d(weight) / d(coordinate); 0 outside [0, 1]
};

// a * b, rounded before anything is done with it: a compiler may not fuse it into a subtraction.
template <typename T>
HASH_GRID_HD T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;  // compiled without contraction, see CMakeLists.txt
#endif
}

// `u` must not be NaN; infinities are clamped like any other coordinate outside.
template <bool Smooth, typename T>
HASH_GRID_HD AxisSample<T> sample_axis(T u, const LevelAxis<T>& axis) {
  const bool inside = u >= T(0) && u <= T(1);
  const T clamped = u > T(0) ? (u < T(1) ? u : T(1)) : T(0);
  const T position = rounded_product(clamped, axis.scale);
  const std::int32_t floor = static_cast<std::int32_t>(position);
  const std::int32_t cell = floor < axis.last ? floor : axis.last;
  const T f = position - static_cast<T>(cell);
  const T weight = Smooth ? f * f * (T(3) - T(2) * f) : f;
  const T slope = Smooth ? T(6) * f * (T(1) - f) * axis.scale : axis.scale;
  const std::uint32_t low = static_cast<std::uint32_t>(cell) * axis.unit;
  return {low, low + axis.step, weight, inside ? slope : T(0)};
}

// Adds the term of one more axis to a row; hashed rows are cut to the table by `mask` at the end.
template <bool Hashed>
HASH_GRID_HD std::uint32_t combine(std::uint32_t row, std::uint32_t term) {
  return Hashed ? row ^ term : row + term;
}

template <typename T>
HASH_GRID_HD T interpolate(T low, T high, T weight) {
  return (T(1) - weight) * low + weight * high;
}

// slope * difference. Not the product with 0: where a point is outside, an infinite or NaN upstream
// gradient stays out too.
template <typename T>
HASH_GRID_HD T along_slope(T slope, T difference) {
  return slope == T(0) ? T(0) : slope * difference;
}

// What follows is for one point at a time; the CPU does the same for many, so that they share
// vector instructions. Corner c of 2^D is high along axis d if bit d of c is set.

template <int D, typename T>
HASH_GRID_HD void sample_axes(const T* x, const Level<T>& level, bool smooth,
                              AxisSample<T>* samples) {
  HASH_GRID_UNROLL
  for (int d = 0; d < D; ++d) {
    samples[d] = smooth ? sample_axis<true>(x[d], level.axes[d])
                        : sample_axis<false>(x[d], level.axes[d]);
  }
}

// Combined terms of the 2^Axes corners along the first axes: each axis doubles their number.
template <int Axes, typename T>
HASH_GRID_HD void combine_terms(const AxisSample<T>* samples, bool hashed, std::uint32_t* rows) {
  const std::uint32_t low = samples[Axes - 1].low, high = samples[Axes - 1].high;
  constexpr int half = 1 << (Axes - 1);
  if constexpr (Axes == 1) {
    rows[0] = low;
    rows[1] = high;
  } else {
    combine_terms<Axes - 1>(samples, hashed, rows);
    HASH_GRID_UNROLL
    for (int c = 0; c < half; ++c) {
      const std::uint32_t row = rows[c];
      rows[c] = hashed ? combine<true>(row, low) : combine<false>(row, low);
      rows[c + half] = hashed ? combine<true>(row, high) : combine<false>(row, high);
    }
  }
}

// Rows of all corners in the table of their level.
template <int D, typename T>
HASH_GRID_HD void corner_rows(const AxisSample<T>* samples, const Level<T>& level,
                              std::uint32_t* rows) {
  const bool hashed = level.hashed;  // may differ between the lanes of a warp: no branches
  combine_terms<D>(samples, hashed, rows);
  const std::uint32_t mask = hashed ? level.mask : ~std::uint32_t(0);
  HASH_GRID_UNROLL
  for (int c = 0; c < 1 << D; ++c) rows[c] &= mask;
}

template <int Axes, typename T>
HASH_GRID_HD void corner_weights(const AxisSample<T>* samples, T* weights) {
  const T weight = samples[Axes - 1].weight;
  constexpr int half = 1 << (Axes - 1);
  if constexpr (Axes == 1) {
    weights[0] = T(1) - weight;
    weights[1] = weight;
  } else {
    corner_weights<Axes - 1>(samples, weights);
    HASH_GRID_UNROLL
    for (int c = 0; c < half; ++c) {
      weights[c + half] = weights[c] * weight;
      weights[c] *= T(1) - weight;
    }
  }
}

// The value of 2^Axes corner values after interpolation along that many axes; they are used up.
template <int Axes, typename T>
HASH_GRID_HD T interpolate_corners(const AxisSample<T>* samples, T* values) {
  if constexpr (Axes > 0) {
    constexpr int half = 1 << (Axes - 1);
    HASH_GRID_UNROLL
    for (int c = 0; c < half; ++c) {
      values[c] = interpolate(values[c], values[c + half], samples[Axes - 1].weight);
    }
    return interpolate_corners<Axes - 1>(samples, values);
  } else {
    return values[0];
  }
}

// Adds d(loss)/d(x) along the first `Axes` axes of a point; `values`, the 2^Axes gradients of the
// corners' weights, with any further axes interpolated, are used up.
template <int Axes, typename T>
HASH_GRID_HD void add_coordinate_gradients(const AxisSample<T>* samples, T* values, T* sums) {
  if constexpr (Axes > 0) {
    constexpr int half = 1 << (Axes - 1), axis = Axes - 1;
    T differences[half];
    HASH_GRID_UNROLL
    for (int c = 0; c < half; ++c) differences[c] = values[c + half] - values[c];
    sums[axis] +=
        along_slope(samples[axis].slope, interpolate_corners<axis>(samples, differences));
    HASH_GRID_UNROLL
    for (int c = 0; c < half; ++c) {
      values[c] = interpolate(values[c], values[c + half], samples[axis].weight);
    }
    add_coordinate_gradients<axis>(samples, values, sums);
  }
}

}  // namespace hashgrid
