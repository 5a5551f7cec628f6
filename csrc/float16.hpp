#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fmcefast {

// How many values lost their meaning when they were stored as float16 or float32.
struct Flaws {
  std::uint64_t overflowed = 0;  // finite before, infinite as float16
  std::uint64_t not_finite = 0;  // NaN or infinite before

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

// A conversion of float32 with one instruction set.
struct Float16Conversion {
  const char* instructions;
  Flaws (*convert)(const float* from, std::uint16_t* to, std::size_t count);
};

// Those that this processor can run; the first is the one in use.
const std::vector<Float16Conversion>& float16_conversions();

// The one with these instructions. Throws std::invalid_argument if this processor lacks them.
const Float16Conversion& float16_conversion(const std::string& instructions);

}  // namespace fmcefast
