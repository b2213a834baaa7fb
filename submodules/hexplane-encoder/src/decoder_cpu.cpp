#include "decoder_cpu.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include "native/workers.h"

namespace decoder {
namespace NATIVE_LEVEL {
namespace {

using native::run_workers;
using Index = std::ptrdiff_t;

// ---- vectors ------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kPanelVectors = 4;  // 6 x 4 sums, 4 factors and a broadcast in 32 registers
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kPanelVectors = 2;  // 6 x 2 sums, 2 factors and a broadcast in 16 registers
#else
constexpr int kBytes = 16;
constexpr int kPanelVectors = 2;
#endif
constexpr int kTileRows = 6;
constexpr int kDotRows = kBytes == 64 ? 4 : 2;  // with 4 outputs each, their sums are in registers

// Without it the sums of a tile do not stay in registers.
#if defined(__clang__)
#define DECODER_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define DECODER_UNROLL _Pragma("GCC unroll 8")
#else
#define DECODER_UNROLL
#endif

template <typename T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

#if defined(__GNUC__)
template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
#else
template <typename T>
struct Vec {
  T v[kLanes<T>];
  T operator[](int i) const { return v[i]; }
};
template <typename T>
inline Vec<T> operator*(T x, Vec<T> a) {
  for (int i = 0; i < kLanes<T>; ++i) a.v[i] *= x;
  return a;
}
template <typename T>
inline Vec<T> operator*(Vec<T> a, Vec<T> b) {
  for (int i = 0; i < kLanes<T>; ++i) a.v[i] *= b.v[i];
  return a;
}
template <typename T>
inline Vec<T>& operator+=(Vec<T>& a, Vec<T> b) {
  for (int i = 0; i < kLanes<T>; ++i) a.v[i] += b.v[i];
  return a;
}
#endif

// Not by memcpy: GCC 12 would go through the stack.
template <typename T>
NATIVE_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <typename T>
NATIVE_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

// NaN stays NaN.
template <typename T>
NATIVE_INLINE Vec<T> relu_of(Vec<T> v) {
#if defined(__GNUC__)
  return v < Vec<T>{} ? Vec<T>{} : v;
#else
  for (int i = 0; i < kLanes<T>; ++i) v.v[i] = v.v[i] < T(0) ? T(0) : v.v[i];
  return v;
#endif
}

// The gradient before a ReLU whose activation is `at`.
template <typename T>
NATIVE_INLINE Vec<T> relu_backward(Vec<T> grad, Vec<T> at) {
#if defined(__GNUC__)
  return at <= Vec<T>{} ? Vec<T>{} : grad;
#else
  for (int i = 0; i < kLanes<T>; ++i) grad.v[i] = at.v[i] <= T(0) ? T(0) : grad.v[i];
  return grad;
#endif
}

// The sums of neighbouring lanes of `a`, then of `b`.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DECODER_SHUFFLES
#endif
#endif
#if defined(DECODER_SHUFFLES)
template <typename T, int... I>
NATIVE_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, 2 * I + 1 ...);
}
template <typename T>
NATIVE_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b) {
  return pair_sums<T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}
#else
template <typename T>
NATIVE_INLINE Vec<T> pair_sums(Vec<T> a, Vec<T> b) {
  T lanes[2 * kLanes<T>];
  store(lanes, a);
  store(lanes + kLanes<T>, b);
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  return load(lanes);
}
#endif

// The sum over the lanes of each of Count vectors, a power of two, no more than there are lanes: of
// vector j in lane j. `v` is overwritten.
template <typename T, int Count>
NATIVE_INLINE Vec<T> lane_sums(Vec<T>* v) {
  int left = Count;
  DECODER_UNROLL
  for (int lanes = kLanes<T>; lanes > 1; lanes /= 2) {
    if (left == 1) {
      v[0] = pair_sums<T>(v[0], v[0]);
      continue;
    }
    left /= 2;
    DECODER_UNROLL
    for (int i = 0; i < left; ++i) v[i] = pair_sums<T>(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

template <typename T>
constexpr int padded(int columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <typename T>
constexpr int kPanel = kPanelVectors* kLanes<T>;  // columns

// ---- products -----------------------------------------------------------------------------------

// Element (m, k) of the left factor is at `data[m * row + k * column]`.
template <typename T>
struct Left {
  const T* data;
  Index row, column;
};

// The right factor in panels of kPanel columns: rows are `row` apart, panels `panel`.
template <typename T>
struct Right {
  const T* data;
  Index row, panel;
};

// What is made of a product: a sum added to, a layer, a layer and its ReLU, or the gradient before a
// ReLU.
enum class Into { kSum, kLayer, kRelu, kBeforeRelu };

// c (MR, NV vectors) += a b, or = bias + a b, or = a b where c's activations are above 0. `with`: the
// bias (NV vectors), or the activations, which lie as c.
template <typename T, Into To, int MR, int NV>
void tile(Left<T> a, const T* b, Index b_row, int inner, const T* with, T* c, Index c_row) {
  constexpr int L = kLanes<T>;
  Vec<T> sums[MR][NV] = {};
  DECODER_UNROLL
  for (int m = 0; m < MR && To != Into::kBeforeRelu; ++m)
    DECODER_UNROLL
    for (int n = 0; n < NV; ++n)
      sums[m][n] = load(To == Into::kSum ? c + m * c_row + n * L : with + n * L);
  for (int k = 0; k < inner; ++k) {
    Vec<T> factor[NV];
    DECODER_UNROLL
    for (int n = 0; n < NV; ++n) factor[n] = load(b + k * b_row + n * L);
    DECODER_UNROLL
    for (int m = 0; m < MR; ++m) {
      const T x = a.data[m * a.row + k * a.column];
      DECODER_UNROLL
      for (int n = 0; n < NV; ++n) sums[m][n] += x * factor[n];
    }
  }
  DECODER_UNROLL
  for (int m = 0; m < MR; ++m)
    DECODER_UNROLL
    for (int n = 0; n < NV; ++n) {
      const Index at = m * c_row + n * L;
      if (To == Into::kRelu) sums[m][n] = relu_of<T>(sums[m][n]);
      if (To == Into::kBeforeRelu) sums[m][n] = relu_backward<T>(sums[m][n], load(with + at));
      store(c + at, sums[m][n]);
    }
}

template <typename T, Into To, int NV>
void column_of_tiles(Left<T> a, int rows, const T* b, Index b_row, int inner, const T* with, T* c,
                     Index c_row) {
  int m = 0;
  const auto rest = [&] { return Left<T>{a.data + m * a.row, a.row, a.column}; };
  const auto own = [&] { return To == Into::kBeforeRelu ? with + m * c_row : with; };
  for (; m + kTileRows <= rows; m += kTileRows)
    tile<T, To, kTileRows, NV>(rest(), b, b_row, inner, own(), c + m * c_row, c_row);
  for (; m + 3 <= rows; m += 3)
    tile<T, To, 3, NV>(rest(), b, b_row, inner, own(), c + m * c_row, c_row);
  for (; m < rows; ++m)
    tile<T, To, 1, NV>(rest(), b, b_row, inner, own(), c + m * c_row, c_row);
}

// c (rows, columns) += a (rows, inner) b (inner, columns), or = bias (columns,) + a b, or = a b before
// the ReLU of activations that lie as c; columns are whole vectors.
template <typename T, Into To>
void product(Left<T> a, int rows, Right<T> b, int inner, int columns, const T* with, T* c,
             Index c_row) {
  for (int n = 0; n < columns; n += kPanel<T>) {
    const T* panel = b.data + n / kPanel<T> * b.panel;
    const T* own = To == Into::kSum ? nullptr : with + n;
    switch (std::min(kPanel<T>, columns - n) / kLanes<T>) {
#if defined(__AVX512F__)
      case 4: column_of_tiles<T, To, 4>(a, rows, panel, b.row, inner, own, c + n, c_row); break;
      case 3: column_of_tiles<T, To, 3>(a, rows, panel, b.row, inner, own, c + n, c_row); break;
#endif
      case 2: column_of_tiles<T, To, 2>(a, rows, panel, b.row, inner, own, c + n, c_row); break;
      default: column_of_tiles<T, To, 1>(a, rows, panel, b.row, inner, own, c + n, c_row); break;
    }
  }
}

template <typename T>
void add_product(Left<T> a, int rows, Right<T> b, int inner, int columns, T* c, Index c_row) {
  product<T, Into::kSum>(a, rows, b, inner, columns, nullptr, c, c_row);
}

// ---- factors ------------------------------------------------------------------------------------

template <typename T>
using Buffer = std::unique_ptr<T[]>;

template <typename T>
Buffer<T> zeros(Index size) {
  return Buffer<T>(new T[std::max<Index>(size, 1)]());
}

// A right factor (inner, columns) in panels that follow each other, filled up with zeros.
template <typename T>
struct Packed {
  Buffer<T> data;
  int inner;

  Packed() : inner(0) {}
  // Element (k, n) of the factor is at `source[k * row + n * column]`.
  Packed(const T* source, Index row, Index column, int inner_size, int columns)
      : data(zeros<T>(Index(inner_size) * (columns + kPanel<T>))), inner(inner_size) {
    for (int n = 0; n < columns; ++n) {
      T* panel = data.get() + n / kPanel<T> * Index(inner) * kPanel<T> + n % kPanel<T>;
      for (int k = 0; k < inner; ++k) panel[Index(k) * kPanel<T>] = source[k * row + n * column];
    }
  }
  Right<T> right() const { return {data.get(), kPanel<T>, Index(inner) * kPanel<T>}; }
};

template <typename T>
Right<T> in_place(const T* rows, Index row) {
  return {rows, row, kPanel<T>};
}

// Numbers, filled up to whole vectors with zeros.
template <typename T>
Buffer<T> filled_up(const T* values, int count) {
  Buffer<T> all = zeros<T>(padded<T>(count));
  std::copy_n(values, count, all.get());
  return all;
}

// The layers as the products want them.
template <typename T>
struct Weights {
  Packed<T> first, inner[kMaxHeads], last[kMaxHeads];  // transposed, for the forward pass
  Buffer<T> first_bias, inner_bias[kMaxHeads], last_bias[kMaxHeads];
  Packed<T> first_back, inner_back[kMaxHeads], last_back[kMaxHeads];

  Weights(const Layers<T>& l, bool backward) {
    const int F = l.inputs, W = l.width;
    if (l.first) first = Packed<T>(l.first, 1, F, F, W);
    if (l.first) first_bias = filled_up(l.first_bias, W);
    if (l.first && backward) first_back = Packed<T>(l.first, F, 1, W, F);
    for (int k = 0; k < l.heads; ++k) {
      const T* w = l.inner + Index(k) * W * W;
      inner[k] = Packed<T>(w, 1, W, W, W);
      inner_bias[k] = filled_up(l.inner_bias + Index(k) * W, W);
      last[k] = Packed<T>(l.last[k], 1, W, W, l.outputs[k]);
      last_bias[k] = filled_up(l.last_bias[k], l.outputs[k]);
      if (!backward) continue;
      inner_back[k] = Packed<T>(w, W, 1, W, W);
      last_back[k] = Packed<T>(l.last[k], W, 1, l.outputs[k], W);
    }
  }
};

// ---- rows ---------------------------------------------------------------------------------------

constexpr int kBlock = 48;  // rows that go through all layers at once

template <typename T>
NATIVE_INLINE void mask(T* grad, const T* activation, Index size) {
  for (Index i = 0; i < size; ++i) grad[i] = activation[i] <= T(0) ? T(0) : grad[i];
}

// sums (columns) += those of the rows
template <typename T>
void add_rows(const T* rows, int count, Index row, int columns, T* sums) {
  int i = 0;
  for (; i + 4 <= count; i += 4) {  // at once, so that the sums are seldom loaded and stored
    const T *a = rows + i * row, *b = a + row, *d = b + row, *e = d + row;
    for (int c = 0; c < columns; ++c) sums[c] += (a[c] + b[c]) + (d[c] + e[c]);
  }
  for (; i < count; ++i)
    for (int c = 0; c < columns; ++c) sums[c] += rows[i * row + c];
}

template <typename T>
void copy_rows(const T* from, Index from_row, int count, int columns, T* to, Index to_row) {
  for (int i = 0; i < count; ++i) std::copy_n(from + i * from_row, columns, to + i * to_row);
}

// A thread's scratch: rows of a block, each filled up to whole vectors.
template <typename T>
struct Scratch {
  Index in_row, row;
  Buffer<T> x, hidden, inner, grad_inner, grad_hidden, grad_x, out;

  Scratch(const Layers<T>& l, bool backward)
      : in_row(padded<T>(l.inputs)), row(padded<T>(l.width)),
        x(zeros<T>(kBlock * in_row)), hidden(zeros<T>(kBlock * row)), inner(zeros<T>(kBlock * row)) {
    const int widest = *std::max_element(l.outputs, l.outputs + l.heads);
    out = zeros<T>(kBlock * padded<T>(widest));
    if (!backward) return;
    grad_inner = zeros<T>(kBlock * row);
    grad_hidden = zeros<T>(kBlock * row);
    grad_x = zeros<T>(kBlock * in_row);
  }
};

// relu(h) of a block
template <typename T>
void hidden_of(const T* x, int rows, const Layers<T>& l, const Weights<T>& w, Scratch<T>& s) {
  T* hidden = s.hidden.get();
  if (l.first) {
    return product<T, Into::kRelu>({x, l.inputs, 1}, rows, w.first.right(), l.inputs, int(s.row),
                                   w.first_bias.get(), hidden, s.row);
  }
  copy_rows(x, l.inputs, rows, l.width, hidden, s.row);
  for (Index i = 0; i < rows * s.row; i += kLanes<T>) {
    store(hidden + i, relu_of<T>(load(hidden + i)));
  }
}

// z_k of a block
template <typename T>
void inner_of(int k, int rows, const Layers<T>& l, const Weights<T>& w, Scratch<T>& s) {
  product<T, Into::kRelu>({s.hidden.get(), s.row, 1}, rows, w.inner[k].right(), l.width,
                          int(s.row), w.inner_bias[k].get(), s.inner.get(), s.row);
}

// Outputs o, o + 1, ... (Count) of kDotRows rows of z, or of fewer: dot products along the rows.
template <typename T, int Count>
NATIVE_INLINE void dot_rows(int k, int o, const T* z, Index row, int rows, const Layers<T>& l,
                            T* y) {
  constexpr int L = kLanes<T>, side = Count == 3 ? 4 : Count, all = kDotRows * side;
  constexpr int together = all < L ? all : L;
  const T *v = l.last[k] + Index(o) * l.width, *from[kDotRows];
  for (int r = 0; r < kDotRows; ++r) from[r] = z + std::min(r, rows - 1) * row;
  Vec<T> sums[all] = {};
  int c = 0;
  for (; c + L <= l.width; c += L) {
    DECODER_UNROLL
    for (int i = 0; i < Count; ++i) {
      const Vec<T> weights = load(v + i * l.width + c);
      DECODER_UNROLL
      for (int r = 0; r < kDotRows; ++r) sums[r * side + i] += load(from[r] + c) * weights;
    }
  }
  T totals[all];
  for (int i = 0; i < all; i += together) {
    T lanes[L];
    store(lanes, lane_sums<T, together>(sums + i));
    std::copy_n(lanes, together, totals + i);
  }
  const int outputs = l.outputs[k];
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < Count; ++i) {
      T total = l.last_bias[k][o + i] + totals[r * side + i];
      for (int at = c; at < l.width; ++at) total += from[r][at] * v[i * l.width + at];
      y[Index(r) * outputs + o + i] = total;
    }
  }
}

// Fewer outputs than a vector has lanes.
template <typename T>
void few_outputs(int k, int rows, const Layers<T>& l, const Scratch<T>& s, T* y) {
  const int count = l.outputs[k];
  for (int i = 0; i < rows; i += kDotRows) {
    const T* z = s.inner.get() + i * s.row;
    T* to = y + Index(i) * count;
    const int some = std::min(kDotRows, rows - i);
    for (int o = 0; o < count; o += 4) {
      switch (std::min(4, count - o)) {
        case 4: dot_rows<T, 4>(k, o, z, s.row, some, l, to); break;
        case 3: dot_rows<T, 3>(k, o, z, s.row, some, l, to); break;
        case 2: dot_rows<T, 2>(k, o, z, s.row, some, l, to); break;
        default: dot_rows<T, 1>(k, o, z, s.row, some, l, to); break;
      }
    }
  }
}

template <typename T>
void many_outputs(int k, int rows, const Layers<T>& l, const Weights<T>& w, const Scratch<T>& s,
                  T* y) {
  const int count = l.outputs[k], columns = padded<T>(count);
  product<T, Into::kLayer>({s.inner.get(), s.row, 1}, rows, w.last[k].right(), l.width, columns,
                           w.last_bias[k].get(), s.out.get(), columns);
  copy_rows(s.out.get(), columns, rows, count, y, count);
}

template <typename T>
void forward_rows(const T* x, Index begin, Index end, const Layers<T>& l, const Weights<T>& w,
                  Scratch<T>& s, T* const* outputs) {
  for (Index start = begin; start < end; start += kBlock) {
    const int rows = static_cast<int>(std::min<Index>(kBlock, end - start));
    hidden_of(x + start * l.inputs, rows, l, w, s);
    for (int k = 0; k < l.heads; ++k) {
      inner_of(k, rows, l, w, s);
      T* y = outputs[k] + start * l.outputs[k];
      if (l.outputs[k] < kLanes<T>)
        few_outputs(k, rows, l, s, y);
      else
        many_outputs(k, rows, l, w, s, y);
    }
  }
}

// Where the sums of one slice lie: all in one buffer, rows filled up to whole vectors.
template <typename T>
struct Sums {
  T *first, *first_bias, *inner, *inner_bias, *last[kMaxHeads], *last_bias[kMaxHeads];
  Index size;

  Sums(T* data, const Layers<T>& l) {
    const Index row = padded<T>(l.width), W = l.width;
    T* next = data;
    const auto take = [&](Index count) {
      T* here = next;
      next += count;
      return here;
    };
    first = take(l.first ? W * padded<T>(l.inputs) : 0);
    first_bias = take(row);
    inner = take(l.heads * W * row);
    inner_bias = take(l.heads * row);
    for (int k = 0; k < l.heads; ++k) {
      last[k] = take(l.outputs[k] * row);
      last_bias[k] = take(l.outputs[k]);
    }
    size = next - data;
  }
};

// Of one head: adds to the sums, and to the gradient of relu(h).
template <typename T>
void head_backward(int k, int rows, const T* grad, const Layers<T>& l, const Weights<T>& w,
                   Scratch<T>& s, const Sums<T>& sums) {
  const int count = l.outputs[k], W = l.width;
  const int columns = int(s.row);
  inner_of(k, rows, l, w, s);
  T* grad_inner = s.grad_inner.get();
  product<T, Into::kBeforeRelu>({grad, count, 1}, rows, w.last_back[k].right(), count, columns,
                                s.inner.get(), grad_inner, s.row);
  add_product<T>({grad, 1, count}, count, in_place(s.inner.get(), s.row), rows, columns,
                 sums.last[k], s.row);
  add_rows(grad, rows, count, count, sums.last_bias[k]);
  add_product<T>({grad_inner, s.row, 1}, rows, w.inner_back[k].right(), W, columns,
                 s.grad_hidden.get(), s.row);
  add_product<T>({grad_inner, 1, s.row}, W, in_place(s.hidden.get(), s.row), rows, columns,
                 sums.inner + Index(k) * W * s.row, s.row);
  add_rows(grad_inner, rows, s.row, columns, sums.inner_bias + k * s.row);
}

template <typename T>
void first_backward(const T* x, int rows, const Layers<T>& l, const Weights<T>& w, Scratch<T>& s,
                    const Sums<T>& sums, T* grad_x) {
  const T* grad = s.grad_hidden.get();
  if (l.first == nullptr) {
    if (grad_x) copy_rows(grad, s.row, rows, l.width, grad_x, l.width);
    return;
  }
  copy_rows(x, l.inputs, rows, l.inputs, s.x.get(), s.in_row);
  add_rows(grad, rows, s.row, l.width, sums.first_bias);
  add_product<T>({grad, 1, s.row}, l.width, in_place(s.x.get(), s.in_row), rows, int(s.in_row),
                 sums.first, s.in_row);
  if (grad_x == nullptr) return;
  std::fill_n(s.grad_x.get(), rows * s.in_row, T(0));
  add_product<T>({grad, s.row, 1}, rows, w.first_back.right(), l.width, int(s.in_row),
                 s.grad_x.get(), s.in_row);
  copy_rows(s.grad_x.get(), s.in_row, rows, l.inputs, grad_x, l.inputs);
}

template <typename T>
void backward_rows(const T* x, Index begin, Index end, const Layers<T>& l, const Weights<T>& w,
                   const T* const* grad_outputs, Scratch<T>& s, const Sums<T>& sums, T* grad_x) {
  for (Index start = begin; start < end; start += kBlock) {
    const int rows = static_cast<int>(std::min<Index>(kBlock, end - start));
    const T* block = x + start * l.inputs;
    hidden_of(block, rows, l, w, s);
    std::fill_n(s.grad_hidden.get(), rows * s.row, T(0));
    for (int k = 0; k < l.heads; ++k)
      if (grad_outputs[k])
        head_backward(k, rows, grad_outputs[k] + start * l.outputs[k], l, w, s, sums);
    mask(s.grad_hidden.get(), s.hidden.get(), rows * s.row);
    first_backward(block, rows, l, w, s, sums, grad_x ? grad_x + start * l.inputs : nullptr);
  }
}

// ---- all of it ----------------------------------------------------------------------------------

// Rows before slice `slice`.
Index slice_begin(std::int64_t count, int slice) { return count * slice / kSlices; }

int workers_for(std::int64_t count, int threads) {
  const std::int64_t useful = std::max<std::int64_t>(1, count / (4 * kBlock));
  return static_cast<int>(std::min<std::int64_t>({std::max(threads, 1), useful, kSlices}));
}

template <typename T>
void forward(const T* x, std::int64_t count, const Layers<T>& l, int threads, T* const* outputs) {
  const Weights<T> weights(l, false);
  const int workers = workers_for(count, threads);
  run_workers(workers, [&](int worker) {
    Scratch<T> scratch(l, false);
    forward_rows(x, count * worker / workers, count * (worker + 1) / workers, l, weights, scratch,
                 outputs);
  });
}

// The sums of all slices, in the slices' order, in those of the first.
template <typename T>
void add_slices(T* sums, Index size, Index begin, Index end) {
  for (int slice = 1; slice < kSlices; ++slice) {
    const T* other = sums + slice * size;
    for (Index i = begin; i < end; ++i) sums[i] += other[i];
  }
}

template <typename T>
void hand_out(const Sums<T>& sums, const Layers<T>& l, const Gradients<T>& grads) {
  const int W = l.width;
  const Index row = padded<T>(W);
  if (l.first) {
    copy_rows(sums.first, padded<T>(l.inputs), W, l.inputs, grads.first, l.inputs);
    std::copy_n(sums.first_bias, W, grads.first_bias);
  }
  copy_rows(sums.inner, row, l.heads * W, W, grads.inner, W);
  copy_rows(sums.inner_bias, row, l.heads, W, grads.inner_bias, W);
  for (int k = 0; k < l.heads; ++k) {
    copy_rows(sums.last[k], row, l.outputs[k], W, grads.last[k], W);
    std::copy_n(sums.last_bias[k], l.outputs[k], grads.last_bias[k]);
  }
}

template <typename T>
void backward(const T* x, std::int64_t count, const Layers<T>& l, const T* const* grad_outputs,
              int threads, const Gradients<T>& grads) {
  const Weights<T> weights(l, true);
  const Index size = Sums<T>(nullptr, l).size;
  const Buffer<T> data(new T[size * kSlices]);
  const int workers = workers_for(count, threads);
  run_workers(workers, [&](int worker) {
    Scratch<T> scratch(l, true);
    for (int slice = worker * kSlices / workers; slice < (worker + 1) * kSlices / workers; ++slice) {
      T* own = data.get() + slice * size;
      std::fill_n(own, size, T(0));
      backward_rows(x, slice_begin(count, slice), slice_begin(count, slice + 1), l, weights,
                    grad_outputs, scratch, Sums<T>(own, l), grads.x);
    }
  });
  add_slices(data.get(), size, 0, size);
  hand_out(Sums<T>(data.get(), l), l, grads);
}

template <typename T>
constexpr Routines<T> kRoutines = {forward<T>, backward<T>};

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kRoutines<float>, kRoutines<double>};

}  // namespace NATIVE_LEVEL
}  // namespace decoder
