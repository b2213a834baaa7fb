// Binds the CUDA stages. Tensors come as addresses, checked and laid out by
// diff_gaussian_rasterization.cuda; 0 is a tensor that is not there.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>
#include <string>

#include "cuda_rasterizer.h"
#include "native/cuda_host.h"

namespace nb = nanobind;

namespace gr {
namespace {

using Address = std::uintptr_t;
using Stream = std::uintptr_t;

// A tensor with a leading batch dimension: its address, and the elements between views or 0.
using Tensor = std::array<std::int64_t, 2>;

template <typename T>
Batched<T> batched(const Tensor& tensor) {
  return {native::pointer<T>(static_cast<Address>(tensor[0])), tensor[1]};
}

// width, height, sh_degree, sh_rows, views, gaussians, channels, extras, layers, shared, raw
using Sizes = std::array<int, 11>;
// means, opacities, sh, colors, extra, scales, rotations, cov3d, view, projection, position, tan_fov,
// background, layer_start
using InputTensors = std::array<Tensor, 14>;

// scale_modifier, near_plane
using Scalars = std::array<double, 2>;

template <typename S>
Inputs<S> make_inputs(const Sizes& sizes, const Scalars& scalars, const InputTensors& t) {
  Inputs<S> in;
  in.width = sizes[0];
  in.height = sizes[1];
  in.sh_degree = sizes[2];
  in.sh_rows = sizes[3];
  in.views = sizes[4];
  in.gaussians = sizes[5];
  in.channels = sizes[6];
  in.extras = sizes[7];
  in.layers = sizes[8];
  in.shared = sizes[9] != 0;
  in.raw = sizes[10] != 0;
  in.scale_modifier = static_cast<S>(scalars[0]);
  in.near_plane = static_cast<S>(scalars[1]);
  Batched<const S>* const members[] = {&in.means,      &in.opacities, &in.sh,        &in.colors,
                                       &in.extra,      &in.scales,    &in.rotations, &in.cov3d,
                                       &in.view,       &in.projection, &in.position, &in.tan_fov};
  for (int k = 0; k < 12; ++k) *members[k] = batched<const S>(t[k]);
  in.background = batched<const S>(t[12]).data;
  in.layer_start = batched<const std::int32_t>(t[13]).data;
  return in;
}

// geometry, features, footprints, tiles, first_slot, keys, numbers
using SplatTensors = std::array<Address, 7>;

int feature_stride(int sums) { return (sums + 3) / 4 * 4; }

template <typename S>
cuda::SplatArrays<S> make_splats(const SplatTensors& t, int sums) {
  using native::pointer;
  return {pointer<cuda::Geometry<S>>(t[0]), pointer<S>(t[1]),
          pointer<Footprint<S>>(t[2]),      pointer<std::int32_t>(t[3]),
          pointer<std::int32_t>(t[4]),      pointer<cuda::DepthKey<S>>(t[5]),
          pointer<std::uint32_t>(t[6]),     feature_stride(sums)};
}

// slots by place, splats by slot, tile_start, bucket_start
using PairTensors = std::array<Address, 4>;

cuda::PairArrays make_pairs(const PairTensors& t) {
  using native::pointer;
  return {pointer<const std::uint32_t>(t[0]), pointer<const std::int32_t>(t[1]),
          pointer<const std::int32_t>(t[2]), pointer<const std::int32_t>(t[3])};
}

// checkpoints, final sums, final transmittance, last
using KeptTensors = std::array<Address, 4>;

template <typename S>
cuda::KeptArrays<S> make_kept(const KeptTensors& t) {
  using native::pointer;
  return {pointer<S>(t[0]), pointer<S>(t[1]), pointer<S>(t[2]), pointer<std::int32_t>(t[3])};
}

// means, means2d, opacities, sh, colors, extra, scales, rotations, cov3d
using GradientTensors = std::array<Tensor, 9>;

template <typename S>
InputGradients<S> make_gradients(const GradientTensors& t) {
  InputGradients<S> grad;
  Batched<S>* const members[] = {&grad.means,  &grad.means2d, &grad.opacities,
                                 &grad.sh,     &grad.colors,  &grad.extra,
                                 &grad.scales, &grad.rotations, &grad.cov3d};
  for (int k = 0; k < 9; ++k) *members[k] = batched<S>(t[k]);
  return grad;
}

template <typename S>
void project(int device, Stream stream, const Sizes& sizes, const Scalars& scalars,
             const InputTensors& inputs, const SplatTensors& splats, Address radii) {
  const native::DeviceGuard guard(device);
  const Inputs<S> in = make_inputs<S>(sizes, scalars, inputs);
  cuda::project(in, make_splats<S>(splats, in.sums()), native::pointer<std::int32_t>(radii),
                native::stream_of(stream));
}

template <typename Key>
void sort(int device, Stream stream, Address scratch, std::int64_t bytes, Address keys,
          Address sorted_keys, Address values, Address sorted_values, std::int64_t count,
          int bits) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  cuda::sort(pointer<void>(scratch), bytes, pointer<const Key>(keys), pointer<Key>(sorted_keys),
             pointer<const std::uint32_t>(values), pointer<std::uint32_t>(sorted_values), count,
             bits, native::stream_of(stream));
}

void place_splats(int device, Stream stream, Address scratch, std::int64_t bytes, Address order,
                  Address tiles, std::int64_t splats, Address counts, Address offsets) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  cuda::place_splats(pointer<void>(scratch), bytes, pointer<const std::uint32_t>(order),
                     pointer<const std::int32_t>(tiles), splats, pointer<std::int64_t>(counts),
                     pointer<std::int64_t>(offsets), native::stream_of(stream));
}

template <typename S, typename Key>
void list_pairs(int device, Stream stream, const Sizes& sizes, const Scalars& scalars,
                const InputTensors& inputs, const SplatTensors& splats, Address order,
                Address offsets, Address keys, Address slots, Address splat_of_slot) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  const Inputs<S> in = make_inputs<S>(sizes, scalars, inputs);
  cuda::list_pairs(in, make_splats<S>(splats, in.sums()), pointer<const std::uint32_t>(order),
                   pointer<const std::int64_t>(offsets), pointer<Key>(keys),
                   pointer<std::uint32_t>(slots), pointer<std::int32_t>(splat_of_slot),
                   native::stream_of(stream));
}

template <typename Key>
void find_tiles(int device, Stream stream, Address scratch, std::int64_t bytes, Address keys,
                int pairs, int tiles, Address tile_start, Address buckets, Address bucket_start) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  cuda::find_tiles(pointer<void>(scratch), bytes, pointer<const Key>(keys), pairs, tiles,
                   pointer<std::int32_t>(tile_start), pointer<std::int32_t>(buckets),
                   pointer<std::int32_t>(bucket_start), native::stream_of(stream));
}

// `images`: color, alpha, depth.
template <typename S>
void blend(int device, Stream stream, const Sizes& sizes, const Scalars& scalars,
           const InputTensors& inputs, const SplatTensors& splats, const PairTensors& pairs,
           const std::array<Address, 3>& images, const KeptTensors& kept) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  const Inputs<S> in = make_inputs<S>(sizes, scalars, inputs);
  const Outputs<S> out{pointer<S>(images[0]), pointer<S>(images[1]), pointer<S>(images[2]),
                       nullptr};
  cuda::blend(in, make_splats<S>(splats, in.sums()), make_pairs(pairs), out,
              make_kept<S>(kept), native::stream_of(stream));
}

template <typename S>
void blend_backward(int device, Stream stream, const Sizes& sizes, const Scalars& scalars,
                    const InputTensors& inputs, const SplatTensors& splats,
                    const PairTensors& pairs, std::int64_t most_buckets,
                    const std::array<Address, 3>& images, const GradientTensors& gradients,
                    const KeptTensors& kept, Address pair_values) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  const Inputs<S> in = make_inputs<S>(sizes, scalars, inputs);
  const ImageGradients<S> image{pointer<const S>(images[0]), pointer<const S>(images[1]),
                                pointer<const S>(images[2])};
  cuda::blend_backward(in, make_splats<S>(splats, in.sums()), make_pairs(pairs), most_buckets,
                       image, wanted_of(in, make_gradients<S>(gradients), true),
                       make_kept<S>(kept), pointer<S>(pair_values), native::stream_of(stream));
}

template <typename S>
void project_backward(int device, Stream stream, const Sizes& sizes, const Scalars& scalars,
                      const InputTensors& inputs, const SplatTensors& splats, Address pair_values,
                      Address sums, const GradientTensors& gradients) {
  const native::DeviceGuard guard(device);
  const Inputs<S> in = make_inputs<S>(sizes, scalars, inputs);
  const InputGradients<S> grad = make_gradients<S>(gradients);
  cuda::project_backward(in, make_splats<S>(splats, in.sums()),
                         native::pointer<const S>(pair_values), native::pointer<S>(sums),
                         wanted_of(in, grad, true), grad, native::stream_of(stream));
}

template <typename S>
void visible(int device, Stream stream, Address positions, Address view, std::int64_t count,
             Address out) {
  using native::pointer;
  const native::DeviceGuard guard(device);
  cuda::mark_visible(pointer<const S>(positions), pointer<const S>(view), count,
                     pointer<bool>(out), native::stream_of(stream));
}

template <typename S>
void bind(nb::module_& m, const std::string& suffix) {
  m.def(("project" + suffix).c_str(), &project<S>);
  m.def(("list_pairs" + suffix).c_str(), &list_pairs<S, std::uint32_t>);
  m.def(("blend" + suffix).c_str(), &blend<S>);
  m.def(("blend_backward" + suffix).c_str(), &blend_backward<S>);
  m.def(("project_backward" + suffix).c_str(), &project_backward<S>);
  m.def(("mark_visible" + suffix).c_str(), &visible<S>);
}

}  // namespace
}  // namespace gr

NB_MODULE(_cuda, m) {
  using namespace gr;
  m.doc() = "CUDA stages of the rasteriser; called through diff_gaussian_rasterization.rasterize.";
  m.attr("bucket") = cuda::kBucket;
  m.attr("tile_size") = kTile;
  m.def("feature_stride", &feature_stride);
  m.def("value_stride", &cuda::value_stride);
  m.def("geometry_bytes",
        [](bool wide) { return wide ? sizeof(cuda::Geometry<double>) : sizeof(cuda::Geometry<float>); });
  m.def("footprint_bytes",
        [](bool wide) { return wide ? sizeof(Footprint<double>) : sizeof(Footprint<float>); });
  m.def("sort_bytes", &cuda::sort_bytes);
  m.def("scan_bytes", &cuda::scan_bytes);
  m.def("sort_u32", &sort<std::uint32_t>);
  m.def("sort_u64", &sort<std::uint64_t>);
  m.def("place_splats", &place_splats);
  m.def("find_tiles_u32", &find_tiles<std::uint32_t>);
  m.def("find_tiles_u64", &find_tiles<std::uint64_t>);
  m.def("list_pairs_by_depth_f32", &list_pairs<float, std::uint64_t>);
  bind<float>(m, "_f32");
  bind<double>(m, "_f64");
}
