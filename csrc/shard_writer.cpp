#include "shard_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "aligned_buffer.hpp"
#include "crc32c.hpp"
#include "direct_io.hpp"
#include "io_error.hpp"

namespace fmcefast {
namespace {

// Stays in the cache between conversion and checksum.
constexpr std::size_t kStepBytes = std::size_t{256} << 10;

// Bytes in memory for each byte in the file.
std::size_t shrinkage(Values values) { return values == Values::kFloat32ToFloat16 ? 2 : 1; }

bool converts(Values values) { return values == Values::kFloat32ToFloat16 || values == Values::kBFloat16ToFloat16; }

std::uint64_t count_not_finite(Values values, const unsigned char* data, std::size_t bytes) {
  if (values == Values::kFloat16) {
    return count_not_finite_float16(reinterpret_cast<const std::uint16_t*>(data), bytes / sizeof(std::uint16_t));
  }
  if (values == Values::kFloat32) {
    return count_not_finite_float32(reinterpret_cast<const float*>(data), bytes / sizeof(float));
  }
  return 0;
}

// 0 if the space is there or the file system cannot tell, else an error number.
int allocate(int file, std::uint64_t bytes) {
#if defined(__linux__)
  while (::fallocate(file, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    return errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? errno : 0;
  }
#endif
  return 0;
}

}  // namespace

Values parse_values(const std::string& source, const std::string& target) {
  if (source == "float16" && target == "float16") return Values::kFloat16;
  if (source == "float32" && target == "float32") return Values::kFloat32;
  if (source == "float32" && target == "float16") return Values::kFloat32ToFloat16;
  if (source == "bfloat16" && target == "float16") return Values::kBFloat16ToFloat16;
  throw std::invalid_argument("no conversion from " + source + " to " + target);
}

Batch::Batch(const void* source, std::size_t bytes, Values kind, std::function<void()> release)
    : data(static_cast<const unsigned char*>(source)),
      stored_bytes(bytes / shrinkage(kind)),
      values(kind),
      release_(std::move(release)) {}

Batch::~Batch() { release_(); }

// Facts about the part of the file that a job wrote.
struct ShardWriter::Written {
  std::size_t size = 0;
  std::uint32_t checksum = 0;
  // With row checksums: those of the pieces of rows in this part, in order.
  std::vector<std::uint32_t> pieces;
};

// A part of the file of WriteJob::kBytes, the last one perhaps shorter.
class ShardWriter::Job : public WriteJob {
 public:
  Job(ShardWriter& shard, std::size_t index) : shard_(shard), index_(index) {
    offset = std::uint64_t{index} * kBytes;
  }

  std::size_t room() const { return kBytes - written_.size; }

  void append(std::shared_ptr<Batch> batch, std::size_t first, std::size_t bytes) {
    written_.size += bytes;
    parts_.push_back({std::move(batch), first, bytes});
  }

  const unsigned char* prepare(unsigned char* buffer) override {
    if (!shard_.open_once()) return nullptr;
    file = shard_.file_;
    const std::size_t padded = shard_.direct_ ? round_up_to_page(written_.size) : written_.size;
    size = padded;
    if (const unsigned char* in_place = writable_in_place(padded)) {
      take_checksum(in_place, 0, written_.size);
      flaws_.not_finite += count_not_finite(parts_[0].batch->values, in_place, written_.size);
      return in_place;
    }
    std::size_t at = 0;
    for (const Part& part : parts_) {
      for (std::size_t done = 0; done < part.bytes;) {
        const std::size_t step = std::min(kStepBytes, part.bytes - done);
        copy(part, done, buffer + at, step);
        take_checksum(buffer + at, at, step);
        done += step;
        at += step;
      }
    }
    std::memset(buffer + at, 0, padded - at);
    return buffer;
  }

  void leave_direct() override {
    shard_.direct_ = false;
    ::fcntl(file, F_SETFL, ::fcntl(file, F_GETFL) & ~O_DIRECT);
  }

  void finish(int error_number) override {
    parts_.clear();
#if defined(__linux__)
    // Without this the page cache holds everything back until the end.
    if (!shard_.direct_) {
      ::sync_file_range(file, static_cast<off_t>(offset), static_cast<off_t>(size), SYNC_FILE_RANGE_WRITE);
    }
#endif
    const std::lock_guard lock(shard_.mutex_);
    if (shard_.error_number_ == 0) shard_.error_number_ = error_number;
    shard_.flaws_ += flaws_;
    if (shard_.written_.size() <= index_) shard_.written_.resize(index_ + 1);
    shard_.written_[index_] = std::move(written_);
    if (--shard_.unfinished_jobs_ == 0) shard_.all_written_.notify_all();
  }

 private:
  struct Part {
    std::shared_ptr<Batch> batch;
    std::size_t first;  // in bytes as stored
    std::size_t bytes;
  };

  // The rows' own memory if it can be written without a copy, else null.
  const unsigned char* writable_in_place(std::size_t padded) const {
    const Part& part = parts_[0];
    if (parts_.size() != 1 || converts(part.batch->values) || padded != written_.size) return nullptr;
    const unsigned char* rows = part.batch->data + part.first;
    if (!shard_.direct_) return rows;
    return reinterpret_cast<std::uintptr_t>(rows) % shard_.alignment_ == 0 ? rows : nullptr;
  }

  void copy(const Part& part, std::size_t done, unsigned char* to, std::size_t bytes) {
    const Batch& batch = *part.batch;
    const unsigned char* from = batch.data + (part.first + done) * shrinkage(batch.values);
    auto* half = reinterpret_cast<std::uint16_t*>(to);
    const std::size_t count = bytes / sizeof(std::uint16_t);
    if (batch.values == Values::kFloat32ToFloat16) {
      flaws_ += float32_to_float16(reinterpret_cast<const float*>(from), half, count);
    } else if (batch.values == Values::kBFloat16ToFloat16) {
      flaws_ += bfloat16_to_float16(reinterpret_cast<const std::uint16_t*>(from), half, count);
    } else {
      std::memcpy(to, from, bytes);
      flaws_.not_finite += count_not_finite(batch.values, to, bytes);
    }
  }

  // `data` is `at` bytes into this part of the file.
  void take_checksum(const unsigned char* data, std::size_t at, std::size_t bytes) {
    written_.checksum = crc32c(written_.checksum, data, bytes);
    if (shard_.row_bytes_ == 0) return;
    for (std::size_t done = 0; done < bytes;) {
      const std::uint64_t position = offset + at + done;
      const std::size_t left = bytes - done;
      if (position < shard_.header_.size()) {
        done += std::min<std::uint64_t>(left, shard_.header_.size() - position);
        continue;
      }
      const std::size_t in_row = (position - shard_.header_.size()) % shard_.row_bytes_;
      const std::size_t piece = std::min(left, shard_.row_bytes_ - in_row);
      const bool begins = in_row == 0 || written_.pieces.empty();
      if (begins) written_.pieces.push_back(0);
      written_.pieces.back() = crc32c(written_.pieces.back(), data + done, piece);
      done += piece;
    }
  }

  ShardWriter& shard_;
  const std::size_t index_;
  std::vector<Part> parts_;
  Written written_;
  Flaws flaws_;
};

ShardWriter::ShardWriter(std::shared_ptr<WritePool> pool, std::string path, std::string header,
                         std::uint64_t file_bytes, std::size_t row_bytes, bool direct)
    : pool_(std::move(pool)),
      path_(std::move(path)),
      header_(std::move(header)),
      file_bytes_(file_bytes),
      row_bytes_(row_bytes),
      direct_(direct) {
  submit(std::make_shared<Batch>(header_.data(), header_.size(), Values::kBytes, [] {}));
}

ShardWriter::~ShardWriter() { abandon(); }

void ShardWriter::submit(std::shared_ptr<Batch> batch) {
  throw_if_failed();
  if (closed_) throw std::logic_error("the file is closed");
  for (std::size_t done = 0; done < batch->stored_bytes;) {
    if (!filling_) filling_ = std::make_unique<Job>(*this, bytes_ / WriteJob::kBytes);
    const std::size_t part = std::min(filling_->room(), batch->stored_bytes - done);
    filling_->append(batch, done, part);
    bytes_ += part;
    done += part;
    if (filling_->room() == 0) hand_over(std::move(filling_));
  }
}

void ShardWriter::flush() {
  if (filling_) hand_over(std::move(filling_));
  wait_until_written();
}

void ShardWriter::close() {
  if (std::exchange(closed_, true)) return;
  flush();
  const auto attempt = [&](int result) {
    if (result != 0 && error_number_ == 0) error_number_ = errno;
  };
  // Never twice: after a failed fsync the kernel counts the pages as written.
  if (error_number_ == 0) attempt(::ftruncate(file_, static_cast<off_t>(bytes_)));
  if (error_number_ == 0) attempt(::fsync(file_));
  if (file_ >= 0) attempt(::close(std::exchange(file_, -1)));
  throw_if_failed();
  join_checksums();
}

void ShardWriter::abandon() {
  if (std::exchange(closed_, true)) return;
  filling_.reset();
  {
    const std::lock_guard lock(mutex_);
    if (error_number_ == 0) error_number_ = ECANCELED;  // waiting jobs are skipped
  }
  wait_until_written();
  if (file_ >= 0) ::close(std::exchange(file_, -1));
}

Flaws ShardWriter::flaws() const {
  const std::lock_guard lock(mutex_);
  return flaws_;
}

bool ShardWriter::open_once() {
  const std::lock_guard turn(opening_);
  if (file_ < 0 && !failed()) {
    if (const int error = open_file(); error != 0) {
      const std::lock_guard lock(mutex_);
      error_number_ = error;
    }
  }
  return !failed();
}

// 0 or an error number.
int ShardWriter::open_file() {
  file_ = ::open(path_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (file_ < 0) return errno;
  if (direct_) {
    alignment_ = direct_alignment(file_);
    direct_ = alignment_ != 0 && ::fcntl(file_, F_SETFL, ::fcntl(file_, F_GETFL) | O_DIRECT) == 0;
  }
  return allocate(file_, round_up_to_page(file_bytes_));
}

bool ShardWriter::failed() const {
  const std::lock_guard lock(mutex_);
  return error_number_ != 0;
}

void ShardWriter::hand_over(std::unique_ptr<Job> job) {
  {
    const std::lock_guard lock(mutex_);
    ++unfinished_jobs_;
  }
  pool_->submit(std::move(job));
}

void ShardWriter::wait_until_written() {
  std::unique_lock lock(mutex_);
  all_written_.wait(lock, [&] { return unfinished_jobs_ == 0; });
}

void ShardWriter::join_checksums() {
  std::uint64_t position = 0;
  for (const Written& part : written_) {
    checksum_ = crc32c_join(checksum_, part.checksum, part.size);
    std::uint64_t at = std::max<std::uint64_t>(position, header_.size());
    position += part.size;
    for (const std::uint32_t piece : part.pieces) {
      const std::size_t in_row = (at - header_.size()) % row_bytes_;
      const std::uint64_t bytes = std::min<std::uint64_t>(row_bytes_ - in_row, position - at);
      if (in_row == 0) {
        row_checksums_.push_back(piece);
      } else {
        row_checksums_.back() = crc32c_join(row_checksums_.back(), piece, bytes);
      }
      at += bytes;
    }
  }
}

void ShardWriter::throw_if_failed() const {
  const std::lock_guard lock(mutex_);
  if (error_number_ != 0) throw IoError(error_number_, path_);
}

}  // namespace fmcefast
