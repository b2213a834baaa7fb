// Binds the CPU kernels to ndarrays. Shapes are checked on the Python side, where errors can name
// the argument; here the types guarantee dtype, rank and device.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "photometric_cpu.h"

namespace nb = nanobind;

namespace photometric {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

const Routines<float>& routines(float) { return levels().kernels().f32; }
const Routines<double>& routines(double) { return levels().kernels().f64; }

}  // namespace photometric

namespace {

template <typename T>
using Images = nb::ndarray<T, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Scalar = nb::ndarray<T, nb::ndim<0>, nb::device::cpu>;
using Targets = nb::ndarray<nb::ro, nb::ndim<4>, nb::device::cpu>;  // of any strides
using Mask = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;

template <typename T>
photometric::Inputs<T> make_inputs(const Images<const T>& images, const Targets& targets,
                                   const Mask& mask) {
  photometric::Inputs<T> in{};
  in.images = images.data();
  in.targets = targets.data();
  in.bytes = targets.dtype() == nb::dtype<std::uint8_t>();
  if (!in.bytes && targets.dtype() != nb::dtype<T>()) throw nb::value_error("targets: dtype");
  for (int axis = 0; axis < 4; ++axis) in.stride[axis] = targets.stride(axis);
  in.mask = mask.size() == 0 ? nullptr : mask.data();
  in.batch = static_cast<int>(images.shape(0));
  in.channels = static_cast<int>(images.shape(1));
  in.height = static_cast<int>(images.shape(2));
  in.width = static_cast<int>(images.shape(3));
  return in;
}

template <typename Array>
auto* data_or_null(const Array& array) {
  return array.size() == 0 ? nullptr : array.data();
}

template <typename T>
void forward(const Images<const T>& images, const Targets& targets, const Mask& mask,
             int error_kind, int threads,
             const nb::ndarray<T, nb::c_contig, nb::device::cpu>& ssim, const Scalar<T>& error,
             const Images<T>& slope) {
  const auto in = make_inputs(images, targets, mask);
  const auto kind = static_cast<photometric::Error>(error_kind);
  T *ssim_out = data_or_null(ssim), *error_out = error.data(), *slope_out = data_or_null(slope);
  nb::gil_scoped_release release;
  photometric::routines(T()).forward(in, kind, threads, ssim_out, error_out, slope_out);
}

// A gradient, or 0 where there is none. A tensor, so that Python need not read it.
template <typename T>
using Number = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <typename T>
double value_of(const Number<const T>& number) {
  return number.size() == 0 ? 0.0 : static_cast<double>(*number.data());
}

template <typename T>
void backward(const Images<const T>& images, const Targets& targets, const Mask& mask,
              int error_kind, int threads, const Images<const T>& slope,
              const Number<const T>& grad_ssim, const Number<const T>& grad_error,
              const Images<T>& gradient) {
  const auto in = make_inputs(images, targets, mask);
  const auto kind = static_cast<photometric::Error>(error_kind);
  const T* slope_in = data_or_null(slope);
  nb::gil_scoped_release release;
  const photometric::Upstream upstream{value_of(grad_ssim), value_of(grad_error)};
  photometric::routines(T()).backward(in, kind, threads, slope_in, upstream, gradient.data());
}

template <typename T>
void bind(nb::module_& m) {
  m.def("forward", &forward<T>, nb::arg("images").noconvert(), nb::arg("targets").noconvert(),
        nb::arg("mask").noconvert(), nb::arg("error_kind"), nb::arg("threads"),
        nb::arg("ssim").noconvert(), nb::arg("error").noconvert(), nb::arg("slope").noconvert());
  m.def("backward", &backward<T>, nb::arg("images").noconvert(), nb::arg("targets").noconvert(),
        nb::arg("mask").noconvert(), nb::arg("error_kind"), nb::arg("threads"),
        nb::arg("slope").noconvert(), nb::arg("grad_ssim").noconvert(),
        nb::arg("grad_error").noconvert(), nb::arg("gradient").noconvert());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of photometric_loss; called through photometric_loss.compare.";
  m.attr("isa") = photometric::levels().name();
  m.attr("isas") = photometric::levels().names();
  bind<float>(m);
  bind<double>(m);
}
