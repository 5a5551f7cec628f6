#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "crc32c.hpp"
#include "cutting.hpp"
#include "feature_reader.hpp"
#include "float16.hpp"
#include "io_error.hpp"
#include "owner_process.hpp"
#include "python_buffer.hpp"
#include "python_writer.hpp"

namespace py = pybind11;

namespace {

using fmcefast::FeatureReader;
using fmcefast::PythonBuffer;
using fmcefast::PythonShardWriter;
using fmcefast::PythonWritePool;

void translate_exception(std::exception_ptr raised) {
  try {
    if (raised) std::rethrow_exception(raised);
  } catch (const fmcefast::IoError& error) {
    const py::tuple arguments = py::make_tuple(error.error_number, error.what(), error.path);
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  } catch (const fmcefast::DamagedRow& error) {
    PyErr_SetObject(PyExc_ValueError, py::str(error.what()).ptr());
  }
}

void read_rows(FeatureReader& reader, const py::array_t<std::int64_t, py::array::c_style>& rows,
               const py::object& out) {
  const PythonBuffer memory(out, PyBUF_WRITABLE);
  const auto count = static_cast<std::size_t>(rows.size());
  if (memory.size() != count * reader.row_bytes()) throw py::value_error("out must hold as many rows as are read");
  const std::int64_t* first = rows.data();
  const py::gil_scoped_release release;
  reader.read(first, count, static_cast<unsigned char*>(memory.data()));
}

py::array_t<std::uint32_t> row_checksums(const PythonShardWriter& writer) {
  const auto& checksums = writer.shard().row_checksums();
  return py::array_t<std::uint32_t>(static_cast<py::ssize_t>(checksums.size()), checksums.data());
}

std::uint32_t crc32c(const py::object& data, std::uint32_t crc) {
  const PythonBuffer buffer(data);
  const py::gil_scoped_release release;
  return fmcefast::crc32c(crc, buffer.data(), buffer.size());
}

py::tuple to_float16(const py::array_t<float, py::array::c_style>& values, const std::string& instructions) {
  py::array_t<std::uint16_t> converted(values.size());
  const fmcefast::Flaws flaws = fmcefast::float16_conversion(instructions)
                                    .convert(values.data(), converted.mutable_data(),
                                             static_cast<std::size_t>(values.size()));
  return py::make_tuple(converted, flaws.overflowed, flaws.not_finite);
}

std::vector<std::string> float16_conversions() {
  std::vector<std::string> names;
  for (const auto& conversion : fmcefast::float16_conversions()) names.emplace_back(conversion.instructions);
  return names;
}

using Pixels = py::array_t<std::uint8_t, py::array::c_style>;
using Numbers = py::array_t<std::int64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

void cut_out(const std::vector<Pixels>& images, const Numbers& windows, const Numbers& shifts,
             const py::array_t<bool, py::array::c_style>& mirrored, const Floats& scale, const Floats& black,
             Floats& out) {
  const auto n = static_cast<py::ssize_t>(images.size());
  if (out.ndim() != 4 || out.shape(0) != n || out.shape(1) != out.shape(2) || out.shape(3) != 3 || windows.ndim() != 2 ||
      windows.shape(0) != n || windows.shape(1) != 4 || shifts.ndim() != 2 || shifts.shape(0) != n ||
      shifts.shape(1) != 2 || mirrored.size() != n || scale.size() != 3 || black.size() != 3)
    throw py::value_error("shapes must be: windows (n, 4), shifts (n, 2), mirrored (n,), out (n, S, S, 3)");
  std::vector<fmcefast::Image> sources;
  std::vector<fmcefast::Cut> cuts;
  for (py::ssize_t i = 0; i < n; ++i) {
    const Pixels& image = images[static_cast<std::size_t>(i)];
    const std::int64_t *window = windows.data(i), *shift = shifts.data(i);
    if (image.ndim() != 3 || image.shape(2) != 3) throw py::value_error("images must be (H, W, 3)");
    if (window[0] < 0 || window[1] < 0 || window[2] < 1 || window[3] < 1 || window[2] > image.shape(0) - window[0] ||
        window[3] > image.shape(1) - window[1])
      throw py::value_error("windows must lie inside their images");
    sources.push_back({image.data(), image.shape(0), image.shape(1)});
    cuts.push_back({window[0], window[1], window[2], window[3], shift[0], shift[1], mirrored.data()[i]});
  }
  const fmcefast::Normalisation normalisation{scale.data(), black.data()};
  const py::ssize_t size = out.shape(1);
  float* frame = out.mutable_data();
  const py::gil_scoped_release release;
  for (std::size_t i = 0; i < sources.size(); ++i, frame += size * size * 3)
    fmcefast::cut_out(sources[i], cuts[i], normalisation, size, frame);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_exception_translator(&translate_exception);

  py::class_<PythonWritePool>(m, "WritePool")
      .def(py::init<std::size_t, unsigned, bool>(), py::arg("memory_bytes"), py::arg("threads"), py::arg("use_uring"))
      .def_property_readonly("uses_uring", [](const PythonWritePool& self) { return self.pool->uses_uring(); });

  py::class_<PythonShardWriter>(m, "ShardWriter")
      .def(py::init([](const PythonWritePool& pool, std::string path, const py::bytes& header,
                       std::uint64_t file_bytes, std::size_t row_bytes, bool direct) {
             return std::make_unique<PythonShardWriter>(pool, std::move(path), std::string(header), file_bytes,
                                                        row_bytes, direct);
           }),
           py::arg("pool"), py::arg("path"), py::arg("header"), py::arg("file_bytes"), py::arg("row_bytes") = 0,
           py::arg("direct") = true)
      .def("submit", &PythonShardWriter::submit, py::arg("maps"), py::arg("source"), py::arg("target"))
      .def("close", &PythonShardWriter::close)
      .def("abandon", &PythonShardWriter::abandon)
      .def_property_readonly("direct", [](const PythonShardWriter& self) { return self.shard().direct(); })
      .def_property_readonly("overflowed",
                             [](const PythonShardWriter& self) { return self.shard().flaws().overflowed; })
      .def_property_readonly("not_finite",
                             [](const PythonShardWriter& self) { return self.shard().flaws().not_finite; })
      .def_property_readonly("bytes", [](const PythonShardWriter& self) { return self.shard().bytes(); })
      .def_property_readonly("crc32c", [](const PythonShardWriter& self) { return self.shard().checksum(); })
      .def_property_readonly("row_crc32c", &row_checksums);

  py::class_<FeatureReader, std::unique_ptr<FeatureReader, fmcefast::DeleteInOwnerProcess<FeatureReader>>>(
      m, "FeatureReader")
      .def(py::init<std::size_t, unsigned, bool>(), py::arg("row_bytes"), py::arg("threads"), py::arg("direct"))
      .def("add", &FeatureReader::add, py::arg("path"), py::arg("rows"), py::arg("header_bytes"),
           py::arg("row_checksums") = std::vector<std::uint32_t>())
      .def("read", &read_rows, py::arg("rows"), py::arg("out"))
      .def("checksum", &FeatureReader::checksum, py::arg("index"), py::call_guard<py::gil_scoped_release>());

  m.def("crc32c", &crc32c, py::arg("data"), py::arg("crc") = 0);
  m.def("float16_conversions", &float16_conversions);
  m.def("to_float16", &to_float16, py::arg("values"), py::arg("instructions"));
  m.def("cut_out", &cut_out, py::arg("images"), py::arg("windows"), py::arg("shifts"), py::arg("mirrored"),
        py::kw_only(), py::arg("scale"), py::arg("black"), py::arg("out").noconvert());
}
