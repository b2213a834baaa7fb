// Binds the CUDA kernels. Tensors come as addresses, checked and laid out by simple_knn.search.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "knn_cuda.h"
#include "native/cuda_host.h"

namespace nb = nanobind;

namespace {

using Address = std::uintptr_t;

void first_invalid(int device, Address stream, Address points, std::int64_t count, Address first) {
  const native::DeviceGuard guard(device);
  simple_knn::gpu::first_invalid(native::pointer<const float>(points), count,
                                 native::pointer<std::int32_t>(first), native::stream_of(stream));
}

std::vector<std::size_t> scratch_bytes(int device, std::int64_t count) {
  const native::DeviceGuard guard(device);
  const auto bytes = simple_knn::gpu::scratch_bytes(count);
  return {bytes.begin(), bytes.end()};
}

void nearest_neighbours(int device, Address stream, Address points, std::int64_t count,
                        std::int64_t k, const std::vector<Address>& scratch,
                        const std::vector<std::size_t>& scratch_bytes, Address dist2,
                        Address index, Address scanned) {
  simple_knn::gpu::Scratch arrays;
  if (scratch.size() != arrays.at.size() || scratch_bytes.size() != arrays.bytes.size()) {
    throw nb::value_error("expected scratch of the sizes that scratch_bytes says");
  }
  std::transform(scratch.begin(), scratch.end(), arrays.at.begin(), native::pointer<void>);
  std::copy(scratch_bytes.begin(), scratch_bytes.end(), arrays.bytes.begin());
  const native::DeviceGuard guard(device);
  simple_knn::gpu::nearest_neighbours(
      native::pointer<const float>(points), count, k, arrays, native::pointer<float>(dist2),
      native::pointer<std::int64_t>(index), native::pointer<std::int32_t>(scanned),
      native::stream_of(stream));
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of simple_knn; called through simple_knn.knn.";
  m.def("first_invalid", &first_invalid);
  m.def("scratch_bytes", &scratch_bytes);
  m.def("nearest_neighbours", &nearest_neighbours);
}
