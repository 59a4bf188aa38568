// What both devices' implementations of modulated deformable convolution do first: turn the arguments into
// sizes, and refuse what does not fit. Python has friendlier checks; these guard torch.ops.groundingml.*.
#pragma once

#include <array>
#include <utility>

#include "../msda/common.h"

namespace groundingml::deform_conv {

// Shapes of one call: x (B, C, H, W), weight (O, C, Kh, Kw), output (B, O, Ho, Wo), K = Kh * Kw taps.
struct ConvolutionSizes {
  int64_t batch, channels, height, width;
  int64_t out_channels, kernel_height, kernel_width;
  int64_t stride, padding, dilation;
  int64_t out_height, out_width;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t in_pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t columns() const { return taps() * channels; }  // width of the matrix of samples
};

inline ConvolutionSizes check_arguments(const Tensor& x, const Tensor& weight, const Tensor& offsets, const Tensor& mask,
                             int64_t stride, int64_t padding, int64_t dilation) {
  STD_TORCH_CHECK(x.dim() == 4, "x must have shape (B, C, H, W), got ", shape_text(x));
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  "x must be float64, float32, float16 or bfloat16");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1),
                  "weight must have shape (O, C, Kh, Kw) with C = ", x.size(1), " channels, got ",
                  shape_text(weight));
  STD_TORCH_CHECK(weight.scalar_type() == dtype, "weight must have x's dtype");
  STD_TORCH_CHECK(stride > 0 && padding >= 0 && dilation > 0,
                  "stride and dilation must be positive and padding not negative, got stride ", stride,
                  ", padding ", padding, ", dilation ", dilation);
  ConvolutionSizes s{};
  s.batch = x.size(0);
  s.channels = x.size(1);
  s.height = x.size(2);
  s.width = x.size(3);
  s.out_channels = weight.size(0);
  s.kernel_height = weight.size(2);
  s.kernel_width = weight.size(3);
  s.stride = stride;
  s.padding = padding;
  s.dilation = dilation;
  STD_TORCH_CHECK(s.channels > 0 && s.height > 0 && s.width > 0 && s.out_channels > 0 && s.taps() > 0,
                  "channels, height, width and taps must not be 0, got x ", shape_text(x), " and weight ",
                  shape_text(weight));
  STD_TORCH_CHECK(s.in_pixels() < (int64_t(1) << 31) && s.channels < (int64_t(1) << 31),
                  "x must have fewer than 2^31 pixels and channels, got ", shape_text(x));
  const int64_t room_down = s.height + 2 * padding - dilation * (s.kernel_height - 1) - 1;
  const int64_t room_right = s.width + 2 * padding - dilation * (s.kernel_width - 1) - 1;
  STD_TORCH_CHECK(room_down >= 0 && room_right >= 0, "the kernel of ", s.kernel_height, " x ", s.kernel_width,
                  " taps is larger than the padded x ", shape_text(x));
  s.out_height = room_down / stride + 1;
  s.out_width = room_right / stride + 1;
  check_shape("offsets", offsets, {s.batch, 2 * s.taps(), s.out_height, s.out_width});
  check_shape("mask", mask, {s.batch, s.taps(), s.out_height, s.out_width});
  for (const auto& [name, tensor] : {std::pair("offsets", &offsets), std::pair("mask", &mask)}) {
    STD_TORCH_CHECK(
        tensor->scalar_type() == dtype ||
            (tensor->scalar_type() == ScalarType::Float && dtype != ScalarType::Double),
        name, " must have x's dtype, or float32 when x is not float64");
  }
  for (const auto& [name, tensor] :
       {std::pair("weight", &weight), std::pair("offsets", &offsets), std::pair("mask", &mask)}) {
    STD_TORCH_CHECK(
        tensor->is_cuda() == x.is_cuda() && tensor->get_device_index() == x.get_device_index(), name,
        " must be on x's device");
  }
  return s;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& x, const ConvolutionSizes& s) {
  check_shape("grad_output", grad_output, {s.batch, s.out_channels, s.out_height, s.out_width});
  STD_TORCH_CHECK(grad_output.scalar_type() == x.scalar_type(), "grad_output must have x's dtype");
}

inline Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

inline ScalarType arithmetic(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// (N, P, Q, ...) -> (N, Q * ..., P), contiguous: the channels of a pixel, or of a tap, side by side. No copy
// where memory lies like that already, as in torch.channels_last.
inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::transpose(torch::stable::flatten(tensor, 2, 3), 1, 2));
}

// The reverse: (N, Q, P) -> (N, P, Qh, Qw), contiguous.
inline Tensor channels_first(const Tensor& tensor, int64_t height, int64_t width) {
  const Tensor turned = torch::stable::contiguous(torch::stable::transpose(tensor, 1, 2));
  return torch::stable::view(turned, {tensor.size(0), tensor.size(2), height, width});
}

// out = a @ b, by the library that PyTorch multiplies matrices with. `out` may be a part of a larger matrix.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the reference that came back
}

// (B, channels, pixels) -> (channels, pixels begin .. end) of one sample, a view.
inline Tensor part(const Tensor& tensor, int64_t sample, int64_t begin, int64_t end) {
  Tensor one = torch::stable::select(tensor, 0, sample);
  return torch::stable::narrow(one, 1, begin, end - begin);
}

inline Tensor first_rows(Tensor matrix, int64_t count) {
  return torch::stable::narrow(matrix, 0, 0, count);
}

inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

}  // namespace groundingml::deform_conv
