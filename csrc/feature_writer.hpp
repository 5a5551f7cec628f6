#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fmcefast {

enum class Conversion { kNone, kFloat32ToFloat16, kBFloat16ToFloat16 };

// One batch of rows. `owner` keeps `data` alive; the producer must not change it until the writer is closed.
struct Batch {
  const void* data = nullptr;
  std::size_t bytes = 0;
  Conversion conversion = Conversion::kNone;
  std::shared_ptr<void> owner;
};

class WriteError : public std::runtime_error {
 public:
  WriteError(int error_number, std::string failed_path);
  int error_number;
  std::string path;
};

// Appends batches to one file from a worker thread: convert, checksum, write. The queue is bounded by bytes, so a
// producer faster than the disk waits. The first failure is thrown at the next submit and at close.
class FeatureWriter {
 public:
  FeatureWriter(std::string path, const std::string& header, std::size_t queue_bytes);
  ~FeatureWriter();
  FeatureWriter(const FeatureWriter&) = delete;
  FeatureWriter& operator=(const FeatureWriter&) = delete;

  // False when the queue was still full after `patience`; the batch is then untouched.
  bool submit(Batch& batch, std::chrono::milliseconds patience);

  // False when batches were still waiting after `patience`.
  bool drain(std::chrono::milliseconds patience);

  // Drains, makes the file durable and closes it.
  void close();

  // Owners of batches that are written: dropped by the caller, under whatever lock they need.
  std::vector<std::shared_ptr<void>> take_finished();

  // Of the whole file, header included; settled once drain() has returned true.
  std::uint32_t checksum() const { return checksum_; }
  std::uint64_t bytes_written() const { return bytes_written_; }
  std::uint64_t overflowed() const { return overflowed_; }

 private:
  void work();
  void write_batch(const Batch& batch);
  void append(const void* data, std::size_t size);
  void stop(bool discard_queue);
  void throw_if_failed() const;

  const std::string path_;
  const std::size_t queue_bytes_;
  int file_ = -1;
  std::vector<std::uint16_t> converted_;

  std::uint32_t checksum_ = 0;
  std::uint64_t bytes_written_ = 0;
  std::uint64_t overflowed_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> queue_;
  std::vector<std::shared_ptr<void>> finished_;
  std::size_t pending_bytes_ = 0;
  bool stopping_ = false;
  int error_number_ = 0;

  std::thread worker_;
};

}  // namespace fmcefast
