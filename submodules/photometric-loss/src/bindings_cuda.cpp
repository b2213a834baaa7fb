// Binds the CUDA kernels. Tensors come as addresses, checked and laid out by
// photometric_loss.operator.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>

#include "native/cuda_host.h"
#include "photometric_cuda.h"

namespace nb = nanobind;

namespace {

using Address = std::uintptr_t;
using Shape = std::array<int, 4>;  // (B, C, H, W)
using Strides = std::array<std::int64_t, 4>;

template <typename T>
photometric::Inputs<T> make_inputs(Address images, const Shape& shape, Address targets, bool bytes,
                                   const Strides& strides, Address mask) {
  photometric::Inputs<T> in{};
  in.images = native::pointer<const T>(images);
  in.targets = native::pointer<const void>(targets);
  for (int axis = 0; axis < 4; ++axis) in.stride[axis] = strides[axis];
  in.mask = native::pointer<const unsigned char>(mask);
  in.batch = shape[0];
  in.channels = shape[1];
  in.height = shape[2];
  in.width = shape[3];
  in.bytes = bytes;
  return in;
}

std::int64_t blocks(const Shape& shape) {
  return photometric::blocks(shape[0] * shape[1], shape[2], shape[3]);
}

template <typename T>
void forward(int device, Address stream, Address images, const Shape& shape, Address targets,
             bool bytes, const Strides& strides, Address mask, int error_kind, Address ssim,
             Address error, Address slopes, Address partials) {
  const native::DeviceGuard guard(device);
  photometric::forward(make_inputs<T>(images, shape, targets, bytes, strides, mask),
                       static_cast<photometric::Error>(error_kind), native::pointer<T>(ssim),
                       native::pointer<T>(error), native::pointer<T>(slopes),
                       native::pointer<double>(partials), native::stream_of(stream));
}

template <typename T>
void backward(int device, Address stream, Address images, const Shape& shape, Address targets,
              bool bytes, const Strides& strides, Address mask, int error_kind, Address slopes,
              Address grad_ssim, Address grad_error, Address gradient) {
  const native::DeviceGuard guard(device);
  photometric::backward(make_inputs<T>(images, shape, targets, bytes, strides, mask),
                        static_cast<photometric::Error>(error_kind),
                        native::pointer<const T>(slopes), native::pointer<const T>(grad_ssim),
                        native::pointer<const T>(grad_error), native::pointer<T>(gradient),
                        native::stream_of(stream));
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of photometric_loss; called through photometric_loss.compare.";
  m.def("blocks", &blocks);
  m.def("forward_f32", &forward<float>);
  m.def("forward_f64", &forward<double>);
  m.def("backward_f32", &backward<float>);
  m.def("backward_f64", &backward<double>);
}
