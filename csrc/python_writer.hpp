#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "owner_process.hpp"
#include "python_buffer.hpp"
#include "shard_writer.hpp"
#include "write_pool.hpp"

namespace fmcefast {

// Buffers that the workers are done with. Workers have no GIL, so a thread of Python releases them.
class FinishedBuffers {
 public:
  void add(std::shared_ptr<PythonBuffer> buffer);
  void release();

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<PythonBuffer>> buffers_;
};

// A WritePool, and the finished buffers of all its shards.
struct PythonWritePool {
  PythonWritePool(std::size_t memory_bytes, unsigned threads, bool use_uring);

  const std::shared_ptr<WritePool> pool;
  const std::shared_ptr<FinishedBuffers> finished = std::make_shared<FinishedBuffers>();
};

// A ShardWriter of Python's buffers. It releases the GIL while it waits.
class PythonShardWriter {
 public:
  PythonShardWriter(const PythonWritePool& pool, std::string path, std::string header, std::uint64_t file_bytes,
                    std::size_t row_bytes, bool direct);
  ~PythonShardWriter();

  void submit(const pybind11::object& maps, const std::string& source, const std::string& target);
  void close();
  void abandon();
  const ShardWriter& shard() const { return *shard_; }

 private:
  const std::shared_ptr<WritePool> pool_;
  const std::shared_ptr<FinishedBuffers> finished_;
  std::unique_ptr<ShardWriter, DeleteInOwnerProcess<ShardWriter>> shard_;
};

}  // namespace fmcefast
