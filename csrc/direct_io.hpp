#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>

#include "aligned_buffer.hpp"

#if !defined(O_DIRECT)
#define O_DIRECT 0
#endif

namespace fmcefast {

// What memory, offsets and sizes must be multiples of to pass by the page cache; 0 where the file system refuses that.
inline std::size_t direct_alignment(int file) {
#if defined(STATX_DIOALIGN)
  struct statx found {};
  if (::statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found) == 0 && (found.stx_mask & STATX_DIOALIGN) != 0) {
    const std::size_t needed = std::max(found.stx_dio_offset_align, found.stx_dio_mem_align);
    return needed <= kPage ? needed : 0;
  }
#else
  static_cast<void>(file);
#endif
  return kPage;
}

}  // namespace fmcefast
