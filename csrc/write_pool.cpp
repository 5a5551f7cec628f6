#include "write_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "aligned_buffer.hpp"
#include "uring.hpp"

namespace fmcefast {
namespace {

constexpr unsigned kWritesInFlight = 4;   // of one worker, with io_uring
constexpr unsigned kJobsBeforeHelp = 64;  // taken in a row without a wait for the disk

// A worker must not take the processor from the thread that wakes it.
void leave_processor_to_producer() {
#if defined(SCHED_BATCH)
  const sched_param unchanged{};
  ::pthread_setschedparam(::pthread_self(), SCHED_BATCH, &unchanged);
#endif
}

}  // namespace

struct WritePool::Slot {
  AlignedBuffer buffer = make_aligned_buffer(WriteJob::kBytes);
  std::unique_ptr<WriteJob> job;
  const unsigned char* data = nullptr;
  std::size_t written = 0;
  bool refused = false;  // O_DIRECT, once

  // False when there is nothing to write.
  bool begin(std::unique_ptr<WriteJob> next) {
    job = std::move(next);
    written = 0;
    refused = false;
    data = job->prepare(buffer.get());
    return data != nullptr;
  }

  // 0 if everything is written, EAGAIN if some is left, or an error number.
  int account(long result) {
    if (result < 0) {
      const int error = static_cast<int>(-result);
      if (error == EINTR || error == EAGAIN) return EAGAIN;
      if (error != EINVAL || std::exchange(refused, true)) return error;
      // Another worker may have dropped O_DIRECT meanwhile: try once more.
      job->leave_direct();
      return EAGAIN;
    }
    if (result == 0) return EIO;
    written += static_cast<std::size_t>(result);
    return written == job->size ? 0 : EAGAIN;
  }
};

WritePool::WritePool(std::size_t memory_bytes, unsigned threads, bool use_uring) {
  std::vector<std::unique_ptr<Uring>> rings(std::max(threads, 1u));
  if (use_uring) {
    for (auto& ring : rings) ring = Uring::open(kWritesInFlight);
    uses_uring_ = std::all_of(rings.begin(), rings.end(), [](const auto& ring) { return ring != nullptr; });
  }
  const std::size_t buffers = rings.size() * (uses_uring_ ? kWritesInFlight : 1) * WriteJob::kBytes;
  queue_bytes_ = memory_bytes - std::min(memory_bytes, buffers);
  try {
    for (auto& ring : rings) {
      if (!uses_uring_) ring.reset();
      const bool helper = uses_uring_ && !workers_.empty();
      workers_.emplace_back(&WritePool::work, this, std::move(ring), helper);
    }
  } catch (const std::system_error&) {
    stop();
    throw;
  }
}

WritePool::~WritePool() { stop(); }

void WritePool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_arrived_.notify_all();
  help_wanted_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool WritePool::reserve(std::size_t bytes, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  // Without jobs nothing would ever be released: a job that is not full waits for these bytes.
  const auto has_room = [&] { return unfinished_jobs_ == 0 || reserved_bytes_ + bytes <= queue_bytes_; };
  if (!room_changed_.wait_for(lock, patience, has_room)) return false;
  reserved_bytes_ += bytes;
  return true;
}

void WritePool::release(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    reserved_bytes_ -= bytes;
  }
  room_changed_.notify_all();
}

void WritePool::submit(std::unique_ptr<WriteJob> job) {
  bool first;
  {
    const std::lock_guard lock(mutex_);
    first = queue_.empty();
    queue_.push_back(std::move(job));
    ++unfinished_jobs_;
  }
  // Waking a worker is slow for the producer: the workers wake each other for the rest.
  if (first) work_arrived_.notify_one();
}

std::unique_ptr<WriteJob> WritePool::take(bool wait, bool helper) {
  std::unique_lock lock(mutex_);
  const auto needs_help = [&] { return !queue_.empty() && jobs_since_disk_wait_ >= kJobsBeforeHelp; };
  if (helper) {
    if (wait) help_wanted_.wait(lock, [&] { return stopping_ || needs_help(); });
    if (!needs_help()) return nullptr;
  } else if (wait) {
    work_arrived_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
  }
  if (queue_.empty()) return nullptr;
  std::unique_ptr<WriteJob> job = std::move(queue_.front());
  queue_.pop_front();
  ++jobs_since_disk_wait_;
  if (!uses_uring_ && !queue_.empty()) work_arrived_.notify_one();
  if (uses_uring_ && needs_help()) help_wanted_.notify_one();
  return job;
}

void WritePool::note_wait_for_disk() {
  const std::lock_guard lock(mutex_);
  jobs_since_disk_wait_ = 0;
}

void WritePool::work(std::unique_ptr<Uring> ring, bool helper) {
  leave_processor_to_producer();
  std::vector<Slot> slots(ring ? kWritesInFlight : 1);
  if (ring) {
    try {
      work_through(*ring, slots, helper);
      return;
    } catch (const std::system_error& error) {
      for (Slot& slot : slots) {
        if (slot.job) finish(slot, error.code().value());
      }
    }
  }
  while (std::unique_ptr<WriteJob> job = take(/*wait=*/true, helper)) {
    if (slots[0].begin(std::move(job))) {
      finish(slots[0], write_out(slots[0]));
    } else {
      finish(slots[0], 0);
    }
  }
}

void WritePool::work_through(Uring& ring, std::vector<Slot>& slots, bool helper) {
  std::vector<std::size_t> free(slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) free[i] = i;
  const auto write_rest = [&](std::size_t i) {
    const Slot& slot = slots[i];
    ring.write(slot.job->file, slot.data + slot.written, slot.job->size - slot.written,
               slot.job->offset + slot.written, i);
  };
  for (;;) {
    const bool idle = free.size() == slots.size();
    if (std::unique_ptr<WriteJob> job = free.empty() ? nullptr : take(/*wait=*/idle, helper)) {
      const std::size_t i = free.back();
      if (slots[i].begin(std::move(job))) {
        free.pop_back();
        write_rest(i);
      } else {
        finish(slots[i], 0);
      }
      continue;
    }
    if (idle) return;
    if (free.empty() && !ring.ready()) note_wait_for_disk();
    const Uring::Completion completion = ring.wait();
    const auto i = static_cast<std::size_t>(completion.tag);
    const int outcome = slots[i].account(completion.result);
    if (outcome == EAGAIN) {
      write_rest(i);
    } else {
      finish(slots[i], outcome);
      free.push_back(i);
    }
  }
}

int WritePool::write_out(Slot& slot) {
  int outcome = EAGAIN;
  while (outcome == EAGAIN) {
    const WriteJob& job = *slot.job;
    const ssize_t result = ::pwrite(job.file, slot.data + slot.written, job.size - slot.written,
                                    static_cast<off_t>(job.offset + slot.written));
    outcome = slot.account(result < 0 ? -errno : result);
  }
  return outcome;
}

void WritePool::finish(Slot& slot, int error_number) {
  slot.job->finish(error_number);
  slot.job.reset();
  {
    const std::lock_guard lock(mutex_);
    --unfinished_jobs_;
  }
  room_changed_.notify_all();
}

}  // namespace fmcefast
