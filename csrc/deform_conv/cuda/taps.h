// The interface of the CUDA kernels that deformable convolution has of its own: between its offsets and masks
// and the sampling points of multi-scale deformable attention, whose kernels (msda/cuda/problem.h) gather the
// samples and take the gradients back. Plain pointers and sizes, no PyTorch.
#pragma once

#include "../../msda/cuda/problem.h"

namespace groundingml::cuda::deform_conv {

// One sample. Offsets (2K, Ho, Wo) and mask (K, Ho, Wo) begin at its first number.
struct Convolution {
  int64_t height, width;  // H, W
  int64_t kernel_height, kernel_width;
  int64_t stride, padding, dilation;
  int64_t out_height, out_width;  // Ho, Wo

  GML_HOST_DEVICE int64_t taps() const { return kernel_height * kernel_width; }
  GML_HOST_DEVICE int64_t out_pixels() const { return out_height * out_width; }
};

// For output pixels begin <= row * Wo + column < end the points (end - begin, K, 2), x and y from 0 to 1
// across the map, and their weights (end - begin, K). `geometry` is the type of offsets and mask; points and
// weights are of the arithmetic's: float, or double for double.
void place_taps(const Convolution&, Element geometry, const void* offsets, const void* mask, int64_t begin,
                int64_t end, void* points, void* weights, cudaStream_t stream);

// From the gradients of points and weights to those of offsets and mask, all of the arithmetic's type.
void collect_gradients(const Convolution&, bool is_double, const void* grad_points, const void* grad_weights,
                       int64_t begin, int64_t end, void* grad_offsets, void* grad_mask, cudaStream_t stream);

}  // namespace groundingml::cuda::deform_conv
