// Python bindings: tensors cross as DLPack arrays; nothing here knows of torch.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "light.h"
#include "rasterizer.h"

namespace nb = nanobind;

namespace gr {
namespace {

template <typename S>
using Array = nb::ndarray<S, nb::device::cpu>;
template <typename S>
using MaybeArray = std::optional<Array<S>>;

// The dimensions after the first must be contiguous; the first may have any stride.
template <typename T>
Batched<T> batched(const Array<T>& array, std::int64_t views, std::int64_t per_view,
                   const char* name) {
  std::int64_t inner = 1;
  for (std::size_t d = array.ndim(); d-- > 1;) {
    if (array.shape(d) != 1 && array.stride(d) != inner) {
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

// The inputs of one call; Python keeps it for the backward pass together with the tensors.
template <typename S>
Inputs<S> make_inputs(int width, int height, int sh_degree, double scale_modifier, bool raw,
                      const Array<const S>& means, const Array<const S>& opacities,
                      const MaybeArray<const S>& sh, const MaybeArray<const S>& colors,
                      const MaybeArray<const S>& extra, const MaybeArray<const S>& scales, const MaybeArray<const S>& rotations,
                      const MaybeArray<const S>& cov3d, const Array<const S>& view,
                      const Array<const S>& projection, const Array<const S>& position,
                      const Array<const S>& tan_fov, const Array<const S>& background,
                      const MaybeArray<const std::int32_t>& layer_start, bool shared) {
  Inputs<S> in;
  in.views = static_cast<int>(view.shape(0));
  in.gaussians = static_cast<int>(means.shape(1));
  in.extras = extra ? static_cast<int>(extra->shape(2)) : 0;
  in.channels = static_cast<int>(background.shape(0)) - in.extras;
  in.layers = layer_start ? static_cast<int>(layer_start->shape(0)) - 1 : 1;
  in.layer_start = data_of<std::int32_t>(layer_start);
  in.shared = shared;
  in.width = width;
  in.height = height;
  in.sh_degree = sh_degree;
  in.sh_rows = sh ? static_cast<int>(sh->shape(2)) : 0;
  in.scale_modifier = static_cast<S>(scale_modifier);
  in.raw = raw;
  const std::int64_t b = in.views, n = in.gaussians;
  in.means = batched(means, b, 3 * n, "means3D");
  in.opacities = batched(opacities, b, n, "opacities");
  in.sh = batched(sh, b, 3 * n * in.sh_rows, "shs");
  in.colors = batched(colors, b, n * in.channels, "colors");
  in.extra = batched(extra, b, n * in.extras, "features");
  in.scales = batched(scales, b, 3 * n, "scales");
  in.rotations = batched(rotations, b, 4 * n, "rotations");
  in.cov3d = batched(cov3d, b, 6 * n, "cov3Ds");
  in.view = batched(view, b, 16, "viewmatrices");
  in.projection = batched(projection, b, 16, "projmatrices");
  in.position = batched(position, b, 3, "camposs");
  in.tan_fov = batched(tan_fov, b, 2, "tanfov");
  in.background = background.data();
  return in;
}

template <typename S>
std::unique_ptr<RenderState<S>> forward(const Inputs<S>& in, const Array<S>& color,
                                        const Array<S>& alpha, const Array<S>& depth,
                                        const Array<std::int32_t>& radii, bool keep,
                                        int threads) {
  const std::int64_t pixels = std::int64_t(in.width) * in.height * in.layers;
  const Outputs<S> out{batched(color, in.views, in.planes() * pixels, "color").data,
                       batched(alpha, in.views, pixels, "alpha").data,
                       batched(depth, in.views, pixels, "depth").data,
                       batched(radii, in.views, in.gaussians, "radii").data};
  const nb::gil_scoped_release release;
  return render(in, out, keep, threads);
}

template <typename S>
void backward(const Inputs<S>& in, const RenderState<S>& state, const MaybeArray<const S>& color,
              const MaybeArray<const S>& alpha, const MaybeArray<const S>& depth,
              const MaybeArray<S>& means, const MaybeArray<S>& means2d,
              const MaybeArray<S>& opacities, const MaybeArray<S>& sh, const MaybeArray<S>& colors,
              const MaybeArray<S>& extra, const MaybeArray<S>& scales, const MaybeArray<S>& rotations,
              const MaybeArray<S>& cov3d, int threads) {
  const std::int64_t b = in.views, n = in.gaussians;
  InputGradients<S> grad;
  grad.means = batched(means, b, 3 * n, "grad of means3D");
  grad.means2d = batched(means2d, b, 3 * n, "grad of means2D");
  grad.opacities = batched(opacities, b, n, "grad of opacities");
  grad.sh = batched(sh, b, 3 * n * in.sh_rows, "grad of shs");
  grad.colors = batched(colors, b, n * in.channels, "grad of colors");
  grad.extra = batched(extra, b, n * in.extras, "grad of features");
  grad.scales = batched(scales, b, 3 * n, "grad of scales");
  grad.rotations = batched(rotations, b, 4 * n, "grad of rotations");
  grad.cov3d = batched(cov3d, b, 6 * n, "grad of cov3Ds");
  const ImageGradients<S> image{data_of<S>(color), data_of<S>(alpha), data_of<S>(depth)};
  const nb::gil_scoped_release release;
  render_backward(in, state, image, grad, threads);
}

template <typename S>
void visible(const Array<const S>& positions, const Array<const S>& view, const Array<bool>& out) {
  const nb::gil_scoped_release release;
  mark_visible(positions.data(), view.data(), static_cast<int>(positions.shape(0)), out.data());
}

// For benchmarks only.
template <typename S>
nb::dict pairs(const Inputs<S>& in, const RenderState<S>& state, int threads) {
  PairCounts counts;
  {
    const nb::gil_scoped_release release;
    for (const ViewState<S>& view : state.views) {
      const PairCounts more = stages(S()).count_pairs(in, view, threads);
      counts.looked_at += more.looked_at;
      counts.blended += more.blended;
      counts.lanes += more.lanes;
      counts.looked_at_back += more.looked_at_back;
    }
  }
  nb::dict found;
  found["looked_at"] = counts.looked_at;
  found["blended"] = counts.blended;
  found["lanes"] = counts.lanes;
  found["looked_at_back"] = counts.looked_at_back;
  return found;
}

template <typename S>
void bind(nb::module_& m, const std::string& suffix) {
  nb::class_<Inputs<S>>(m, ("Inputs" + suffix).c_str());
  nb::class_<RenderState<S>>(m, ("RenderState" + suffix).c_str());
  m.def(("inputs" + suffix).c_str(), &make_inputs<S>, nb::arg("width"), nb::arg("height"),
        nb::arg("sh_degree"), nb::arg("scale_modifier"), nb::arg("raw"), nb::arg("means"),
        nb::arg("opacities"),
        nb::arg("sh").none(), nb::arg("colors").none(), nb::arg("extra").none(),
        nb::arg("scales").none(), nb::arg("rotations").none(), nb::arg("cov3d").none(),
        nb::arg("view"), nb::arg("projection"), nb::arg("position"), nb::arg("tan_fov"),
        nb::arg("background"), nb::arg("layer_start").none(), nb::arg("shared"));
  m.def(("forward" + suffix).c_str(), &forward<S>, nb::arg("inputs"), nb::arg("color").noconvert(),
        nb::arg("alpha").noconvert(), nb::arg("depth").noconvert(), nb::arg("radii").noconvert(),
        nb::arg("keep"), nb::arg("threads"));
  m.def(("backward" + suffix).c_str(), &backward<S>, nb::arg("inputs"), nb::arg("state"),
        nb::arg("color").none(), nb::arg("alpha").none(), nb::arg("depth").none(),
        nb::arg("means").none(), nb::arg("means2d").none(), nb::arg("opacities").none(),
        nb::arg("sh").none(), nb::arg("colors").none(), nb::arg("extra").none(),
        nb::arg("scales").none(), nb::arg("rotations").none(), nb::arg("cov3d").none(),
        nb::arg("threads"));
  m.def(("mark_visible" + suffix).c_str(), &visible<S>, nb::arg("positions"), nb::arg("view"),
        nb::arg("visible").noconvert());
  m.def(("count_pairs" + suffix).c_str(), &pairs<S>, nb::arg("inputs"), nb::arg("state"),
        nb::arg("threads"),
        "For benchmarks: the (pixel, splat) pairs that a finished render had to look at.");
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
      .value("gather", gr::BareWork::kGather);
  m.def("bare_kernel_ns", gr::levels().kernels().bare_kernel_ns, nb::arg("pairs"), nb::arg("work"),
        nb::call_guard<nb::gil_scoped_release>(),
        "For benchmarks: one thread's nanoseconds per (pixel, splat) pair, the arithmetic alone.");
}
