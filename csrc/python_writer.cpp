#include "python_writer.hpp"

#include <chrono>
#include <utility>

namespace fmcefast {
namespace {

namespace py = pybind11;

// How often a waiting call looks for Ctrl-C.
constexpr std::chrono::milliseconds kPatience{100};

}  // namespace

void FinishedBuffers::add(std::shared_ptr<PythonBuffer> buffer) {
  const std::lock_guard lock(mutex_);
  buffers_.push_back(std::move(buffer));
}

void FinishedBuffers::release() {
  std::vector<std::shared_ptr<PythonBuffer>> taken;
  const std::lock_guard lock(mutex_);
  taken.swap(buffers_);
}

PythonWritePool::PythonWritePool(std::size_t memory_bytes, unsigned threads, bool use_uring)
    : pool(new WritePool(memory_bytes, threads, use_uring), DeleteInOwnerProcess<WritePool>()) {}

PythonShardWriter::PythonShardWriter(const PythonWritePool& pool, std::string path, std::string header,
                                     std::uint64_t file_bytes, std::size_t row_bytes, bool direct)
    : pool_(pool.pool),
      finished_(pool.finished),
      shard_(new ShardWriter(pool_, std::move(path), std::move(header), file_bytes, row_bytes, direct)) {}

PythonShardWriter::~PythonShardWriter() {
  {
    const py::gil_scoped_release release;
    shard_.reset();
  }
  finished_->release();
}

void PythonShardWriter::submit(const py::object& maps, const std::string& source, const std::string& target) {
  const Values values = parse_values(source, target);
  auto buffer = std::make_shared<PythonBuffer>(maps);
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
  auto give_back = [buffer = std::move(buffer), finished = finished_, pool = pool_, size]() mutable {
    finished->add(std::move(buffer));
    pool->release(size);
  };
  shard_->submit(std::make_shared<Batch>(data, size, values, std::move(give_back)));
}

void PythonShardWriter::close() {
  {
    const py::gil_scoped_release release;
    shard_->flush();
  }
  finished_->release();  // before the wait for the disk
  const py::gil_scoped_release release;
  shard_->close();
}

void PythonShardWriter::abandon() {
  {
    const py::gil_scoped_release release;
    shard_->abandon();
  }
  finished_->release();
}

}  // namespace fmcefast
