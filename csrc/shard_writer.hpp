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

// The type of a batch in memory and, after `To`, in the file.
enum class Values { kBytes, kFloat16, kFloat32, kFloat32ToFloat16, kBFloat16ToFloat16 };

// source, target: "float32", "bfloat16" or "float16". Throws std::invalid_argument for a conversion that is not there.
Values parse_values(const std::string& source, const std::string& target);

// Rows to be written. The producer must not change them before `release` is called, by any thread.
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

// Writes one file through a pool: a header of one page, then rows. It bypasses the page cache (O_DIRECT) where the file
// system allows it and allocates the space beforehand. The first failure, opening included, is thrown by the next
// submit and by close.
class ShardWriter {
 public:
  // file_bytes: size of the whole file. row_bytes: if not 0, every row gets a checksum of its own.
  ShardWriter(std::shared_ptr<WritePool> pool, std::string path, std::string header, std::uint64_t file_bytes,
              std::size_t row_bytes, bool direct);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  void submit(std::shared_ptr<Batch> batch);

  // Waits for every write. Nothing may be submitted after it.
  void flush();

  // flush(), then fsync and close.
  void close();

  // Closes the file without the rows that still wait.
  void abandon();

  // False where the file system refuses O_DIRECT; final after close().
  bool direct() const { return direct_; }
  Flaws flaws() const;

  // Of the whole file, header included; final after close().
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
  int file_ = -1;  // opened by the first job, so that the producer need not wait
  std::atomic<bool> direct_;
  bool closed_ = false;
  std::size_t alignment_ = 0;  // of memory for O_DIRECT

  std::uint64_t bytes_ = 0;
  std::unique_ptr<Job> filling_;  // the last job, not full yet
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
