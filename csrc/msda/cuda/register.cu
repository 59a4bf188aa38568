// The ops for CUDA tensors: allocates through PyTorch and enqueues the kernels (problem.h) on the current
// stream of the tensors' device. Nothing here waits for the GPU.
//
// Build: nvcc -std=c++17 -O3 -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem <torch>/include, every *.cu
// of this folder, linked with -cudart static. Only the stable ABI is used, so the headers of a CPU-only
// PyTorch do, and no CUDA library is needed to load the result: what is missing there is said when a CUDA
// tensor comes.
#include <optional>
#include <tuple>

#include "../common.h"
#include "pytorch.h"

namespace groundingml::cuda {
namespace {

ScalarType arithmetic(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Contiguous, and aligned to pairs of elements, as the kernels read geometry.
Tensor dense(const Tensor& tensor) {
  const Tensor contiguous = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  const bool aligned =
      reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % (2 * contiguous.element_size()) == 0;
  return aligned ? contiguous : torch::stable::clone(contiguous);
}

Tensor empty_like(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::new_empty(tensor, tensor.sizes(), dtype);
}

// A call's tensors, kept alive while `problem` points into them. Coordinates are locations or offsets,
// weights are attention weights or logits.
struct Call {
  enum class Pass { kForward, kBackward };

  Sizes sizes;
  std::vector<int64_t> shapes;
  Tensor value, coordinates, weights;
  std::optional<Tensor> reference;
  Element element, geometry;
  Problem problem{};

  Call(Pass pass, const Tensor& value_in, std::vector<int64_t> spatial_shapes, const Tensor& coordinates_in,
       const Tensor& weights_in, const Tensor* reference_in)
      : sizes(check_arguments(value_in, spatial_shapes, coordinates_in, weights_in, reference_in)),
        shapes(std::move(spatial_shapes)),
        element(element_of(value_in.scalar_type())) {
    const bool usable =
        pass == Pass::kForward ? value_in.stride(3) == 1 || sizes.channels == 1 : value_in.is_contiguous();
    value = usable ? value_in : torch::stable::contiguous(value_in);

    // The forward reads 16-bit geometry as it is, unless the two differ; all else is in the arithmetic's
    // type.
    const bool own_type = pass == Pass::kForward && coordinates_in.scalar_type() == value.scalar_type() &&
                          weights_in.scalar_type() == value.scalar_type();
    const ScalarType dtype = own_type ? value.scalar_type() : arithmetic(value);
    geometry = element_of(dtype);
    coordinates = dense(as_dtype(coordinates_in, dtype));
    weights = dense(as_dtype(weights_in, dtype));
    if (reference_in != nullptr) reference = dense(as_dtype(*reference_in, arithmetic(value)));

    problem.batch = sizes.batch;
    problem.rows = sizes.rows;
    problem.heads = sizes.heads;
    problem.channels = sizes.channels;
    problem.queries = sizes.queries;
    problem.levels = static_cast<int64_t>(sizes.levels.size());
    problem.points = sizes.points;
    problem.shapes = shapes.data();
    problem.value = value.const_data_ptr();
    // the stride of a dimension of size 1 can be anything
    problem.batch_stride = sizes.batch > 1 ? value.stride(0) : 0;
    problem.row_stride = sizes.rows > 1 ? value.stride(1) : 0;
    problem.head_stride = sizes.heads > 1 ? value.stride(2) : 0;
  }

  const void* reference_data() const { return reference ? reference->const_data_ptr() : nullptr; }
};

Tensor run_forward(const Tensor& value, std::vector<int64_t> spatial_shapes, const Tensor& coordinates,
                   const Tensor& weights, const Tensor* reference) {
  const OnDeviceOf device(value);
  const Call call(Call::Pass::kForward, value, std::move(spatial_shapes), coordinates, weights, reference);
  const Sizes& sizes = call.sizes;
  const Tensor output =
      torch::stable::new_empty(value, {sizes.batch, sizes.queries, sizes.heads * sizes.channels});
  if (reference == nullptr) {
    forward(call.problem, call.element, call.geometry, call.coordinates.const_data_ptr(),
            call.weights.const_data_ptr(), output.mutable_data_ptr(), device.stream());
  } else {
    forward_from_offsets(call.problem, call.element, call.geometry, call.reference_data(),
                         sizes.reference_size, call.coordinates.const_data_ptr(),
                         call.weights.const_data_ptr(), output.mutable_data_ptr(), device.stream());
  }
  device.check_launches();
  return output;
}

Tensor ordered_grad_value(const Call& call, const Tensor& locations, const Tensor& weights,
                          const Tensor& grad_output, cudaStream_t stream) {
  const Problem& p = call.problem;
  const Tensor grad_value = empty_like(call.value, call.value.scalar_type());
  for (int64_t head = 0; head < p.batch * p.heads;) {
    const HeadRange range = HeadRange::from(p, head);
    const Tensor keys = torch::stable::new_empty(call.value, {range.entries(p)}, ScalarType::Int);
    const Tensor starts = torch::stable::new_empty(call.value, {range.cells(p) + 1}, ScalarType::Int);
    ordered_keys(p, call.element, range, locations.const_data_ptr(),
                 static_cast<int32_t*>(keys.mutable_data_ptr()), stream);
    const auto [sorted, permutation] = sort(keys);
    ordered_backward(p, call.element, range, locations.const_data_ptr(), weights.const_data_ptr(),
                     grad_output.const_data_ptr(), static_cast<const int32_t*>(sorted.const_data_ptr()),
                     static_cast<const int64_t*>(permutation.const_data_ptr()),
                     static_cast<int32_t*>(starts.mutable_data_ptr()), grad_value.mutable_data_ptr(), stream);
    head = range.end;
  }
  return grad_value;
}

struct Gradients {
  Tensor value, coordinates, weights;
  std::optional<Tensor> reference;
};

Gradients run_backward(const Tensor& grad_output_in, const Tensor& value, std::vector<int64_t> spatial_shapes,
                       const Tensor& coordinates, const Tensor& weights, const Tensor* reference,
                       bool deterministic) {
  const OnDeviceOf device(value);
  const Call call(Call::Pass::kBackward, value, std::move(spatial_shapes), coordinates, weights, reference);
  const Problem& p = call.problem;
  check_grad_output(grad_output_in, value, call.sizes);
  const Tensor grad_output = dense(grad_output_in);
  const ScalarType dtype = arithmetic(value);

  Tensor locations = call.coordinates, attention = call.weights;
  if (reference != nullptr) {
    locations = empty_like(call.coordinates, dtype);
    attention = empty_like(call.weights, dtype);
    expand_offsets(p, call.element, call.reference_data(), call.sizes.reference_size,
                   call.coordinates.const_data_ptr(), call.weights.const_data_ptr(),
                   locations.mutable_data_ptr(), attention.mutable_data_ptr(), device.stream());
  }

  // Atomics accumulate in the arithmetic's type; the ordered gradient is written once, in value's.
  const Tensor grad_value = deterministic
                                ? ordered_grad_value(call, locations, attention, grad_output, device.stream())
                                : torch::stable::new_zeros(value, value.sizes(), dtype);
  const Tensor grad_locations = empty_like(call.coordinates, dtype),
               grad_weights = empty_like(call.weights, dtype);
  backward(p, call.element, locations.const_data_ptr(), attention.const_data_ptr(),
           grad_output.const_data_ptr(), deterministic ? nullptr : grad_value.mutable_data_ptr(),
           grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), device.stream());

  Gradients gradients;
  if (reference != nullptr) {
    const Tensor grad_reference = empty_like(*call.reference, dtype);
    collapse_offsets(p, call.element, call.reference_data(), call.sizes.reference_size,
                     call.coordinates.const_data_ptr(), attention.const_data_ptr(),
                     grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(),
                     grad_reference.mutable_data_ptr(), device.stream());
    gradients.reference = as_dtype(grad_reference, reference->scalar_type());
  }
  device.check_launches();
  gradients.value = as_dtype(grad_value, value.scalar_type());
  gradients.coordinates = as_dtype(grad_locations, coordinates.scalar_type());
  gradients.weights = as_dtype(grad_weights, weights.scalar_type());
  return gradients;
}

Tensor ms_deform_attn(const Tensor& value, std::vector<int64_t> spatial_shapes,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run_forward(value, std::move(spatial_shapes), sampling_locations, attention_weights, nullptr);
}

Tensor ms_deform_attn_from_offsets(const Tensor& value, std::vector<int64_t> spatial_shapes,
                                   const Tensor& reference_points, const Tensor& sampling_offsets,
                                   const Tensor& attention_logits) {
  return run_forward(value, std::move(spatial_shapes), sampling_offsets, attention_logits, &reference_points);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           std::vector<int64_t> spatial_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights,
                                                           bool deterministic) {
  const Gradients g = run_backward(grad_output, value, std::move(spatial_shapes), sampling_locations,
                                   attention_weights, nullptr, deterministic);
  return {g.value, g.coordinates, g.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_from_offsets_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> spatial_shapes,
    const Tensor& reference_points, const Tensor& sampling_offsets, const Tensor& attention_logits,
    bool deterministic) {
  const Gradients g = run_backward(grad_output, value, std::move(spatial_shapes), sampling_offsets,
                                   attention_logits, &reference_points, deterministic);
  return {g.value, *g.reference, g.coordinates, g.weights};
}

}  // namespace
}  // namespace groundingml::cuda

STABLE_TORCH_LIBRARY_IMPL(groundingml, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&groundingml::cuda::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&groundingml::cuda::ms_deform_attn_backward));
  m.impl("ms_deform_attn_from_offsets", TORCH_BOX(&groundingml::cuda::ms_deform_attn_from_offsets));
  m.impl("ms_deform_attn_from_offsets_backward",
         TORCH_BOX(&groundingml::cuda::ms_deform_attn_from_offsets_backward));
}
