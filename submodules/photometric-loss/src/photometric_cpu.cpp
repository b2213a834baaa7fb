// Rows pass through a chain of ring buffers that stay in a core's cache: a row of the images is
// blurred along the row into ring A; when A holds a window, its middle row is blurred along the
// columns and compared; the derivatives are blurred along the row into ring B; and when B holds a
// window, its middle row of the gradient is complete. A strip thus recomputes 2 * kRadius rows
// beyond each of its ends, and memory is read and written once.
#include "photometric_cpu.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "parallel.h"

// The rows that a loop reads and writes never overlap.
#if defined(__clang__)
#define PHOTOMETRIC_LOOP _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define PHOTOMETRIC_LOOP _Pragma("GCC ivdep")
#else
#define PHOTOMETRIC_LOOP
#endif

namespace photometric {
namespace NATIVE_LEVEL {
namespace {

constexpr int kPad = 16;        // zeros on either side of a row: at least kRadius, and aligned
constexpr int kLeastRows = 32;  // of a strip
constexpr int kTasksPerThread = 8;
constexpr int kLanes = 8;  // independent sums of a row, in double
constexpr int kStep = 4;   // rows that are blurred across at once: they share what they read
constexpr int kRing = kTaps + kStep - 1;  // rows that a ring buffer holds

// Rows of a width with zeros around them, which nobody writes.
template <typename T>
class Rows {
 public:
  Rows(int count, int width)
      : stride_((width + kPad - 1) / kPad * kPad + 2 * kPad),
        memory_(new T[std::size_t(count) * stride_ + kAlign / sizeof(T)]()) {
    const std::size_t odd = reinterpret_cast<std::uintptr_t>(memory_.get()) % kAlign;
    first_ = memory_.get() + (odd == 0 ? 0 : (kAlign - odd) / sizeof(T)) + kPad;
  }
  Rows(const Rows&) = delete;

  T* operator[](int row) { return first_ + std::ptrdiff_t(row) * stride_; }

 private:
  static constexpr std::size_t kAlign = 64;
  std::ptrdiff_t stride_;
  std::unique_ptr<T[]> memory_;
  T* first_;
};

// ------------------------------------------------------------------------------- loops over a row

template <typename T, int Stride>
void convert(const unsigned char* from, std::ptrdiff_t stride, int width, T* __restrict to) {
  const std::ptrdiff_t step = Stride == 0 ? stride : Stride;  // known strides become SIMD
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) to[i] = unit_range<T>(from[i * step]);
}

template <typename T>
void load_target(const Inputs<T>& in, int plane, int row, T* to) {
  const std::int64_t offset = in.target_row(plane, row), stride = in.stride[3];
  if (in.bytes) {
    const unsigned char* from = static_cast<const unsigned char*>(in.targets) + offset;
    const auto routine = stride == 1   ? convert<T, 1>
                         : stride == 3 ? convert<T, 3>
                                       : convert<T, 0>;
    routine(from, stride, in.width, to);
    return;
  }
  const T* from = static_cast<const T*>(in.targets) + offset;
  for (int i = 0; i < in.width; ++i) to[i] = from[i * stride];
}

// Masked pixels have the image's own value in both.
template <typename T>
void load(const Inputs<T>& in, int plane, int row, T* __restrict x, T* __restrict y) {
  std::memcpy(x, in.images + in.image_row(plane, row), sizeof(T) * in.width);
  load_target(in, plane, row, y);
  if (in.mask == nullptr) return;
  const unsigned char* mask = in.mask + in.mask_row(plane, row);
  PHOTOMETRIC_LOOP
  for (int i = 0; i < in.width; ++i) y[i] = mask[i] != 0 ? y[i] : x[i];
}

template <typename T>
void multiply(const T* x, const T* y, int width, T* __restrict xy, T* __restrict squares) {
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) {
    xy[i] = x[i] * y[i];
    squares[i] = x[i] * x[i] + y[i] * y[i];
  }
}

template <typename T>
void blur_along(const T* row, int width, T* __restrict out) {
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) out[i] = blur<T>(Line<T>{row + i, 1});
}

// kTaps rows above each other, at one column.
template <typename T>
struct Column {
  const T* const* rows;
  int i;
  T operator()(int k) const { return rows[kRadius + k][i]; }
};

// The window across kRing rows: kStep rows.
template <typename T>
void blur_across(const T* const* rows, int width, T* const* out) {
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) {
    T values[kStep];
    for (int step = 0; step < kStep; ++step) values[step] = blur<T>(Column<T>{rows + step, i});
    for (int step = 0; step < kStep; ++step) out[step][i] = values[step];
  }
}

// The four blurred maps of a row; the slopes may be null: not wanted.
template <typename T>
void compare(const T* m, const T* n, const T* p, const T* q, int width, T* __restrict value,
             Rows<T>* slopes) {
  if (slopes == nullptr) {
    PHOTOMETRIC_LOOP
    for (int i = 0; i < width; ++i) value[i] = similarity(m[i], n[i], p[i], q[i]).value;
    return;
  }
  T* __restrict by_p = (*slopes)[0];
  T* __restrict by_q = (*slopes)[1];
  T* __restrict by_m = (*slopes)[2];
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) {
    const Similarity<T> s = similarity(m[i], n[i], p[i], q[i]);
    value[i] = s.value;
    by_p[i] = s.by_p;
    by_q[i] = s.by_q;
    by_m[i] = s.by_m;
  }
}

template <typename T>
void combine(const T* x, const T* y, const T* by_p, const T* by_q, const T* by_m, int width,
             T* __restrict out) {
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) out[i] = similarity_slope(x[i], y[i], by_p[i], by_q[i], by_m[i]);
}

// Sum of at(i) over a row, in double and in a fixed order.
template <typename At>
double sum_row(int width, const At& at) {
  double lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += at(i + lane);
  }
  double sum = 0;
  for (; i < width; ++i) sum += at(i);
  for (double lane : lanes) sum += lane;
  return sum;
}

template <typename T>
double sum_errors(const T* x, const T* y, int width, Error kind) {
  if (kind == Error::kSquared) {
    return sum_row(width, [=](int i) { return double(error_of(x[i], y[i], Error::kSquared)); });
  }
  return sum_row(width, [=](int i) { return double(error_of(x[i], y[i], Error::kAbsolute)); });
}

// ------------------------------------------------------------------------------------ the pipeline

// Sums of rows, (B * C * H) each; null: not wanted.
struct RowSums {
  double *ssim, *error;
};

// The chain of buffers of one thread.
template <typename T>
class Pipeline {
 public:
  Pipeline(const Inputs<T>& in, Error kind, const RowSums& sums, T* slope)
      : in_(in), kind_(kind), sums_(sums), slope_(slope), width_(in.width),
        x_(kRing, width_), y_(kRing, width_), products_(2, width_), a_(kRing * kMaps, width_),
        maps_(kStep * kMaps, width_), value_(1, width_), slopes_(kSlopes, slope ? width_ : 0),
        b_(slope ? kRing * kSlopes : 0, width_), zero_(1, width_) {}

  // Rows [first, last) of a plane.
  void run(int plane, int first, int last) {
    const int reach = slope_ == nullptr ? 0 : kRadius;  // rows beyond that must be compared
    const Range own{first, last}, compared = within({first - reach, last + reach});
    const Range taken = within({compared.first - kRadius, compared.last + kRadius});
    for (int i = first - reach - kRadius; i < last + reach + kRadius; i += kStep) {
      for (int row = i; row < i + kStep; ++row) {
        if (taken.has(row)) take(plane, row, own.has(row));
      }
      compare_rows(plane, i - kRadius, compared, own);
      if (slope_ != nullptr) finish_rows(plane, i - 2 * kRadius, own);
    }
  }

 private:
  // Rows [first, last).
  struct Range {
    int first, last;
    bool has(int row) const { return row >= first && row < last; }
    // Whether it has any of the kStep rows from `row`.
    bool meets(int row) const { return row + kStep > first && row < last; }
  };

  Range within(Range rows) const {
    return {std::max(rows.first, 0), std::min(rows.last, in_.height)};
  }
  static int slot(int row) { return row % kRing; }

  // Row `row` of the images, blurred along itself, into ring A.
  void take(int plane, int row, bool own) {
    const int at = slot(row);
    T *x = x_[at], *y = y_[at];
    load(in_, plane, row, x, y);
    if (own && sums_.error != nullptr) {
      sums_.error[in_.row_index(plane, row)] = sum_errors(x, y, width_, kind_);
    }
    multiply(x, y, width_, products_[0], products_[1]);
    const T* sources[kMaps] = {x, y, products_[0], products_[1]};
    for (int map = 0; map < kMaps; ++map) {
      blur_along(sources[map], width_, a_[at * kMaps + map]);
    }
  }

  // Those of the kStep rows from `row` that are in `compared`; and their slopes into ring B.
  void compare_rows(int plane, int row, Range compared, Range own) {
    if (!compared.meets(row)) return;
    for (int map = 0; map < kMaps; ++map) blur_ring(a_, kMaps, map, row);
    for (int step = 0; step < kStep; ++step, ++row) {
      if (!compared.has(row)) continue;
      compare(map_of(step, 0), map_of(step, 1), map_of(step, 2), map_of(step, 3), width_, value_[0],
              slope_ == nullptr ? nullptr : &slopes_);
      if (own.has(row)) {
        const T* value = value_[0];
        sums_.ssim[in_.row_index(plane, row)] =
            sum_row(width_, [=](int i) { return double(value[i]); });
      }
      if (slope_ == nullptr) continue;
      for (int map = 0; map < kSlopes; ++map) {
        blur_along(slopes_[map], width_, b_[slot(row) * kSlopes + map]);
      }
    }
  }

  void finish_rows(int plane, int row, Range own) {
    if (!own.meets(row)) return;
    for (int map = 0; map < kSlopes; ++map) blur_ring(b_, kSlopes, map, row);
    for (int step = 0; step < kStep; ++step, ++row) {
      if (!own.has(row)) continue;
      combine(x_[slot(row)], y_[slot(row)], map_of(step, 0), map_of(step, 1), map_of(step, 2),
              width_, slope_ + in_.image_row(plane, row));
    }
  }

  T* map_of(int step, int map) { return maps_[step * kMaps + map]; }

  // The window across the rows around the kStep rows from `row`, zeros beyond the image. What is
  // computed for rows that nobody wants is left unread: the same code makes a row wherever a strip
  // begins, and so the same bits.
  void blur_ring(Rows<T>& ring, int maps, int map, int row) {
    const T* rows[kRing];
    for (int k = 0; k < kRing; ++k) {
      const int at = row + k - kRadius;
      const bool inside = at >= 0 && at < in_.height;
      rows[k] = inside ? ring[slot(at) * maps + map] : zero_[0];
    }
    T* out[kStep];
    for (int step = 0; step < kStep; ++step) out[step] = map_of(step, map);
    blur_across(rows, width_, out);
  }

  const Inputs<T>& in_;
  const Error kind_;
  const RowSums sums_;
  T* const slope_;
  const int width_;
  Rows<T> x_, y_, products_, a_, maps_, value_, slopes_, b_, zero_;
};

// Strips of rows, each of one plane.
struct Strips {
  int height, rows, per_plane;
  std::int64_t count;

  Strips(int planes, int height, int threads) : height(height) {
    const std::int64_t wanted = threads == 1 ? 1 : std::int64_t(threads) * kTasksPerThread;
    const std::int64_t pieces = (wanted + planes - 1) / planes;
    rows = std::max<int>(kLeastRows, int((height + pieces - 1) / pieces));
    per_plane = (height + rows - 1) / rows;
    count = std::int64_t(planes) * per_plane;
  }

  int workers(int threads) const { return int(std::min<std::int64_t>(threads, count)); }

  // Calls body(worker, plane, first row, last row) for each, on a thread for each worker.
  template <typename Body>
  void run(int workers, const Body& body) const {
    Tasks tasks(count);
    run_threads(workers, [&](int worker) {
      for (std::int64_t task; tasks.next(task);) {
        const int first = int(task % per_plane) * rows;
        body(worker, int(task / per_plane), first, std::min(first + rows, height));
      }
    });
  }
};

double mean(const double* rows, std::int64_t number, std::int64_t count) {
  double sum = 0;
  for (std::int64_t row = 0; row < number; ++row) sum += rows[row];
  return sum / double(count);
}

// The error alone needs no windows.
template <typename T>
void sum_error_rows(const Inputs<T>& in, Error kind, const Strips& strips, int threads,
                    double* sums) {
  const int workers = strips.workers(threads);
  Rows<T> x(workers, in.width), y(workers, in.width);
  strips.run(workers, [&](int worker, int plane, int first, int last) {
    for (int row = first; row < last; ++row) {
      load(in, plane, row, x[worker], y[worker]);
      sums[in.row_index(plane, row)] = sum_errors(x[worker], y[worker], in.width, kind);
    }
  });
}

template <typename T>
void run_pipelines(const Inputs<T>& in, Error kind, const Strips& strips, int threads,
                   const RowSums& sums, T* slope) {
  const int workers = strips.workers(threads);
  const std::unique_ptr<std::unique_ptr<Pipeline<T>>[]> pipelines(
      new std::unique_ptr<Pipeline<T>>[workers]);
  for (int worker = 0; worker < workers; ++worker) {
    pipelines[worker].reset(new Pipeline<T>(in, kind, sums, slope));
  }
  strips.run(workers, [&](int worker, int plane, int first, int last) {
    pipelines[worker]->run(plane, first, last);
  });
}

// One row of the gradient by the images.
template <typename T>
void weigh(const T* x, const T* y, const T* slope, Error kind, T of_ssim, T of_error, int width,
           T* __restrict out) {
  if (kind == Error::kNone) {
    PHOTOMETRIC_LOOP
    for (int i = 0; i < width; ++i) out[i] = of_ssim * slope[i];
  } else if (slope == nullptr) {
    PHOTOMETRIC_LOOP
    for (int i = 0; i < width; ++i) out[i] = of_error * error_slope(x[i], y[i], kind);
  } else {
    PHOTOMETRIC_LOOP
    for (int i = 0; i < width; ++i) {
      out[i] = of_ssim * slope[i] + of_error * error_slope(x[i], y[i], kind);
    }
  }
}

template <typename T>
void clear_masked(const unsigned char* mask, int width, T* out) {
  PHOTOMETRIC_LOOP
  for (int i = 0; i < width; ++i) out[i] = mask[i] != 0 ? out[i] : T(0);
}

template <typename T>
void forward(const Inputs<T>& in, Error kind, int threads, T* ssim, T* error, T* slope) {
  const std::int64_t rows = in.row_index(in.planes(), 0);
  const std::unique_ptr<double[]> memory(new double[2 * rows]);
  const RowSums sums{ssim ? memory.get() : nullptr,
                     kind == Error::kNone ? nullptr : memory.get() + rows};
  const Strips strips(in.planes(), in.height, threads);
  if (ssim != nullptr) {
    run_pipelines(in, kind, strips, threads, sums, slope);
    *ssim = T(mean(sums.ssim, rows, in.count()));
  } else if (sums.error != nullptr) {
    sum_error_rows(in, kind, strips, threads, sums.error);
  }
  if (sums.error != nullptr) *error = T(mean(sums.error, rows, in.count()));
}

template <typename T>
void backward(const Inputs<T>& in, Error kind, int threads, const T* slope,
              const Upstream& upstream, T* gradient) {
  const T of_ssim = T(upstream.ssim / double(in.count()));
  const T of_error = T(upstream.error / double(in.count()));
  const Strips strips(in.planes(), in.height, threads);
  const int workers = strips.workers(threads);
  Rows<T> x(workers, in.width), y(workers, in.width);
  strips.run(workers, [&](int worker, int plane, int first, int last) {
    for (int row = first; row < last; ++row) {
      const std::int64_t at = in.image_row(plane, row);
      if (kind != Error::kNone) load(in, plane, row, x[worker], y[worker]);
      weigh(x[worker], y[worker], slope == nullptr ? nullptr : slope + at, kind, of_ssim, of_error,
            in.width, gradient + at);
      if (in.mask != nullptr) {
        clear_masked(in.mask + in.mask_row(plane, row), in.width, gradient + at);
      }
    }
  });
}

template <typename T>
constexpr Routines<T> kRoutines = {forward<T>, backward<T>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kRoutines<float>, kRoutines<double>};

}  // namespace NATIVE_LEVEL
}  // namespace photometric
