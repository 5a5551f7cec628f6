#pragma once

#include <cstddef>
#include <cstdint>

namespace fmcefast {

// CRC-32C (Castagnoli) of `size` bytes, continuing from `crc` (0 to start).
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace fmcefast
