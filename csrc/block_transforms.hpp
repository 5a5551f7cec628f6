#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "transforms.hpp"

namespace fmcefast {

// An array in memory. `strides` are in elements.
template <typename T>
struct ArrayView {
  T* data = nullptr;
  std::vector<std::ptrdiff_t> shape;
  std::vector<std::ptrdiff_t> strides;
};

// float32 in `whole`, or bfloat16 in `half`; the other is null.
struct FloatView {
  ArrayView<float> whole;
  ArrayView<std::uint16_t> half;
};

// Instruction sets of this processor, fastest first.
std::vector<std::string> instructions();

// A SparseMatrix and its memory.
class OwnedMatrix {
 public:
  // `dense` is (rows, columns).
  OwnedMatrix(const ArrayView<const double>& dense, bool transposed);
  SparseMatrix view() const { return {begin_.data(), column_.data(), value_.data(), rows_, columns_}; }

 private:
  int rows_, columns_;
  std::vector<int> begin_, column_;
  std::vector<float> value_;
};

// The Winograd transforms of a convolution block and their adjoints, on arrays (rows, columns, samples, channels), or
// of six dimensions where rows and columns have two each. Throws std::invalid_argument for a wrong shape.
class BlockTransforms {
 public:
  // Matrices (to, from) along rows and columns; pool: 1 or 2.
  BlockTransforms(const ArrayView<const double>& input_rows, const ArrayView<const double>& input_columns,
                  const ArrayView<const double>& output_rows, const ArrayView<const double>& output_columns, int pool,
                  const std::string& instructions);

  void input_transform(const FloatView& maps, const FloatView& inputs, bool relu_input, int threads) const;
  void output_transform(const FloatView& products, const ArrayView<const float>& bias, const FloatView& pooled,
                        const ArrayView<std::uint8_t>& argmax, int threads) const;
  void output_transform_adjoint(const FloatView& direction, const ArrayView<std::uint8_t>& argmax,
                                const FloatView& products, int threads) const;
  void input_transform_adjoint(const FloatView& inputs, const std::optional<FloatView>& mask, const FloatView& maps,
                               int threads) const;

 private:
  OwnedMatrix input_down_, input_across_, output_down_, output_across_;
  OwnedMatrix input_down_adjoint_, input_across_adjoint_, output_down_adjoint_, output_across_adjoint_;
  int pool_;
  const Transforms* set_;
};

}  // namespace fmcefast
