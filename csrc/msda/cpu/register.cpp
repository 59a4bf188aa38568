// The ops for CPU tensors: allocates, splits the work over PyTorch's threads, and calls the kernels of the
// instruction set in use.
#include <atomic>
#include <tuple>

#include "../common.h"
#include "capability.h"
#include "kernels.h"
#include "large_pages.h"

namespace groundingml::cpu {
namespace {

const Kernels& kernels_for(ScalarType dtype) {
  const Kernels* kernels = kernels_in_use();
  switch (dtype) {
    case ScalarType::Double: return kernels[int(Element::kDouble)];
    case ScalarType::Half: return kernels[int(Element::kHalf)];
    case ScalarType::BFloat16: return kernels[int(Element::kBFloat16)];
    default: return kernels[int(Element::kFloat)];
  }
}

ScalarType arithmetic(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

Tensor new_empty(const Tensor& like, const Tensor& shape, ScalarType dtype) {
  const Tensor result = torch::stable::new_empty(like, shape.sizes(), dtype);
  use_large_pages(result);
  return result;
}

// A call's tensors, kept alive while `problem` points into them.
struct Call {
  Tensor value, coordinates, weights, reference;
  Sizes sizes;
  std::vector<Level> levels;
  Problem problem{};

  Call(const Tensor& value_in, const std::vector<int64_t>& spatial_shapes, const Tensor& coordinates_in,
       const Tensor& weights_in, const Tensor* reference_in)
      : sizes(check_arguments(value_in, spatial_shapes, coordinates_in, weights_in, reference_in)) {
    const ScalarType dtype = arithmetic(value_in);
    const auto stride = value_in.strides();
    const bool usable =
        (stride[3] == 1 || sizes.channels == 1) && stride[1] >= 0 && stride[1] < (int64_t(1) << 32);
    value = usable ? value_in : torch::stable::contiguous(value_in);
    coordinates = dense(as_dtype(coordinates_in, dtype));
    weights = dense(as_dtype(weights_in, dtype));
    if (reference_in) reference = dense(as_dtype(*reference_in, dtype));
    for (const LevelSize& level : sizes.levels) levels.push_back({level.height, level.width, level.start});

    problem.batch = sizes.batch;
    problem.rows = sizes.rows;
    problem.heads = sizes.heads;
    problem.channels = sizes.channels;
    problem.queries = sizes.queries;
    problem.levels = int64_t(levels.size());
    problem.points = sizes.points;
    problem.level = levels.data();
    problem.coordinates = coordinates.const_data_ptr();
    problem.weights = weights.const_data_ptr();
    problem.reference = reference_in ? reference.const_data_ptr() : nullptr;
    problem.reference_size = sizes.reference_size;
    use_value(value);
  }

  void use_value(const Tensor& tensor) {
    value = tensor;
    problem.value = value.const_data_ptr();
    problem.value_batch_stride = value.stride(0);
    problem.value_row_stride = value.stride(1);
    problem.value_head_stride = value.stride(2);
  }
};

void check_memory(bool enough) {
  STD_TORCH_CHECK(enough, "groundingml: out of memory for the scratch space of ms_deform_attn");
}

Tensor forward(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& coordinates,
               const Tensor& weights, const Tensor* reference) {
  const Call call(value, spatial_shapes, coordinates, weights, reference);
  const Sizes& sizes = call.sizes;
  Tensor output = torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.channels});
  use_large_pages(output);
  const Kernels& kernels = kernels_for(value.scalar_type());
  void* to = output.mutable_data_ptr();
  std::atomic<bool> enough{true};
  torch::stable::parallel_for(0, sizes.batch * sizes.queries, 16, [&](int64_t begin, int64_t end) {
    if (!kernels.forward(call.problem, to, begin, end)) enough = false;
  });
  check_memory(enough);
  return output;
}

struct Grads {
  Tensor value, coordinates, weights, reference;
};

int64_t at_least_1(int64_t n) { return n > 1 ? n : 1; }
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Enough parts for `threads`: first by batch element and heads, then by levels.
std::vector<BackwardPart> split(const Sizes& sizes, int64_t threads, bool packed) {
  const int64_t levels = int64_t(sizes.levels.size());
  const int64_t wanted_groups = at_least_1(divide_up(threads, at_least_1(sizes.batch)));
  const int64_t head_groups = packed || wanted_groups > sizes.heads ? sizes.heads : wanted_groups;
  const int64_t wanted_ranges = divide_up(threads, at_least_1(sizes.batch * head_groups));
  const int64_t level_ranges = wanted_ranges > levels ? levels : wanted_ranges;
  std::vector<BackwardPart> parts;
  for (int64_t batch = 0; batch < sizes.batch; batch++)
    for (int64_t group = 0; group < head_groups; group++)
      for (int64_t range = 0; range < level_ranges; range++)
        parts.push_back({batch, group * sizes.heads / head_groups, (group + 1) * sizes.heads / head_groups,
                         range * levels / level_ranges, (range + 1) * levels / level_ranges, packed});
  return parts;
}

Grads backward(const Tensor& grad_output_in, const Tensor& value, const std::vector<int64_t>& spatial_shapes,
               const Tensor& coordinates, const Tensor& weights, const Tensor* reference) {
  Call call(value, spatial_shapes, coordinates, weights, reference);
  const Sizes& sizes = call.sizes;
  check_grad_output(grad_output_in, value, sizes);
  const Tensor grad_output = dense(grad_output_in);
  const ScalarType dtype = arithmetic(value);
  const bool packed = sizes.queries * 4 >= sizes.rows;
  if (!packed) call.use_value(dense(call.value));

  Grads grads;
  grads.value = new_empty(value, value, packed ? value.scalar_type() : dtype);
  grads.coordinates = new_empty(value, coordinates, dtype);
  grads.weights = new_empty(value, weights, dtype);
  if (reference) grads.reference = new_empty(value, *reference, dtype);
  if (!packed || sizes.queries == 0) torch::stable::zero_(grads.value);

  const Gradients pointers = {grad_output.const_data_ptr(), grads.value.mutable_data_ptr(),
                              grads.coordinates.mutable_data_ptr(), grads.weights.mutable_data_ptr(),
                              reference ? grads.reference.mutable_data_ptr() : nullptr};
  const Kernels& kernels = kernels_for(value.scalar_type());
  const std::vector<BackwardPart> parts = split(sizes, torch::stable::get_num_threads(), packed);
  std::atomic<bool> enough{true};
  torch::stable::parallel_for(0, int64_t(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      if (!kernels.backward(call.problem, pointers, parts[size_t(i)])) enough = false;
  });
  if (reference)
    torch::stable::parallel_for(0, sizes.batch * sizes.queries, 64, [&](int64_t begin, int64_t end) {
      if (!kernels.finish(call.problem, pointers, begin, end)) enough = false;
    });
  check_memory(enough);

  grads.value = as_dtype(grads.value, value.scalar_type());
  grads.coordinates = as_dtype(grads.coordinates, coordinates.scalar_type());
  grads.weights = as_dtype(grads.weights, weights.scalar_type());
  if (reference) grads.reference = as_dtype(grads.reference, reference->scalar_type());
  return grads;
}

Tensor ms_deform_attn(const Tensor& value, std::vector<int64_t> spatial_shapes,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  return forward(value, spatial_shapes, sampling_locations, attention_weights, nullptr);
}

// The kernels are deterministic anyway: `deterministic` is for devices where that costs something.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           std::vector<int64_t> spatial_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights,
                                                           bool /*deterministic*/) {
  Grads grads = backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights, nullptr);
  return {grads.value, grads.coordinates, grads.weights};
}

Tensor ms_deform_attn_from_offsets(const Tensor& value, std::vector<int64_t> spatial_shapes,
                                   const Tensor& reference_points, const Tensor& sampling_offsets,
                                   const Tensor& attention_logits) {
  return forward(value, spatial_shapes, sampling_offsets, attention_logits, &reference_points);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_from_offsets_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits,
    bool /*deterministic*/) {
  Grads grads =
      backward(grad_output, value, spatial_shapes, sampling_offsets, attention_logits, &reference_points);
  return {grads.value, grads.reference, grads.coordinates, grads.weights};
}

}  // namespace
}  // namespace groundingml::cpu

STABLE_TORCH_LIBRARY_IMPL(groundingml, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&groundingml::cpu::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&groundingml::cpu::ms_deform_attn_backward));
  m.impl("ms_deform_attn_from_offsets", TORCH_BOX(&groundingml::cpu::ms_deform_attn_from_offsets));
  m.impl("ms_deform_attn_from_offsets_backward",
         TORCH_BOX(&groundingml::cpu::ms_deform_attn_from_offsets_backward));
}
