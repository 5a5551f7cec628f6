#pragma once

#include <cstddef>
#include <cstdint>

namespace fmcefast {

// CRC-32C (Castagnoli) of `size` bytes, continuing from `crc` (0 to start).
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size);

// CRC-32C of A followed by B, from the CRC-32Cs of both and the size of B.
std::uint32_t crc32c_join(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b);

}  // namespace fmcefast
