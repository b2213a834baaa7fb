// Exact k nearest neighbours of every point of a cloud among the others.
#pragma once

#include <cstdint>

#include "native/isa.h"

namespace simple_knn {

// Coordinates up to this keep squared distances finite in float32.
constexpr float kMaxCoordinate = 1e18f;

// What is compiled once per level, see native/isa.h.
struct Kernels {
  // Index of the first point that has a NaN or a coordinate beyond kMaxCoordinate, or -1.
  std::int64_t (*first_invalid)(const float* points, std::int64_t count);

  // Squared distances (count, k), ascending, and indices (count, k) of the neighbours of each of
  // points (count, 3), itself excluded by index. Rows are padded with +inf and -1 where there are
  // fewer than k others. Which of several points at one distance is named is the tree's choice, but
  // it does not depend on `threads`. Points must be valid (first_invalid) and fewer than 2^31.
  void (*nearest_neighbours)(const float* points, std::int64_t count, std::int64_t k, int threads,
                             float* dist2, std::int64_t* index);
};

}  // namespace simple_knn
