// Python bindings: tensors cross as DLPack arrays; nothing here knows of torch.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "light.h"
#include "rasterizer.h"

namespace nb = nanobind;

namespace gr {
namespace {

template <typename S>
using Array = nb::ndarray<S, nb::device::cpu>;
template <typename S>
using MaybeArray = std::optional<Array<S>>;

// The dimensions after the first must be contiguous; the first may have any stride. Of nothing at all
// torch calls any strides contiguous.
template <typename T>
Batched<T> batched(const Array<T>& array, std::int64_t views, std::int64_t per_view,
                   const char* name) {
  std::int64_t inner = 1;
  for (std::size_t d = array.ndim(); d-- > 1;) {
    if (array.size() != 0 && array.shape(d) != 1 && array.stride(d) != inner) {
      throw nb::value_error((std::string(name) + " must be contiguous in each view").c_str());
    }
    inner *= static_cast<std::int64_t>(array.shape(d));
  }
  const std::int64_t batch = array.ndim() == 0 ? 0 : static_cast<std::int64_t>(array.shape(0));
  if (inner != per_view || (batch != 1 && batch != views)) {
    throw nb::value_error((std::string(name) + " has the wrong size").c_str());
  }
  return {array.data(), batch == 1 ? 0 : array.stride(0)};
}

template <typename T>
Batched<T> batched(const MaybeArray<T>& array, std::int64_t views, std::int64_t per_view,
                   const char* name) {
  return array ? batched(*array, views, per_view, name) : Batched<T>();
}

template <typename S>
const S* data_of(const MaybeArray<const S>& array) {
  return array ? array->data() : nullptr;
}

// means, opacities, sh, colors, features, scales, rotations, cov3d
template <typename S>
using PartTensors = std::array<MaybeArray<const S>, 8>;
// means, means2d, opacities, sh, colors, features, scales, rotations, cov3d
template <typename S>
using PartGradients = std::array<MaybeArray<S>, 9>;

// The inputs of one call; Python keeps it for the backward pass together with the tensors.
template <typename S>
struct HostInputs {
  Inputs<S> whole;
  std::vector<Inputs<S>> parts;  // of each layer, or one

  HostInputs() = default;
  HostInputs(HostInputs&&) = default;
  HostInputs(const HostInputs&) = delete;  // `whole` points into `parts`
};

// `in` with the tensors of a part.
template <typename S>
Inputs<S> with_tensors(Inputs<S> in, const PartTensors<S>& t) {
  if (!t[0] || !t[1]) throw nb::value_error("means3D and opacities are missing");
  in.gaussians = static_cast<int>(t[0]->shape(1));
  in.sh_rows = t[2] ? static_cast<int>(t[2]->shape(2)) : 0;
  const std::int64_t b = in.views, n = in.gaussians;
  in.means = batched(t[0], b, 3 * n, "means3D");
  in.opacities = batched(t[1], b, n, "opacities");
  in.sh = batched(t[2], b, 3 * n * in.sh_rows, "shs");
  in.colors = batched(t[3], b, n * in.channels, "colors");
  in.extra = batched(t[4], b, n * in.extras, "features");
  in.scales = batched(t[5], b, 3 * n, "scales");
  in.rotations = batched(t[6], b, 4 * n, "rotations");
  in.cov3d = batched(t[7], b, 6 * n, "cov3Ds");
  return in;
}

template <typename S>
HostInputs<S> make_inputs(int width, int height, int sh_degree, double scale_modifier, double near_plane,
                          bool raw, bool shared, const std::vector<PartTensors<S>>& tensors,
                          const Array<const S>& view, const Array<const S>& projection,
                          const Array<const S>& position, const Array<const S>& tan_fov,
                          const Array<const S>& background,
                          const MaybeArray<const std::int32_t>& layer_start) {
  if (tensors.empty()) throw nb::value_error("there are no Gaussians");
  Inputs<S> in;
  in.views = static_cast<int>(view.shape(0));
  in.extras = tensors[0][4] ? static_cast<int>(tensors[0][4]->shape(2)) : 0;
  in.channels = static_cast<int>(background.shape(0)) - in.extras;
  in.width = width;
  in.height = height;
  in.sh_degree = sh_degree;
  in.scale_modifier = static_cast<S>(scale_modifier);
  in.near_plane = static_cast<S>(near_plane);
  in.raw = raw;
  in.shared = shared;
  in.layers = layer_start ? static_cast<int>(layer_start->shape(0)) - 1 : 1;
  in.layer_start = data_of<std::int32_t>(layer_start);
  const std::int64_t b = in.views;
  in.view = batched(view, b, 16, "viewmatrices");
  in.projection = batched(projection, b, 16, "projmatrices");
  in.position = batched(position, b, 3, "camposs");
  in.tan_fov = batched(tan_fov, b, 2, "tanfov");
  in.background = background.data();
  HostInputs<S> made;
  for (const PartTensors<S>& part : tensors) made.parts.push_back(with_tensors(in, part));
  made.whole = made.parts[0];
  if (made.parts.size() == 1) return made;
  if (made.parts.size() != static_cast<std::size_t>(in.layers)) {
    throw nb::value_error("each layer must have tensors of its own");
  }
  made.whole.parts = made.parts.data();
  made.whole.gaussians = in.layer_start[in.layers];
  return made;
}

template <typename S>
std::unique_ptr<RenderState<S>> forward(const HostInputs<S>& inputs, const Array<S>& color,
                                        const Array<S>& alpha, const Array<S>& depth,
                                        const Array<std::int32_t>& radii, bool keep,
                                        int threads) {
  const Inputs<S>& in = inputs.whole;
  const std::int64_t pixels = std::int64_t(in.width) * in.height * in.layers;
  const Outputs<S> out{batched(color, in.views, in.planes() * pixels, "color").data,
                       batched(alpha, in.views, pixels, "alpha").data,
                       batched(depth, in.views, pixels, "depth").data,
                       batched(radii, in.views, in.gaussians, "radii").data};
  const nb::gil_scoped_release release;
  return render(in, out, keep, threads);
}

template <typename S>
InputGradients<S> make_gradients(const Inputs<S>& in, const PartGradients<S>& g) {
  const std::int64_t b = in.views, n = in.gaussians;
  InputGradients<S> grad;
  grad.means = batched(g[0], b, 3 * n, "grad of means3D");
  grad.means2d = batched(g[1], b, 3 * n, "grad of means2D");
  grad.opacities = batched(g[2], b, n, "grad of opacities");
  grad.sh = batched(g[3], b, 3 * n * in.sh_rows, "grad of shs");
  grad.colors = batched(g[4], b, n * in.channels, "grad of colors");
  grad.extra = batched(g[5], b, n * in.extras, "grad of features");
  grad.scales = batched(g[6], b, 3 * n, "grad of scales");
  grad.rotations = batched(g[7], b, 4 * n, "grad of rotations");
  grad.cov3d = batched(g[8], b, 6 * n, "grad of cov3Ds");
  return grad;
}

template <typename S>
void backward(const HostInputs<S>& inputs, const RenderState<S>& state,
              const MaybeArray<const S>& color, const MaybeArray<const S>& alpha,
              const MaybeArray<const S>& depth, const std::vector<PartGradients<S>>& gradients,
              int threads) {
  if (gradients.size() != inputs.parts.size()) throw nb::value_error("a part has no gradients");
  std::vector<InputGradients<S>> grads;
  for (std::size_t k = 0; k < gradients.size(); ++k) {
    grads.push_back(make_gradients(inputs.parts[k], gradients[k]));
  }
  const ImageGradients<S> image{data_of<S>(color), data_of<S>(alpha), data_of<S>(depth)};
  const nb::gil_scoped_release release;
  render_backward(inputs.whole, state, image, grads, threads);
}

template <typename S>
void visible(const Array<const S>& positions, const Array<const S>& view, const Array<bool>& out) {
  const nb::gil_scoped_release release;
  mark_visible(positions.data(), view.data(), static_cast<int>(positions.shape(0)), out.data());
}

// For benchmarks only.
template <typename S>
nb::dict work(const HostInputs<S>& inputs, const RenderState<S>& state, int threads) {
  nb::dict found;
  const auto count = [&](const char* name, std::int64_t WorkCounts::*field,
                         const std::vector<WorkCounts>& views) {
    std::int64_t sum = 0;
    for (const WorkCounts& view : views) sum += view.*field;
    found[name] = sum;
  };
  std::vector<WorkCounts> views;
  {
    const nb::gil_scoped_release release;
    for (const ViewState<S>& view : state.views) {
      views.push_back(stages(S()).count_work(inputs.whole, view, threads));
    }
  }
  count("looked_at", &WorkCounts::looked_at, views);
  count("blended", &WorkCounts::blended, views);
  count("lanes", &WorkCounts::lanes, views);
  count("looked_at_back", &WorkCounts::looked_at_back, views);
  count("listed", &WorkCounts::listed, views);
  count("tiles", &WorkCounts::tiles, views);
  count("drawn", &WorkCounts::drawn, views);
  return found;
}

template <typename S>
void bind(nb::module_& m, const std::string& suffix) {
  nb::class_<HostInputs<S>>(m, ("Inputs" + suffix).c_str());
  nb::class_<RenderState<S>>(m, ("RenderState" + suffix).c_str());
  m.def(("inputs" + suffix).c_str(), &make_inputs<S>, nb::arg("width"), nb::arg("height"),
        nb::arg("sh_degree"), nb::arg("scale_modifier"), nb::arg("near_plane"), nb::arg("raw"),
        nb::arg("shared"), nb::arg("parts"), nb::arg("view"), nb::arg("projection"),
        nb::arg("position"), nb::arg("tan_fov"), nb::arg("background"),
        nb::arg("layer_start").none());
  m.def(("forward" + suffix).c_str(), &forward<S>, nb::arg("inputs"), nb::arg("color").noconvert(),
        nb::arg("alpha").noconvert(), nb::arg("depth").noconvert(), nb::arg("radii").noconvert(),
        nb::arg("keep"), nb::arg("threads"));
  m.def(("backward" + suffix).c_str(), &backward<S>, nb::arg("inputs"), nb::arg("state"),
        nb::arg("color").none(), nb::arg("alpha").none(), nb::arg("depth").none(),
        nb::arg("gradients"), nb::arg("threads"));
  m.def(("mark_visible" + suffix).c_str(), &visible<S>, nb::arg("positions"), nb::arg("view"),
        nb::arg("visible").noconvert());
  m.def(("count_work" + suffix).c_str(), &work<S>, nb::arg("inputs"), nb::arg("state"),
        nb::arg("threads"),
        "For benchmarks: the pairs and Gaussians that a finished render had to do with, as light.h.");
}

}  // namespace
}  // namespace gr

NB_MODULE(_native, m) {
  m.doc() = "CPU rasteriser of 3D Gaussians";
  // A graph that is alive at interpreter exit keeps its state alive: no leak of ours.
  nb::set_leak_warnings(false);
  m.attr("tile_size") = gr::kTile;
  m.attr("isa") = gr::levels().name();
  m.attr("isas") = gr::levels().names();
  gr::bind<float>(m, "_f32");
  gr::bind<double>(m, "_f64");
  nb::enum_<gr::BareWork>(m, "BareWork")
      .value("look", gr::BareWork::kLook)
      .value("blend", gr::BareWork::kBlend)
      .value("gather", gr::BareWork::kGather)
      .value("project", gr::BareWork::kProject)
      .value("footprint", gr::BareWork::kFootprint)
      .value("spans", gr::BareWork::kSpans)
      .value("color", gr::BareWork::kColor)
      .value("project_back", gr::BareWork::kProjectBack)
      .value("color_back", gr::BareWork::kColorBack)
      .value("multiply_add", gr::BareWork::kMultiplyAdd);
  m.def("bare_kernel_ns", gr::levels().kernels().bare_kernel_ns, nb::arg("count"), nb::arg("work"),
        nb::call_guard<nb::gil_scoped_release>(),
        "For benchmarks: one thread's nanoseconds per item, the arithmetic alone; per\n"
        "multiplication and addition for `multiply_add`.");
}
