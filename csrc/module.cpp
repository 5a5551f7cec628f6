#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>
#include <string>

#include "crc32c.hpp"
#include "feature_writer.hpp"

namespace py = pybind11;

namespace {

using fmcefast::Batch;
using fmcefast::Conversion;
using fmcefast::FeatureWriter;

// How often a waiting call looks for Ctrl-C.
constexpr std::chrono::milliseconds kPatience{100};

Conversion parse_conversion(const std::string& from, const std::string& to) {
  if (from == to) return Conversion::kNone;
  if (from == "float32" && to == "float16") return Conversion::kFloat32ToFloat16;
  if (from == "bfloat16" && to == "float16") return Conversion::kBFloat16ToFloat16;
  throw py::value_error("no conversion from " + from + " to " + to);
}

class ContiguousBuffer {
 public:
  explicit ContiguousBuffer(const py::object& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  }
  ~ContiguousBuffer() { PyBuffer_Release(&view_); }
  ContiguousBuffer(const ContiguousBuffer&) = delete;
  ContiguousBuffer& operator=(const ContiguousBuffer&) = delete;
  const void* data() const { return view_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// `wait` returns false while there is still something to wait for.
template <typename Wait>
void wait_interruptibly(Wait wait) {
  for (;;) {
    bool done;
    {
      py::gil_scoped_release release;
      done = wait();
    }
    if (done) return;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

void submit_maps(FeatureWriter& writer, const py::object& maps, const std::string& from, const std::string& to) {
  auto buffer = std::make_shared<ContiguousBuffer>(maps);
  Batch batch{buffer->data(), buffer->size(), parse_conversion(from, to), buffer};
  buffer.reset();
  wait_interruptibly([&] { return writer.submit(batch, kPatience); });
  writer.take_finished();
}

void close_writer(FeatureWriter& writer) {
  wait_interruptibly([&] { return writer.drain(kPatience); });
  {
    py::gil_scoped_release release;
    writer.close();
  }
  writer.take_finished();
}

std::uint32_t checksum(const py::object& data, std::uint32_t crc) {
  const ContiguousBuffer buffer(data);
  py::gil_scoped_release release;
  return fmcefast::crc32c(crc, buffer.data(), buffer.size());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const fmcefast::WriteError& error) {
      const py::tuple arguments = py::make_tuple(error.error_number, error.what(), error.path);
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });

  py::class_<FeatureWriter>(m, "FeatureWriter")
      .def(py::init([](std::string path, const py::bytes& header, std::size_t queue_bytes) {
             return std::make_unique<FeatureWriter>(std::move(path), std::string(header), queue_bytes);
           }),
           py::arg("path"), py::arg("header"), py::arg("queue_bytes"))
      .def("submit", &submit_maps, py::arg("maps"), py::arg("source"), py::arg("target"))
      .def("close", &close_writer)
      .def_property_readonly("crc32c", &FeatureWriter::checksum)
      .def_property_readonly("bytes_written", &FeatureWriter::bytes_written)
      .def_property_readonly("overflowed", &FeatureWriter::overflowed);

  m.def("crc32c", &checksum, py::arg("data"), py::arg("crc") = 0);
}
