// Binds the CPU encoder to ndarrays. Shapes are checked on the Python side, where errors can name
// the argument; here the types guarantee dtype, rank, contiguity and device.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "hexplane_cpu.h"

namespace nb = nanobind;

namespace hexplane {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

const Routines<float>& routines(float) { return levels().kernels().f32; }
const Routines<double>& routines(double) { return levels().kernels().f64; }

}  // namespace hexplane

namespace {

template <typename T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// Planes (height, width, C) and lines (length, C), in the order of the factors.
template <typename Value>
hexplane::Grids<Value> make_grids(const std::vector<Array<Value>>& arrays) {
  if (arrays.size() != hexplane::kFactors) throw nb::value_error("expected 3 planes and 3 lines");
  hexplane::Grids<Value> grids;
  for (int k = 0; k < hexplane::kFactors; ++k) {
    const Array<Value>& array = arrays[k];
    const bool plane = k < hexplane::kPlanes;
    if (array.ndim() != (plane ? 3u : 2u)) throw nb::value_error("grid of the wrong rank");
    grids.data[k] = array.data();
    grids.height[k] = static_cast<int>(array.shape(0));
    grids.width[k] = plane ? static_cast<int>(array.shape(1)) : 1;
  }
  grids.channels = static_cast<int>(arrays[hexplane::kPlanes].shape(1));
  return grids;
}

template <typename T>
void forward(const Array<const T>& xyz, const std::vector<Array<const T>>& grids, int threads,
             const Array<T>& features) {
  const hexplane::Grids<const T> values = make_grids<const T>(grids);
  const std::int64_t count = static_cast<std::int64_t>(xyz.shape(0));
  nb::gil_scoped_release release;
  hexplane::routines(T()).forward(xyz.data(), count, values, threads, features.data());
}

template <typename T>
void backward(const Array<const T>& xyz, const std::vector<Array<const T>>& grids,
              const Array<const T>& grad_features, int threads, const Array<T>& grad_xyz,
              const std::vector<Array<T>>& grad_grids, const Array<T>& partials,
              const Array<std::int32_t>& rows) {
  const hexplane::Grids<const T> values = make_grids<const T>(grids);
  hexplane::Grids<T> grads{};
  if (!grad_grids.empty()) grads = make_grids<T>(grad_grids);
  const std::int64_t count = static_cast<std::int64_t>(xyz.shape(0));
  const hexplane::BackwardOutputs<T> out{grad_xyz.size() == 0 ? nullptr : grad_xyz.data(),
                                         grad_grids.empty() ? nullptr : &grads, partials.data(),
                                         rows.data()};
  nb::gil_scoped_release release;
  hexplane::routines(T()).backward(xyz.data(), count, values, grad_features.data(), threads, out);
}

template <typename T>
void bind(nb::module_& m) {
  m.def("forward", &forward<T>, nb::arg("xyz").noconvert(), nb::arg("grids").noconvert(),
        nb::arg("threads"), nb::arg("features").noconvert());
  m.def("backward", &backward<T>, nb::arg("xyz").noconvert(), nb::arg("grids").noconvert(),
        nb::arg("grad_features").noconvert(), nb::arg("threads"),
        nb::arg("grad_xyz").noconvert(), nb::arg("grad_grids").noconvert(),
        nb::arg("partials").noconvert(), nb::arg("rows").noconvert());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of hexplane_encoder; called through hexplane_encoder.encode.";
  m.attr("BLOCK_POINTS") = hexplane::kBlockPoints;
  m.attr("isa") = hexplane::levels().name();
  m.attr("isas") = hexplane::levels().names();
  bind<float>(m);
  bind<double>(m);
}
