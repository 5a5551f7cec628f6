#include "block_transforms.hpp"

#include <stdexcept>

namespace fmcefast {
namespace {

const std::vector<const Transforms*>& supported() {
  static const std::vector<const Transforms*> supported_sets = [] {
    std::vector<const Transforms*> sets;
#if defined(FMCEFAST_X86)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      sets.push_back(&avx512_transforms);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&avx2_transforms);
#endif
    sets.push_back(&portable_transforms);
    return sets;
  }();
  return supported_sets;
}

const Transforms* set_of(const std::string& instructions) {
  for (const Transforms* set : supported()) {
    if (set->instructions == instructions) return set;
  }
  throw std::invalid_argument("this processor has no " + instructions);
}

// The offsets of the rows and columns of an array; its grids point to them.
class Layout {
 public:
  template <typename T>
  Layout(const ArrayView<T>& array, const char* name, const Extent& extent, int rows, int columns) {
    const std::size_t dimensions = array.shape.size();
    if (dimensions != 4 && dimensions != 6) {
      throw std::invalid_argument(std::string(name) + " must have 4 or 6 dimensions");
    }
    const std::size_t half = dimensions / 2 - 1;
    add(array.shape, array.strides, 0, half, rows_);
    add(array.shape, array.strides, half, half, columns_);
    const bool fits = rows_.size() == static_cast<std::size_t>(rows) &&
                      columns_.size() == static_cast<std::size_t>(columns) &&
                      array.shape[dimensions - 2] == extent.samples && array.shape[dimensions - 1] == extent.channels &&
                      (extent.channels == 1 || array.strides[dimensions - 1] == 1);
    if (!fits) throw std::invalid_argument(std::string(name) + " does not have the shape of its transform");
    stride_ = array.strides[dimensions - 2];
  }

  template <typename T>
  Grid<T> grid(const ArrayView<T>& array) const {
    return {array.data, rows_.data(), columns_.data(), stride_};
  }

 private:
  static void add(const std::vector<std::ptrdiff_t>& shape, const std::vector<std::ptrdiff_t>& strides,
                  std::size_t first, std::size_t count, std::vector<std::ptrdiff_t>& offsets) {
    const std::ptrdiff_t inner = count == 2 ? shape[first + 1] : 1;
    for (std::ptrdiff_t i = 0; i < shape[first]; ++i) {
      for (std::ptrdiff_t j = 0; j < inner; ++j) {
        offsets.push_back(i * strides[first] + (count == 2 ? j * strides[first + 1] : 0));
      }
    }
  }

  std::vector<std::ptrdiff_t> rows_, columns_;
  std::ptrdiff_t stride_ = 0;
};

// A Layout of float32 or bfloat16 values.
class FloatLayout {
 public:
  FloatLayout(const FloatView& array, const char* name, const Extent& extent, int rows, int columns)
      : array_(array),
        layout_(array.whole.data != nullptr ? Layout(array.whole, name, extent, rows, columns)
                                            : Layout(array.half, name, extent, rows, columns)) {}

  FloatGrid grid() const {
    if (array_.whole.data != nullptr) return {layout_.grid(array_.whole), {}};
    return {{}, layout_.grid(array_.half)};
  }

 private:
  const FloatView& array_;
  Layout layout_;
};

Extent extent_of(const FloatView& array, int threads) {
  const std::vector<std::ptrdiff_t>& shape = array.whole.data != nullptr ? array.whole.shape : array.half.shape;
  if (shape.size() < 2) throw std::invalid_argument("arrays must end in samples and channels");
  if (threads < 1) throw std::invalid_argument("threads must be 1 or more");
  return {shape[shape.size() - 2], shape[shape.size() - 1], threads};
}

}  // namespace

std::vector<std::string> instructions() {
  std::vector<std::string> names;
  for (const Transforms* set : supported()) names.emplace_back(set->instructions);
  return names;
}

OwnedMatrix::OwnedMatrix(const ArrayView<const double>& dense, bool transposed) : begin_{0} {
  if (dense.shape.size() != 2) throw std::invalid_argument("matrices must have 2 dimensions");
  const std::size_t row = transposed ? 1 : 0, column = 1 - row;
  rows_ = static_cast<int>(dense.shape[row]);
  columns_ = static_cast<int>(dense.shape[column]);
  for (int i = 0; i < rows_; ++i) {
    for (int j = 0; j < columns_; ++j) {
      const double value = dense.data[i * dense.strides[row] + j * dense.strides[column]];
      if (value == 0) continue;
      column_.push_back(j);
      value_.push_back(static_cast<float>(value));
    }
    begin_.push_back(static_cast<int>(column_.size()));
  }
}

BlockTransforms::BlockTransforms(const ArrayView<const double>& input_rows,
                                 const ArrayView<const double>& input_columns,
                                 const ArrayView<const double>& output_rows,
                                 const ArrayView<const double>& output_columns, int pool,
                                 const std::string& instructions)
    : input_down_(input_rows, false),
      input_across_(input_columns, false),
      output_down_(output_rows, false),
      output_across_(output_columns, false),
      input_down_adjoint_(input_rows, true),
      input_across_adjoint_(input_columns, true),
      output_down_adjoint_(output_rows, true),
      output_across_adjoint_(output_columns, true),
      pool_(pool),
      set_(set_of(instructions)) {}

void BlockTransforms::input_transform(const FloatView& maps, const FloatView& inputs, bool relu_input,
                                      int threads) const {
  const Separable matrices{input_down_.view(), input_across_.view()};
  const Extent extent = extent_of(maps, threads);
  const FloatLayout from(maps, "maps", extent, matrices.down.columns, matrices.across.columns);
  const FloatLayout to(inputs, "inputs", extent, matrices.down.rows, matrices.across.rows);
  set_->input_transform(matrices, from.grid(), relu_input, to.grid(), extent);
}

void BlockTransforms::output_transform(const FloatView& products, const ArrayView<const float>& bias,
                                       const FloatView& pooled, const ArrayView<std::uint8_t>& argmax,
                                       int threads) const {
  const Separable matrices{output_down_.view(), output_across_.view()};
  const Extent extent = extent_of(products, threads);
  const int rows = matrices.down.rows / pool_, columns = matrices.across.rows / pool_;
  const FloatLayout from(products, "products", extent, matrices.down.columns, matrices.across.columns);
  const FloatLayout to(pooled, "pooled", extent, rows, columns);
  const Layout positions(argmax, "argmax", extent, rows, columns);
  if (bias.shape.size() != 1 || bias.shape[0] != extent.channels) {
    throw std::invalid_argument("bias must have one value for each channel");
  }
  set_->output_transform(matrices, from.grid(), bias.data, pool_, to.grid(), positions.grid(argmax), extent);
}

void BlockTransforms::output_transform_adjoint(const FloatView& direction, const ArrayView<std::uint8_t>& argmax,
                                               const FloatView& products, int threads) const {
  const Separable matrices{output_down_adjoint_.view(), output_across_adjoint_.view()};
  const Extent extent = extent_of(direction, threads);
  const int rows = matrices.down.columns / pool_, columns = matrices.across.columns / pool_;
  const FloatLayout from(direction, "direction", extent, rows, columns);
  const Layout positions(argmax, "argmax", extent, rows, columns);
  const FloatLayout to(products, "products", extent, matrices.down.rows, matrices.across.rows);
  set_->output_transform_adjoint(matrices, from.grid(), positions.grid(argmax), pool_, to.grid(), extent);
}

void BlockTransforms::input_transform_adjoint(const FloatView& inputs, const std::optional<FloatView>& mask,
                                              const FloatView& maps, int threads) const {
  const Separable matrices{input_down_adjoint_.view(), input_across_adjoint_.view()};
  const Extent extent = extent_of(inputs, threads);
  const FloatLayout from(inputs, "inputs", extent, matrices.down.columns, matrices.across.columns);
  const FloatLayout to(maps, "maps", extent, matrices.down.rows, matrices.across.rows);
  if (!mask) return set_->input_transform_adjoint(matrices, from.grid(), nullptr, to.grid(), extent);
  const FloatLayout masking(*mask, "mask", extent, matrices.down.rows, matrices.across.rows);
  const FloatGrid mask_grid = masking.grid();
  set_->input_transform_adjoint(matrices, from.grid(), &mask_grid, to.grid(), extent);
}

}  // namespace fmcefast
