#include "feature_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "crc32c.hpp"
#include "float16.hpp"

namespace fmcefast {
namespace {

// Small enough to stay in the cache between conversion, checksum and write.
constexpr std::size_t kChunkElements = std::size_t{1} << 19;

// Of the source; bytes that are not converted count one by one.
std::size_t element_size(Conversion conversion) {
  switch (conversion) {
    case Conversion::kNone:
      return 1;
    case Conversion::kFloat32ToFloat16:
      return sizeof(float);
    case Conversion::kBFloat16ToFloat16:
      return sizeof(std::uint16_t);
  }
  throw std::logic_error("unknown conversion");
}

}  // namespace

WriteError::WriteError(int number, std::string failed_path)
    : std::runtime_error(std::strerror(number)), error_number(number), path(std::move(failed_path)) {}

FeatureWriter::FeatureWriter(std::string path, const std::string& header, std::size_t queue_bytes)
    : path_(std::move(path)), queue_bytes_(queue_bytes), converted_(kChunkElements) {
  file_ = ::open(path_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  if (file_ < 0) throw WriteError(errno, path_);
  try {
    append(header.data(), header.size());
    worker_ = std::thread(&FeatureWriter::work, this);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

FeatureWriter::~FeatureWriter() {
  stop(/*discard_queue=*/true);
  if (file_ >= 0) ::close(file_);
}

bool FeatureWriter::submit(Batch& batch, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  const auto has_room = [&] {
    return stopping_ || error_number_ != 0 || queue_.empty() || pending_bytes_ + batch.bytes <= queue_bytes_;
  };
  if (!changed_.wait_for(lock, patience, has_room)) return false;
  throw_if_failed();
  if (stopping_) throw std::logic_error("the writer is closed");
  pending_bytes_ += batch.bytes;
  queue_.push_back(std::move(batch));
  changed_.notify_all();
  return true;
}

bool FeatureWriter::drain(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return pending_bytes_ == 0; });
}

void FeatureWriter::close() {
  stop(/*discard_queue=*/false);
  if (file_ < 0) return;
  if (error_number_ == 0 && ::fsync(file_) != 0) error_number_ = errno;
  if (::close(std::exchange(file_, -1)) != 0 && error_number_ == 0) error_number_ = errno;
  throw_if_failed();
}

std::vector<std::shared_ptr<void>> FeatureWriter::take_finished() {
  const std::lock_guard lock(mutex_);
  return std::exchange(finished_, {});
}

void FeatureWriter::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Batch batch = std::move(queue_.front());
    queue_.pop_front();
    if (error_number_ == 0) {
      lock.unlock();
      int failure = 0;
      try {
        write_batch(batch);
      } catch (const WriteError& error) {
        failure = error.error_number;
      }
      lock.lock();
      error_number_ = failure;
    }
    pending_bytes_ -= batch.bytes;
    finished_.push_back(std::move(batch.owner));
    changed_.notify_all();
  }
}

void FeatureWriter::write_batch(const Batch& batch) {
  const std::size_t element = element_size(batch.conversion);
  const std::size_t count = batch.bytes / element;
  const auto* source = static_cast<const unsigned char*>(batch.data);
  for (std::size_t first = 0; first < count; first += kChunkElements) {
    const std::size_t size = std::min(kChunkElements, count - first);
    const void* chunk = source + first * element;
    switch (batch.conversion) {
      case Conversion::kNone:
        append(chunk, size * element);
        continue;
      case Conversion::kFloat32ToFloat16:
        overflowed_ += float32_to_float16(static_cast<const float*>(chunk), converted_.data(), size);
        break;
      case Conversion::kBFloat16ToFloat16:
        overflowed_ += bfloat16_to_float16(static_cast<const std::uint16_t*>(chunk), converted_.data(), size);
        break;
    }
    append(converted_.data(), size * sizeof(std::uint16_t));
  }
}

void FeatureWriter::append(const void* data, std::size_t size) {
  checksum_ = crc32c(checksum_, data, size);
  const auto* bytes = static_cast<const unsigned char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(file_, bytes, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw WriteError(errno, path_);
    }
    bytes += written;
    size -= static_cast<std::size_t>(written);
    bytes_written_ += static_cast<std::uint64_t>(written);
  }
}

void FeatureWriter::stop(bool discard_queue) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (discard_queue) {
      for (Batch& batch : queue_) {
        pending_bytes_ -= batch.bytes;
        finished_.push_back(std::move(batch.owner));
      }
      queue_.clear();
    }
  }
  changed_.notify_all();
  if (worker_.joinable()) worker_.join();
}

void FeatureWriter::throw_if_failed() const {
  if (error_number_ != 0) throw WriteError(error_number_, path_);
}

}  // namespace fmcefast
