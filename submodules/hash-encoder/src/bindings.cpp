// Binds the CPU encoder to ndarrays. Shapes are checked on the Python side, where errors can name
// the argument; here the types guarantee dtype, rank, contiguity and device, and `check` that no
// index can leave its array.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "hash_grid_cpu.h"

namespace nb = nanobind;

namespace {

template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A grid as `hash_encoder.HashGrid` describes it.
struct Layout {
  std::vector<std::vector<double>> scales;    // (L, D)
  std::vector<std::vector<int>> resolutions;  // (L, D)
  std::vector<std::int64_t> offsets;          // (L + 1)
  std::vector<bool> hashed;                   // (L)
  int features;
  bool smooth;
};

void check(bool fits, const char* what) {
  if (!fits) throw nb::value_error(what);
}

// Axes of one level; returns the rows that a dense level needs.
template <typename T>
std::int64_t make_axes(const std::vector<double>& scales, const std::vector<int>& resolutions,
                       hashgrid::Level<T>& level) {
  std::int64_t stride = 1;
  for (std::size_t d = 0; d < scales.size(); ++d) {
    const int resolution = resolutions[d];
    check(resolution >= 1 && scales[d] >= 0 && scales[d] <= resolution - 1,
          "axis beyond its samples");
    hashgrid::LevelAxis<T>& axis = level.axes[d];
    axis.scale = static_cast<T>(scales[d]);
    axis.last = std::max(resolution - 2, 0);
    axis.unit = level.hashed ? hashgrid::prime(static_cast<int>(d))
                             : static_cast<std::uint32_t>(stride);
    axis.step = resolution > 1 ? axis.unit : 0;
    check(level.hashed || stride <= (std::int64_t(1) << 31) / resolution, "dense level too large");
    if (!level.hashed) stride *= resolution;
  }
  return stride;
}

template <typename T>
hashgrid::Grid<T> make_grid(const Layout& layout) {
  const std::size_t levels = layout.hashed.size();
  check(levels > 0 && layout.scales.size() == levels && layout.resolutions.size() == levels &&
            layout.offsets.size() == levels + 1 && layout.offsets[0] == 0 && layout.features > 0,
        "lists of levels that do not fit each other");
  const std::size_t dims = layout.scales[0].size();
  check(dims >= hashgrid::kMinDims && dims <= hashgrid::kMaxDims, "dims must be 2 to 4");
  hashgrid::Grid<T> grid{std::vector<hashgrid::Level<T>>(levels), layout.offsets[levels],
                         static_cast<int>(dims), layout.features, layout.smooth};
  for (std::size_t l = 0; l < levels; ++l) {
    check(layout.scales[l].size() == dims && layout.resolutions[l].size() == dims, "ragged levels");
    hashgrid::Level<T>& level = grid.levels[l];
    const std::int64_t rows = layout.offsets[l + 1] - layout.offsets[l];
    level.hashed = layout.hashed[l];
    level.offset = layout.offsets[l];
    level.mask = static_cast<std::uint32_t>(rows - 1);
    const std::int64_t needed = make_axes(layout.scales[l], layout.resolutions[l], level);
    const bool power_of_two = rows > 0 && (rows & (rows - 1)) == 0;
    check(level.hashed ? power_of_two : rows >= needed, "level with too few rows");
  }
  return grid;
}

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
  hashgrid::forward(x.data(), count, table.data(), grid, threads, features.data());
}

template <typename T>
void backward_table(const Matrix<const T>& x, const Layout& layout,
                    const Matrix<const T>& grad_features, int threads,
                    const Matrix<T>& grad_table) {
  const hashgrid::Grid<T> grid = make_grid<T>(layout);
  check_arrays<T>(x, grad_table, grad_features.shape(0), grad_features.shape(1), grid);
  const std::int64_t count = static_cast<std::int64_t>(x.shape(0));
  nb::gil_scoped_release release;
  hashgrid::backward_table(x.data(), count, grid, grad_features.data(), threads,
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
  hashgrid::backward_points(x.data(), count, table.data(), grid, grad_features.data(), threads,
                            grad_x.data());
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
  bind<float>(m);
  bind<double>(m);
}
