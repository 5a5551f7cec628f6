#include "float16.hpp"

#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fmcefast {
namespace {

// The smallest float32 magnitude that rounds to an infinite float16, and float32's own infinity, as bits.
constexpr std::uint32_t kOverflow = 0x477FF000u;
constexpr std::uint32_t kInfinity = 0x7F800000u;
constexpr std::uint32_t kMagnitude = 0x7FFFFFFFu;

float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

std::uint16_t round_to_float16(std::uint32_t bits) {
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & kMagnitude;
  std::uint32_t half;
  if (magnitude > kInfinity) {
    half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);  // NaN keeps its upper payload, quiet
  } else if (magnitude >= kOverflow) {
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 0.5 aligns the subnormal's last bit with float32's own rounding.
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude - 0x38000000u + 0xFFFu + odd) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

Flaws convert_portable(const float* from, std::uint16_t* to, std::size_t count) {
  Flaws flaws;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = float_to_bits(from[i]);
    const std::uint32_t magnitude = bits & kMagnitude;
    flaws.not_finite += magnitude >= kInfinity;
    flaws.overflowed += magnitude >= kOverflow && magnitude < kInfinity;
    to[i] = round_to_float16(bits);
  }
  return flaws;
}

#if defined(__x86_64__)
Flaws count_flaws(unsigned too_large, unsigned not_finite) {
  const auto count = [](unsigned mask) { return static_cast<std::uint64_t>(__builtin_popcount(mask)); };
  return {count(too_large & ~not_finite), count(not_finite)};
}

// "Not less than" is also true of NaN.
__attribute__((target("avx,f16c")))
Flaws convert_f16c(const float* from, std::uint16_t* to, std::size_t count) {
  const __m256 magnitude_mask = _mm256_set1_ps(bits_to_float(kMagnitude));
  const __m256 limit = _mm256_set1_ps(bits_to_float(kOverflow));
  const __m256 infinity = _mm256_set1_ps(bits_to_float(kInfinity));
  Flaws flaws;
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 values = _mm256_loadu_ps(from + i);
    const __m256 magnitude = _mm256_and_ps(values, magnitude_mask);
    const int too_large = _mm256_movemask_ps(_mm256_cmp_ps(magnitude, limit, _CMP_NLT_UQ));
    if (too_large != 0) {
      const int not_finite = _mm256_movemask_ps(_mm256_cmp_ps(magnitude, infinity, _CMP_NLT_UQ));
      flaws += count_flaws(static_cast<unsigned>(too_large), static_cast<unsigned>(not_finite));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  return flaws += convert_portable(from + i, to + i, count - i);
}

__attribute__((target("avx512f")))
Flaws convert_avx512(const float* from, std::uint16_t* to, std::size_t count) {
  const __m512 limit = _mm512_set1_ps(bits_to_float(kOverflow));
  const __m512 infinity = _mm512_set1_ps(bits_to_float(kInfinity));
  Flaws flaws;
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512 values = _mm512_loadu_ps(from + i);
    const __m512 magnitude = _mm512_abs_ps(values);
    const unsigned too_large = _mm512_cmp_ps_mask(magnitude, limit, _CMP_NLT_UQ);
    if (too_large != 0) flaws += count_flaws(too_large, _mm512_cmp_ps_mask(magnitude, infinity, _CMP_NLT_UQ));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  return flaws += convert_portable(from + i, to + i, count - i);
}
#endif

// Counts values whose exponent is all ones; blocks without any are skipped at vector speed.
template <typename Bits, Bits kExponent>
std::uint64_t count_full_exponents(const void* values, std::size_t count) {
  constexpr std::size_t kBlock = 512;
  Bits block[kBlock];
  std::uint64_t total = 0;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t size = count - first < kBlock ? count - first : kBlock;
    std::memcpy(block, static_cast<const unsigned char*>(values) + first * sizeof(Bits), size * sizeof(Bits));
    Bits any = 0;
    for (std::size_t i = 0; i < size; ++i) any = static_cast<Bits>(any | ((block[i] & kExponent) == kExponent));
    if (any == 0) continue;
    for (std::size_t i = 0; i < size; ++i) total += (block[i] & kExponent) == kExponent;
  }
  return total;
}

}  // namespace

const std::vector<Float16Conversion>& float16_conversions() {
  static const std::vector<Float16Conversion> conversions = [] {
    std::vector<Float16Conversion> supported;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) supported.push_back({"AVX-512", convert_avx512});
    if (__builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c")) supported.push_back({"F16C", convert_f16c});
#endif
    supported.push_back({"portable", convert_portable});
    return supported;
  }();
  return conversions;
}

const Float16Conversion& float16_conversion(const std::string& instructions) {
  for (const Float16Conversion& conversion : float16_conversions()) {
    if (conversion.instructions == instructions) return conversion;
  }
  throw std::invalid_argument("this processor has no " + instructions);
}

Flaws float32_to_float16(const float* from, std::uint16_t* to, std::size_t count) {
  return float16_conversions().front().convert(from, to, count);
}

Flaws bfloat16_to_float16(const std::uint16_t* from, std::uint16_t* to, std::size_t count) {
  constexpr std::size_t kBlock = 1024;
  float widened[kBlock];
  Flaws flaws;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t size = count - first < kBlock ? count - first : kBlock;
    for (std::size_t i = 0; i < size; ++i) {
      widened[i] = bits_to_float(static_cast<std::uint32_t>(from[first + i]) << 16);
    }
    flaws += float32_to_float16(widened, to + first, size);
  }
  return flaws;
}

std::uint64_t count_not_finite_float16(const std::uint16_t* values, std::size_t count) {
  return count_full_exponents<std::uint16_t, 0x7C00u>(values, count);
}

std::uint64_t count_not_finite_float32(const float* values, std::size_t count) {
  return count_full_exponents<std::uint32_t, kInfinity>(values, count);
}

}  // namespace fmcefast
