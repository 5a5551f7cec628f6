#include "float16.hpp"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fmcefast {
namespace {

// The smallest float32 magnitude that rounds to an infinite float16.
constexpr float kOverflow = 65520.0f;

bool overflows(float value) { return std::isfinite(value) && std::fabs(value) >= kOverflow; }

float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint16_t round_to_float16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  std::uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);  // NaN keeps its upper payload, quiet
  } else if (magnitude >= 0x477FF000u) {
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 0.5 aligns the subnormal's last bit with float32's own rounding.
    const float shifted = bits_to_float(magnitude) + 0.5f;
    std::uint32_t shifted_bits;
    std::memcpy(&shifted_bits, &shifted, sizeof shifted_bits);
    half = shifted_bits - 0x3F000000u;
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude - 0x38000000u + 0xFFFu + odd) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

std::size_t convert_portable(const float* from, std::uint16_t* to, std::size_t count) {
  std::size_t overflowed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    overflowed += overflows(from[i]);
    to[i] = round_to_float16(from[i]);
  }
  return overflowed;
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c")))
std::size_t convert_f16c(const float* from, std::uint16_t* to, std::size_t count) {
  const __m256 magnitude_mask = _mm256_set1_ps(bits_to_float(0x7FFFFFFFu));
  const __m256 limit = _mm256_set1_ps(kOverflow);
  const __m256 infinity = _mm256_set1_ps(bits_to_float(0x7F800000u));
  std::size_t overflowed = 0;
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 values = _mm256_loadu_ps(from + i);
    const __m256 magnitude = _mm256_and_ps(values, magnitude_mask);
    const __m256 over = _mm256_and_ps(_mm256_cmp_ps(magnitude, limit, _CMP_GE_OQ),
                                      _mm256_cmp_ps(magnitude, infinity, _CMP_LT_OQ));
    overflowed += static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(over))));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  return overflowed + convert_portable(from + i, to + i, count - i);
}
#endif

}  // namespace

std::size_t float32_to_float16(const float* from, std::uint16_t* to, std::size_t count) {
#if defined(__x86_64__)
  static const bool has_f16c = __builtin_cpu_supports("avx") != 0 && __builtin_cpu_supports("f16c") != 0;
  if (has_f16c) return convert_f16c(from, to, count);
#endif
  return convert_portable(from, to, count);
}

std::size_t bfloat16_to_float16(const std::uint16_t* from, std::uint16_t* to, std::size_t count) {
  constexpr std::size_t kBlock = 1024;
  float widened[kBlock];
  std::size_t overflowed = 0;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t size = count - first < kBlock ? count - first : kBlock;
    for (std::size_t i = 0; i < size; ++i) {
      widened[i] = bits_to_float(static_cast<std::uint32_t>(from[first + i]) << 16);
    }
    overflowed += float32_to_float16(widened, to + first, size);
  }
  return overflowed;
}

}  // namespace fmcefast
