// Modulated deformable convolution for CUDA tensors: the kernels of multi-scale deformable attention gather
// the moved and scaled samples (one head, one level, one point for each tap of each output pixel), and
// PyTorch's own matrix multiplication takes them from there. Nothing here waits for the GPU.
#include <tuple>

#include "../../msda/cuda/pytorch.h"
#include "../common.h"
#include "taps.h"

namespace groundingml::cuda::deform_conv {
namespace {

using namespace groundingml::deform_conv;

// The matrix of samples is made in parts of about this many numbers.
constexpr int64_t kNumbersAtOnce = int64_t(1) << 26;

int64_t bytes_of(const Tensor& tensor, int64_t elements) { return elements * tensor.element_size(); }

// A call's tensors, kept alive while kernels read them.
struct Call {
  ConvolutionSizes sizes;
  ScalarType dtype, wide;  // of x, and of the arithmetic
  Tensor x;                // (B, H * W, C)
  Tensor weight;           // (O, K * C)
  ScalarType geometry;
  Tensor offsets, mask;
  Convolution convolution{};
  int64_t pixels_at_once;
  Tensor points, weights;  // (pixels at once, K, 2) and (pixels at once, K)
  Tensor columns;          // (pixels at once, K * C)
  int64_t shape[2];

  Call(const Tensor& x_in, const Tensor& weight_in, const Tensor& offsets_in, const Tensor& mask_in,
       int64_t stride, int64_t padding, int64_t dilation, bool whole_samples)
      : sizes(check_arguments(x_in, weight_in, offsets_in, mask_in, stride, padding, dilation)),
        dtype(x_in.scalar_type()),
        wide(arithmetic(x_in)),
        x(channels_last(x_in)),
        weight(torch::stable::view(channels_last(weight_in), {sizes.out_channels, sizes.columns()})),
        geometry(offsets_in.scalar_type() == dtype && mask_in.scalar_type() == dtype ? dtype : wide),
        offsets(torch::stable::contiguous(as_dtype(offsets_in, geometry))),
        mask(torch::stable::contiguous(as_dtype(mask_in, geometry))),
        convolution{sizes.height, sizes.width,   sizes.kernel_height, sizes.kernel_width, sizes.stride,
                    sizes.padding, sizes.dilation, sizes.out_height,  sizes.out_width} {
    const int64_t most = kNumbersAtOnce / sizes.columns();
    pixels_at_once = whole_samples || sizes.out_pixels() < most ? sizes.out_pixels() : most > 1 ? most : 1;
    points = torch::stable::new_empty(x, {pixels_at_once, sizes.taps(), 2}, wide);
    weights = torch::stable::new_empty(x, {pixels_at_once, sizes.taps()}, wide);
    columns = torch::stable::new_empty(x, {pixels_at_once, sizes.columns()}, dtype);
    shape[0] = sizes.height;
    shape[1] = sizes.width;
  }

  // Runs `work(sample, begin, end)` for all output pixels.
  template <class Work>
  void for_each_part(const Work& work) const {
    for (int64_t sample = 0; sample < sizes.batch; sample++)
      for (int64_t begin = 0; begin < sizes.out_pixels(); begin += pixels_at_once) {
        const int64_t end = begin + pixels_at_once;
        work(sample, begin, end < sizes.out_pixels() ? end : sizes.out_pixels());
      }
  }

  Element element() const { return element_of(dtype); }

  // Sampling the map of one sample at `pixels` times K points.
  Problem problem(int64_t sample, int64_t pixels) const {
    Problem p{};
    p.batch = p.heads = p.levels = p.points = 1;
    p.rows = sizes.in_pixels();
    p.channels = p.row_stride = sizes.channels;
    p.queries = pixels * sizes.taps();
    p.shapes = shape;
    p.value = static_cast<const char*>(x.const_data_ptr()) +
              bytes_of(x, sample * sizes.in_pixels() * sizes.channels);
    return p;
  }

  // Fills the first rows of `points` and `weights`.
  void place(int64_t sample, int64_t begin, int64_t end, cudaStream_t stream) const {
    const int64_t numbers = sizes.taps() * sizes.out_pixels();
    place_taps(convolution, element_of(geometry),
               static_cast<const char*>(offsets.const_data_ptr()) + bytes_of(offsets, sample * 2 * numbers),
               static_cast<const char*>(mask.const_data_ptr()) + bytes_of(mask, sample * numbers), begin, end,
               points.mutable_data_ptr(), weights.mutable_data_ptr(), stream);
  }

  // The first rows of `columns`, filled; after `place`.
  Tensor sample_columns(int64_t sample, int64_t pixels, cudaStream_t stream) const {
    forward(problem(sample, pixels), element(), element_of(wide), points.const_data_ptr(),
            weights.const_data_ptr(), columns.mutable_data_ptr(), stream);
    return first_rows(columns, pixels);
  }
};

Tensor modulated_deform_conv(const Tensor& x, const Tensor& weight, const Tensor& offsets, const Tensor& mask,
                             int64_t stride, int64_t padding, int64_t dilation) {
  const OnDeviceOf device(x);
  const Call call(x, weight, offsets, mask, stride, padding, dilation, false);
  const ConvolutionSizes& s = call.sizes;
  const Tensor output = torch::stable::new_empty(x, {s.batch, s.out_channels, s.out_height, s.out_width});
  const Tensor flat = torch::stable::flatten(output, 2, 3);
  call.for_each_part([&](int64_t sample, int64_t begin, int64_t end) {
    call.place(sample, begin, end, device.stream());
    const Tensor columns = call.sample_columns(sample, end - begin, device.stream());
    multiply(call.weight, transposed(columns), part(flat, sample, begin, end));
  });
  device.check_launches();
  return output;
}

// The gradient of one sample's map without atomics, into `grad_x`.
void ordered_grad_x(const Call& call, const Problem& p, const Tensor& grad_columns, void* grad_x,
                    cudaStream_t stream) {
  const HeadRange range = HeadRange::from(p, 0);
  const Tensor keys = torch::stable::new_empty(call.x, {range.entries(p)}, ScalarType::Int);
  const Tensor starts = torch::stable::new_empty(call.x, {range.cells(p) + 1}, ScalarType::Int);
  ordered_keys(p, call.element(), range, call.points.const_data_ptr(),
               static_cast<int32_t*>(keys.mutable_data_ptr()), stream);
  const auto [sorted, permutation] = sort(keys);
  ordered_backward(p, call.element(), range, call.points.const_data_ptr(), call.weights.const_data_ptr(),
                   grad_columns.const_data_ptr(), static_cast<const int32_t*>(sorted.const_data_ptr()),
                   static_cast<const int64_t*>(permutation.const_data_ptr()),
                   static_cast<int32_t*>(starts.mutable_data_ptr()), grad_x, stream);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_deform_conv_backward(
    const Tensor& grad_output_in, const Tensor& x, const Tensor& weight, const Tensor& offsets,
    const Tensor& mask, int64_t stride, int64_t padding, int64_t dilation, bool deterministic) {
  const OnDeviceOf device(x);
  const Call call(x, weight, offsets, mask, stride, padding, dilation, deterministic);
  const ConvolutionSizes& s = call.sizes;
  check_grad_output(grad_output_in, x, s);
  const Tensor grad_output = torch::stable::view(torch::stable::contiguous(grad_output_in),
                                                 {s.batch, s.out_channels, s.out_pixels()});
  // Atomics accumulate in the arithmetic's type; the ordered gradient is written once, in x's.
  const Tensor grad_x = torch::stable::new_zeros(call.x, {s.batch, s.in_pixels(), s.channels},
                                                 deterministic ? call.dtype : call.wide);
  const Tensor grad_offsets = torch::stable::new_empty(call.x, call.offsets.sizes(), call.wide);
  const Tensor grad_mask = torch::stable::new_empty(call.x, call.mask.sizes(), call.wide);
  const Tensor grad_columns = torch::stable::empty_like(call.columns);
  const Tensor grad_points = torch::stable::empty_like(call.points);
  const Tensor grad_weights = torch::stable::empty_like(call.weights);
  const Tensor grad_weight_part = torch::stable::empty_like(call.weight);
  Tensor grad_weight = torch::stable::new_zeros(call.weight, {s.out_channels, s.columns()}, call.wide);

  call.for_each_part([&](int64_t sample, int64_t begin, int64_t end) {
    const Tensor gradient = part(grad_output, sample, begin, end);  // (O, pixels)
    call.place(sample, begin, end, device.stream());
    multiply(gradient, call.sample_columns(sample, end - begin, device.stream()), grad_weight_part);
    grad_weight = torch::stable::subtract(grad_weight, as_dtype(grad_weight_part, call.wide), -1.0);
    multiply(transposed(gradient), call.weight, first_rows(grad_columns, end - begin));

    const Problem p = call.problem(sample, end - begin);
    char* grad_map = static_cast<char*>(grad_x.mutable_data_ptr()) +
                     bytes_of(grad_x, sample * s.in_pixels() * s.channels);
    if (deterministic) ordered_grad_x(call, p, grad_columns, grad_map, device.stream());
    backward(p, call.element(), call.points.const_data_ptr(), call.weights.const_data_ptr(),
             grad_columns.const_data_ptr(), deterministic ? nullptr : grad_map,
             grad_points.mutable_data_ptr(), grad_weights.mutable_data_ptr(), device.stream());
    const int64_t numbers = sample * s.taps() * s.out_pixels();
    collect_gradients(
        call.convolution, call.wide == ScalarType::Double, grad_points.const_data_ptr(),
        grad_weights.const_data_ptr(), begin, end,
        static_cast<char*>(grad_offsets.mutable_data_ptr()) + bytes_of(grad_offsets, 2 * numbers),
        static_cast<char*>(grad_mask.mutable_data_ptr()) + bytes_of(grad_mask, numbers), device.stream());
  });
  device.check_launches();
  const Tensor grad_kernel = torch::stable::view(grad_weight, {s.out_channels, s.taps(), s.channels});
  return {as_dtype(channels_first(grad_x, s.height, s.width), x.scalar_type()),
          as_dtype(channels_first(grad_kernel, s.kernel_height, s.kernel_width), weight.scalar_type()),
          as_dtype(grad_offsets, offsets.scalar_type()), as_dtype(grad_mask, mask.scalar_type())};
}

}  // namespace
}  // namespace groundingml::cuda::deform_conv

STABLE_TORCH_LIBRARY_IMPL(groundingml, CUDA, m) {
  m.impl("modulated_deform_conv", TORCH_BOX(&groundingml::cuda::deform_conv::modulated_deform_conv));
  m.impl("modulated_deform_conv_backward",
         TORCH_BOX(&groundingml::cuda::deform_conv::modulated_deform_conv_backward));
}
