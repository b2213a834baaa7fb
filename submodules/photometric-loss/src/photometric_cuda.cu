// A block owns a tile of one plane: it loads the tile with the window's halo into shared memory,
// blurs along the rows, and each thread then blurs along its column, for two pixels one above the
// other, which share most of what they read.
#include <cstdint>

#include "native/cuda.cuh"
#include "photometric_cuda.h"

namespace photometric {
namespace {

constexpr int kTileWidth = 32;
constexpr int kTileHeight = 16;
constexpr int kPixels = 2;  // of a thread, one above the other
constexpr unsigned kBlock = kTileWidth * kTileHeight / kPixels;
constexpr unsigned kWarps = kBlock / native::kWarp;
constexpr int kHaloWidth = kTileWidth + 2 * kRadius;
constexpr int kHaloHeight = kTileHeight + 2 * kRadius;
constexpr int kHalo = kHaloWidth * kHaloHeight;    // values of a tile with its halo
constexpr int kBlurred = kTileWidth * kHaloHeight;  // the same, blurred along the rows

__host__ __device__ constexpr int tiles(int size, int tile) { return (size + tile - 1) / tile; }

// The pixels of a block, and those of the calling thread.
struct Place {
  int plane;
  int row, column;          // of the tile's first pixel
  int own_row, own_column;  // in the tile, of the thread's first pixel
};

__device__ __forceinline__ Place place_of(int height, int width) {
  const unsigned across = tiles(width, kTileWidth);
  const unsigned per_plane = across * tiles(height, kTileHeight);
  const unsigned tile = blockIdx.x % per_plane;
  return {int(blockIdx.x / per_plane), int(tile / across) * kTileHeight,
          int(tile % across) * kTileWidth, int(threadIdx.x) / kTileWidth * kPixels,
          int(threadIdx.x) % kTileWidth};
}

template <typename T>
struct Pixel {
  T x, y;
  bool counts;  // else y is x, and there is no gradient
};

template <typename T>
__device__ __forceinline__ Pixel<T> load(const Inputs<T>& in, int plane, int row, int column) {
  const T x = in.images[in.image_row(plane, row) + column];
  if (in.mask != nullptr && in.mask[in.mask_row(plane, row) + column] == 0) return {x, x, false};
  const std::int64_t at = in.target_row(plane, row) + column * in.stride[3];
  const T y = in.bytes ? unit_range<T>(static_cast<const unsigned char*>(in.targets)[at])
                       : static_cast<const T*>(in.targets)[at];
  return {x, y, true};
}

// Where value `i` of a tile with its halo lies in the image, or beyond its border.
struct Position {
  int row, column;
  bool inside;
};

__device__ __forceinline__ Position position(const Place& place, int i, int height, int width) {
  const int row = place.row - kRadius + i / kHaloWidth;
  const int column = place.column - kRadius + i % kHaloWidth;
  return {row, column, row >= 0 && row < height && column >= 0 && column < width};
}

template <typename T>
__device__ __forceinline__ void load_halo(const Inputs<T>& in, const Place& place, T* x, T* y) {
  for (int i = int(threadIdx.x); i < kHalo; i += int(kBlock)) {
    const Position at = position(place, i, in.height, in.width);
    const Pixel<T> pixel =
        at.inside ? load(in, place.plane, at.row, at.column) : Pixel<T>{T(0), T(0), false};
    x[i] = pixel.x;
    y[i] = pixel.y;
  }
}

// One map of (planes, height, width).
template <typename T>
__device__ __forceinline__ void load_halo(const Inputs<T>& in, const T* map, const Place& place,
                                          T* halo) {
  for (int i = int(threadIdx.x); i < kHalo; i += int(kBlock)) {
    const Position at = position(place, i, in.height, in.width);
    halo[i] = at.inside ? map[in.image_row(place.plane, at.row) + at.column] : T(0);
  }
}

// The window along the rows of x, y, xy and xx + yy: (kMaps, kHaloHeight, kTileWidth).
template <typename T>
__device__ __forceinline__ void blur_rows_of_products(const T* x, const T* y, T* blurred) {
  for (int i = int(threadIdx.x); i < kBlurred; i += int(kBlock)) {
    const int start = i / kTileWidth * kHaloWidth + i % kTileWidth;
    T xs[kTaps], ys[kTaps], products[kTaps], squares[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      xs[k] = x[start + k];
      ys[k] = y[start + k];
      products[k] = xs[k] * ys[k];
      squares[k] = xs[k] * xs[k] + ys[k] * ys[k];
    }
    blurred[i] = blur<T>(Line<T>{xs + kRadius, 1});
    blurred[kBlurred + i] = blur<T>(Line<T>{ys + kRadius, 1});
    blurred[2 * kBlurred + i] = blur<T>(Line<T>{products + kRadius, 1});
    blurred[3 * kBlurred + i] = blur<T>(Line<T>{squares + kRadius, 1});
  }
}

// The window along the rows of one map.
template <typename T>
__device__ __forceinline__ void blur_rows(const T* halo, T* blurred) {
  for (int i = int(threadIdx.x); i < kBlurred; i += int(kBlock)) {
    const int centre = i / kTileWidth * kHaloWidth + i % kTileWidth + kRadius;
    blurred[i] = blur<T>(Line<T>{halo + centre, 1});
  }
}

// The window along the columns, at the thread's pixels.
template <typename T>
__device__ __forceinline__ void blur_columns(const T* blurred, const Place& place, T* out) {
  T column[kTaps + kPixels - 1];
#pragma unroll
  for (int k = 0; k < kTaps + kPixels - 1; ++k) {
    column[k] = blurred[(place.own_row + k) * kTileWidth + place.own_column];
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) out[i] = blur<T>(Line<T>{column + kRadius + i, 1});
}

// The sum of `value` over the block, in a fixed order, in thread 0. `shared` has kWarps doubles.
template <typename T>
__device__ __forceinline__ double sum_block(T value, double* shared) {
  const auto warp = native::cg::tiled_partition<native::kWarp>(native::cg::this_thread_block());
#pragma unroll
  for (unsigned d = native::kWarp / 2; d > 0; d /= 2) value += warp.shfl_xor(value, d);
  if (warp.thread_rank() == 0) shared[threadIdx.x / native::kWarp] = double(value);
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (unsigned i = 0; i < kWarps; ++i) sum += shared[i];
  }
  return sum;
}

// The index of the thread's pixel `i` in (planes, height, width); negative where it is not in the
// image.
template <typename T>
__device__ __forceinline__ std::int64_t own_pixel(const Inputs<T>& in, const Place& place, int i) {
  const int row = place.row + place.own_row + i, column = place.column + place.own_column;
  if (row >= in.height || column >= in.width) return -1;
  return in.image_row(place.plane, row) + column;
}

template <typename T>
__device__ __forceinline__ Pixel<T> load_own(const Inputs<T>& in, const Place& place, int i) {
  return load(in, place.plane, place.row + place.own_row + i, place.column + place.own_column);
}

template <typename T>
__device__ __forceinline__ void store_slopes(const Similarity<T>& s, std::int64_t count,
                                             T* slopes) {
  slopes[0] = s.by_p;
  slopes[count] = s.by_q;
  slopes[2 * count] = s.by_m;
}

// The sum of SSIM over the thread's pixels, and its slopes where they are wanted.
template <typename T>
__device__ __forceinline__ T compare_tile(const Inputs<T>& in, const Place& place, T* slopes) {
  NATIVE_SHARED(T, x, kHalo);
  NATIVE_SHARED(T, y, kHalo);
  NATIVE_SHARED(T, blurred, kMaps * kBlurred);
  load_halo(in, place, x, y);
  __syncthreads();
  blur_rows_of_products(x, y, blurred);
  __syncthreads();
  T maps[kMaps][kPixels];
#pragma unroll
  for (int map = 0; map < kMaps; ++map) blur_columns(blurred + map * kBlurred, place, maps[map]);
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const std::int64_t at = own_pixel(in, place, i);
    if (at < 0) continue;
    const Similarity<T> s = similarity(maps[0][i], maps[1][i], maps[2][i], maps[3][i]);
    if (slopes != nullptr) store_slopes(s, in.count(), slopes + at);
    sum += s.value;
  }
  return sum;
}

// `partials` (2, blocks): sums of SSIM and of the error over each block.
template <typename T, bool Ssim>
__global__ void __launch_bounds__(kBlock)
forward_kernel(Inputs<T> in, Error kind, T* slopes, double* partials) {
  const Place place = place_of(in.height, in.width);
  NATIVE_SHARED(double, ssim_sums, kWarps);
  NATIVE_SHARED(double, error_sums, kWarps);
  if constexpr (Ssim) {
    const double ssim = sum_block(compare_tile(in, place, slopes), ssim_sums);
    if (threadIdx.x == 0) partials[blockIdx.x] = ssim;
  }
  if (kind == Error::kNone) return;
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (own_pixel(in, place, i) < 0) continue;
    const Pixel<T> pixel = load_own(in, place, i);
    sum += error_of(pixel.x, pixel.y, kind);
  }
  const double error = sum_block(sum, error_sums);
  if (threadIdx.x == 0) partials[gridDim.x + blockIdx.x] = error;
}

// Block 0: the mean SSIM, block 1: the mean error; null: not wanted.
template <typename T>
__global__ void __launch_bounds__(kBlock)
mean_kernel(const double* partials, std::int64_t blocks, std::int64_t count, T* ssim, T* error) {
  NATIVE_SHARED(double, shared, kWarps);
  T* const mean = blockIdx.x == 0 ? ssim : error;
  if (mean == nullptr) return;
  double sum = 0;
  partials += blockIdx.x * blocks;
  for (std::int64_t i = threadIdx.x; i < blocks; i += kBlock) sum += partials[i];
  const double total = sum_block(sum, shared);
  if (threadIdx.x == 0) *mean = T(total / double(count));
}

// The blurred slopes at the thread's pixels, (kSlopes, kPixels).
template <typename T>
__device__ __forceinline__ void gather_slopes(const Inputs<T>& in, const Place& place,
                                              const T* slopes, T (*out)[kPixels]) {
  NATIVE_SHARED(T, halo, kSlopes * kHalo);
  NATIVE_SHARED(T, blurred, kSlopes * kBlurred);
#pragma unroll
  for (int map = 0; map < kSlopes; ++map) {
    load_halo(in, slopes + map * in.count(), place, halo + map * kHalo);
  }
  __syncthreads();
#pragma unroll
  for (int map = 0; map < kSlopes; ++map) blur_rows(halo + map * kHalo, blurred + map * kBlurred);
  __syncthreads();
#pragma unroll
  for (int map = 0; map < kSlopes; ++map) blur_columns(blurred + map * kBlurred, place, out[map]);
}

template <typename T, bool Ssim>
__global__ void __launch_bounds__(kBlock)
backward_kernel(Inputs<T> in, Error kind, const T* slopes, const T* grad_ssim, const T* grad_error,
                T* gradient) {
  const Place place = place_of(in.height, in.width);
  const T of_error = kind == Error::kNone ? T(0) : *grad_error / T(in.count());
  T of_ssim = T(0), by[kSlopes][kPixels] = {};
  if constexpr (Ssim) {
    of_ssim = *grad_ssim / T(in.count());
    gather_slopes(in, place, slopes, by);
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const std::int64_t at = own_pixel(in, place, i);
    if (at < 0) continue;
    const Pixel<T> pixel = load_own(in, place, i);
    T value = T(0);
    if constexpr (Ssim) {
      value = of_ssim * similarity_slope(pixel.x, pixel.y, by[0][i], by[1][i], by[2][i]);
    }
    if (kind != Error::kNone) value += of_error * error_slope(pixel.x, pixel.y, kind);
    gradient[at] = pixel.counts ? value : T(0);
  }
}

}  // namespace

std::int64_t blocks(int planes, int height, int width) {
  return std::int64_t(planes) * tiles(height, kTileHeight) * tiles(width, kTileWidth);
}

template <typename T>
void forward(const Inputs<T>& in, Error kind, T* ssim, T* error, T* slopes, double* partials,
             cudaStream_t stream) {
  const std::int64_t count = blocks(in.planes(), in.height, in.width);
  const auto kernel = ssim != nullptr ? forward_kernel<T, true> : forward_kernel<T, false>;
  native::launch(kernel, dim3(native::blocks_for(count, 1)), dim3(kBlock), stream, in, kind, slopes,
                 partials);
  T* const mean_error = kind == Error::kNone ? nullptr : error;
  native::launch(mean_kernel<T>, dim3(2), dim3(kBlock), stream, partials, count, in.count(), ssim,
                 mean_error);
}

template <typename T>
void backward(const Inputs<T>& in, Error kind, const T* slopes, const T* grad_ssim,
              const T* grad_error, T* gradient, cudaStream_t stream) {
  const std::int64_t count = blocks(in.planes(), in.height, in.width);
  const auto kernel = grad_ssim != nullptr ? backward_kernel<T, true> : backward_kernel<T, false>;
  native::launch(kernel, dim3(native::blocks_for(count, 1)), dim3(kBlock), stream, in, kind, slopes,
                 grad_ssim, grad_error, gradient);
}

#define PHOTOMETRIC_INSTANTIATE(T)                                                           \
  template void forward(const Inputs<T>&, Error, T*, T*, T*, double*, cudaStream_t);         \
  template void backward(const Inputs<T>&, Error, const T*, const T*, const T*, T*, cudaStream_t);
PHOTOMETRIC_INSTANTIATE(float)
PHOTOMETRIC_INSTANTIATE(double)

}  // namespace photometric
