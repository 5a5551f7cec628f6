#pragma once

#include <cstddef>
#include <cstdint>

// Cuts a window out of an image and makes a normalised frame of it, on the calling thread.
namespace fmcefast {

// RGB pixels, C-contiguous [height][width][3].
struct Image {
  const std::uint8_t* pixels;
  std::ptrdiff_t height;
  std::ptrdiff_t width;
};

// The window, in pixels of the image; then its shift over black, in pixels of the frame; then its mirroring.
struct Cut {
  std::ptrdiff_t top, left, height, width;
  std::ptrdiff_t down, right;
  bool mirrored;
};

// Of each channel: value * scale - black.
struct Normalisation {
  const float* scale;
  const float* black;
};

// Resizes bilinearly with antialiasing, as PyTorch does, into frame [size][size][3]. The window lies in the image.
void cut_out(const Image& image, const Cut& cut, const Normalisation& normalisation, std::ptrdiff_t size, float* frame);

}  // namespace fmcefast
