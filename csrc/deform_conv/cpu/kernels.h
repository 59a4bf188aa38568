// The interface between the PyTorch side (register.cpp) and the CPU kernels of modulated deformable
// convolution, compiled once per instruction set. Plain data only, for the reason in msda/cpu/kernels.h.
#pragma once

#include <cstdint>

namespace groundingml::cpu::deform_conv {

// One call's inputs. "T" is the element type of x, "A" the type of all arithmetic: double for double, float
// for all others. Everything is contiguous. K = kernel_height * kernel_width taps.
struct Convolution {
  int64_t channels, height, width;  // C, H, W; H * W below 2^31
  int64_t kernel_height, kernel_width;
  int64_t stride, padding, dilation;
  int64_t out_height, out_width;  // Ho, Wo
  const void* x;                  // T (B, H, W, C)
  const void* offsets;            // A (B, 2K, Ho, Wo), rows before columns
  const void* mask;               // A (B, K, Ho, Wo)
};

// Output pixels begin <= row * Wo + column < end of one sample.
struct Pixels {
  int64_t sample, begin, end;
};

// What one translation unit offers for one element type. O output channels. The gradient of the output is
// A (B, O, Ho, Wo). Functions that return a bool return false when memory runs out.
struct Kernels {
  // A matrix (k, n) as the multiplication reads it: how many numbers it takes, and putting them there. Its
  // element (i, j) lies at i * row_stride + j * column_stride.
  int64_t (*packed_size)(int64_t k, int64_t n);
  void (*pack)(const void* matrix, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n,
               void* packed);
  // Output T (B, O, Ho, Wo), from the weight packed as (K * C, O).
  bool (*forward)(const Convolution&, const void* packed_weight, int64_t out_channels, Pixels, void* output);
  // The moved and scaled samples, A (end - begin, K, C).
  bool (*columns)(const Convolution&, Pixels, void* columns);
  // The gradient of those, from the weight packed as (O, K * C).
  void (*grad_columns)(const Convolution&, const void* packed_weight, int64_t out_channels, Pixels,
                       const void* grad_output, void* grad_columns);
  // Adds to columns begin .. end of the gradient of the weight, A (O, K * C).
  bool (*grad_weight)(const Convolution&, int64_t out_channels, Pixels, int64_t begin, int64_t end,
                      const void* grad_output, const void* columns, void* grad_weight);
  // Gradients of offsets and mask, laid out like those, from that of the columns.
  bool (*grad_taps)(const Convolution&, Pixels, const void* grad_columns, void* grad_offsets,
                    void* grad_mask);
  // Adds to channels begin .. end of the gradient of x, A (B, H, W, C), pixel after pixel.
  bool (*grad_x)(const Convolution&, Pixels, int64_t begin, int64_t end, const void* grad_columns,
                 void* grad_x);
};

// Indexed by msda's Element.
extern const Kernels kKernelsGeneric[4];
extern const Kernels kKernelsAvx2[4];
extern const Kernels kKernelsAvx512[4];

}  // namespace groundingml::cpu::deform_conv
