// Binds the neighbour search to ndarrays; shapes are checked on the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "knn.h"

namespace nb = nanobind;

namespace simple_knn {

NATIVE_EACH_LEVEL(NATIVE_DECLARE)

const native::Levels<Kernels>& levels() {
  static const native::Levels<Kernels> all = {NATIVE_EACH_LEVEL(NATIVE_ENTRY)};
  return all;
}

}  // namespace simple_knn

namespace {

template <typename T, typename... Shape>
using Array = nb::ndarray<T, Shape..., nb::c_contig, nb::device::cpu>;
using Points = Array<const float, nb::shape<-1, 3>>;

std::int64_t first_invalid(const Points& points) {
  nb::gil_scoped_release release;
  return simple_knn::levels().kernels().first_invalid(
      points.data(), static_cast<std::int64_t>(points.shape(0)));
}

void nearest_neighbours(const Points& points, int threads,
                        const Array<float, nb::shape<-1, -1>>& dist2,
                        const Array<std::int64_t, nb::shape<-1, -1>>& index) {
  nb::gil_scoped_release release;
  simple_knn::levels().kernels().nearest_neighbours(
      points.data(), static_cast<std::int64_t>(points.shape(0)),
      static_cast<std::int64_t>(dist2.shape(1)), threads, dist2.data(), index.data());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of simple_knn; called through simple_knn.knn.";
  m.attr("isa") = simple_knn::levels().name();
  m.attr("isas") = simple_knn::levels().names();
  m.attr("MAX_COORDINATE") = simple_knn::kMaxCoordinate;
  m.def("first_invalid", &first_invalid, nb::arg("points").noconvert());
  m.def("nearest_neighbours", &nearest_neighbours, nb::arg("points").noconvert(),
        nb::arg("threads"), nb::arg("dist2").noconvert(), nb::arg("index").noconvert());
}
