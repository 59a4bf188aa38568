// What every device's implementation of the ops does first: turn the arguments into sizes, and refuse what
// does not fit. Python has friendlier checks; these guard torch.ops.groundingml.*, which anybody can call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

namespace groundingml {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct LevelSize {
  int64_t height;
  int64_t width;
  int64_t start;  // first row of this level in value
};

// Shapes of one call, by DESIGN's letters.
struct Sizes {
  int64_t batch;                  // B
  int64_t rows;                   // S
  int64_t heads;                  // M
  int64_t channels;               // D
  int64_t queries;                // Q
  int64_t points;                 // P
  int64_t reference_size;         // 0 (plain op), 2 or 4
  std::vector<LevelSize> levels;  // L
};

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); i++) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool equal = tensor.dim() == int64_t(expected.size());
  std::string text = "(";
  for (size_t i = 0; i < expected.size(); i++) {
    equal = equal && tensor.size(int64_t(i)) == expected[i];
    text += (i ? ", " : "") + std::to_string(expected[i]);
  }
  STD_TORCH_CHECK(equal, name, " must have shape ", text, "), got ", shape_text(tensor));
}

// Beside 16-bit values the geometry may be float32 or value's own dtype; else it has value's dtype.
inline void check_companion(const char* name, const Tensor& tensor, const Tensor& value) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == value.scalar_type() ||
                      (dtype == ScalarType::Float && value.scalar_type() != ScalarType::Double),
                  name, " must have value's dtype, or float32 when value is not float64");
  STD_TORCH_CHECK(
      tensor.is_cuda() == value.is_cuda() && tensor.get_device_index() == value.get_device_index(), name,
      " must be on value's device");
}

// `coordinates` are sampling_locations or sampling_offsets, `weights` attention_weights or attention_logits;
// `reference_points` is null for the plain op.
inline Sizes check_arguments(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                             const Tensor& coordinates, const Tensor& weights,
                             const Tensor* reference_points) {
  const char* coordinates_name = reference_points ? "sampling_offsets" : "sampling_locations";
  const char* weights_name = reference_points ? "attention_logits" : "attention_weights";
  STD_TORCH_CHECK(value.dim() == 4, "value must have shape (B, S, M, D), got ", shape_text(value));
  STD_TORCH_CHECK(coordinates.dim() == 6, coordinates_name, " must have shape (B, Q, M, L, P, 2), got ",
                  shape_text(coordinates));
  STD_TORCH_CHECK(!spatial_shapes.empty() && spatial_shapes.size() % 2 == 0,
                  "spatial_shapes must be [H0, W0, H1, W1, ...], got ", spatial_shapes.size(), " numbers");
  const ScalarType dtype = value.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  "value must be float64, float32, float16 or bfloat16");

  Sizes sizes{};
  sizes.batch = value.size(0);
  sizes.rows = value.size(1);
  sizes.heads = value.size(2);
  sizes.channels = value.size(3);
  sizes.queries = coordinates.size(1);
  sizes.points = coordinates.size(4);
  int64_t start = 0;
  for (size_t i = 0; i < spatial_shapes.size(); i += 2) {
    const int64_t height = spatial_shapes[i], width = spatial_shapes[i + 1];
    STD_TORCH_CHECK(height > 0 && width > 0, "spatial_shapes must be positive, got (", height, ", ", width,
                    ")");
    sizes.levels.push_back({height, width, start});
    start += height * width;
  }
  STD_TORCH_CHECK(start == sizes.rows, "value must have S = ", start,
                  " rows, the sum of H * W over spatial_shapes, got ", shape_text(value));
  STD_TORCH_CHECK(sizes.rows < (int64_t(1) << 31), "value must have fewer than 2^31 rows, got ", sizes.rows);
  STD_TORCH_CHECK(sizes.heads > 0 && sizes.channels > 0 && sizes.points > 0,
                  "heads, channels and points must not be 0, got value ", shape_text(value), " and ",
                  coordinates_name, " ", shape_text(coordinates));

  const int64_t levels = int64_t(sizes.levels.size());
  check_shape(coordinates_name, coordinates,
              {sizes.batch, sizes.queries, sizes.heads, levels, sizes.points, 2});
  if (reference_points && weights.dim() == 4) {
    check_shape(weights_name, weights, {sizes.batch, sizes.queries, sizes.heads, levels * sizes.points});
  } else {
    check_shape(weights_name, weights, {sizes.batch, sizes.queries, sizes.heads, levels, sizes.points});
  }
  check_companion(coordinates_name, coordinates, value);
  check_companion(weights_name, weights, value);
  if (reference_points) {
    sizes.reference_size = reference_points->dim() == 4 && reference_points->size(3) == 4 ? 4 : 2;
    check_shape("reference_points", *reference_points,
                {sizes.batch, sizes.queries, levels, sizes.reference_size});
    check_companion("reference_points", *reference_points, value);
  }
  return sizes;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Sizes& sizes) {
  check_shape("grad_output", grad_output, {sizes.batch, sizes.queries, sizes.heads * sizes.channels});
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(), "grad_output must have value's dtype");
}

}  // namespace groundingml
