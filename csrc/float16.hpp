#pragma once

#include <cstddef>
#include <cstdint>

namespace fmcefast {

// Round to nearest even, as IEEE 754 and PyTorch do. Both return how many finite values became infinite.
std::size_t float32_to_float16(const float* from, std::uint16_t* to, std::size_t count);
std::size_t bfloat16_to_float16(const std::uint16_t* from, std::uint16_t* to, std::size_t count);

}  // namespace fmcefast
