// Binds the CPU encoder to ndarrays. Shapes are checked on the Python side, where errors can name
// the argument; here the types guarantee dtype, rank, contiguity and device, and `check` and
// `make_grid` that no index can leave its array.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "hash_grid_cpu.h"
#include "layout.h"

namespace nb = nanobind;

namespace hashgrid {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

const Routines<float>& routines(float) { return levels().kernels().f32; }
const Routines<double>& routines(double) { return levels().kernels().f64; }

}  // namespace hashgrid

namespace {

template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using hashgrid::check;
using hashgrid::Layout;
using hashgrid::make_grid;

template <typename T, typename U>
void check_arrays(const Matrix<const T>& x, const Matrix<U>& table, std::size_t feature_rows,
                  std::size_t feature_columns, const hashgrid::Grid<T>& grid) {
  check(x.shape(1) == static_cast<std::size_t>(grid.dims) &&
            table.shape(0) == static_cast<std::size_t>(grid.rows) &&
            table.shape(1) == static_cast<std::size_t>(grid.features) &&
            feature_rows == x.shape(0) &&
            feature_columns == static_cast<std::size_t>(grid.width()),
        "arrays that do not fit the grid");
}

template <typename T>
void forward(const Matrix<const T>& x, const Matrix<const T>& table, const Layout& layout,
             int threads, const Matrix<T>& features) {
  const hashgrid::Grid<T> grid = make_grid<T>(layout);
  check_arrays<T>(x, table, features.shape(0), features.shape(1), grid);
  const std::int64_t count = static_cast<std::int64_t>(x.shape(0));
  nb::gil_scoped_release release;
  hashgrid::routines(T()).forward(x.data(), count, table.data(), grid, threads, features.data());
}

template <typename T>
void backward_table(const Matrix<const T>& x, const Layout& layout,
                    const Matrix<const T>& grad_features, int threads,
                    const Matrix<T>& grad_table) {
  const hashgrid::Grid<T> grid = make_grid<T>(layout);
  check_arrays<T>(x, grad_table, grad_features.shape(0), grad_features.shape(1), grid);
  const std::int64_t count = static_cast<std::int64_t>(x.shape(0));
  nb::gil_scoped_release release;
  hashgrid::routines(T()).backward_table(x.data(), count, grid, grad_features.data(), threads,
                                         grad_table.data());
}

template <typename T>
void backward_points(const Matrix<const T>& x, const Matrix<const T>& table, const Layout& layout,
                     const Matrix<const T>& grad_features, int threads, const Matrix<T>& grad_x) {
  const hashgrid::Grid<T> grid = make_grid<T>(layout);
  check_arrays<T>(x, table, grad_features.shape(0), grad_features.shape(1), grid);
  check(grad_x.shape(0) == x.shape(0) && grad_x.shape(1) == x.shape(1), "grad_x must be as x");
  const std::int64_t count = static_cast<std::int64_t>(x.shape(0));
  nb::gil_scoped_release release;
  hashgrid::routines(T()).backward_points(x.data(), count, table.data(), grid,
                                          grad_features.data(), threads, grad_x.data());
}

template <typename T>
void bind(nb::module_& m) {
  m.def("forward", &forward<T>, nb::arg("x").noconvert(), nb::arg("table").noconvert(),
        nb::arg("layout"), nb::arg("threads"), nb::arg("features").noconvert());
  m.def("backward_table", &backward_table<T>, nb::arg("x").noconvert(), nb::arg("layout"),
        nb::arg("grad_features").noconvert(), nb::arg("threads"),
        nb::arg("grad_table").noconvert());
  m.def("backward_points", &backward_points<T>, nb::arg("x").noconvert(),
        nb::arg("table").noconvert(), nb::arg("layout"), nb::arg("grad_features").noconvert(),
        nb::arg("threads"), nb::arg("grad_x").noconvert());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of hash_encoder; called through hash_encoder.encode.";
  nb::class_<Layout>(m, "Layout")
      .def(
          "__init__",
          [](Layout* self, std::vector<std::vector<double>> scales,
             std::vector<std::vector<int>> resolutions, std::vector<std::int64_t> offsets,
             std::vector<bool> hashed, int features, bool smooth) {
            new (self) Layout{std::move(scales), std::move(resolutions), std::move(offsets),
                              std::move(hashed), features,               smooth};
          },
          nb::arg("scales"), nb::arg("resolutions"), nb::arg("offsets"), nb::arg("hashed"),
          nb::arg("features"), nb::arg("smooth"));
  m.attr("isa") = hashgrid::levels().name();
  m.attr("isas") = hashgrid::levels().names();
  bind<float>(m);
  bind<double>(m);
}
