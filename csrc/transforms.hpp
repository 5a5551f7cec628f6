#pragma once

#include <cstddef>
#include <cstdint>

// Transforms of Winograd's algebra on a CPU: to[p][q] = sum over h, w of down[p][h] * across[q][w] * from[h][w], for
// every sample and channel. Values are read and written once, as float32 or bfloat16, and computed in float32.
namespace fmcefast {

// A small matrix without its zeros: those of row i are entries begin[i] to begin[i + 1].
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

// Of float32, or of bfloat16 where `half` is set and not `whole`.
struct FloatGrid {
  Grid<float> whole;
  Grid<std::uint16_t> half;
};

using RouteGrid = Grid<std::uint8_t>;

// Where the ReLU lets nothing through; else the route is which of a window's four was the first maximum.
constexpr std::uint8_t kClosed = 4;

struct Extent {
  std::ptrdiff_t samples;
  std::ptrdiff_t channels;
  int threads;
};

// One set of the transforms, compiled for some instructions.
struct Transforms {
  const char* instructions;
  // Maps, rectified first if asked, into the algebra.
  void (*enter)(Separable, FloatGrid maps, bool rectify, FloatGrid entered, Extent);
  // Products out of the algebra, then the maximum of windows of `pool` by `pool`, bias and ReLU.
  void (*leave)(Separable, FloatGrid products, const float* bias, int pool, FloatGrid pooled, RouteGrid, Extent);
  // The adjoint of `leave` along the route.
  void (*leave_adjoint)(Separable, FloatGrid direction, RouteGrid, int pool, FloatGrid products, Extent);
  // The adjoint of `enter`, zero where `alive`, if there is one, is not positive.
  void (*enter_adjoint)(Separable, FloatGrid entered, const FloatGrid* alive, FloatGrid maps, Extent);
};

extern const Transforms portable_transforms;
extern const Transforms avx2_transforms;
extern const Transforms avx512_transforms;

}  // namespace fmcefast
