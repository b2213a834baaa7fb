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
#else
#define HASH_GRID_HD inline
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

// `u` must not be NaN; infinities are clamped like any other coordinate outside.
template <bool Smooth, typename T>
HASH_GRID_HD AxisSample<T> sample_axis(T u, const LevelAxis<T>& axis) {
  const bool inside = u >= T(0) && u <= T(1);
  const T clamped = u > T(0) ? (u < T(1) ? u : T(1)) : T(0);
  const T position = clamped * axis.scale;
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

}  // namespace hashgrid
