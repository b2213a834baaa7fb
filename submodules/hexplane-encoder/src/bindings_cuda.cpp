// Binds the CUDA kernels. Tensors come as addresses, checked and laid out by hexplane_encoder.encoder.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

#include "hexplane_cuda.h"
#include "native/cuda_host.h"

namespace nb = nanobind;

namespace {

using Address = std::uintptr_t;

// `sizes` has (height, width) of the planes, then of the lines (length, 1).
template <typename Value>
hexplane::DeviceGrids<Value> make_grids(const std::vector<Address>& grids,
                                        const std::vector<int>& sizes, int channels) {
  if (grids.size() != hexplane::kFactors || sizes.size() != 2 * hexplane::kFactors) {
    throw nb::value_error("expected 3 planes and 3 lines");
  }
  hexplane::DeviceGrids<Value> out{};
  for (int k = 0; k < hexplane::kFactors; ++k) {
    out.data[k] = native::pointer<Value>(grids[k]);
    out.height[k] = sizes[2 * k];
    out.width[k] = sizes[2 * k + 1];
  }
  out.channels = channels;
  return out;
}

template <typename T>
void forward(int device, Address stream, Address xyz, std::int64_t count,
             const std::vector<Address>& grids, const std::vector<int>& sizes, int channels,
             Address features) {
  const native::DeviceGuard guard(device);
  hexplane::forward(native::pointer<const T>(xyz), count,
                    make_grids<const T>(grids, sizes, channels), native::pointer<T>(features),
                    native::stream_of(stream));
}

template <typename T>
void backward(int device, Address stream, Address xyz, std::int64_t count,
              const std::vector<Address>& grids, const std::vector<int>& sizes, int channels,
              Address grad_features, Address grad_xyz, const std::vector<Address>& grad_grids) {
  const native::DeviceGuard guard(device);
  hexplane::backward(native::pointer<const T>(xyz), count,
                     make_grids<const T>(grids, sizes, channels),
                     native::pointer<const T>(grad_features), native::pointer<T>(grad_xyz),
                     make_grids<T>(grad_grids, sizes, channels), native::stream_of(stream));
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of hexplane_encoder; called through hexplane_encoder.encode.";
  m.def("forward_f32", &forward<float>);
  m.def("forward_f64", &forward<double>);
  m.def("backward_f32", &backward<float>);
  m.def("backward_f64", &backward<double>);
}
