#include "feature_reader.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "aligned_buffer.hpp"
#include "crc32c.hpp"
#include "direct_io.hpp"
#include "io_error.hpp"

namespace fmcefast {
namespace {

constexpr std::size_t kChecksumBlock = std::size_t{4} << 20;

int open_regular(const std::string& path) {
  // O_NONBLOCK: opening a FIFO would wait.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (file < 0) throw IoError(errno, path);
  struct stat status {};
  if (::fstat(file, &status) == 0 && S_ISREG(status.st_mode)) return file;
  ::close(file);
  throw IoError(EINVAL, path);
}

// mincore reports every page as cached to users who may not write the file.
bool mincore_is_reliable(int file) {
  struct stat status {};
  return ::sysconf(_SC_PAGESIZE) == static_cast<long>(kPage) && ::fstat(file, &status) == 0 &&
         status.st_uid == ::geteuid();
}

// Drops O_DIRECT, which the file system refused; false if it was dropped before.
bool leave_direct(int file) {
  const int flags = ::fcntl(file, F_GETFL);
  return (flags & O_DIRECT) != 0 && ::fcntl(file, F_SETFL, flags & ~O_DIRECT) == 0;
}

// Reads at least `needed` bytes and asks for `requested`.
void read_fully(int file, const std::string& path, std::uint64_t offset, std::size_t needed, std::size_t requested,
                unsigned char* to) {
  std::size_t done = 0;
  while (done < needed) {
    const ssize_t got = ::pread(file, to + done, requested - done, static_cast<off_t>(offset + done));
    if (got < 0 && (errno == EINTR || (errno == EINVAL && leave_direct(file)))) continue;
    if (got <= 0) throw IoError(got < 0 ? errno : EIO, path);
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace

// Page-aligned memory of one thread that grows as needed.
class FeatureReader::Scratch {
 public:
  unsigned char* at_least(std::size_t bytes) {
    if (size_ < bytes) {
      memory_ = make_aligned_buffer(bytes);
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  AlignedBuffer memory_;
  std::size_t size_ = 0;
};

DamagedRow::DamagedRow(std::uint64_t damaged_row)
    : std::runtime_error("row " + std::to_string(damaged_row) + " is damaged"), row(damaged_row) {}

struct FeatureReader::File {
  std::string path;
  std::uint64_t first;
  std::uint64_t rows;
  std::size_t header_bytes;
  std::uint64_t bytes;
  std::vector<std::uint32_t> row_checksums;
  int cached;
  int direct = -1;
  std::size_t alignment = kPage;           // of offsets and memory, for O_DIRECT
  const unsigned char* mapped = nullptr;   // the whole file, if the page cache is used
};

// Items 0 to begun - 1 are in work or finished.
struct FeatureReader::Job {
  const Work& work;
  const std::size_t items;
  std::size_t begun;
  std::size_t finished;
  std::exception_ptr failure;  // if set, no further items are begun

  bool done() const { return begun == finished && (begun == items || failure); }
};

FeatureReader::FeatureReader(std::size_t row_bytes, unsigned threads, bool direct)
    : row_bytes_(row_bytes), direct_(direct) {
  for (unsigned i = 0; i < std::max(threads, 1u); ++i) threads_.emplace_back(&FeatureReader::serve, this);
}

FeatureReader::~FeatureReader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  job_arrived_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  for (const File& file : files_) {
    if (file.cached >= 0) ::close(file.cached);
    if (file.direct >= 0) ::close(file.direct);
    if (file.mapped != nullptr) ::munmap(const_cast<unsigned char*>(file.mapped), file.bytes);
  }
}

void FeatureReader::add(const std::string& path, std::uint64_t rows, std::size_t header_bytes,
                        std::vector<std::uint32_t> row_checksums) {
  const std::uint64_t first = files_.empty() ? 0 : files_.back().first + files_.back().rows;
  File file{path, first, rows, header_bytes, header_bytes + rows * row_bytes_, std::move(row_checksums),
            open_regular(path)};
  if (direct_) {
    // Where the file system refuses, the page cache is used.
    file.alignment = direct_alignment(file.cached);
    if (file.alignment != 0) file.direct = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_DIRECT);
  }
  if (file.direct >= 0) ::close(std::exchange(file.cached, -1));
#if defined(POSIX_FADV_RANDOM)
  // Rows come in any order: reading ahead would be a waste.
  if (file.cached >= 0) ::posix_fadvise(file.cached, 0, 0, POSIX_FADV_RANDOM);
#endif
  if (file.direct < 0 && mincore_is_reliable(file.cached)) {
    void* mapped = ::mmap(nullptr, file.bytes, PROT_READ, MAP_SHARED, file.cached, 0);
    if (mapped != MAP_FAILED) file.mapped = static_cast<const unsigned char*>(mapped);
  }
  files_.push_back(std::move(file));
}

void FeatureReader::read(const std::int64_t* rows, std::size_t count, unsigned char* out) {
  const std::uint64_t total = files_.empty() ? 0 : files_.back().first + files_.back().rows;
  for (std::size_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || static_cast<std::uint64_t>(rows[i]) >= total) {
      throw std::out_of_range("row " + std::to_string(rows[i]) + " is not one of " + std::to_string(total));
    }
  }
  for_each(count, [&](std::size_t i, Scratch& scratch) {
    const auto row = static_cast<std::uint64_t>(rows[i]);
    const File& file = file_of(row);
    const std::uint64_t in_file = row - file.first;
    unsigned char* to = out + i * row_bytes_;
    read_at(file, file.header_bytes + in_file * row_bytes_, row_bytes_, to, scratch);
    if (!file.row_checksums.empty() && crc32c(0, to, row_bytes_) != file.row_checksums[in_file]) throw DamagedRow(row);
  });
}

std::uint32_t FeatureReader::checksum(std::size_t index) {
  const File& file = files_.at(index);
  const std::size_t blocks = (file.bytes + kChecksumBlock - 1) / kChecksumBlock;
  const auto bytes_of = [&](std::size_t block) { return std::min(kChecksumBlock, file.bytes - block * kChecksumBlock); };
  std::vector<std::uint32_t> checksums(blocks);
  for_each(blocks, [&](std::size_t block, Scratch& scratch) {
    const std::uint64_t offset = block * kChecksumBlock;
    unsigned char* memory = scratch.at_least(kChecksumBlock);
    read_fully(file.direct < 0 ? file.cached : file.direct, file.path, offset, bytes_of(block), kChecksumBlock, memory);
    checksums[block] = crc32c(0, memory, bytes_of(block));
  });
  std::uint32_t joined = 0;
  for (std::size_t block = 0; block < blocks; ++block) joined = crc32c_join(joined, checksums[block], bytes_of(block));
  return joined;
}

const FeatureReader::File& FeatureReader::file_of(std::uint64_t row) const {
  const auto after = std::upper_bound(files_.begin(), files_.end(), row,
                                      [](std::uint64_t value, const File& file) { return value < file.first; });
  return *std::prev(after);
}

void FeatureReader::read_at(const File& file, std::uint64_t offset, std::size_t bytes, unsigned char* out,
                            Scratch& scratch) {
  // A copy from a mapping is faster than a read; but page faults are slow, and disk errors in them are signals.
  if (file.mapped != nullptr && is_cached(file, offset, bytes, scratch)) {
    std::memcpy(out, file.mapped + offset, bytes);
    return;
  }
  if (file.direct < 0) return read_fully(file.cached, file.path, offset, bytes, bytes, out);
  const std::uint64_t begin = offset - offset % file.alignment;
  const std::uint64_t end = (offset + bytes + file.alignment - 1) / file.alignment * file.alignment;
  const std::size_t span = end - begin;
  const bool in_place = span == bytes && reinterpret_cast<std::uintptr_t>(out) % file.alignment == 0;
  unsigned char* to = in_place ? out : scratch.at_least(span);
  const std::size_t before = offset - begin;
  // The file may end within its last page.
  read_fully(file.direct, file.path, begin, before + bytes, span, to);
  if (!in_place) std::memcpy(out, to + before, bytes);
}

bool FeatureReader::is_cached(const File& file, std::uint64_t offset, std::size_t bytes, Scratch& scratch) {
  const std::uint64_t begin = offset / kPage * kPage;
  const std::size_t pages = (offset + bytes - begin + kPage - 1) / kPage;
  unsigned char* present = scratch.at_least(pages);
  if (::mincore(const_cast<unsigned char*>(file.mapped) + begin, offset + bytes - begin, present) != 0) return false;
  return std::all_of(present, present + pages, [](unsigned char page) { return (page & 1) != 0; });
}

void FeatureReader::for_each(std::size_t items, const Work& work) {
  if (items == 0) return;
  Job job{work, items, 0, 0, nullptr};
  std::unique_lock lock(mutex_);
  jobs_.push_back(&job);
  job_arrived_.notify_all();
  job_done_.wait(lock, [&] { return job.done(); });
  if (job.failure) std::rethrow_exception(job.failure);
}

void FeatureReader::serve() {
  Scratch scratch;
  std::unique_lock lock(mutex_);
  for (;;) {
    job_arrived_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    Job& job = *jobs_.front();
    const std::size_t item = job.begun++;
    if (job.begun == job.items) jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      job.work(item, scratch);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    ++job.finished;
    if (failure && !job.failure) {
      job.failure = failure;
      jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    }
    if (job.done()) job_done_.notify_all();
  }
}

}  // namespace fmcefast
