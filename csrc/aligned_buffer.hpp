#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fmcefast {

// An alignment that every device accepts for O_DIRECT.
constexpr std::size_t kPage = 4096;

constexpr std::uint64_t round_up_to_page(std::uint64_t size) { return (size + kPage - 1) / kPage * kPage; }

struct AlignedDelete {
  void operator()(unsigned char* memory) const { ::operator delete[](memory, std::align_val_t{kPage}); }
};
using AlignedBuffer = std::unique_ptr<unsigned char[], AlignedDelete>;

inline AlignedBuffer make_aligned_buffer(std::size_t size) {
  return AlignedBuffer(static_cast<unsigned char*>(::operator new[](size, std::align_val_t{kPage})));
}

}  // namespace fmcefast
