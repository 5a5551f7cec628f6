// Compiled once for each instruction set, with FMCEFAST_TRANSFORMS as the name of the result. No standard containers
// here: the linker would share their code with files for processors that lack these instructions.
#include "transforms.hpp"

#include <cstdlib>
#include <cstring>

namespace fmcefast {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr const char* kInstructions = "AVX-512";
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr const char* kInstructions = "AVX2";
#else
constexpr int kLanes = 4;
constexpr const char* kInstructions = "portable";
#endif

constexpr int kBlock = 64;  // channels that are computed together
constexpr int kVectors = kBlock / kLanes;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));

// kBlock neighbouring channels of one position.
struct Channels {
  Floats part[kVectors];
};

constexpr Channels kZero{};

// Memory of one thread.
class Scratch {
 public:
  explicit Scratch(int blocks)
      : blocks_(static_cast<Channels*>(
            std::aligned_alloc(sizeof(Channels), sizeof(Channels) * static_cast<std::size_t>(blocks)))) {
    if (blocks_ == nullptr) std::abort();  // it is a few tens of KB
  }
  ~Scratch() { std::free(blocks_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Channels* get() const { return blocks_; }

 private:
  Channels* blocks_;
};

template <typename T>
T* at(const Grid<T>& grid, int row, int column, std::ptrdiff_t sample, std::ptrdiff_t channel) {
  return grid.data + grid.rows[row] + grid.columns[column] + sample * grid.stride + channel;
}

template <typename T>
T bits(const Floats& value) {
  T result;
  static_assert(sizeof result == sizeof value, "");
  std::memcpy(&result, &value, sizeof value);
  return result;
}

// Channels past `count` are zero.
template <typename T, typename Convert>
void read(const T* from, std::size_t count, Channels& to, Convert convert) {
  T rest[kBlock] = {};
  if (count < kBlock) from = static_cast<const T*>(std::memcpy(rest, from, count * sizeof(T)));
  for (int i = 0; i < kVectors; ++i) to.part[i] = convert(from + i * kLanes);
}

template <typename T, typename Convert>
void write(const Channels& from, T* to, std::size_t count, Convert convert) {
  T rest[kBlock];
  T* const place = count < kBlock ? rest : to;
  for (int i = 0; i < kVectors; ++i) convert(from.part[i], place + i * kLanes);
  if (count < kBlock) std::memcpy(to, rest, count * sizeof(T));
}

Channels load(const FloatGrid& grid, int row, int column, std::ptrdiff_t sample, std::ptrdiff_t channel,
           std::size_t count) {
  Channels block;
  if (grid.whole.data != nullptr) {
    read(at(grid.whole, row, column, sample, channel), count, block, [](const float* from) {
      Floats value;
      std::memcpy(&value, from, sizeof value);
      return value;
    });
  } else {
    read(at(grid.half, row, column, sample, channel), count, block, [](const std::uint16_t* from) {
      Halves half;
      std::memcpy(&half, from, sizeof half);
      const Words word = __builtin_convertvector(half, Words) << 16;
      Floats value;
      std::memcpy(&value, &word, sizeof value);
      return value;
    });
  }
  return block;
}

void store(const Channels& block, const FloatGrid& grid, int row, int column, std::ptrdiff_t sample,
           std::ptrdiff_t channel, std::size_t count) {
  if (grid.whole.data != nullptr) {
    write(block, at(grid.whole, row, column, sample, channel), count,
          [](const Floats& value, float* to) { std::memcpy(to, &value, sizeof value); });
  } else {
    write(block, at(grid.half, row, column, sample, channel), count, [](const Floats& value, std::uint16_t* to) {
      const Words word = bits<Words>(value);
      const Words to_even = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
      const Words rounded = value == value ? to_even : (word >> 16) | 0x40u;  // a NaN stays one
      const Halves half = __builtin_convertvector(rounded, Halves);
      std::memcpy(to, &half, sizeof half);
    });
  }
}

// The dot product of a row of the matrix with blocks that are `stride` apart.
inline Channels combine(const SparseMatrix& matrix, int row, const Channels* blocks, int stride) {
  Channels sum = kZero;
  for (int entry = matrix.begin[row]; entry < matrix.begin[row + 1]; ++entry) {
    const float factor = matrix.value[entry];
    const Channels& block = blocks[matrix.column[entry] * stride];
    for (int i = 0; i < kVectors; ++i) sum.part[i] += factor * block.part[i];
  }
  return sum;
}

// Applies the matrices to every sample and block of channels. fill(sample, channel, count, blocks) loads the inputs
// [h][w]; finish(row, column, blocks, sample, channel, count) stores the outputs, by windows of kWindow by kWindow.
template <int kWindow, typename Fill, typename Finish>
void transform(const Separable& matrices, const Extent& extent, Fill fill, Finish finish) {
  const SparseMatrix &down = matrices.down, &across = matrices.across;
  const std::ptrdiff_t blocks = (extent.channels + kBlock - 1) / kBlock;
#pragma omp parallel num_threads(extent.threads)
  {
    const Scratch scratch(down.columns * across.columns + down.rows * across.columns);
    Channels* const inputs = scratch.get();
    Channels* const halfway = inputs + down.columns * across.columns;  // [p][w]
#pragma omp for schedule(static)
    for (std::ptrdiff_t item = 0; item < extent.samples * blocks; ++item) {
      const std::ptrdiff_t sample = item / blocks, channel = item % blocks * kBlock;
      const std::ptrdiff_t left = extent.channels - channel;
      const std::size_t count = left < kBlock ? static_cast<std::size_t>(left) : kBlock;
      fill(sample, channel, count, inputs);
      for (int p = 0; p < down.rows; ++p) {
        for (int w = 0; w < across.columns; ++w) {
          halfway[p * across.columns + w] = combine(down, p, inputs + w, across.columns);
        }
      }
      for (int row = 0; row < down.rows / kWindow; ++row) {
        for (int column = 0; column < across.rows / kWindow; ++column) {
          Channels window[kWindow * kWindow];
          for (int i = 0; i < kWindow * kWindow; ++i) {
            const int p = row * kWindow + i / kWindow, q = column * kWindow + i % kWindow;
            window[i] = combine(across, q, halfway + p * across.columns, 1);
          }
          finish(row, column, window, sample, channel, count);
        }
      }
    }
  }
}

// A `fill` for `transform` that loads the whole grid.
auto load_all(const FloatGrid& grid, const Separable& matrices) {
  const int height = matrices.down.columns, width = matrices.across.columns;
  return [=](std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count, Channels* blocks) {
    for (int i = 0; i < height * width; ++i) blocks[i] = load(grid, i / width, i % width, sample, channel, count);
  };
}

void input_transform(Separable matrices, FloatGrid maps, bool relu_input, FloatGrid inputs, Extent extent) {
  const int positions = matrices.down.columns * matrices.across.columns;
  transform<1>(
      matrices, extent,
      [=, fill = load_all(maps, matrices)](std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count,
                                           Channels* blocks) {
        fill(sample, channel, count, blocks);
        for (int i = 0; relu_input && i < positions; ++i) {
          for (Floats& part : blocks[i].part) part = part < 0 ? kZero.part[0] : part;  // a NaN stays one
        }
      },
      [=](int p, int q, const Channels* output, std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count) {
        store(*output, inputs, p, q, sample, channel, count);
      });
}

template <int kPool>
void pooled_output_transform(const Separable& matrices, const FloatGrid& products, const float* bias,
                             const FloatGrid& pooled, const ArgmaxGrid& argmax, const Extent& extent) {
  transform<kPool>(
      matrices, extent,
      load_all(products, matrices),
      [=](int row, int column, const Channels* window, std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count) {
        float biases[kBlock] = {};
        std::memcpy(biases, bias + channel, count * sizeof(float));
        Channels result;
        std::uint8_t positions[kBlock];
        for (int i = 0; i < kVectors; ++i) {
          Floats maximum = window[0].part[i];
          Ints position{};
          for (int k = 1; k < kPool * kPool; ++k) {
            const Floats& other = window[k].part[i];
            const Ints better = (other > maximum) | (other != other);
            maximum = better ? other : maximum;
            position = better ? Ints{} + k : position;
          }
          Floats added;
          std::memcpy(&added, biases + i * kLanes, sizeof added);
          added += maximum;
          const Ints inactive = added <= 0;
          result.part[i] = inactive ? kZero.part[0] : added;
          position = inactive ? Ints{} + kInactive : position;
          const Bytes bytes = __builtin_convertvector(position, Bytes);
          std::memcpy(positions + i * kLanes, &bytes, sizeof bytes);
        }
        store(result, pooled, row, column, sample, channel, count);
        std::memcpy(at(argmax, row, column, sample, channel), positions, count);
      });
}

void output_transform(Separable matrices, FloatGrid products, const float* bias, int pool, FloatGrid pooled,
                      ArgmaxGrid argmax, Extent extent) {
  const auto pooled_transform = pool == 2 ? pooled_output_transform<2> : pooled_output_transform<1>;
  pooled_transform(matrices, products, bias, pooled, argmax, extent);
}

void output_transform_adjoint(Separable matrices, FloatGrid direction, ArgmaxGrid argmax, int pool, FloatGrid products,
                              Extent extent) {
  const int height = matrices.down.columns, width = matrices.across.columns;
  transform<1>(
      matrices, extent,
      [=](std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count, Channels* blocks) {
        for (int h = 0; h < height; ++h) {
          for (int w = 0; w < width; ++w) {
            const int row = h / pool, column = w / pool, place = h % pool * pool + w % pool;
            std::uint8_t positions[kBlock] = {};
            std::memcpy(positions, at(argmax, row, column, sample, channel), count);
            Channels& block = blocks[h * width + w];
            block = load(direction, row, column, sample, channel, count);
            for (int i = 0; i < kVectors; ++i) {
              Bytes bytes;
              std::memcpy(&bytes, positions + i * kLanes, sizeof bytes);
              const Ints here = __builtin_convertvector(bytes, Ints) == place;
              block.part[i] = here ? block.part[i] : kZero.part[0];
            }
          }
        }
      },
      [=](int p, int q, const Channels* output, std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count) {
        store(*output, products, p, q, sample, channel, count);
      });
}

void input_transform_adjoint(Separable matrices, FloatGrid inputs, const FloatGrid* mask, FloatGrid maps, Extent extent) {
  transform<1>(
      matrices, extent,
      load_all(inputs, matrices),
      [=](int row, int column, const Channels* output, std::ptrdiff_t sample, std::ptrdiff_t channel, std::size_t count) {
        Channels block = *output;
        if (mask != nullptr) {
          const Channels values = load(*mask, row, column, sample, channel, count);
          for (int i = 0; i < kVectors; ++i) block.part[i] = values.part[i] > 0 ? block.part[i] : kZero.part[0];
        }
        store(block, maps, row, column, sample, channel, count);
      });
}

}  // namespace

const Transforms FMCEFAST_TRANSFORMS{kInstructions, input_transform, output_transform, output_transform_adjoint,
                                     input_transform_adjoint};

}  // namespace fmcefast
