#pragma once

#include <cstddef>
#include <cstdint>

// Winograd transforms on a CPU: to[p][q] = sum over h, w of down[p][h] * across[q][w] * from[h][w], for every sample and
// channel. Values are read and written once, as float32 or bfloat16, and computed in float32.
namespace fmcefast {

// A small matrix without its zeros: row i has the entries begin[i] to begin[i + 1].
struct SparseMatrix {
  const int* begin;
  const int* column;
  const float* value;
  int rows;
  int columns;
};

struct Separable {
  SparseMatrix down;
  SparseMatrix across;
};

// Values [row][column][sample][channel] at rows[row] + columns[column] + sample * stride + channel.
template <typename T>
struct Grid {
  T* data;
  const std::ptrdiff_t* rows;
  const std::ptrdiff_t* columns;
  std::ptrdiff_t stride;
};

// float32 in `whole`, or bfloat16 in `half`; the other is null.
struct FloatGrid {
  Grid<float> whole;
  Grid<std::uint16_t> half;
};

// Which of a window's values is the first maximum, or kInactive where the ReLU gives zero.
using ArgmaxGrid = Grid<std::uint8_t>;
constexpr std::uint8_t kInactive = 4;

struct Extent {
  std::ptrdiff_t samples;
  std::ptrdiff_t channels;
  int threads;
};

// The transforms of a convolution block, compiled for one instruction set.
struct Transforms {
  const char* instructions;
  // maps, after a ReLU with `relu_input`, -> inputs of the products.
  void (*input_transform)(Separable, FloatGrid maps, bool relu_input, FloatGrid inputs, Extent);
  // products -> output transform, max pooling by `pool`, bias and ReLU -> pooled and argmax.
  void (*output_transform)(Separable, FloatGrid products, const float* bias, int pool, FloatGrid pooled,
                           ArgmaxGrid argmax, Extent);
  // Gradient at the pooled output -> gradient at the products.
  void (*output_transform_adjoint)(Separable, FloatGrid direction, ArgmaxGrid argmax, int pool, FloatGrid products,
                                   Extent);
  // Gradient at the inputs of the products -> gradient at the maps, zero where `mask` is not positive; it may be null.
  void (*input_transform_adjoint)(Separable, FloatGrid inputs, const FloatGrid* mask, FloatGrid maps, Extent);
};

extern const Transforms portable_transforms;
extern const Transforms avx2_transforms;
extern const Transforms avx512_transforms;

}  // namespace fmcefast
