// Exact k nearest neighbours of every point of a cloud among the others, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace simple_knn::gpu {

// Lowers *first to the index of the first invalid point (knn.h) of points (count, 3), if any.
void first_invalid(const float* points, std::int64_t count, std::int32_t* first,
                   cudaStream_t stream);

// Arrays of scratch in device memory, each aligned to 16 bytes.
constexpr int kScratchArrays = 9;
struct Scratch {
  std::array<void*, kScratchArrays> at;
  std::array<std::size_t, kScratchArrays> bytes;  // as scratch_bytes says
};
std::array<std::size_t, kScratchArrays> scratch_bytes(std::int64_t count);  // at least 1 point

// As simple_knn::nearest_neighbours, with the same bits in dist2 (count, k), on `stream`. The tree
// is rebuilt in the same order every time, so index (count, k) does not vary between runs either.
// `scanned` (count), unless null, gets the number of leaves that each point's search looked into.
void nearest_neighbours(const float* points, std::int64_t count, std::int64_t k,
                        const Scratch& scratch, float* dist2, std::int64_t* index,
                        std::int32_t* scanned, cudaStream_t stream);

}  // namespace simple_knn::gpu
