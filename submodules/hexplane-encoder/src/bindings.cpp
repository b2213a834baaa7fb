// Binds the CPU operators to ndarrays. Shapes are checked on the Python side, where errors can name
// the argument; here the types guarantee dtype, rank, contiguity and device.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <vector>

#include "decoder_cpu.h"
#include "hexplane_cpu.h"
#include "roughness_cpu.h"

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

namespace decoder {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

const Routines<float>& routines(float) { return levels().kernels().f32; }
const Routines<double>& routines(double) { return levels().kernels().f64; }

}  // namespace decoder

namespace roughness {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

const Routines<float>& routines(float) { return levels().kernels().f32; }
const Routines<double>& routines(double) { return levels().kernels().f64; }

}  // namespace roughness

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

// Weight and bias of each layer in turn: the first (or none), the inner one, the heads' last ones.
template <typename T>
decoder::Layers<T> make_layers(const Array<const T>& inputs,
                               const std::vector<Array<const T>>& first,
                               const std::vector<Array<const T>>& inner,
                               const std::vector<Array<const T>>& last) {
  if (last.size() > 2 * decoder::kMaxHeads) throw nb::value_error("too many heads");
  decoder::Layers<T> layers{};
  layers.inputs = static_cast<int>(inputs.shape(1));
  layers.heads = static_cast<int>(last.size() / 2);
  layers.width = static_cast<int>(inner[0].shape(1));
  if (!first.empty()) layers.first = first[0].data(), layers.first_bias = first[1].data();
  layers.inner = inner[0].data();
  layers.inner_bias = inner[1].data();
  for (int k = 0; k < layers.heads; ++k) {
    layers.last[k] = last[2 * k].data();
    layers.last_bias[k] = last[2 * k + 1].data();
    layers.outputs[k] = static_cast<int>(last[2 * k].shape(0));
  }
  return layers;
}

template <typename T>
decoder::Gradients<T> make_gradients(const Array<T>& inputs, const std::vector<Array<T>>& first,
                                     const std::vector<Array<T>>& inner,
                                     const std::vector<Array<T>>& last) {
  decoder::Gradients<T> grads{};
  grads.x = inputs.size() == 0 ? nullptr : inputs.data();
  if (!first.empty()) grads.first = first[0].data(), grads.first_bias = first[1].data();
  grads.inner = inner[0].data();
  grads.inner_bias = inner[1].data();
  for (std::size_t k = 0; k < last.size() / 2; ++k) {
    grads.last[k] = last[2 * k].data();
    grads.last_bias[k] = last[2 * k + 1].data();
  }
  return grads;
}

template <typename T>
void decode(const Array<const T>& inputs, const std::vector<Array<const T>>& first,
            const std::vector<Array<const T>>& inner, const std::vector<Array<const T>>& last,
            int threads, const std::vector<Array<T>>& outputs) {
  const decoder::Layers<T> layers = make_layers<T>(inputs, first, inner, last);
  T* pointers[decoder::kMaxHeads];
  for (int k = 0; k < layers.heads; ++k) pointers[k] = outputs[k].data();
  const std::int64_t count = static_cast<std::int64_t>(inputs.shape(0));
  nb::gil_scoped_release release;
  decoder::routines(T()).forward(inputs.data(), count, layers, threads, pointers);
}

// An empty gradient is one that is not there, or not wanted.
template <typename T>
void decode_backward(const Array<const T>& inputs, const std::vector<Array<const T>>& first,
                     const std::vector<Array<const T>>& inner,
                     const std::vector<Array<const T>>& last,
                     const std::vector<Array<const T>>& grad_outputs, int threads,
                     const Array<T>& grad_inputs, const std::vector<Array<T>>& grad_first,
                     const std::vector<Array<T>>& grad_inner,
                     const std::vector<Array<T>>& grad_last) {
  const decoder::Layers<T> layers = make_layers<T>(inputs, first, inner, last);
  const T* pointers[decoder::kMaxHeads];
  for (int k = 0; k < layers.heads; ++k)
    pointers[k] = grad_outputs[k].size() == 0 ? nullptr : grad_outputs[k].data();
  const decoder::Gradients<T> grads = make_gradients(grad_inputs, grad_first, grad_inner, grad_last);
  const std::int64_t count = static_cast<std::int64_t>(inputs.shape(0));
  nb::gil_scoped_release release;
  decoder::routines(T()).backward(inputs.data(), count, layers, pointers, threads, grads);
}

template <typename T>
void bind_decoder(nb::module_& m) {
  m.def("decode", &decode<T>, nb::arg("inputs").noconvert(), nb::arg("first").noconvert(),
        nb::arg("inner").noconvert(), nb::arg("last").noconvert(), nb::arg("threads"),
        nb::arg("outputs").noconvert());
  m.def("decode_backward", &decode_backward<T>, nb::arg("inputs").noconvert(),
        nb::arg("first").noconvert(), nb::arg("inner").noconvert(), nb::arg("last").noconvert(),
        nb::arg("grad_outputs").noconvert(), nb::arg("threads"),
        nb::arg("grad_inputs").noconvert(), nb::arg("grad_first").noconvert(),
        nb::arg("grad_inner").noconvert(), nb::arg("grad_last").noconvert());
}

using Measures = std::array<double, roughness::kMeasures>;

template <typename T>
std::vector<roughness::Plane<T>> make_planes(const std::vector<Array<const T>>& arrays,
                                             const std::vector<Measures>& weights) {
  std::vector<roughness::Plane<T>> planes;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const Array<const T>& array = arrays[i];
    roughness::Plane<T> plane{array.data(), static_cast<std::int64_t>(array.shape(0)),
                              static_cast<std::int64_t>(array.shape(1)),
                              static_cast<std::int64_t>(array.shape(2)), {}};
    for (int m = 0; m < roughness::kMeasures; ++m)
      plane.weight[m] = static_cast<T>(weights[i][m]);
    planes.push_back(plane);
  }
  return planes;
}

template <typename T>
std::vector<Measures> measure(const std::vector<Array<const T>>& arrays,
                              const std::vector<Measures>& weights, int threads) {
  const std::vector<roughness::Plane<T>> planes = make_planes<T>(arrays, weights);
  std::vector<Measures> sums(planes.size());
  nb::gil_scoped_release release;
  roughness::routines(T()).forward(planes.data(), static_cast<int>(planes.size()), threads,
                                   sums.data()->data());
  return sums;
}

template <typename T>
void measure_backward(const std::vector<Array<const T>>& arrays,
                      const std::vector<Measures>& weights, int threads,
                      const std::vector<Array<T>>& grads) {
  const std::vector<roughness::Plane<T>> planes = make_planes<T>(arrays, weights);
  std::vector<T*> pointers;
  for (const Array<T>& grad : grads) pointers.push_back(grad.data());
  nb::gil_scoped_release release;
  roughness::routines(T()).backward(planes.data(), static_cast<int>(planes.size()), threads,
                                    pointers.data());
}

template <typename T>
void bind_roughness(nb::module_& m) {
  m.def("roughness", &measure<T>, nb::arg("planes").noconvert(), nb::arg("weights"),
        nb::arg("threads"));
  m.def("roughness_backward", &measure_backward<T>, nb::arg("planes").noconvert(),
        nb::arg("weights"), nb::arg("threads"), nb::arg("grads").noconvert());
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
  m.doc() = "CPU kernels of hexplane_encoder; called through its Python functions.";
  m.attr("BLOCK_POINTS") = hexplane::kBlockPoints;
  m.attr("MAX_HEADS") = decoder::kMaxHeads;
  m.attr("isa") = hexplane::levels().name();
  m.attr("isas") = hexplane::levels().names();
  bind<float>(m);
  bind<double>(m);
  bind_decoder<float>(m);
  bind_decoder<double>(m);
  bind_roughness<float>(m);
  bind_roughness<double>(m);
}
