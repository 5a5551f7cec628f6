#include "uring.hpp"

#if defined(__linux__)

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace fmcefast {
namespace {

// Shared with the kernel: what it writes is read with acquire, what it reads is written with release.
unsigned load(const unsigned* shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }
void store(unsigned* shared, unsigned value) { __atomic_store_n(shared, value, __ATOMIC_RELEASE); }

class Mapping {
 public:
  Mapping(int ring, std::size_t size, off_t offset)
      : size_(size),
        memory_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, offset)) {
    if (memory_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "io_uring");
  }
  ~Mapping() { ::munmap(memory_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  template <typename T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + offset);
  }

 private:
  std::size_t size_;
  void* memory_;
};

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

class KernelUring : public Uring {
 public:
  KernelUring(int ring, const io_uring_params& params)
      : ring_(ring),
        queues_(ring, queues_size(params), IORING_OFF_SQ_RING),
        entries_(ring, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES),
        params_(params) {}

  void write(int file, const void* data, std::size_t size, std::uint64_t offset, std::uint64_t tag) override {
    io_uring_sqe entry{};
    entry.opcode = IORING_OP_WRITE;
    entry.fd = file;
    entry.addr = reinterpret_cast<std::uint64_t>(data);
    entry.len = static_cast<unsigned>(size);
    entry.off = offset;
    entry.user_data = tag;
    submit(entry);
  }

  void submit(const io_uring_sqe& entry) {
    unsigned* tail = queues_.at<unsigned>(params_.sq_off.tail);
    const unsigned mask = *queues_.at<unsigned>(params_.sq_off.ring_mask);
    const unsigned slot = *tail & mask;
    entries_.at<io_uring_sqe>(0)[slot] = entry;
    queues_.at<unsigned>(params_.sq_off.array)[slot] = slot;
    store(tail, *tail + 1);
    while (enter(1, 0) < 1) {
    }
  }

  bool ready() override {
    return *queues_.at<unsigned>(params_.cq_off.head) != load(queues_.at<unsigned>(params_.cq_off.tail));
  }

  Completion wait() override {
    while (!ready()) enter(0, 1);
    unsigned* head = queues_.at<unsigned>(params_.cq_off.head);
    const unsigned mask = *queues_.at<unsigned>(params_.cq_off.ring_mask);
    const io_uring_cqe entry = queues_.at<io_uring_cqe>(params_.cq_off.cqes)[*head & mask];
    store(head, *head + 1);
    return {entry.user_data, entry.res};
  }

 private:
  static std::size_t queues_size(const io_uring_params& params) {
    return std::max(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                    params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
  }

  // Returns the number of entries that the kernel took.
  long enter(unsigned submit, unsigned complete) {
    const unsigned flags = complete > 0 ? IORING_ENTER_GETEVENTS : 0u;
    const long taken = ::syscall(__NR_io_uring_enter, ring_.number(), submit, complete, flags, nullptr, 0);
    if (taken >= 0) return taken;
    if (errno == EINTR || errno == EAGAIN || errno == EBUSY) return 0;
    throw std::system_error(errno, std::generic_category(), "io_uring_enter");
  }

  Descriptor ring_;
  Mapping queues_;
  Mapping entries_;
  const io_uring_params params_;
};

}  // namespace

std::unique_ptr<Uring> Uring::open(unsigned depth) {
  io_uring_params params{};
  const long ring = ::syscall(__NR_io_uring_setup, depth, &params);
  if (ring < 0) return nullptr;
  // IORING_FEAT_RW_CUR_POS came with IORING_OP_WRITE (Linux 5.6).
  constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_RW_CUR_POS;
  if ((params.features & kNeeded) != kNeeded) {
    ::close(static_cast<int>(ring));
    return nullptr;
  }
  try {
    auto opened = std::make_unique<KernelUring>(static_cast<int>(ring), params);
    io_uring_sqe nothing{};  // a sandbox may allow the setup but not the use
    nothing.opcode = IORING_OP_NOP;
    opened->submit(nothing);
    opened->wait();
    return opened;
  } catch (const std::system_error&) {
    return nullptr;
  }
}

}  // namespace fmcefast

#else

namespace fmcefast {

std::unique_ptr<Uring> Uring::open(unsigned) { return nullptr; }

}  // namespace fmcefast

#endif
