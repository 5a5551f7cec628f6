#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fmcefast {

// Writes that the kernel performs while the caller goes on (Linux io_uring), used by one thread.
class Uring {
 public:
  struct Completion {
    std::uint64_t tag;
    int result;  // bytes written, or a negative error number
  };

  // Null where the kernel does not know io_uring or a sandbox forbids it.
  static std::unique_ptr<Uring> open(unsigned depth);
  virtual ~Uring() = default;

  // Both throw std::system_error when the kernel does not take or give entries any more.
  // At most `depth` writes may be on their way. `data` must stay until the completion with this tag.
  virtual void write(int file, const void* data, std::size_t size, std::uint64_t offset, std::uint64_t tag) = 0;

  // Whether wait() will return at once.
  virtual bool ready() = 0;

  // Waits for the next completion.
  virtual Completion wait() = 0;
};

}  // namespace fmcefast
