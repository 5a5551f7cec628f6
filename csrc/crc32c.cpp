#include "crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace fmcefast {
namespace {

constexpr std::uint32_t kReflectedPolynomial = 0x82F63B78u;

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? kReflectedPolynomial : 0u);
    table[byte] = crc;
  }
  return table;
}

std::uint32_t update_portable(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  static constexpr auto table = make_table();
  for (; size > 0; --size) crc = table[(crc ^ *bytes++) & 0xFFu] ^ (crc >> 8);
  return crc;
}

// Product of two polynomials over GF(2), modulo CRC-32C's; the highest bit is the coefficient of x^0.
constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    product ^= ((a >> bit) & 1u) ? b : 0u;
    b = (b >> 1) ^ ((b & 1u) ? kReflectedPolynomial : 0u);
  }
  return product;
}

// x^(8 * bytes): multiplying by it appends as many zero bytes.
constexpr std::uint32_t zeros(std::uint64_t bytes) {
  std::uint32_t result = 0x80000000u;          // x^0
  std::uint32_t power = 0x80000000u >> 8;      // x^8
  for (; bytes > 0; bytes >>= 1) {
    if (bytes & 1u) result = multiply(power, result);
    power = multiply(power, power);
  }
  return result;
}

#if defined(__x86_64__)
std::uint64_t word_at(const unsigned char* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

__attribute__((target("sse4.2")))
std::uint32_t update_sse42(std::uint32_t crc, const unsigned char* bytes, std::size_t size) {
  // The instruction takes three cycles and can begin every cycle: three lanes keep it busy.
  constexpr std::size_t kLane = 8192;
  constexpr std::uint32_t kPastOne = zeros(kLane);
  constexpr std::uint32_t kPastTwo = zeros(2 * kLane);
  for (; size >= 3 * kLane; size -= 3 * kLane, bytes += 3 * kLane) {
    std::uint64_t first = crc, second = 0, third = 0;
    for (std::size_t i = 0; i < kLane; i += sizeof(std::uint64_t)) {
      first = _mm_crc32_u64(first, word_at(bytes + i));
      second = _mm_crc32_u64(second, word_at(bytes + kLane + i));
      third = _mm_crc32_u64(third, word_at(bytes + 2 * kLane + i));
    }
    crc = multiply(kPastTwo, static_cast<std::uint32_t>(first)) ^
          multiply(kPastOne, static_cast<std::uint32_t>(second)) ^ static_cast<std::uint32_t>(third);
  }
  std::uint64_t wide = crc;
  for (; size >= 8; size -= 8, bytes += 8) wide = _mm_crc32_u64(wide, word_at(bytes));
  crc = static_cast<std::uint32_t>(wide);
  for (; size > 0; --size) crc = _mm_crc32_u8(crc, *bytes++);
  return crc;
}
#endif

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2") != 0;
  if (has_sse42) return ~update_sse42(~crc, bytes, size);
#endif
  return ~update_portable(~crc, bytes, size);
}

std::uint32_t crc32c_join(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b) {
  return multiply(zeros(size_b), crc_a) ^ crc_b;
}

}  // namespace fmcefast
