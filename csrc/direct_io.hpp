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

// The alignment of memory, offsets and sizes for O_DIRECT; 0 where the file system refuses it.
inline std::size_t direct_alignment(int file) {
#if defined(STATX_DIOALIGN)
  struct statx status {};
  if (::statx(file, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && (status.stx_mask & STATX_DIOALIGN) != 0) {
    const std::size_t needed = std::max(status.stx_dio_offset_align, status.stx_dio_mem_align);
    return needed <= kPage ? needed : 0;
  }
#else
  static_cast<void>(file);
#endif
  return kPage;
}

}  // namespace fmcefast
