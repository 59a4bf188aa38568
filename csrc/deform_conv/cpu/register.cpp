// Modulated deformable convolution for CPU tensors: allocates, splits the work over PyTorch's threads, and
// calls the kernels of the instruction set in use.
#include <atomic>
#include <tuple>

#include "../../msda/cpu/capability.h"
#include "../common.h"
#include "kernels.h"

namespace groundingml::cpu::deform_conv {
namespace {

using namespace groundingml::deform_conv;

// Output pixels of one step of the backward pass, which keeps their samples and the gradients of those.
constexpr int64_t kPixelsAtOnce = 480;
// Threads get this many output pixels, or numbers of a row, at least.
constexpr int64_t kLeastPixels = 60;
constexpr int64_t kLeastNumbers = 32;  // whole cache lines

const Kernels& kernels_for(ScalarType dtype) {
  const Kernels* kernels = kKernelsGeneric;
#if defined(__x86_64__)
  const InstructionSet set = instruction_set_in_use();
  if (set == InstructionSet::kAvx2) kernels = kKernelsAvx2;
  if (set == InstructionSet::kAvx512) kernels = kKernelsAvx512;
#endif
  switch (dtype) {
    case ScalarType::Double: return kernels[int(Element::kDouble)];
    case ScalarType::Half: return kernels[int(Element::kHalf)];
    case ScalarType::BFloat16: return kernels[int(Element::kBFloat16)];
    default: return kernels[int(Element::kFloat)];
  }
}

// A call's tensors, kept alive while `convolution` points into them.
struct Call {
  ConvolutionSizes sizes;
  ScalarType dtype;  // of the arithmetic
  Tensor x;          // (B, H * W, C)
  Tensor weight;     // (O, K * C) of the arithmetic's type
  Tensor offsets, mask;
  Convolution convolution{};
  const Kernels& kernels;
  std::atomic<bool> enough{true};

  Call(const Tensor& x_in, const Tensor& weight_in, const Tensor& offsets_in, const Tensor& mask_in,
       int64_t stride, int64_t padding, int64_t dilation)
      : sizes(check_arguments(x_in, weight_in, offsets_in, mask_in, stride, padding, dilation)),
        dtype(arithmetic(x_in)),
        x(channels_last(x_in)),
        weight(torch::stable::view(channels_last(as_dtype(weight_in, dtype)),
                                   {sizes.out_channels, sizes.columns()})),
        offsets(torch::stable::contiguous(as_dtype(offsets_in, dtype))),
        mask(torch::stable::contiguous(as_dtype(mask_in, dtype))),
        convolution{sizes.channels,     sizes.height,     sizes.width,        sizes.kernel_height,
                    sizes.kernel_width, sizes.stride,     sizes.padding,      sizes.dilation,
                    sizes.out_height,   sizes.out_width,  x.const_data_ptr(), offsets.const_data_ptr(),
                    mask.const_data_ptr()},
        kernels(kernels_for(x_in.scalar_type())) {}

  // The weight, a (k, n) matrix with those strides, as the kernels multiply with it.
  Tensor packed_weight(int64_t row_stride, int64_t column_stride, int64_t k, int64_t n) const {
    const Tensor packed = torch::stable::new_empty(weight, {kernels.packed_size(k, n)}, dtype);
    kernels.pack(weight.const_data_ptr(), row_stride, column_stride, k, n, packed.mutable_data_ptr());
    return packed;
  }

  void check_memory() const {
    STD_TORCH_CHECK(enough, "groundingml: out of memory for the scratch space of modulated_deform_conv");
  }
};

Tensor modulated_deform_conv(const Tensor& x, const Tensor& weight, const Tensor& offsets, const Tensor& mask,
                             int64_t stride, int64_t padding, int64_t dilation) {
  Call call(x, weight, offsets, mask, stride, padding, dilation);
  const ConvolutionSizes& s = call.sizes;
  const Tensor output =
      torch::stable::new_empty(call.x, {s.batch, s.out_channels, s.out_height, s.out_width}, x.scalar_type());
  const Tensor packed = call.packed_weight(1, s.columns(), s.columns(), s.out_channels);
  for (int64_t sample = 0; sample < s.batch; sample++)
    torch::stable::parallel_for(0, s.out_pixels(), kLeastPixels, [&](int64_t begin, int64_t end) {
      if (!call.kernels.forward(call.convolution, packed.const_data_ptr(), s.out_channels,
                                {sample, begin, end}, output.mutable_data_ptr()))
        call.enough = false;
    });
  call.check_memory();
  return output;
}

// One step of the backward pass: some output pixels of one sample.
struct Backward {
  Call& call;
  Tensor grad_output, packed_weight;
  Tensor columns, grad_columns;  // (pixels at once, K * C)
  Tensor grad_x, grad_weight, grad_offsets, grad_mask;

  // The start of a pixel's row in a matrix like `columns`, of which `first` is the first.
  char* row(const Tensor& matrix, int64_t first, int64_t pixel) const {
    return static_cast<char*>(matrix.mutable_data_ptr()) +
           (pixel - first) * call.sizes.columns() * int64_t(matrix.element_size());
  }

  void step(int64_t sample, int64_t begin, int64_t end) const {
    const ConvolutionSizes& s = call.sizes;
    const Kernels& kernels = call.kernels;
    torch::stable::parallel_for(begin, end, kLeastPixels, [&](int64_t from, int64_t to) {
      const Pixels pixels = {sample, from, to};
      char* const gradient = row(grad_columns, begin, from);
      kernels.grad_columns(call.convolution, packed_weight.const_data_ptr(), s.out_channels, pixels,
                           grad_output.const_data_ptr(), gradient);
      if (!kernels.columns(call.convolution, pixels, row(columns, begin, from)) ||
          !kernels.grad_taps(call.convolution, pixels, gradient, grad_offsets.mutable_data_ptr(),
                             grad_mask.mutable_data_ptr()))
        call.enough = false;
    });
    in_parts(s.columns(), [&](int64_t from, int64_t to) {
      if (!kernels.grad_weight(call.convolution, s.out_channels, {sample, begin, end}, from, to,
                               grad_output.const_data_ptr(), columns.const_data_ptr(),
                               grad_weight.mutable_data_ptr()))
        call.enough = false;
    });
    in_parts(s.channels, [&](int64_t from, int64_t to) {
      if (!kernels.grad_x(call.convolution, {sample, begin, end}, from, to, grad_columns.const_data_ptr(),
                          grad_x.mutable_data_ptr()))
        call.enough = false;
    });
  }

  // Splits a row of `count` numbers over threads. What a thread adds to, no other thread touches.
  template <class Work>
  static void in_parts(int64_t count, const Work& work) {
    torch::stable::parallel_for(
        0, (count + kLeastNumbers - 1) / kLeastNumbers, 1, [&](int64_t from, int64_t to) {
          const int64_t last = to * kLeastNumbers;
          work(from * kLeastNumbers, last < count ? last : count);
        });
  }
};

// The kernels are deterministic anyway: `deterministic` is for devices where that costs something.
std::tuple<Tensor, Tensor, Tensor, Tensor> modulated_deform_conv_backward(
    const Tensor& grad_output, const Tensor& x, const Tensor& weight, const Tensor& offsets,
    const Tensor& mask, int64_t stride, int64_t padding, int64_t dilation, bool /*deterministic*/) {
  Call call(x, weight, offsets, mask, stride, padding, dilation);
  const ConvolutionSizes& s = call.sizes;
  check_grad_output(grad_output, x, s);
  const int64_t at_once = s.out_pixels() < kPixelsAtOnce ? s.out_pixels() : kPixelsAtOnce;
  Backward pass{call,
                torch::stable::contiguous(as_dtype(grad_output, call.dtype)),
                call.packed_weight(s.columns(), 1, s.out_channels, s.columns()),
                torch::stable::new_empty(call.x, {at_once, s.columns()}, call.dtype),
                torch::stable::new_empty(call.x, {at_once, s.columns()}, call.dtype),
                torch::stable::new_zeros(call.x, {s.batch, s.in_pixels(), s.channels}, call.dtype),
                torch::stable::new_zeros(call.x, {s.out_channels, s.columns()}, call.dtype),
                torch::stable::empty_like(call.offsets),
                torch::stable::empty_like(call.mask)};
  for (int64_t sample = 0; sample < s.batch; sample++)
    for (int64_t begin = 0; begin < s.out_pixels(); begin += kPixelsAtOnce) {
      const int64_t end = begin + kPixelsAtOnce;
      pass.step(sample, begin, end < s.out_pixels() ? end : s.out_pixels());
    }
  call.check_memory();
  const Tensor grad_kernel = torch::stable::view(pass.grad_weight, {s.out_channels, s.taps(), s.channels});
  return {as_dtype(channels_first(pass.grad_x, s.height, s.width), x.scalar_type()),
          as_dtype(channels_first(grad_kernel, s.kernel_height, s.kernel_width), weight.scalar_type()),
          as_dtype(pass.grad_offsets, offsets.scalar_type()), as_dtype(pass.grad_mask, mask.scalar_type())};
}

}  // namespace
}  // namespace groundingml::cpu::deform_conv

STABLE_TORCH_LIBRARY_IMPL(groundingml, CPU, m) {
  m.impl("modulated_deform_conv", TORCH_BOX(&groundingml::cpu::deform_conv::modulated_deform_conv));
  m.impl("modulated_deform_conv_backward",
         TORCH_BOX(&groundingml::cpu::deform_conv::modulated_deform_conv_backward));
}
