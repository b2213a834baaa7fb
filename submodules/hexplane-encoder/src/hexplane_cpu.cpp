#include "hexplane_cpu.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "native/workers.h"

namespace hexplane {
namespace NATIVE_LEVEL {
namespace {

using native::run_workers;

constexpr std::int64_t kMinPointsPerThread = 1024;  // below it, starting a thread costs more

// Cuts the channels into blocks whose width the compiler knows, so that it unrolls and vectorises.
template <typename Body>
inline void for_channel_blocks(int channels, const Body& body) {
  int c = 0;
  for (; c + 16 <= channels; c += 16) body(std::integral_constant<int, 16>{}, c);
  for (; c + 8 <= channels; c += 8) body(std::integral_constant<int, 8>{}, c);
  for (; c + 4 <= channels; c += 4) body(std::integral_constant<int, 4>{}, c);
  for (; c < channels; ++c) body(std::integral_constant<int, 1>{}, c);
}

template <typename T>
struct PointCells {
  PlaneCell<T> planes[kPlanes];
  AxisSample<T> lines[kLines];
};

template <typename T>
inline bool is_nan_point(const T* p) {
  return p[0] != p[0] || p[1] != p[1] || p[2] != p[2];
}

template <typename T, typename Value>
inline PlaneCell<T> locate_plane(const T* point, const Grids<Value>& grids, int k) {
  return plane_cell(sample_axis(point[plane_width_axis(k)], grids.width[k]),
                    sample_axis(point[plane_height_axis(k)], grids.height[k]), grids.width[k],
                    grids.channels);
}

template <typename T>
inline PointCells<T> locate(const T* point, const Grids<const T>& grids) {
  PointCells<T> cells;
  for (int k = 0; k < kPlanes; ++k) cells.planes[k] = locate_plane(point, grids, k);
  for (int k = 0; k < kLines; ++k)
    cells.lines[k] = sample_axis(point[k], grids.height[kPlanes + k]);
  return cells;
}

// The six factors (6, W) of channels [c0, c0 + W).
template <int W, typename T>
inline void factors(const Grids<const T>& grids, const PointCells<T>& cells, int c0,
                    T (&f)[kFactors][W]) {
  for (int k = 0; k < kPlanes; ++k) {
    const T* plane = grids.data[k] + c0;
    const PlaneCell<T> cell = cells.planes[k];
    for (int c = 0; c < W; ++c) f[k][c] = bilinear(plane, cell, c);
  }
  for (int k = 0; k < kLines; ++k) {
    const T* line = grids.data[kPlanes + k] + c0;
    const AxisSample<T> sample = cells.lines[k];
    for (int c = 0; c < W; ++c) f[kPlanes + k][c] = linear(line, sample, grids.channels, c);
  }
}

template <typename T>
void forward_range(const T* xyz, std::int64_t begin, std::int64_t end,
                   const Grids<const T>& grids, T* features) {
  const int channels = grids.channels;
  for (std::int64_t i = begin; i < end; ++i) {
    T* row = features + i * channels;
    if (is_nan_point(xyz + 3 * i)) {
      std::fill_n(row, channels, std::numeric_limits<T>::quiet_NaN());
      continue;
    }
    const PointCells<T> cells = locate(xyz + 3 * i, grids);
    for_channel_blocks(channels, [&](auto width, int c0) {
      constexpr int W = decltype(width)::value;
      T f[kFactors][W];
      factors<W>(grids, cells, c0, f);
      for (int c = 0; c < W; ++c)
        row[c0 + c] = f[0][c] * f[1][c] * f[2][c] * f[3][c] * f[4][c] * f[5][c];
    });
  }
}

// d(loss)/d(factor) (6, W): the upstream gradient times the product of the other five factors.
template <int W, typename T>
inline void partial_products(const T (&f)[kFactors][W], const T* grad, T (&g)[kFactors][W]) {
  for (int c = 0; c < W; ++c) {
    T before[kFactors], after = T(1);
    before[0] = grad[c];
    for (int k = 1; k < kFactors; ++k) before[k] = before[k - 1] * f[k - 1][c];
    for (int k = kFactors - 1; k >= 0; --k) {
      g[k][c] = before[k] * after;
      after *= f[k][c];
    }
  }
}

// Sums by halves: vectorises without reassociation flags, and in one fixed order.
template <int W, typename T>
inline T sum_lanes(T (&lanes)[W]) {
  for (int half = W / 2; half > 0; half /= 2)
    for (int c = 0; c < half; ++c) lanes[c] += lanes[c + half];
  return lanes[0];
}

// Adds the gradient of channels [c0, c0 + W) to that of the point's three coordinates. Where a slope
// is 0 (points on the border or outside) `g` stays out, since it may be infinite.
template <int W, typename T>
inline void add_coordinate_gradient(const Grids<const T>& grids, const PointCells<T>& cells,
                                    int c0, const T (&g)[kFactors][W], T* grad_point) {
  T lanes[3][W] = {};
  for (int axis = 0; axis < 3; ++axis) {
    const T* line = grids.data[kPlanes + axis] + c0;
    const AxisSample<T> sample = cells.lines[axis];
    if (sample.slope == T(0)) continue;
    for (int c = 0; c < W; ++c)
      lanes[axis][c] = g[kPlanes + axis][c] * linear_du(line, sample, grids.channels, c);
  }
  for (int k = 0; k < kPlanes; ++k) {
    const T* plane = grids.data[k] + c0;
    const PlaneCell<T> cell = cells.planes[k];
    T(&along_a)[W] = lanes[plane_width_axis(k)];
    T(&along_b)[W] = lanes[plane_height_axis(k)];
    if (cell.a.slope != T(0))
      for (int c = 0; c < W; ++c) along_a[c] += g[k][c] * bilinear_da(plane, cell, c);
    if (cell.b.slope != T(0))
      for (int c = 0; c < W; ++c) along_b[c] += g[k][c] * bilinear_db(plane, cell, c);
  }
  for (int axis = 0; axis < 3; ++axis) grad_point[axis] += sum_lanes(lanes[axis]);
}

// One block of points: where its scratch lies and which points it covers.
template <typename T>
struct Block {
  const T* xyz;            // (count, 3)
  const T* grad_features;  // (count, C)
  std::int64_t count;
  T* partials;         // (count, 6, C): d(loss)/d(factor)
  std::int32_t* rows;  // (6, count): low row of the factor's cell; kSkipped for NaN points
};

constexpr std::int32_t kSkipped = -2;  // neither it nor its successor is a row

template <typename T>
void skip_point(const Block<T>& block, std::int64_t i, T* grad_point) {
  for (int k = 0; k < kFactors; ++k) block.rows[k * block.count + i] = kSkipped;
  if (grad_point != nullptr) std::fill_n(grad_point, 3, T(0));
}

// First half of the backward: d(loss)/d(factor) and d(loss)/d(xyz), point by point.
template <typename T>
void differentiate_range(const Block<T>& block, std::int64_t begin, std::int64_t end,
                         const Grids<const T>& grids, T* grad_xyz) {
  const int channels = grids.channels;
  for (std::int64_t i = begin; i < end; ++i) {
    T* grad_point = grad_xyz == nullptr ? nullptr : grad_xyz + 3 * i;
    if (is_nan_point(block.xyz + 3 * i)) {
      skip_point(block, i, grad_point);
      continue;
    }
    const PointCells<T> cells = locate(block.xyz + 3 * i, grids);
    for (int k = 0; k < kPlanes; ++k) block.rows[k * block.count + i] = cells.planes[k].b.low;
    for (int k = 0; k < kLines; ++k)
      block.rows[(kPlanes + k) * block.count + i] = cells.lines[k].low;
    T* partials = block.partials + i * kFactors * channels;
    T sums[3] = {T(0), T(0), T(0)};
    for_channel_blocks(channels, [&](auto width, int c0) {
      constexpr int W = decltype(width)::value;
      T f[kFactors][W], g[kFactors][W];
      factors<W>(grids, cells, c0, f);
      partial_products<W>(f, block.grad_features + i * channels + c0, g);
      for (int k = 0; k < kFactors; ++k)
        for (int c = 0; c < W; ++c) partials[k * channels + c0 + c] = g[k][c];
      if (grad_point != nullptr) add_coordinate_gradient<W>(grids, cells, c0, g, sums);
    });
    if (grad_point != nullptr) std::copy_n(sums, 3, grad_point);
  }
}

template <typename T>
inline void add_scaled(T* out, const T* values, T weight, int channels) {
  for_channel_blocks(channels, [&](auto width, int c0) {
    constexpr int W = decltype(width)::value;
    for (int c = 0; c < W; ++c) out[c0 + c] += weight * values[c0 + c];
  });
}

// Rows [begin, end) of one factor's gradient, owned by one worker.
struct Band {
  int begin, end;
  bool owns(int row) const { return row >= begin && row < end; }
};

// All rows of a factor, but for those of points that are skipped.
struct WholeBand {
  bool owns(int row) const { return row >= 0; }
};

template <typename T, typename Rows>
void scatter_plane(const Block<T>& block, int k, Rows band, const Grids<T>& grads) {
  const int channels = grads.channels;
  const std::int32_t* rows = block.rows + k * block.count;
  for (std::int64_t i = 0; i < block.count; ++i) {
    const bool low = band.owns(rows[i]), high = band.owns(rows[i] + 1);
    if (!low && !high) continue;
    const PlaneCell<T> cell = locate_plane(block.xyz + 3 * i, grads, k);
    const T* partial = block.partials + (i * kFactors + k) * channels;
    const T wa = cell.a.weight, wb = cell.b.weight;
    if (low) {
      add_scaled(grads.data[k] + cell.o00, partial, (T(1) - wb) * (T(1) - wa), channels);
      add_scaled(grads.data[k] + cell.o01, partial, (T(1) - wb) * wa, channels);
    }
    if (high) {
      add_scaled(grads.data[k] + cell.o10, partial, wb * (T(1) - wa), channels);
      add_scaled(grads.data[k] + cell.o11, partial, wb * wa, channels);
    }
  }
}

template <typename T, typename Rows>
void scatter_line(const Block<T>& block, int k, Rows band, const Grids<T>& grads) {
  const int channels = grads.channels, axis = k - kPlanes;
  const std::int32_t* rows = block.rows + k * block.count;
  for (std::int64_t i = 0; i < block.count; ++i) {
    const bool low = band.owns(rows[i]), high = band.owns(rows[i] + 1);
    if (!low && !high) continue;
    const AxisSample<T> s = sample_axis(block.xyz[3 * i + axis], grads.height[k]);
    const T* partial = block.partials + (i * kFactors + k) * channels;
    T* line = grads.data[k];
    if (low) add_scaled(line + std::ptrdiff_t(s.low) * channels, partial, T(1) - s.weight, channels);
    if (high) add_scaled(line + std::ptrdiff_t(s.high) * channels, partial, s.weight, channels);
  }
}

template <typename T, typename Rows>
void scatter_factor(const Block<T>& block, int k, Rows band, const Grids<T>& grads) {
  if (k < kPlanes)
    scatter_plane(block, k, band, grads);
  else
    scatter_line(block, k, band, grads);
}

// A part of a factor's sums, [begin, end) of `of`.
struct Part {
  int begin, end, of;
};

constexpr int corners(int k) { return k < kPlanes ? 4 : 2; }
constexpr int kCorners = 3 * 4 + 3 * 2;

// What a worker has of factor k if all sums, factor after factor, are cut into equal parts: of all
// factors but those in which a cut lies, everything or nothing.
Part part_of(int k, int worker, int workers) {
  int before = 0;
  for (int other = 0; other < k; ++other) before += corners(other);
  const int of = corners(k) * workers;
  const auto within = [&](int cut) { return std::clamp(kCorners * cut - before * workers, 0, of); };
  return {within(worker), within(worker + 1), of};
}

// The rows of a part, when a factor is cut so that each has its share of the points. Every worker
// counts for itself: cheaper than to wait for one that counts for all.
Band band_of(Part part, const std::int32_t* rows, std::int64_t count, int height) {
  // Contributions to each row.
  const std::unique_ptr<std::int64_t[]> load(new std::int64_t[height + 1]());
  for (std::int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0) continue;
    ++load[rows[i]];
    ++load[rows[i] + 1];
  }
  const auto cut = [&](int at) {  // all rows lie before the end of the last part
    int row = 0;
    if (at == part.of) return height;
    for (std::int64_t seen = 0; row < height && seen < 2 * count * at / part.of; ++row)
      seen += load[row];
    return row;
  };
  return {cut(part.begin), cut(part.end)};
}

// Second half of the backward: sums d(loss)/d(factor) into the grids, each row by its one owner.
template <typename T>
void scatter(const Block<T>& block, int workers, const Grids<T>& grads) {
  run_workers(workers, [&](int worker) {
    for (int k = 0; k < kFactors; ++k) {
      const Part part = part_of(k, worker, workers);
      if (part.begin == part.end) continue;
      if (part.begin == 0 && part.end == part.of) {
        scatter_factor(block, k, WholeBand(), grads);
      } else {
        const std::int32_t* rows = block.rows + k * block.count;
        scatter_factor(block, k, band_of(part, rows, block.count, grads.height[k]), grads);
      }
    }
  });
}

int workers_for(std::int64_t count, int threads) {
  const std::int64_t useful = std::max<std::int64_t>(1, count / kMinPointsPerThread);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
}

template <typename T>
void forward(const T* xyz, std::int64_t count, const Grids<const T>& grids, int threads,
             T* features) {
  const int workers = workers_for(count, threads);
  run_workers(workers, [&](int worker) {
    forward_range(xyz, count * worker / workers, count * (worker + 1) / workers, grids, features);
  });
}

template <typename T>
void backward(const T* xyz, std::int64_t count, const Grids<const T>& grids,
              const T* grad_features, int threads, const BackwardOutputs<T>& out) {
  for (std::int64_t start = 0; start < count; start += kBlockPoints) {
    const Block<T> block{xyz + 3 * start, grad_features + start * grids.channels,
                         std::min(kBlockPoints, count - start), out.partials, out.rows};
    T* grad_xyz = out.xyz == nullptr ? nullptr : out.xyz + 3 * start;
    const int workers = workers_for(block.count, threads);
    run_workers(workers, [&](int worker) {
      differentiate_range(block, block.count * worker / workers,
                          block.count * (worker + 1) / workers, grids, grad_xyz);
    });
    if (out.grids != nullptr) scatter(block, workers, *out.grids);
  }
}

template <typename T>
constexpr Routines<T> kRoutines = {forward<T>, backward<T>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kRoutines<float>, kRoutines<double>};

}  // namespace NATIVE_LEVEL
}  // namespace hexplane
