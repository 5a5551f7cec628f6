#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unistd.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "crc32c.hpp"
#include "feature_reader.hpp"
#include "float16.hpp"
#include "io_error.hpp"
#include "shard_writer.hpp"
#include "write_pool.hpp"

namespace py = pybind11;

namespace {

using fmcefast::Batch;
using fmcefast::FeatureReader;
using fmcefast::ShardWriter;
using fmcefast::Values;
using fmcefast::WritePool;

// How often a waiting call looks for Ctrl-C.
constexpr std::chrono::milliseconds kPatience{100};

Values parse_values(const std::string& from, const std::string& to) {
  if (from == "float16" && to == "float16") return Values::kFloat16;
  if (from == "float32" && to == "float32") return Values::kFloat32;
  if (from == "float32" && to == "float16") return Values::kFloat32ToFloat16;
  if (from == "bfloat16" && to == "float16") return Values::kBFloat16ToFloat16;
  throw py::value_error("no conversion from " + from + " to " + to);
}

class ContiguousBuffer {
 public:
  explicit ContiguousBuffer(const py::object& object, int flags = 0) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | flags) != 0) throw py::error_already_set();
  }
  ~ContiguousBuffer() { PyBuffer_Release(&view_); }
  ContiguousBuffer(const ContiguousBuffer&) = delete;
  ContiguousBuffer& operator=(const ContiguousBuffer&) = delete;
  void* data() const { return view_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

// Threads do not follow a fork, and a child that joined them would wait forever: there the object is left as it is.
template <typename T>
class ExceptAfterFork {
 public:
  void operator()(T* object) const {
    if (::getpid() == owner_) delete object;
  }

 private:
  pid_t owner_ = ::getpid();
};

// Buffers that the workers are done with; they are released by a thread that holds the GIL.
class FinishedBuffers {
 public:
  void add(std::shared_ptr<ContiguousBuffer> buffer) {
    const std::lock_guard lock(mutex_);
    buffers_.push_back(std::move(buffer));
  }
  void release() {
    std::vector<std::shared_ptr<ContiguousBuffer>> taken;
    const std::lock_guard lock(mutex_);
    taken.swap(buffers_);
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<ContiguousBuffer>> buffers_;
};

// A WritePool, and the buffers that all its shards are done with.
struct PyWritePool {
  PyWritePool(std::size_t memory_bytes, unsigned threads, bool use_uring)
      : pool(new WritePool(memory_bytes, threads, use_uring), ExceptAfterFork<WritePool>()) {}

  const std::shared_ptr<WritePool> pool;
  const std::shared_ptr<FinishedBuffers> finished = std::make_shared<FinishedBuffers>();
};

// A ShardWriter whose batches are Python's buffers.
class PyShardWriter {
 public:
  PyShardWriter(const PyWritePool& pool, std::string path, const py::bytes& header, std::uint64_t file_bytes,
                std::size_t row_bytes, bool direct)
      : pool_(pool.pool),
        finished_(pool.finished),
        shard_(new ShardWriter(pool_, std::move(path), std::string(header), file_bytes, row_bytes, direct)) {}

  ~PyShardWriter() {
    {
      const py::gil_scoped_release release;
      shard_.reset();
    }
    finished_->release();
  }

  void submit(const py::object& maps, const std::string& from, const std::string& to) {
    const Values values = parse_values(from, to);
    auto buffer = std::make_shared<ContiguousBuffer>(maps);
    finished_->release();
    const void* data = buffer->data();
    const std::size_t size = buffer->size();
    for (;;) {
      bool reserved;
      {
        const py::gil_scoped_release release;
        reserved = pool_->reserve(size, kPatience);
      }
      finished_->release();
      if (reserved) break;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    auto let_go = [buffer = std::move(buffer), finished = finished_, pool = pool_, size]() mutable {
      finished->add(std::move(buffer));
      pool->release(size);
    };
    shard_->submit(std::make_shared<Batch>(data, size, values, std::move(let_go)));
  }

  void close() {
    {
      const py::gil_scoped_release release;
      shard_->flush();
    }
    finished_->release();  // before the disk is waited for
    const py::gil_scoped_release release;
    shard_->close();
  }

  void abandon() {
    {
      const py::gil_scoped_release release;
      shard_->abandon();
    }
    finished_->release();
  }

  const ShardWriter& shard() const { return *shard_; }

 private:
  const std::shared_ptr<WritePool> pool_;
  const std::shared_ptr<FinishedBuffers> finished_;
  std::unique_ptr<ShardWriter, ExceptAfterFork<ShardWriter>> shard_;
};

using Rows = py::array_t<std::int64_t, py::array::c_style>;

void read_rows(FeatureReader& reader, const Rows& rows, const py::object& out) {
  const ContiguousBuffer memory(out, PyBUF_WRITABLE);
  const auto count = static_cast<std::size_t>(rows.size());
  if (memory.size() != count * reader.row_bytes()) throw py::value_error("out must hold as many rows as are read");
  const std::int64_t* first = rows.data();
  const py::gil_scoped_release release;
  reader.read(first, count, static_cast<unsigned char*>(memory.data()));
}

std::uint32_t checksum(const py::object& data, std::uint32_t crc) {
  const ContiguousBuffer buffer(data);
  const py::gil_scoped_release release;
  return fmcefast::crc32c(crc, buffer.data(), buffer.size());
}

// For tests of every way to convert.
py::tuple convert(const py::array_t<float, py::array::c_style>& values, const std::string& instructions) {
  for (const auto& way : fmcefast::float16_conversions()) {
    if (way.instructions != instructions) continue;
    py::array_t<std::uint16_t> converted(values.size());
    const fmcefast::Flaws flaws =
        way.convert(values.data(), converted.mutable_data(), static_cast<std::size_t>(values.size()));
    return py::make_tuple(converted, flaws.overflowed, flaws.not_finite);
  }
  throw py::value_error("this processor has no " + instructions);
}

std::vector<std::string> conversions() {
  std::vector<std::string> names;
  for (const auto& way : fmcefast::float16_conversions()) names.emplace_back(way.instructions);
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const fmcefast::IoError& error) {
      const py::tuple arguments = py::make_tuple(error.error_number, error.what(), error.path);
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    } catch (const fmcefast::DamagedRow& error) {
      PyErr_SetObject(PyExc_ValueError, py::str(error.what()).ptr());
    }
  });

  py::class_<PyWritePool>(m, "WritePool")
      .def(py::init<std::size_t, unsigned, bool>(), py::arg("memory_bytes"), py::arg("threads"), py::arg("use_uring"))
      .def_property_readonly("uses_uring", [](const PyWritePool& self) { return self.pool->uses_uring(); });

  py::class_<PyShardWriter>(m, "ShardWriter")
      .def(py::init<const PyWritePool&, std::string, py::bytes, std::uint64_t, std::size_t, bool>(),
           py::arg("pool"), py::arg("path"), py::arg("header"), py::arg("file_bytes"), py::arg("row_bytes") = 0,
           py::arg("direct") = true)
      .def("submit", &PyShardWriter::submit, py::arg("maps"), py::arg("source"), py::arg("target"))
      .def("close", &PyShardWriter::close)
      .def("abandon", &PyShardWriter::abandon)
      .def_property_readonly("direct", [](const PyShardWriter& self) { return self.shard().direct(); })
      .def_property_readonly("overflowed", [](const PyShardWriter& self) { return self.shard().flaws().overflowed; })
      .def_property_readonly("not_finite", [](const PyShardWriter& self) { return self.shard().flaws().not_finite; })
      .def_property_readonly("bytes", [](const PyShardWriter& self) { return self.shard().bytes(); })
      .def_property_readonly("crc32c", [](const PyShardWriter& self) { return self.shard().checksum(); })
      .def_property_readonly("row_crc32c", [](const PyShardWriter& self) {
        const auto& checksums = self.shard().row_checksums();
        return py::array_t<std::uint32_t>(static_cast<py::ssize_t>(checksums.size()), checksums.data());
      });

  py::class_<FeatureReader, std::unique_ptr<FeatureReader, ExceptAfterFork<FeatureReader>>>(m, "FeatureReader")
      .def(py::init<std::size_t, unsigned, bool>(), py::arg("row_bytes"), py::arg("threads"), py::arg("direct"))
      .def("add", &FeatureReader::add, py::arg("path"), py::arg("rows"), py::arg("header_bytes"),
           py::arg("row_checksums") = std::vector<std::uint32_t>())
      .def("read", &read_rows, py::arg("rows"), py::arg("out"))
      .def("checksum", &FeatureReader::checksum, py::arg("index"), py::call_guard<py::gil_scoped_release>());

  m.def("crc32c", &checksum, py::arg("data"), py::arg("crc") = 0);
  m.def("float16_conversions", &conversions);
  m.def("to_float16", &convert, py::arg("values"), py::arg("instructions"));
}
