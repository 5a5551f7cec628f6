#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "block_transforms.hpp"

namespace py = pybind11;

namespace {

using fmcefast::ArrayView;
using fmcefast::BlockTransforms;
using fmcefast::FloatView;
using Matrix = py::array_t<double>;
using Positions = py::array_t<std::uint8_t>;

template <typename T>
ArrayView<T> view(const py::array& array) {
  ArrayView<T> result;
  result.data = static_cast<T*>(const_cast<void*>(array.data()));
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    result.shape.push_back(array.shape(i));
    result.strides.push_back(array.strides(i) / array.itemsize());
  }
  return result;
}

// NumPy has no bfloat16: it comes as uint16.
FloatView float_view(const py::array& array) {
  if (py::isinstance<py::array_t<float>>(array)) return {view<float>(array), {}};
  if (py::isinstance<py::array_t<std::uint16_t>>(array)) return {{}, view<std::uint16_t>(array)};
  throw py::type_error("values must be float32, or bfloat16 viewed as uint16");
}

void input_transform(const BlockTransforms& self, const py::array& maps, const py::array& inputs, bool relu_input,
                     int threads) {
  const FloatView from = float_view(maps), to = float_view(inputs);
  const py::gil_scoped_release release;
  self.input_transform(from, to, relu_input, threads);
}

void output_transform(const BlockTransforms& self, const py::array& products, const py::array_t<float>& bias,
                      const py::array& pooled, const Positions& argmax, int threads) {
  const FloatView from = float_view(products), to = float_view(pooled);
  const auto biases = view<const float>(bias);
  const auto positions = view<std::uint8_t>(argmax);
  const py::gil_scoped_release release;
  self.output_transform(from, biases, to, positions, threads);
}

void output_transform_adjoint(const BlockTransforms& self, const py::array& direction, const Positions& argmax,
                              const py::array& products, int threads) {
  const FloatView from = float_view(direction), to = float_view(products);
  const auto positions = view<std::uint8_t>(argmax);
  const py::gil_scoped_release release;
  self.output_transform_adjoint(from, positions, to, threads);
}

void input_transform_adjoint(const BlockTransforms& self, const py::array& inputs,
                             const std::optional<py::array>& mask, const py::array& maps, int threads) {
  const FloatView from = float_view(inputs), to = float_view(maps);
  const std::optional<FloatView> masking = mask ? std::optional(float_view(*mask)) : std::nullopt;
  const py::gil_scoped_release release;
  self.input_transform_adjoint(from, masking, to, threads);
}

}  // namespace

PYBIND11_MODULE(_transforms, m) {
  m.doc() = "Winograd transforms of a convolution block on a CPU.";
  m.def("instructions", &fmcefast::instructions);
  py::class_<BlockTransforms>(m, "BlockTransforms")
      .def(py::init([](const Matrix& input_rows, const Matrix& input_columns, const Matrix& output_rows,
                       const Matrix& output_columns, int pool, const std::string& instructions) {
             return BlockTransforms(view<const double>(input_rows), view<const double>(input_columns),
                                    view<const double>(output_rows), view<const double>(output_columns), pool,
                                    instructions);
           }),
           py::arg("input_rows"), py::arg("input_columns"), py::arg("output_rows"), py::arg("output_columns"),
           py::kw_only(), py::arg("pool"), py::arg("instructions"))
      .def("input_transform", &input_transform, py::arg("maps"), py::arg("inputs"), py::kw_only(),
           py::arg("relu_input"), py::arg("threads"))
      .def("output_transform", &output_transform, py::arg("products"), py::arg("bias"), py::arg("pooled"),
           py::arg("argmax").noconvert(), py::kw_only(), py::arg("threads"))
      .def("output_transform_adjoint", &output_transform_adjoint, py::arg("direction"), py::arg("argmax"),
           py::arg("products"), py::kw_only(), py::arg("threads"))
      .def("input_transform_adjoint", &input_transform_adjoint, py::arg("inputs"), py::arg("mask"), py::arg("maps"),
           py::kw_only(), py::arg("threads"));
}
