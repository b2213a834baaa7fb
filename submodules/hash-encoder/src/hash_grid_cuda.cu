// Looking up a level is one random access of F values per corner, so memory decides the speed. A
// block works on a few neighbouring levels, the blocks of all points on the same ones before any on
// the next: their tables stay in the L2 cache. The levels are as many as fill a sector of memory
// with their features, one lane each, so that a point's row is written and read by whole sectors.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "hash_grid_cuda.h"
#include "native/vectors.cuh"

namespace hashgrid {
namespace {

constexpr unsigned kBlock = 256;
constexpr unsigned kSector = 32;       // bytes that memory moves at least
constexpr int kLanes = 8;              // lanes that share a point in backward_points
constexpr int kLevelsPerLaunch = 32;   // their descriptions are a kernel's arguments

// Consecutive levels of a grid.
template <typename T>
struct Levels {
  Level<T> at[kLevelsPerLaunch];
  int first, count;  // of the grid's levels
  int features;      // F
  bool smooth;
  std::int64_t width;  // L * F, of all levels
};
static_assert(sizeof(Levels<double>) <= 4000, "kernels take 4 KiB of arguments before CUDA 12.1");

template <typename T, int D>
struct Point {
  T x[D];
  T poison;  // NaN where a coordinate is, in which case x is 0; else 0
  bool nan;
};

template <int D, typename T>
__device__ __forceinline__ Point<T, D> load_point(const T* x, std::int64_t i) {
  Point<T, D> point{};
#pragma unroll
  for (int d = 0; d < D; ++d) {
    point.x[d] = x[i * D + d];
    if (point.x[d] != point.x[d]) {
      point.poison = point.x[d];
      point.nan = true;
    }
  }
#pragma unroll
  for (int d = 0; d < D; ++d) point.x[d] = point.nan ? T(0) : point.x[d];
  return point;
}

// First of the F values of a level in a row of features.
template <typename T>
__device__ __forceinline__ std::int64_t column(const Levels<T>& levels, std::int64_t i, int l) {
  return i * levels.width + std::int64_t(levels.first + l) * levels.features;
}

// First value of a row of a level's table.
template <typename T>
__device__ __forceinline__ std::int64_t entry(const Levels<T>& levels, int l, std::uint32_t row) {
  return (levels.at[l].offset + row) * levels.features;
}

// The level of the calling thread in the launch, and its point.
__device__ __forceinline__ int own_level() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
}
__device__ __forceinline__ std::int64_t own_point() {
  return std::int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
}

template <int V, int D, typename T>
__global__ void __launch_bounds__(kBlock)
forward_kernel(const T* x, std::int64_t count, const T* table,
               const __grid_constant__ Levels<T> levels, T* features) {
  const std::int64_t i = own_point();
  const int l = own_level();
  if (i >= count) return;
  const Point<T, D> point = load_point<D>(x, i);
  AxisSample<T> samples[D];
  std::uint32_t rows[1 << D];
  T weights[1 << D];
  sample_axes<D>(point.x, levels.at[l], levels.smooth, samples);
  corner_rows<D>(samples, levels.at[l], rows);
  corner_weights<D>(samples, weights);
#pragma unroll 1  // mostly one turn
  for (int f = 0; f < levels.features; f += V) {
    native::Vector<T, V> sum{};
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const auto values = native::load<T, V>(table + entry(levels, l, rows[c]) + f);
#pragma unroll
      for (int v = 0; v < V; ++v) sum.at[v] += weights[c] * values.at[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum.at[v] = point.nan ? point.poison : sum.at[v];
    native::store(features + column(levels, i, l) + f, sum);
  }
}

template <int V, int D, typename T>
__global__ void __launch_bounds__(kBlock)
backward_table_kernel(const T* x, std::int64_t count, const __grid_constant__ Levels<T> levels,
                      const T* grad_features, T* grad_table) {
  const std::int64_t i = own_point();
  const int l = own_level();
  if (i >= count) return;
  const Point<T, D> point = load_point<D>(x, i);
  if (point.nan) return;
  AxisSample<T> samples[D];
  std::uint32_t rows[1 << D];
  T weights[1 << D];
  sample_axes<D>(point.x, levels.at[l], levels.smooth, samples);
  corner_rows<D>(samples, levels.at[l], rows);
  corner_weights<D>(samples, weights);
#pragma unroll 1  // mostly one turn
  for (int f = 0; f < levels.features; f += V) {
    const auto grad = native::load<T, V>(grad_features + column(levels, i, l) + f);
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      native::atomic_add(grad_table + entry(levels, l, rows[c]) + f, weights[c], grad);
    }
  }
}

// d(loss)/d(corner's weight) of all corners.
template <int V, int D, typename T>
__device__ __forceinline__ void corner_gradients(const Levels<T>& levels, int l,
                                                 const std::uint32_t* rows, const T* table,
                                                 const T* grad_row, T* out) {
#pragma unroll
  for (int c = 0; c < 1 << D; ++c) out[c] = T(0);
#pragma unroll 1  // mostly one turn
  for (int f = 0; f < levels.features; f += V) {
    const auto grad = native::load<T, V>(grad_row + f);
#pragma unroll
    for (int c = 0; c < 1 << D; ++c) {
      const auto values = native::load<T, V>(table + entry(levels, l, rows[c]) + f);
#pragma unroll
      for (int v = 0; v < V; ++v) out[c] += grad.at[v] * values.at[v];
    }
  }
}

// Lanes take the levels of a point in turn and add up what they have in an order that is always the
// same. Levels after those of the first launch are added to what is there.
template <int V, int D, typename T>
__global__ void __launch_bounds__(kBlock)
backward_points_kernel(const T* x, std::int64_t count, const T* table,
                       const __grid_constant__ Levels<T> levels, const T* grad_features,
                       T* grad_x) {
  const auto group = native::cg::tiled_partition<kLanes>(native::cg::this_thread_block());
  const std::int64_t i = native::global_index() / kLanes;
  if (i >= count) return;  // whole groups
  const Point<T, D> point = load_point<D>(x, i);
  T sums[D] = {};
  for (int l = static_cast<int>(group.thread_rank()); l < levels.count && !point.nan; l += kLanes) {
    AxisSample<T> samples[D];
    std::uint32_t rows[1 << D];
    T values[1 << D];
    sample_axes<D>(point.x, levels.at[l], levels.smooth, samples);
    corner_rows<D>(samples, levels.at[l], rows);
    corner_gradients<V, D>(levels, l, rows, table, grad_features + column(levels, i, l), values);
    add_coordinate_gradients<D>(samples, values, sums);
  }
#pragma unroll
  for (int d = 0; d < D; ++d) {
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sums[d] += group.shfl_xor(sums[d], distance);
    }
    T* const target = grad_x + i * D + d;
    if (group.thread_rank() == 0) *target = levels.first == 0 ? sums[d] : *target + sums[d];
  }
}

// How a launch is shaped for forward and backward_table.
struct Shape {
  dim3 grid, block;
};

// Neighbouring levels of a block: as many as a sector has room for, if that leaves no lane idle.
template <typename T>
Shape shape_of(std::int64_t count, const Levels<T>& levels) {
  unsigned together = 1;
  while (2 * together * levels.features * sizeof(T) <= kSector &&
         levels.count % (2 * together) == 0) {
    together *= 2;
  }
  const dim3 block(together, kBlock / together);
  return {dim3(native::blocks_for(count, block.y), levels.count / together), block};
}

// Calls body(levels) for all levels of the grid, as many at once as a launch can take.
template <typename T, typename Body>
void for_levels(const Grid<T>& grid, const Body& body) {
  const int total = static_cast<int>(grid.levels.size());
  Levels<T> levels{};
  levels.features = grid.features;
  levels.smooth = grid.smooth;
  levels.width = grid.width();
  for (levels.first = 0; levels.first < total; levels.first += levels.count) {
    levels.count = std::min(kLevelsPerLaunch, total - levels.first);
    std::copy_n(grid.levels.begin() + levels.first, levels.count, levels.at);
    body(levels);
  }
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls body(V, D): V features are moved at once where F is a multiple and the arrays are aligned.
template <typename T, typename Body>
void dispatch(const Grid<T>& grid, std::initializer_list<const void*> arrays, const Body& body) {
  const auto fits = [&](int v) {
    return grid.features % v == 0 && std::all_of(arrays.begin(), arrays.end(), [&](const void* a) {
             return native::is_aligned(a, v * sizeof(T));
           });
  };
  const auto with_dims = [&](auto v) {
    switch (grid.dims) {
      case 2: return body(v, Constant<2>{});
      case 3: return body(v, Constant<3>{});
      default: return body(v, Constant<4>{});
    }
  };
  constexpr int widest = 16 / int(sizeof(T));
  if (fits(widest)) return with_dims(Constant<widest>{});
  if (widest > 2 && fits(2)) return with_dims(Constant<2>{});
  with_dims(Constant<1>{});
}

}  // namespace

template <typename T>
void forward(const T* x, std::int64_t count, const T* table, const Grid<T>& grid, T* features,
             cudaStream_t stream) {
  dispatch(grid, {table, features}, [&](auto v, auto dims) {
    const auto kernel = forward_kernel<decltype(v)::value, decltype(dims)::value, T>;
    for_levels(grid, [&](const Levels<T>& levels) {
      const Shape shape = shape_of(count, levels);
      native::launch(kernel, shape.grid, shape.block, stream, x, count, table, levels, features);
    });
  });
}

template <typename T>
void backward_table(const T* x, std::int64_t count, const Grid<T>& grid, const T* grad_features,
                    T* grad_table, cudaStream_t stream) {
  dispatch(grid, {grad_features, grad_table}, [&](auto v, auto dims) {
    const auto kernel = backward_table_kernel<decltype(v)::value, decltype(dims)::value, T>;
    for_levels(grid, [&](const Levels<T>& levels) {
      const Shape shape = shape_of(count, levels);
      native::launch(kernel, shape.grid, shape.block, stream, x, count, levels, grad_features,
                     grad_table);
    });
  });
}

template <typename T>
void backward_points(const T* x, std::int64_t count, const T* table, const Grid<T>& grid,
                     const T* grad_features, T* grad_x, cudaStream_t stream) {
  const dim3 blocks(native::blocks_for(count, kBlock / kLanes)), block(kBlock);
  dispatch(grid, {table, grad_features}, [&](auto v, auto dims) {
    const auto kernel = backward_points_kernel<decltype(v)::value, decltype(dims)::value, T>;
    for_levels(grid, [&](const Levels<T>& levels) {
      native::launch(kernel, blocks, block, stream, x, count, table, levels, grad_features, grad_x);
    });
  });
}

#define HASH_GRID_INSTANTIATE(T)                                                                  \
  template void forward(const T*, std::int64_t, const T*, const Grid<T>&, T*, cudaStream_t);      \
  template void backward_table(const T*, std::int64_t, const Grid<T>&, const T*, T*,              \
                               cudaStream_t);                                                     \
  template void backward_points(const T*, std::int64_t, const T*, const Grid<T>&, const T*, T*,   \
                                cudaStream_t);
HASH_GRID_INSTANTIATE(float)
HASH_GRID_INSTANTIATE(double)

}  // namespace hashgrid
