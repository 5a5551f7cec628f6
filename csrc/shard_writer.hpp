#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "float16.hpp"
#include "write_pool.hpp"

namespace fmcefast {

// What a batch holds, and what becomes of it on its way to the file.
enum class Values { kBytes, kFloat16, kFloat32, kFloat32ToFloat16, kBFloat16ToFloat16 };

// Rows to be written; the producer must not change them before `release` is called, from whatever thread.
struct Batch {
  Batch(const void* data, std::size_t bytes, Values values, std::function<void()> release);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  const unsigned char* const data;
  const std::size_t stored_bytes;
  const Values values;

 private:
  const std::function<void()> release_;
};

// One file of rows after a header of one page, written by a pool: past the page cache (O_DIRECT) where the file system
// allows it, in space allocated beforehand. The first failure, opening included, is thrown by the next submit and by
// close.
class ShardWriter {
 public:
  // `file_bytes` is the size that the file will have. With `row_bytes` every row gets a checksum of its own.
  ShardWriter(std::shared_ptr<WritePool> pool, std::string path, std::string header, std::uint64_t file_bytes,
              std::size_t row_bytes, bool direct);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  void submit(std::shared_ptr<Batch> batch);

  // Waits for every write; nothing may be submitted after it.
  void flush();

  // flush(), then makes the file durable and closes it.
  void close();

  // Closes the file as it is; what waits is not written.
  void abandon();

  // False where the file system refuses O_DIRECT; settled by close().
  bool direct() const { return direct_; }
  Flaws flaws() const;

  // Of the whole file, header included; settled by close().
  std::uint64_t bytes() const { return bytes_; }
  std::uint32_t checksum() const { return checksum_; }
  const std::vector<std::uint32_t>& row_checksums() const { return row_checksums_; }

 private:
  class Job;
  struct Written;
  void hand_over(std::unique_ptr<Job> job);
  bool open_once();
  int open_file();
  bool failed() const;
  void wait_until_written();
  void join_checksums();
  void throw_if_failed() const;

  const std::shared_ptr<WritePool> pool_;
  const std::string path_;
  const std::string header_;
  const std::uint64_t file_bytes_;
  const std::size_t row_bytes_;
  std::mutex opening_;
  int file_ = -1;  // opened by the first job: the producer does not wait for that
  std::atomic<bool> direct_;
  bool closed_ = false;
  std::size_t alignment_ = 0;  // of memory that is written past the page cache

  std::uint64_t bytes_ = 0;
  std::unique_ptr<Job> filling_;  // the last job, not yet full
  std::uint32_t checksum_ = 0;
  std::vector<std::uint32_t> row_checksums_;

  mutable std::mutex mutex_;
  std::condition_variable all_written_;
  std::size_t unfinished_jobs_ = 0;
  int error_number_ = 0;
  Flaws flaws_;
  std::vector<Written> written_;  // by job
};

}  // namespace fmcefast
