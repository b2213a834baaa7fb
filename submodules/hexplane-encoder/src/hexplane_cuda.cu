// A group of lanes shares a point: each lane takes every kGroup-th vector of its channels, so that
// the lanes of a group read neighbouring memory, and they add up the gradient of the coordinates.
#include <algorithm>
#include <cstdint>
#include <iterator>

#include "hexplane_cuda.h"
#include "native/vectors.cuh"

namespace hexplane {
namespace {

constexpr unsigned kBlock = 256;
constexpr int kGroup = 8;  // lanes per point

// V neighbouring channels.
template <typename T, int V>
using Channels = native::Vector<T, V>;

using native::atomic_add;
using native::load;
using native::store;

// Where a point falls in each of the six grids. Planes of one level need not share resolutions.
template <typename T>
struct Cells {
  PlaneCell<T> plane[kPlanes];
  AxisSample<T> line[kLines];
};

template <typename T, typename Value>
__device__ __forceinline__ Cells<T> locate(const T* p, const DeviceGrids<Value>& grids) {
  Cells<T> cells;
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    const AxisSample<T> a = sample_axis(p[plane_width_axis(k)], grids.width[k]);
    const AxisSample<T> b = sample_axis(p[plane_height_axis(k)], grids.height[k]);
    cells.plane[k] = plane_cell(a, b, grids.width[k], grids.channels);
  }
#pragma unroll
  for (int k = 0; k < kLines; ++k) {
    cells.line[k] = sample_axis(p[k], grids.height[kPlanes + k]);
  }
  return cells;
}

template <typename T>
__device__ __forceinline__ bool has_nan(const T* p) {
  return p[0] != p[0] || p[1] != p[1] || p[2] != p[2];
}

// The corner values of V channels in a plane.
template <typename T, int V>
struct Corners {
  Channels<T, V> v00, v01, v10, v11;
};

template <typename T, int V>
__device__ __forceinline__ Corners<T, V> corners(const T* plane, const PlaneCell<T>& cell, int c) {
  return {load<T, V>(plane + cell.o00 + c), load<T, V>(plane + cell.o01 + c),
          load<T, V>(plane + cell.o10 + c), load<T, V>(plane + cell.o11 + c)};
}

// The same arithmetic as `bilinear` of hexplane.h, on loaded corners.
template <typename T, int V>
__device__ __forceinline__ T bilinear_of(const Corners<T, V>& q, const PlaneCell<T>& cell, int v) {
  const T wa = cell.a.weight, wb = cell.b.weight;
  const T bottom = (T(1) - wa) * q.v00.at[v] + wa * q.v01.at[v];
  const T top = (T(1) - wa) * q.v10.at[v] + wa * q.v11.at[v];
  return (T(1) - wb) * bottom + wb * top;
}

template <typename T, int V>
__global__ void __launch_bounds__(kBlock)
forward_kernel(const T* xyz, std::int64_t count, DeviceGrids<const T> grids, T* features) {
  const std::int64_t i = native::global_index() / kGroup;
  if (i >= count) return;
  const int lane = static_cast<int>(threadIdx.x % kGroup);
  T p[3] = {xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]};
  const T poison = has_nan(p) ? p[0] + p[1] + p[2] : T(0);  // NaN, or nothing
  if (has_nan(p)) p[0] = p[1] = p[2] = T(0);
  const Cells<T> cells = locate(p, grids);
  for (int c = lane * V; c < grids.channels; c += kGroup * V) {
    Channels<T, V> product;
#pragma unroll
    for (int v = 0; v < V; ++v) product.at[v] = T(1);
#pragma unroll
    for (int k = 0; k < kPlanes; ++k) {
      const Corners<T, V> q = corners<T, V>(grids.data[k], cells.plane[k], c);
#pragma unroll
      for (int v = 0; v < V; ++v) product.at[v] *= bilinear_of(q, cells.plane[k], v);
    }
#pragma unroll
    for (int k = 0; k < kLines; ++k) {
      const T* line = grids.data[kPlanes + k] + c;
      const AxisSample<T>& s = cells.line[k];
      const auto low = load<T, V>(line + std::ptrdiff_t(s.low) * grids.channels);
      const auto high = load<T, V>(line + std::ptrdiff_t(s.high) * grids.channels);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        product.at[v] *= (T(1) - s.weight) * low.at[v] + s.weight * high.at[v];
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) product.at[v] += poison;
    store(features + i * grids.channels + c, product);
  }
}

// Value and slopes of the six factors of V channels.
template <typename T, int V>
struct Factors {
  Channels<T, V> value[kFactors];
  Channels<T, V> by_a[kFactors];  // along the width, or along the line
  Channels<T, V> by_b[kPlanes];   // along the height
};

template <typename T, int V>
__device__ __forceinline__ Factors<T, V> factors(const DeviceGrids<const T>& grids,
                                                 const Cells<T>& cells, int c) {
  Factors<T, V> f;
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    const PlaneCell<T>& cell = cells.plane[k];
    const Corners<T, V> q = corners<T, V>(grids.data[k], cell, c);
    const T wa = cell.a.weight, wb = cell.b.weight;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      f.value[k].at[v] = bilinear_of(q, cell, v);
      f.by_a[k].at[v] = cell.a.slope * ((T(1) - wb) * (q.v01.at[v] - q.v00.at[v]) +
                                        wb * (q.v11.at[v] - q.v10.at[v]));
      f.by_b[k].at[v] = cell.b.slope * ((T(1) - wa) * (q.v10.at[v] - q.v00.at[v]) +
                                        wa * (q.v11.at[v] - q.v01.at[v]));
    }
  }
#pragma unroll
  for (int k = 0; k < kLines; ++k) {
    const AxisSample<T>& s = cells.line[k];
    const T* line = grids.data[kPlanes + k] + c;
    const auto low = load<T, V>(line + std::ptrdiff_t(s.low) * grids.channels);
    const auto high = load<T, V>(line + std::ptrdiff_t(s.high) * grids.channels);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      f.value[kPlanes + k].at[v] = (T(1) - s.weight) * low.at[v] + s.weight * high.at[v];
      f.by_a[kPlanes + k].at[v] = s.slope * (high.at[v] - low.at[v]);
    }
  }
  return f;
}

// d(loss) / d(factor k): the gradient times the product of the other factors.
template <typename T, int V>
__device__ __forceinline__ void partials(const Factors<T, V>& f, const Channels<T, V>& grad,
                                         Channels<T, V>* out) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    T before = grad.at[v];
#pragma unroll
    for (int k = 0; k < kFactors; ++k) {
      out[k].at[v] = before;
      before *= f.value[k].at[v];
    }
    T after = T(1);
#pragma unroll
    for (int k = kFactors - 1; k >= 0; --k) {
      out[k].at[v] *= after;
      after *= f.value[k].at[v];
    }
  }
}

template <typename T, int V>
__device__ __forceinline__ void scatter(const Cells<T>& cells, const Channels<T, V>* partial,
                                        const DeviceGrids<T>& grads, int c) {
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    T* plane = grads.data[k];
    if (plane == nullptr) continue;
    const PlaneCell<T>& cell = cells.plane[k];
    const T wa = cell.a.weight, wb = cell.b.weight;
    atomic_add(plane + cell.o00 + c, (T(1) - wa) * (T(1) - wb), partial[k]);
    atomic_add(plane + cell.o01 + c, wa * (T(1) - wb), partial[k]);
    atomic_add(plane + cell.o10 + c, (T(1) - wa) * wb, partial[k]);
    atomic_add(plane + cell.o11 + c, wa * wb, partial[k]);
  }
#pragma unroll
  for (int k = 0; k < kLines; ++k) {
    T* line = grads.data[kPlanes + k];
    if (line == nullptr) continue;
    const AxisSample<T>& s = cells.line[k];
    atomic_add(line + std::ptrdiff_t(s.low) * grads.channels + c, T(1) - s.weight, partial[kPlanes + k]);
    atomic_add(line + std::ptrdiff_t(s.high) * grads.channels + c, s.weight, partial[kPlanes + k]);
  }
}

// Adds the coordinates' gradient through every factor. Where a slope is 0 (points on the border or
// outside) the partial stays out, since it may be infinite.
template <typename T, int V>
__device__ __forceinline__ void gather_xyz(const Cells<T>& cells, const Factors<T, V>& f,
                                           const Channels<T, V>* partial, T* grad) {
#pragma unroll
  for (int k = 0; k < kPlanes; ++k) {
    const PlaneCell<T>& cell = cells.plane[k];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (cell.a.slope != T(0)) grad[plane_width_axis(k)] += partial[k].at[v] * f.by_a[k].at[v];
      if (cell.b.slope != T(0)) grad[plane_height_axis(k)] += partial[k].at[v] * f.by_b[k].at[v];
    }
  }
#pragma unroll
  for (int k = 0; k < kLines; ++k) {
    if (cells.line[k].slope == T(0)) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) grad[k] += partial[kPlanes + k].at[v] * f.by_a[kPlanes + k].at[v];
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kBlock)
backward_kernel(const T* xyz, std::int64_t count, DeviceGrids<const T> grids,
                const T* grad_features, T* grad_xyz, DeviceGrids<T> grad_grids) {
  const auto group =
      native::cg::tiled_partition<kGroup>(native::cg::this_thread_block());
  const std::int64_t i = native::global_index() / kGroup;
  if (i >= count) return;  // whole groups
  const T p[3] = {xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]};
  T sum[3] = {T(0), T(0), T(0)};
  if (!has_nan(p)) {
    const Cells<T> cells = locate(p, grids);
    for (int c = static_cast<int>(group.thread_rank()) * V; c < grids.channels; c += kGroup * V) {
      const Factors<T, V> f = factors<T, V>(grids, cells, c);
      Channels<T, V> partial[kFactors];
      partials(f, load<T, V>(grad_features + i * grids.channels + c), partial);
      scatter<T, V>(cells, partial, grad_grids, c);
      if (grad_xyz != nullptr) gather_xyz<T, V>(cells, f, partial, sum);
    }
  }
  if (grad_xyz == nullptr) return;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
#pragma unroll
    for (int d = kGroup / 2; d > 0; d /= 2) sum[axis] += group.shfl_xor(sum[axis], d);
  }
  if (group.thread_rank() < 3) {
    const unsigned axis = group.thread_rank();
    grad_xyz[3 * i + axis] = axis == 0 ? sum[0] : axis == 1 ? sum[1] : sum[2];
  }
}

template <typename Value>
bool is_aligned(const DeviceGrids<Value>& grids) {
  return std::all_of(std::begin(grids.data), std::end(grids.data),
                     [](const void* data) { return native::is_aligned(data, 16); });
}

template <typename T>
constexpr int kVector = 16 / int(sizeof(T));

}  // namespace

template <typename T>
void forward(const T* xyz, std::int64_t count, const DeviceGrids<const T>& grids, T* features,
             cudaStream_t stream) {
  const dim3 blocks(native::blocks_for(count * kGroup, kBlock));
  const bool wide = grids.channels % kVector<T> == 0 && is_aligned(grids) &&
                    native::is_aligned(features, 16);
  const auto kernel = wide ? forward_kernel<T, kVector<T>> : forward_kernel<T, 1>;
  native::launch(kernel, blocks, dim3(kBlock), stream, xyz, count, grids, features);
}

template <typename T>
void backward(const T* xyz, std::int64_t count, const DeviceGrids<const T>& grids,
              const T* grad_features, T* grad_xyz, const DeviceGrids<T>& grad_grids,
              cudaStream_t stream) {
  const dim3 blocks(native::blocks_for(count * kGroup, kBlock));
  const bool wide = grids.channels % kVector<T> == 0 && is_aligned(grids) &&
                    is_aligned(grad_grids) && native::is_aligned(grad_features, 16);
  const auto kernel = wide ? backward_kernel<T, kVector<T>> : backward_kernel<T, 1>;
  native::launch(kernel, blocks, dim3(kBlock), stream, xyz, count, grids, grad_features, grad_xyz,
                 grad_grids);
}

#define HEXPLANE_INSTANTIATE(T)                                                            \
  template void forward(const T*, std::int64_t, const DeviceGrids<const T>&, T*,           \
                        cudaStream_t);                                                     \
  template void backward(const T*, std::int64_t, const DeviceGrids<const T>&, const T*, T*, \
                         const DeviceGrids<T>&, cudaStream_t);
HEXPLANE_INSTANTIATE(float)
HEXPLANE_INSTANTIATE(double)

}  // namespace hexplane
