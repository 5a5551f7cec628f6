#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fmcefast {

class Uring;

// One part of a file, prepared and written by a worker.
class WriteJob {
 public:
  virtual ~WriteJob() = default;

  // The bytes to write: in `buffer` (kBytes, page-aligned), or in other memory that lasts until finish(). Null: skip.
  virtual const unsigned char* prepare(unsigned char* buffer) = 0;

  // Called when the file system refuses a write with O_DIRECT: from here on the page cache is used.
  virtual void leave_direct() = 0;

  // Called once, with 0 or the error number of the failed write.
  virtual void finish(int error_number) = 0;

  static constexpr std::size_t kBytes = std::size_t{4} << 20;
  int file = -1;
  std::uint64_t offset = 0;
  std::size_t size = 0;
};

// Threads that prepare and write jobs, and a memory budget for what waits. Each worker writes several jobs at a time
// through io_uring, or one at a time with pwrite where the kernel has no io_uring. With io_uring the first worker does
// everything while the disk is the limit; the others help when it is not.
class WritePool {
 public:
  WritePool(std::size_t memory_bytes, unsigned threads, bool use_uring);
  ~WritePool();
  WritePool(const WritePool&) = delete;
  WritePool& operator=(const WritePool&) = delete;

  // False if there is still no room after `patience`. While no job waits any size gets room: the reserved bytes then
  // belong to a job that is not full yet, and sizes over the budget would never get any.
  bool reserve(std::size_t bytes, std::chrono::milliseconds patience);
  void release(std::size_t bytes);

  void submit(std::unique_ptr<WriteJob> job);

  bool uses_uring() const { return uses_uring_; }

 private:
  struct Slot;
  void stop();
  std::unique_ptr<WriteJob> take(bool wait, bool helper);
  void note_wait_for_disk();
  void work(std::unique_ptr<Uring> ring, bool helper);
  void work_through(Uring& ring, std::vector<Slot>& slots, bool helper);
  static int write_out(Slot& slot);
  void finish(Slot& slot, int error_number);

  bool uses_uring_ = false;
  std::size_t queue_bytes_ = 0;

  std::mutex mutex_;
  std::condition_variable work_arrived_;
  std::condition_variable help_wanted_;
  std::condition_variable room_changed_;
  std::deque<std::unique_ptr<WriteJob>> queue_;
  std::size_t reserved_bytes_ = 0;
  std::size_t unfinished_jobs_ = 0;
  unsigned jobs_since_disk_wait_ = 0;
  bool stopping_ = false;

  std::vector<std::thread> workers_;
};

}  // namespace fmcefast
