#include "cutting.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

// The machine decides at run time which version it runs.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FMCEFAST_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define FMCEFAST_CLONES
#endif

namespace fmcefast {
namespace {

constexpr std::ptrdiff_t kChannels = 3;

// The weights that make `size` points of `length` pixels: point i is a sum over `count` pixels from first[i] on.
struct Weights {
  std::ptrdiff_t count;
  std::vector<std::ptrdiff_t> first;
  std::vector<float> values;
};

Weights resizing(std::ptrdiff_t length, std::ptrdiff_t size) {
  const float step = static_cast<float>(length) / static_cast<float>(size);
  const float reach = std::max(step, 1.0f);
  const std::ptrdiff_t count = std::min(length, static_cast<std::ptrdiff_t>(std::ceil(2 * reach)));
  Weights weights{count, {}, {}};
  weights.first.reserve(static_cast<std::size_t>(size));
  weights.values.reserve(static_cast<std::size_t>(size * count));
  for (std::ptrdiff_t point = 0; point < size; ++point) {
    const float centre = (static_cast<float>(point) + 0.5f) * step;
    const auto start = static_cast<std::ptrdiff_t>(std::floor(centre - reach + 0.5f));
    const std::ptrdiff_t first = std::clamp<std::ptrdiff_t>(start, 0, length - count);
    const auto weight = [&](std::ptrdiff_t k) {
      return std::max(0.0f, 1 - std::abs(static_cast<float>(first + k) + 0.5f - centre) / reach);
    };
    float sum = 0;
    for (std::ptrdiff_t k = 0; k < count; ++k) sum += weight(k);
    weights.first.push_back(first);
    for (std::ptrdiff_t k = 0; k < count; ++k) weights.values.push_back(weight(k) / sum);
  }
  return weights;
}

// sum[i] += weight * pixels[i].
FMCEFAST_CLONES
void add(float* __restrict sum, const std::uint8_t* __restrict pixels, float weight, std::ptrdiff_t count) {
  for (std::ptrdiff_t i = 0; i < count; ++i) sum[i] += weight * static_cast<float>(pixels[i]);
}

// The point that `weights` make of pixels. Four values are read of each pixel, one beyond its channels, since
// processors multiply four at a time.
inline void make_point(const float* pixels, const float* weights, std::ptrdiff_t count,
                       const Normalisation& normalisation, float* point) {
  float sum[4] = {};
  for (std::ptrdiff_t k = 0; k < count; ++k)
    for (std::ptrdiff_t c = 0; c < 4; ++c) sum[c] += weights[k] * pixels[k * kChannels + c];
  for (std::ptrdiff_t c = 0; c < kChannels; ++c) point[c] = sum[c] * normalisation.scale[c] - normalisation.black[c];
}

void fill_black(float* frame, const Normalisation& normalisation, std::ptrdiff_t points) {
  for (std::ptrdiff_t i = 0; i < points * kChannels; ++i) frame[i] = -normalisation.black[i % kChannels];
}

}  // namespace

void cut_out(const Image& image, const Cut& cut, const Normalisation& normalisation, std::ptrdiff_t size,
             float* frame) {
  const Weights rows = resizing(cut.height, size), columns = resizing(cut.width, size);
  const std::ptrdiff_t values = cut.width * kChannels;
  std::vector<float> line(static_cast<std::size_t>(values + 1));
  for (std::ptrdiff_t y = 0; y < size; ++y, frame += size * kChannels) {
    const std::ptrdiff_t row = y - cut.down;
    if (row < 0 || row >= size) {
      fill_black(frame, normalisation, size);
      continue;
    }
    std::fill(line.begin(), line.end(), 0.0f);
    for (std::ptrdiff_t k = 0; k < rows.count; ++k) {
      const std::ptrdiff_t from = cut.top + rows.first[static_cast<std::size_t>(row)] + k;
      const float weight = rows.values[static_cast<std::size_t>(row * rows.count + k)];
      add(line.data(), image.pixels + (from * image.width + cut.left) * kChannels, weight, values);
    }
    for (std::ptrdiff_t x = 0; x < size; ++x) {
      const std::ptrdiff_t column = (cut.mirrored ? size - 1 - x : x) - cut.right;
      float* point = frame + x * kChannels;
      if (column < 0 || column >= size) {
        fill_black(point, normalisation, 1);
        continue;
      }
      const std::ptrdiff_t first = columns.first[static_cast<std::size_t>(column)] * kChannels;
      const float* weights = columns.values.data() + column * columns.count;
      make_point(line.data() + first, weights, columns.count, normalisation, point);
    }
  }
}

}  // namespace fmcefast
