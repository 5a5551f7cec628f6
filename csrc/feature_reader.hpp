#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fmcefast {

// A row that does not fit its checksum.
class DamagedRow : public std::runtime_error {
 public:
  explicit DamagedRow(std::uint64_t damaged_row);

  std::uint64_t row;
};

// Reads rows of files in any order with a pool of threads, through the page cache or past it (O_DIRECT). Several callers
// may read at a time: the threads are then busy while one of them waits for its last rows.
class FeatureReader {
 public:
  FeatureReader(std::size_t row_bytes, unsigned threads, bool direct);
  ~FeatureReader();
  FeatureReader(const FeatureReader&) = delete;
  FeatureReader& operator=(const FeatureReader&) = delete;

  // Adds the rows of a regular file, after its header. `row_checksums` may be empty.
  void add(const std::string& path, std::uint64_t rows, std::size_t header_bytes,
           std::vector<std::uint32_t> row_checksums);

  // Reads rows[i] to out + i * row_bytes. Throws std::out_of_range, IoError or DamagedRow; `out` is then undefined.
  void read(const std::int64_t* rows, std::size_t count, unsigned char* out);

  std::size_t row_bytes() const { return row_bytes_; }

  // CRC-32C of the file added as number `index`, header included.
  std::uint32_t checksum(std::size_t index);

 private:
  struct File;
  struct Job;
  class Scratch;
  using Work = std::function<void(std::size_t item, Scratch& scratch)>;
  const File& file_of(std::uint64_t row) const;
  static void read_at(const File& file, std::uint64_t offset, std::size_t bytes, unsigned char* out, Scratch& scratch);
  static bool is_cached(const File& file, std::uint64_t offset, std::size_t bytes, Scratch& scratch);
  void for_each(std::size_t items, const Work& work);
  void serve();

  const std::size_t row_bytes_;
  const bool direct_;
  std::vector<File> files_;

  std::mutex mutex_;
  std::condition_variable job_arrived_;
  std::condition_variable job_done_;
  std::deque<Job*> jobs_;  // those with items to begin
  bool stopping_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace fmcefast
