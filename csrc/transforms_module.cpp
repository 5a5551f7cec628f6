#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "transforms.hpp"

namespace py = pybind11;

namespace {

using fmcefast::Extent;
using fmcefast::FloatGrid;
using fmcefast::Grid;
using fmcefast::Separable;
using fmcefast::SparseMatrix;
using fmcefast::Transforms;

const std::vector<const Transforms*>& supported() {
  static const std::vector<const Transforms*> found = [] {
    std::vector<const Transforms*> sets;
#if defined(FMCEFAST_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      sets.push_back(&fmcefast::avx512_transforms);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&fmcefast::avx2_transforms);
#endif
    sets.push_back(&fmcefast::portable_transforms);
    return sets;
  }();
  return found;
}

std::vector<std::string> instructions() {
  std::vector<std::string> names;
  for (const Transforms* set : supported()) names.emplace_back(set->instructions);
  return names;
}

class Sparse {
 public:
  explicit Sparse(const py::array_t<double>& dense)
      : rows_(static_cast<int>(dense.shape(0))), columns_(static_cast<int>(dense.shape(1))), begin_{0} {
    const auto values = dense.unchecked<2>();
    for (int i = 0; i < rows_; ++i) {
      for (int j = 0; j < columns_; ++j) {
        if (values(i, j) == 0) continue;
        column_.push_back(j);
        value_.push_back(static_cast<float>(values(i, j)));
      }
      begin_.push_back(static_cast<int>(column_.size()));
    }
  }
  SparseMatrix view() const { return {begin_.data(), column_.data(), value_.data(), rows_, columns_}; }

 private:
  int rows_, columns_;
  std::vector<int> begin_, column_;
  std::vector<float> value_;
};

// An array (rows, columns, samples, channels), or one whose rows and columns have two dimensions each.
class Places {
 public:
  Places(const py::array& array, const char* name, const Extent& extent, int rows, int columns) {
    const py::ssize_t dimensions = array.ndim(), size = array.itemsize();
    if (dimensions != 4 && dimensions != 6) throw py::value_error(std::string(name) + " must have 4 or 6 dimensions");
    const py::ssize_t each = dimensions / 2 - 1;
    add(array, 0, each, rows_);
    add(array, each, each, columns_);
    const bool fits = rows_.size() == static_cast<std::size_t>(rows) &&
                      columns_.size() == static_cast<std::size_t>(columns) &&
                      array.shape(dimensions - 2) == extent.samples && array.shape(dimensions - 1) == extent.channels &&
                      (extent.channels == 1 || array.strides(dimensions - 1) == size);
    if (!fits) throw py::value_error(std::string(name) + " does not have the shape of its transform");
    stride_ = array.strides(dimensions - 2) / size;
  }

  template <typename T>
  Grid<T> grid(const void* data) const {
    return {static_cast<T*>(const_cast<void*>(data)), rows_.data(), columns_.data(), stride_};
  }

  // bfloat16 comes as uint16, for NumPy does not have it.
  FloatGrid floats(const py::array& array) const {
    if (py::isinstance<py::array_t<float>>(array)) return {grid<float>(array.data()), {}};
    if (py::isinstance<py::array_t<std::uint16_t>>(array)) return {{}, grid<std::uint16_t>(array.data())};
    throw py::type_error("values must be float32, or bfloat16 viewed as uint16");
  }

 private:
  static void add(const py::array& array, py::ssize_t first, py::ssize_t count, std::vector<std::ptrdiff_t>& offsets) {
    const py::ssize_t inner = count == 2 ? array.shape(first + 1) : 1;
    for (py::ssize_t i = 0; i < array.shape(first); ++i) {
      for (py::ssize_t j = 0; j < inner; ++j) {
        const py::ssize_t bytes = i * array.strides(first) + (count == 2 ? j * array.strides(first + 1) : 0);
        offsets.push_back(bytes / array.itemsize());
      }
    }
  }

  std::vector<std::ptrdiff_t> rows_, columns_;
  std::ptrdiff_t stride_;
};

// The matrices of a stage, and its transforms on arrays.
class StageTransforms {
 public:
  StageTransforms(const py::array_t<double>& enter_down, const py::array_t<double>& enter_across,
                  const py::array_t<double>& leave_down, const py::array_t<double>& leave_across, int pool,
                  const std::string& instructions)
      : enter_down_(enter_down), enter_across_(enter_across), leave_down_(leave_down), leave_across_(leave_across),
        enter_down_adjoint_(transposed(enter_down)), enter_across_adjoint_(transposed(enter_across)),
        leave_down_adjoint_(transposed(leave_down)), leave_across_adjoint_(transposed(leave_across)), pool_(pool) {
    for (const Transforms* set : supported()) {
      if (set->instructions == instructions) set_ = set;
    }
    if (set_ == nullptr) throw py::value_error("this processor has no " + instructions);
  }

  void enter(const py::array& maps, py::array entered, bool rectify, int threads) const {
    const Separable matrices{enter_down_.view(), enter_across_.view()};
    const Extent extent = extent_of(maps, threads);
    const Places from(maps, "maps", extent, matrices.down.columns, matrices.across.columns);
    const Places to(entered, "entered", extent, matrices.down.rows, matrices.across.rows);
    const FloatGrid read = from.floats(maps), written = to.floats(entered);
    const py::gil_scoped_release release;
    set_->enter(matrices, read, rectify, written, extent);
  }

  void leave(const py::array& products, const py::array_t<float>& bias, py::array pooled, py::array_t<std::uint8_t> route,
             int threads) const {
    const Separable matrices{leave_down_.view(), leave_across_.view()};
    const Extent extent = extent_of(products, threads);
    const int rows = matrices.down.rows / pool_, columns = matrices.across.rows / pool_;
    const Places from(products, "products", extent, matrices.down.columns, matrices.across.columns);
    const Places to(pooled, "pooled", extent, rows, columns);
    const Places along(route, "route", extent, rows, columns);
    if (bias.ndim() != 1 || bias.shape(0) != extent.channels) throw py::value_error("bias must be one of a channel");
    const FloatGrid read = from.floats(products), written = to.floats(pooled);
    const auto routes = along.grid<std::uint8_t>(route.data());
    const float* biases = bias.data();
    const py::gil_scoped_release release;
    set_->leave(matrices, read, biases, pool_, written, routes, extent);
  }

  void leave_adjoint(const py::array& direction, const py::array_t<std::uint8_t>& route, py::array products,
                     int threads) const {
    const Separable matrices{leave_down_adjoint_.view(), leave_across_adjoint_.view()};
    const Extent extent = extent_of(direction, threads);
    const int rows = matrices.down.columns / pool_, columns = matrices.across.columns / pool_;
    const Places from(direction, "direction", extent, rows, columns);
    const Places along(route, "route", extent, rows, columns);
    const Places to(products, "products", extent, matrices.down.rows, matrices.across.rows);
    const FloatGrid read = from.floats(direction), written = to.floats(products);
    const auto routes = along.grid<std::uint8_t>(route.data());
    const py::gil_scoped_release release;
    set_->leave_adjoint(matrices, read, routes, pool_, written, extent);
  }

  void enter_adjoint(const py::array& entered, const std::optional<py::array>& alive, py::array maps,
                     int threads) const {
    const Separable matrices{enter_down_adjoint_.view(), enter_across_adjoint_.view()};
    const Extent extent = extent_of(entered, threads);
    const Places from(entered, "entered", extent, matrices.down.columns, matrices.across.columns);
    const Places to(maps, "maps", extent, matrices.down.rows, matrices.across.rows);
    const FloatGrid read = from.floats(entered), written = to.floats(maps);
    std::optional<Places> masking;
    FloatGrid mask{};
    if (alive) {
      masking.emplace(*alive, "alive", extent, matrices.down.rows, matrices.across.rows);
      mask = masking->floats(*alive);
    }
    const py::gil_scoped_release release;
    set_->enter_adjoint(matrices, read, alive ? &mask : nullptr, written, extent);
  }

 private:
  static py::array_t<double> transposed(const py::array_t<double>& matrix) {
    return py::array_t<double>(matrix.attr("T"));
  }

  static Extent extent_of(const py::array& array, int threads) {
    if (array.ndim() < 2) throw py::value_error("arrays must end in samples and channels");
    if (threads < 1) throw py::value_error("threads must be 1 or more");
    return {array.shape(array.ndim() - 2), array.shape(array.ndim() - 1), threads};
  }

  Sparse enter_down_, enter_across_, leave_down_, leave_across_;
  Sparse enter_down_adjoint_, enter_across_adjoint_, leave_down_adjoint_, leave_across_adjoint_;
  int pool_;
  const Transforms* set_ = nullptr;
};

}  // namespace

PYBIND11_MODULE(_transforms, m) {
  m.doc() = "Transforms of a stage of the FMCE-Net head on a CPU. The first of instructions() is the fastest here.";
  m.def("instructions", &instructions);
  py::class_<StageTransforms>(m, "StageTransforms")
      .def(py::init<const py::array_t<double>&, const py::array_t<double>&, const py::array_t<double>&,
                    const py::array_t<double>&, int, const std::string&>(),
           py::arg("enter_down"), py::arg("enter_across"), py::arg("leave_down"), py::arg("leave_across"),
           py::arg("pool"), py::arg("instructions"))
      .def("enter", &StageTransforms::enter, py::arg("maps"), py::arg("entered"), py::kw_only(), py::arg("rectify"),
           py::arg("threads"))
      .def("leave", &StageTransforms::leave, py::arg("products"), py::arg("bias"), py::arg("pooled"), py::arg("route").noconvert(),
           py::kw_only(), py::arg("threads"))
      .def("leave_adjoint", &StageTransforms::leave_adjoint, py::arg("direction"), py::arg("route"),
           py::arg("products"), py::kw_only(), py::arg("threads"))
      .def("enter_adjoint", &StageTransforms::enter_adjoint, py::arg("entered"), py::arg("alive"), py::arg("maps"),
           py::kw_only(), py::arg("threads"));
}
