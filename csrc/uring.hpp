#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fmcefast {

// Writes in the background by the kernel (Linux io_uring), for one thread.
class Uring {
 public:
  struct Completion {
    std::uint64_t tag;
    int result;  // bytes written, or a negative error number
  };

  // Null where the kernel has no io_uring or a sandbox forbids it.
  static std::unique_ptr<Uring> open(unsigned depth);
  virtual ~Uring() = default;

  // At most `depth` writes at a time. `data` must stay valid until the completion with this tag. write() and wait()
  // throw std::system_error if the kernel refuses.
  virtual void write(int file, const void* data, std::size_t size, std::uint64_t offset, std::uint64_t tag) = 0;

  // Whether wait() would return at once.
  virtual bool ready() = 0;

  // Waits for the next completion.
  virtual Completion wait() = 0;
};

}  // namespace fmcefast
