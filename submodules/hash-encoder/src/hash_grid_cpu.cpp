#include "hash_grid_cpu.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <type_traits>

#include "native/workers.h"

namespace hashgrid {
namespace NATIVE_LEVEL {
namespace {

using native::run_workers;

constexpr std::int64_t kMinLookupsPerThread = 16384;  // points times levels; see workers_for
constexpr int kTilePoints = 4096;  // rows of features that stay in the cache over all levels
constexpr int kBlockPoints = 128;  // points whose corners stay in the innermost cache
constexpr int kAhead = 8;          // points between a row's prefetch and its use
constexpr std::size_t kNearBytes = 1 << 18;  // levels up to this size are in the cache anyway
constexpr int kBandShift = 4;      // bands interleave in runs of 2^4 rows: whole cache lines

// Coordinates (D, count) of consecutive points, NaN points moved to 0 and marked.
template <typename T, int D>
struct Tile {
  T x[D][kTilePoints];
  bool nan[kTilePoints];
  int count;
};

// Corners of up to kBlockPoints points on one level; corner c is high along axis d if bit d is set.
template <typename T, int D>
struct Corners {
  std::uint32_t row[1 << D][kBlockPoints];
  T weight[1 << D][kBlockPoints];
};

template <typename T, int D>
struct AxisSamples {
  std::uint32_t low[D][kBlockPoints], high[D][kBlockPoints];
  T weight[D][kBlockPoints];
  T slope[D][kBlockPoints];
};

template <typename T, int D>
void load_tile(const T* x, int count, Tile<T, D>& tile) {
  tile.count = count;
  for (int i = 0; i < count; ++i) {
    bool nan = false;
    for (int d = 0; d < D; ++d) nan |= x[i * D + d] != x[i * D + d];
    tile.nan[i] = nan;
    for (int d = 0; d < D; ++d) tile.x[d][i] = nan ? T(0) : x[i * D + d];
  }
}

template <bool Smooth, typename T, int D>
void sample_axes(const Tile<T, D>& tile, int start, int count, const Level<T>& level,
                 AxisSamples<T, D>& samples) {
  for (int d = 0; d < D; ++d) {
    const LevelAxis<T> axis = level.axes[d];
    const T* x = tile.x[d] + start;
    for (int i = 0; i < count; ++i) {
      const AxisSample<T> sample = sample_axis<Smooth>(x[i], axis);
      samples.low[d][i] = sample.low;
      samples.high[d][i] = sample.high;
      samples.weight[d][i] = sample.weight;
      samples.slope[d][i] = sample.slope;
    }
  }
}

// Rows of all corners: each axis doubles their number.
template <bool Hashed, typename T, int D>
void expand_rows(const AxisSamples<T, D>& samples, int count, std::uint32_t mask,
                 Corners<T, D>& corners) {
  std::copy_n(samples.low[0], count, corners.row[0]);
  std::copy_n(samples.high[0], count, corners.row[1]);
  for (int d = 1; d < D; ++d)
    for (int c = 0; c < 1 << d; ++c) {
      std::uint32_t *low = corners.row[c], *high = corners.row[c + (1 << d)];
      for (int i = 0; i < count; ++i) {
        high[i] = combine<Hashed>(low[i], samples.high[d][i]);
        low[i] = combine<Hashed>(low[i], samples.low[d][i]);
      }
    }
  if (!Hashed) return;
  for (int c = 0; c < 1 << D; ++c)
    for (int i = 0; i < count; ++i) corners.row[c][i] &= mask;
}

template <typename T, int D>
void expand_weights(const AxisSamples<T, D>& samples, int count, Corners<T, D>& corners) {
  for (int i = 0; i < count; ++i) corners.weight[0][i] = T(1) - samples.weight[0][i];
  std::copy_n(samples.weight[0], count, corners.weight[1]);
  for (int d = 1; d < D; ++d)
    for (int c = 0; c < 1 << d; ++c) {
      T *low = corners.weight[c], *high = corners.weight[c + (1 << d)];
      for (int i = 0; i < count; ++i) {
        high[i] = low[i] * samples.weight[d][i];
        low[i] *= T(1) - samples.weight[d][i];
      }
    }
}

// Everything about points [start, start + count) of the tile on one level but the table's values.
template <typename T, int D>
void locate(const Tile<T, D>& tile, int start, int count, const Level<T>& level, bool smooth,
            AxisSamples<T, D>& samples, Corners<T, D>& corners) {
  if (smooth)
    sample_axes<true>(tile, start, count, level, samples);
  else
    sample_axes<false>(tile, start, count, level, samples);
  if (level.hashed)
    expand_rows<true>(samples, count, level.mask, corners);
  else
    expand_rows<false>(samples, count, level.mask, corners);
  expand_weights(samples, count, corners);
}

// Calls body(level, start, count, samples, corners) for blocks of a tile's points, level by level.
template <typename T, int D, typename Body>
void for_corners(const Tile<T, D>& tile, const Grid<T>& grid, int begin, int end,
                 const Body& body) {
  AxisSamples<T, D> samples;
  Corners<T, D> corners;
  for (int l = begin; l < end; ++l)
    for (int start = 0; start < tile.count; start += kBlockPoints) {
      const int count = std::min(kBlockPoints, tile.count - start);
      locate(tile, start, count, grid.levels[l], grid.smooth, samples, corners);
      body(l, start, count, samples, corners);
    }
}

// Calls body(first, tile) for tiles of the points [begin, end).
template <int D, typename T, typename Body>
void for_tiles(const T* x, std::int64_t begin, std::int64_t end, const Body& body) {
  Tile<T, D> tile;
  for (std::int64_t first = begin; first < end; first += kTilePoints) {
    load_tile(x + first * D, static_cast<int>(std::min<std::int64_t>(kTilePoints, end - first)),
              tile);
    body(first, tile);
  }
}

// F features per level where the compiler knows the number, and F = 0 for any.
template <int F>
inline int feature_count(int features) {
  return F > 0 ? F : features;
}

#if defined(__GNUC__)
#define HASH_GRID_PREFETCH(address, write) __builtin_prefetch(address, write)
#else
#define HASH_GRID_PREFETCH(address, write) static_cast<void>(address)
#endif

// Asks for the rows of the point that comes kAhead after i. The rows of a large level lie far
// apart, and a processor does not look that far ahead by itself.
template <bool Write, typename T, int D>
inline void prefetch_rows(const Corners<T, D>& corners, int i, int count, const T* table,
                          int width) {
  if (i + kAhead >= count) return;
  for (int c = 0; c < 1 << D; ++c)
    HASH_GRID_PREFETCH(table + static_cast<std::size_t>(corners.row[c][i + kAhead]) * width, Write);
}

// One level of a table, or of its gradient.
template <typename T>
struct LevelRows {
  T* data;   // (rows of the level, features)
  bool far;  // large enough for prefetches to pay

  LevelRows(T* table, const Grid<std::remove_const_t<T>>& grid, int l)
      : data(table + grid.levels[l].offset * grid.features),
        far((grid.end(l) - grid.levels[l].offset) * grid.features * sizeof(T) > kNearBytes) {}
};

// Features of a block of points: corner values summed by their weights, corner 0 first.
template <int F, typename T, int D>
void gather(const Corners<T, D>& corners, int count, LevelRows<const T> table, int features,
            std::int64_t stride, T* out) {
  const int width = feature_count<F>(features);
  for (int i = 0; i < count; ++i, out += stride) {
    if (table.far) prefetch_rows<false>(corners, i, count, table.data, width);
    T local[F > 0 ? F : 1];  // sums in registers where F is known
    T* sum = F > 0 ? local : out;
    for (int f = 0; f < width; ++f) sum[f] = T(0);
    for (int c = 0; c < 1 << D; ++c) {
      const T* values = table.data + static_cast<std::size_t>(corners.row[c][i]) * width;
      const T weight = corners.weight[c][i];
      for (int f = 0; f < width; ++f) sum[f] += weight * values[f];
    }
    if (F > 0) std::copy_n(local, width, out);
  }
}

template <int D, int F, typename T>
void forward_range(const T* x, std::int64_t begin, std::int64_t end, const T* table,
                   const Grid<T>& grid, T* features) {
  const std::int64_t width = grid.width();
  const int levels = static_cast<int>(grid.levels.size());
  for_tiles<D>(x, begin, end, [&](std::int64_t first, const Tile<T, D>& tile) {
    for_corners(tile, grid, 0, levels,
                [&](int l, int start, int count, const auto&, const Corners<T, D>& corners) {
                  gather<F>(corners, count, LevelRows<const T>(table, grid, l), grid.features,
                            width, features + (first + start) * width + l * grid.features);
                });
    for (int i = 0; i < tile.count; ++i)
      if (tile.nan[i])
        std::fill_n(features + (first + i) * width, width, std::numeric_limits<T>::quiet_NaN());
  });
}

// One of `count` (a power of two) interleaved parts of a level's rows, owned by one worker.
struct Band {
  std::uint32_t index, count;
  bool owns(std::uint32_t row) const { return ((row >> kBandShift) & (count - 1)) == index; }
};

// Adds the gradient of a block of points to the band's rows of a level, in the points' order.
template <int F, bool Whole, typename T, int D>
void scatter(const Corners<T, D>& corners, const bool* nan, int count, const T* grad,
             std::int64_t stride, int features, Band band, LevelRows<T> table) {
  const int width = feature_count<F>(features);
  for (int i = 0; i < count; ++i, grad += stride) {
    if (table.far) prefetch_rows<true>(corners, i, count, table.data, width);
    if (nan[i]) continue;
    for (int c = 0; c < 1 << D; ++c) {
      const std::uint32_t row = corners.row[c][i];
      if (!Whole && !band.owns(row)) continue;
      T* sum = table.data + static_cast<std::size_t>(row) * width;
      const T weight = corners.weight[c][i];
      for (int f = 0; f < width; ++f) sum[f] += weight * grad[f];
    }
  }
}

// Levels [begin, end) of the table's gradient, or one band of their rows.
template <int D, int F, typename T>
void scatter_levels(const T* x, std::int64_t count, const Grid<T>& grid, const T* grad_features,
                    int begin, int end, Band band, T* grad_table) {
  const std::int64_t width = grid.width();
  for_tiles<D>(x, 0, count, [&](std::int64_t first, const Tile<T, D>& tile) {
    for_corners(tile, grid, begin, end,
                [&](int l, int start, int block, const auto&, const Corners<T, D>& corners) {
                  const T* grad = grad_features + (first + start) * width + l * grid.features;
                  const LevelRows<T> rows(grad_table, grid, l);
                  if (band.count == 1)
                    scatter<F, true>(corners, tile.nan + start, block, grad, width, grid.features,
                                     band, rows);
                  else
                    scatter<F, false>(corners, tile.nan + start, block, grad, width,
                                      grid.features, band, rows);
                });
  });
}

// d(loss)/d(corner's weight) of a block of points.
template <int F, typename T, int D>
void corner_gradients(const Corners<T, D>& corners, int count, LevelRows<const T> table,
                      int features, const T* grad, std::int64_t stride,
                      T (&out)[1 << D][kBlockPoints]) {
  const int width = feature_count<F>(features);
  for (int i = 0; i < count; ++i, grad += stride) {
    if (table.far) prefetch_rows<false>(corners, i, count, table.data, width);
    for (int c = 0; c < 1 << D; ++c) {
      const T* values = table.data + static_cast<std::size_t>(corners.row[c][i]) * width;
      T sum = T(0);
      for (int f = 0; f < width; ++f) sum += grad[f] * values[f];
      out[c][i] = sum;
    }
  }
}

// Interpolates 2^(axis + 1) corner values along their last axis, in place.
template <typename T, int D>
void fold(int axis, int count, const AxisSamples<T, D>& samples,
          T (&values)[1 << D][kBlockPoints]) {
  for (int c = 0; c < 1 << axis; ++c) {
    T *low = values[c], *high = values[c + (1 << axis)];
    for (int i = 0; i < count; ++i) {
      low[i] = interpolate(low[i], high[i], samples.weight[axis][i]);
    }
  }
}

// Adds the gradient of a block's coordinates; `values` are the corner gradients and are used up.
template <typename T, int D>
void add_coordinate_gradients(const AxisSamples<T, D>& samples, int count,
                              T (&values)[1 << D][kBlockPoints], T (&sums)[D][kTilePoints],
                              int start) {
  T differences[1 << D][kBlockPoints];
  for (int axis = D - 1; axis >= 0; --axis) {
    for (int c = 0; c < 1 << axis; ++c)
      for (int i = 0; i < count; ++i)
        differences[c][i] = values[c + (1 << axis)][i] - values[c][i];
    for (int lower = axis - 1; lower >= 0; --lower) fold(lower, count, samples, differences);
    for (int i = 0; i < count; ++i) {
      sums[axis][start + i] += along_slope(samples.slope[axis][i], differences[0][i]);
    }
    fold(axis, count, samples, values);
  }
}

template <int D, int F, typename T>
void differentiate_range(const T* x, std::int64_t begin, std::int64_t end, const T* table,
                         const Grid<T>& grid, const T* grad_features, T* grad_x) {
  const std::int64_t width = grid.width();
  const int levels = static_cast<int>(grid.levels.size());
  T sums[D][kTilePoints], values[1 << D][kBlockPoints];
  for_tiles<D>(x, begin, end, [&](std::int64_t first, const Tile<T, D>& tile) {
    for (int d = 0; d < D; ++d) std::fill_n(sums[d], tile.count, T(0));
    for_corners(tile, grid, 0, levels,
                [&](int l, int start, int count, const AxisSamples<T, D>& samples,
                    const Corners<T, D>& corners) {
                  corner_gradients<F>(corners, count, LevelRows<const T>(table, grid, l),
                                      grid.features,
                                      grad_features + (first + start) * width + l * grid.features,
                                      width, values);
                  add_coordinate_gradients(samples, count, values, sums, start);
                });
    for (int i = 0; i < tile.count; ++i)
      for (int d = 0; d < D; ++d) grad_x[(first + i) * D + d] = tile.nan[i] ? T(0) : sums[d][i];
  });
}

// Calls body(D, F) with both as compile-time constants; F is 0 for numbers that are not common.
template <typename Body>
void dispatch_features(int features, const Body& body) {
  switch (features) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 8: return body(std::integral_constant<int, 8>{});
    default: return body(std::integral_constant<int, 0>{});
  }
}

template <typename Body>
void dispatch(int dims, int features, const Body& body) {
  dispatch_features(features, [&](auto f) {
    switch (dims) {
      case 2: return body(std::integral_constant<int, 2>{}, f);
      case 3: return body(std::integral_constant<int, 3>{}, f);
      default: return body(std::integral_constant<int, 4>{}, f);
    }
  });
}

// Calls body(task) for task in [0, tasks); a worker takes the next task when it is done with one.
template <typename Body>
void run_tasks(int workers, int tasks, const Body& body) {
  std::atomic<int> next{0};
  run_workers(workers < tasks ? workers : tasks, [&](int) {
    for (int task = next++; task < tasks; task = next++) body(task);
  });
}

// As many as have enough to do: starting a thread costs tens of microseconds.
int workers_for(std::int64_t lookups, int threads) {
  const std::int64_t useful = std::max<std::int64_t>(1, lookups / kMinLookupsPerThread);
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
}

template <typename T>
void fill_zero(T* values, std::int64_t count, int threads) {
  const int workers = workers_for(count / 16, threads);
  run_workers(workers, [&](int worker) {
    std::fill(values + count * worker / workers, values + count * (worker + 1) / workers, T(0));
  });
}

// How the gradient of the table is cut into tasks. A task takes consecutive levels, which share the
// cache lines of the upstream gradient, or, with many workers, one of several bands of one level.
struct Cut {
  int group;  // levels of a task
  int bands;  // tasks of a group; a power of two

  Cut(int levels, int line, int workers) : group(std::clamp(levels / (2 * workers), 1, line)) {
    for (bands = 1; workers > 1 && levels * bands < workers;) bands *= 2;
    if (workers == 1) group = line;
  }
};

template <typename T>
void forward(const T* x, std::int64_t count, const T* table, const Grid<T>& grid, int threads,
             T* features) {
  const std::int64_t levels = static_cast<std::int64_t>(grid.levels.size());
  const int workers = workers_for(count * levels, threads);
  dispatch(grid.dims, grid.features, [&](auto dims, auto width) {
    run_workers(workers, [&](int worker) {
      forward_range<decltype(dims)::value, decltype(width)::value>(
          x, count * worker / workers, count * (worker + 1) / workers, table, grid, features);
    });
  });
}

template <typename T>
void backward_table(const T* x, std::int64_t count, const Grid<T>& grid, const T* grad_features,
                    int threads, T* grad_table) {
  fill_zero(grad_table, grid.rows * grid.features, threads);
  const int levels = static_cast<int>(grid.levels.size());
  const int workers = workers_for(count * levels, threads);
  const int line = std::max<int>(1, 64 / (grid.features * static_cast<int>(sizeof(T))));
  const Cut cut(levels, line, workers);
  const int groups = (levels + cut.group - 1) / cut.group;
  dispatch(grid.dims, grid.features, [&](auto dims, auto width) {
    run_tasks(workers, groups * cut.bands, [&](int task) {
      const int group = groups - 1 - task / cut.bands;  // fine levels, which cost most, first
      const Band band{static_cast<std::uint32_t>(task % cut.bands),
                      static_cast<std::uint32_t>(cut.bands)};
      const int begin = group * cut.group, end = std::min(levels, begin + cut.group);
      scatter_levels<decltype(dims)::value, decltype(width)::value>(
          x, count, grid, grad_features, begin, end, band, grad_table);
    });
  });
}

template <typename T>
void backward_points(const T* x, std::int64_t count, const T* table, const Grid<T>& grid,
                     const T* grad_features, int threads, T* grad_x) {
  const std::int64_t levels = static_cast<std::int64_t>(grid.levels.size());
  const int workers = workers_for(count * levels, threads);
  dispatch(grid.dims, grid.features, [&](auto dims, auto width) {
    run_workers(workers, [&](int worker) {
      differentiate_range<decltype(dims)::value, decltype(width)::value>(
          x, count * worker / workers, count * (worker + 1) / workers, table, grid, grad_features,
          grad_x);
    });
  });
}

template <typename T>
constexpr Routines<T> kRoutines = {forward<T>, backward_table<T>, backward_points<T>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kRoutines<float>, kRoutines<double>};

}  // namespace NATIVE_LEVEL
}  // namespace hashgrid
