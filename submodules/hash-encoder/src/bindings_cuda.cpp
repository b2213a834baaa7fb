// Binds the CUDA kernels. Tensors come as (address, number of values), checked and laid out by
// hash_encoder.encoder; here `check` and `make_grid` see to it that no index can leave its array.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "hash_grid_cuda.h"
#include "native/cuda_host.h"

namespace nb = nanobind;

namespace {

using hashgrid::check;
using Array = std::pair<std::uintptr_t, std::int64_t>;

// One description for both types of values.
struct Grids {
  hashgrid::Grid<float> f32;
  hashgrid::Grid<double> f64;
};
constexpr const char* kGrids = "hash_encoder grid";

// A capsule, no class: the emulated kernels may be loaded beside the real ones, and nanobind knows
// classes by their names.
nb::capsule make_grids(std::vector<std::vector<double>> scales,
                       std::vector<std::vector<int>> resolutions,
                       std::vector<std::int64_t> offsets, std::vector<bool> hashed, int features,
                       bool smooth) {
  const hashgrid::Layout layout{std::move(scales), std::move(resolutions), std::move(offsets),
                                std::move(hashed), features,               smooth};
  auto* grids = new Grids{hashgrid::make_grid<float>(layout), hashgrid::make_grid<double>(layout)};
  return nb::capsule(grids, kGrids, [](void* p) noexcept { delete static_cast<Grids*>(p); });
}

template <typename T>
const hashgrid::Grid<T>& grid_of(const nb::capsule& capsule) {
  const auto* grids = static_cast<const Grids*>(capsule.data(kGrids));
  if constexpr (sizeof(T) == 4) {
    return grids->f32;
  } else {
    return grids->f64;
  }
}

template <typename T>
T* data(const Array& array) {
  return native::pointer<T>(array.first);
}

// Returns the number of points.
template <typename T>
std::int64_t check_arrays(const hashgrid::Grid<T>& grid, const Array& x, const Array& table,
                          const Array& features) {
  const std::int64_t count = x.second / grid.dims;
  check(x.second == count * grid.dims && table.second == grid.rows * grid.features &&
            features.second == count * grid.width(),
        "arrays that do not fit the grid");
  return count;
}

template <typename T>
void forward(int device, std::uintptr_t stream, const nb::capsule& grids, const Array& x,
             const Array& table, const Array& features) {
  const hashgrid::Grid<T>& grid = grid_of<T>(grids);
  const std::int64_t count = check_arrays(grid, x, table, features);
  const native::DeviceGuard guard(device);
  hashgrid::forward(data<const T>(x), count, data<const T>(table), grid, data<T>(features),
                    native::stream_of(stream));
}

template <typename T>
void backward_table(int device, std::uintptr_t stream, const nb::capsule& grids, const Array& x,
                    const Array& grad_features, const Array& grad_table) {
  const hashgrid::Grid<T>& grid = grid_of<T>(grids);
  const std::int64_t count = check_arrays(grid, x, grad_table, grad_features);
  const native::DeviceGuard guard(device);
  hashgrid::backward_table(data<const T>(x), count, grid, data<const T>(grad_features),
                           data<T>(grad_table), native::stream_of(stream));
}

template <typename T>
void backward_points(int device, std::uintptr_t stream, const nb::capsule& grids, const Array& x,
                     const Array& table, const Array& grad_features, const Array& grad_x) {
  const hashgrid::Grid<T>& grid = grid_of<T>(grids);
  const std::int64_t count = check_arrays(grid, x, table, grad_features);
  check(grad_x.second == x.second, "grad_x must be as x");
  const native::DeviceGuard guard(device);
  hashgrid::backward_points(data<const T>(x), count, data<const T>(table), grid,
                            data<const T>(grad_features), data<T>(grad_x),
                            native::stream_of(stream));
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of hash_encoder; called through hash_encoder.encode.";
  m.def("make_grid", &make_grids, nb::arg("scales"), nb::arg("resolutions"), nb::arg("offsets"),
        nb::arg("hashed"), nb::arg("features"), nb::arg("smooth"));
  m.def("forward_f32", &forward<float>);
  m.def("forward_f64", &forward<double>);
  m.def("backward_table_f32", &backward_table<float>);
  m.def("backward_table_f64", &backward_table<double>);
  m.def("backward_points_f32", &backward_points<float>);
  m.def("backward_points_f64", &backward_points<double>);
}
