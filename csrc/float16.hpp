#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fmcefast {

// What was wrong with values that were stored as float16 or float32.
struct Flaws {
  std::uint64_t overflowed = 0;  // finite, and infinite as float16
  std::uint64_t not_finite = 0;  // NaN or infinite from the start

  Flaws& operator+=(const Flaws& other) {
    overflowed += other.overflowed;
    not_finite += other.not_finite;
    return *this;
  }
};

// Round to nearest even, as IEEE 754 and PyTorch do.
Flaws float32_to_float16(const float* from, std::uint16_t* to, std::size_t count);
Flaws bfloat16_to_float16(const std::uint16_t* from, std::uint16_t* to, std::size_t count);

std::uint64_t count_not_finite_float16(const std::uint16_t* values, std::size_t count);
std::uint64_t count_not_finite_float32(const float* values, std::size_t count);

// One way to convert float32, by the instructions it uses.
struct Float16Conversion {
  const char* instructions;
  Flaws (*convert)(const float* from, std::uint16_t* to, std::size_t count);
};

// Those that this processor can run; the first is the one in use.
const std::vector<Float16Conversion>& float16_conversions();

}  // namespace fmcefast
