#include "roughness_cpu.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "native/workers.h"

namespace roughness {
namespace NATIVE_LEVEL {
namespace {

using native::run_workers;

constexpr std::int64_t kMinPerThread = 1 << 16;  // elements; below, starting a thread costs more
constexpr int kLanes = 16;

// Sum of term(e) over [0, size): in lanes, so that it vectorises in one fixed order.
template <typename T, typename Term>
NATIVE_INLINE T sum_of(std::int64_t size, const Term& term) {
  T lanes[kLanes] = {};
  std::int64_t e = 0;
  for (; e + kLanes <= size; e += kLanes)
    for (int i = 0; i < kLanes; ++i) lanes[i] += term(e + i);
  for (; e < size; ++e) lanes[0] += term(e);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <typename T>
NATIVE_INLINE T bend(const T* p, std::int64_t step) {
  return p[0] + p[2 * step] - T(2) * p[step];
}

// sums (3) of row `row`
template <typename T>
void measure_row(const Plane<T>& plane, std::int64_t row, double* sums) {
  const std::int64_t size = plane.width * plane.channels;
  const T* p = plane.data + row * size;
  std::fill_n(sums, kMeasures, 0.0);
  if (plane.weight[0] != T(0) && row + 2 < plane.height)
    sums[0] = sum_of<T>(size, [&](std::int64_t e) {
      const T b = bend(p + e, size);
      return b * b;
    });
  if (plane.weight[1] != T(0))
    sums[1] = sum_of<T>(size - 2 * plane.channels, [&](std::int64_t e) {
      const T b = bend(p + e, plane.channels);
      return b * b;
    });
  if (plane.weight[2] != T(0))
    sums[2] = sum_of<T>(size, [&](std::int64_t e) { return std::fabs(T(1) - p[e]); });
}

// grad (size) += factor x the second differences that start at p
template <typename T>
NATIVE_INLINE void add_bends(T* grad, const T* p, std::int64_t size, std::int64_t step, T factor) {
  for (std::int64_t e = 0; e < size; ++e) grad[e] += factor * bend(p + e, step);
}

template <typename T>
void differentiate_row(const Plane<T>& plane, std::int64_t row, T* grad) {
  const std::int64_t size = plane.width * plane.channels, step = plane.channels;
  const std::int64_t height = plane.height, inner = size - 2 * step;
  const T* p = plane.data + row * size;
  std::fill_n(grad, size, T(0));
  const T along_height = T(2) * plane.weight[0], along_width = T(2) * plane.weight[1];
  if (along_height != T(0)) {
    if (row + 2 < height) add_bends(grad, p, size, size, along_height);
    if (row >= 1 && row + 1 < height) add_bends(grad, p - size, size, size, -2 * along_height);
    if (row >= 2) add_bends(grad, p - 2 * size, size, size, along_height);
  }
  if (along_width != T(0)) {
    add_bends(grad, p, inner, step, along_width);
    add_bends(grad + step, p, inner, step, -2 * along_width);
    add_bends(grad + 2 * step, p, inner, step, along_width);
  }
  const T pull = plane.weight[2];
  if (pull != T(0))
    for (std::int64_t e = 0; e < size; ++e)
      grad[e] += p[e] > T(1) ? pull : p[e] < T(1) ? -pull : T(1) - p[e];  // 0, or NaN
}

// Calls body(plane, row) for all rows of all planes, on so many threads as it is worth.
template <typename T, typename Body>
void for_rows(const Plane<T>* planes, int count, int threads, const Body& body) {
  std::int64_t total = 0;
  for (int i = 0; i < count; ++i)
    total += planes[i].height * planes[i].width * planes[i].channels;
  const std::int64_t useful = std::max<std::int64_t>(1, total / kMinPerThread);
  const int workers = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), useful));
  run_workers(workers, [&](int worker) {
    for (int i = 0; i < count; ++i)
      for (std::int64_t row = planes[i].height * worker / workers;
           row < planes[i].height * (worker + 1) / workers; ++row)
        body(i, row);
  });
}

template <typename T>
void forward(const Plane<T>* planes, int count, int threads, double* sums) {
  std::int64_t rows = 0;
  const std::unique_ptr<std::int64_t[]> first(new std::int64_t[count + 1]);
  for (int i = 0; i < count; ++i) first[i] = rows, rows += planes[i].height;
  const std::unique_ptr<double[]> of_rows(new double[std::max<std::int64_t>(1, kMeasures * rows)]);
  for_rows(planes, count, threads, [&](int i, std::int64_t row) {
    measure_row(planes[i], row, of_rows.get() + kMeasures * (first[i] + row));
  });
  std::fill_n(sums, kMeasures * count, 0.0);
  for (int i = 0; i < count; ++i)
    for (std::int64_t row = 0; row < planes[i].height; ++row)
      for (int m = 0; m < kMeasures; ++m)
        sums[kMeasures * i + m] += of_rows[kMeasures * (first[i] + row) + m];
}

template <typename T>
void backward(const Plane<T>* planes, int count, int threads, T* const* grads) {
  for_rows(planes, count, threads, [&](int i, std::int64_t row) {
    differentiate_row(planes[i], row, grads[i] + row * planes[i].width * planes[i].channels);
  });
}

template <typename T>
constexpr Routines<T> kRoutines = {forward<T>, backward<T>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kRoutines<float>, kRoutines<double>};

}  // namespace NATIVE_LEVEL
}  // namespace roughness
