// The interface of the CUDA kernels: plain pointers and sizes, no PyTorch. Every function enqueues work on
// `stream` and returns without waiting for it; a launch that CUDA refuses shows in cudaGetLastError.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "device.cuh"

namespace groundingml::cuda {

enum class Element { kFloat64, kFloat32, kFloat16, kBFloat16 };

// Limits of the kernels, checked by `check_limits`; all else is free.
constexpr int64_t kMaxLevels = 48;         // the level table is passed in the 4 KB of kernel arguments
constexpr int64_t kMaxHeadBlocks = 65535;  // heads, times blocks of 8 channels: rows of a launch's grid

// Batches beyond this take several launches.
#if !defined(GML_SAMPLES_PER_LAUNCH)
#define GML_SAMPLES_PER_LAUNCH 65535
#endif
constexpr int64_t kSamplesPerLaunch = GML_SAMPLES_PER_LAUNCH;

// Batch B, rows S of value (the sum of height * width over levels), heads M, channels D, queries Q, levels L,
// points P.
struct Problem {
  int64_t batch, rows, heads, channels, queries, levels, points;
  const int64_t* shapes;  // host memory: (height, width) of each level, all positive

  // (B, S, M, D), strides in elements; channels are adjacent
  const void* value;
  int64_t batch_stride, row_stride, head_stride;

  int64_t points_per_head() const { return levels * points; }
  int64_t value_elements() const { return batch * rows * heads * channels; }
  bool has_output() const { return batch > 0 && queries > 0 && heads > 0 && channels > 0; }

  void check_limits() const {
    if (levels > kMaxLevels) throw std::invalid_argument("the CUDA kernels take at most 48 feature levels");
    if ((channels + 7) / 8 * heads > kMaxHeadBlocks) {
      throw std::invalid_argument("the CUDA kernels take at most 65535 blocks of 8 channels over all heads");
    }
    if (points_per_head() > INT32_MAX)
      throw std::invalid_argument("the CUDA kernels take fewer than 2^31 points per head");
    for (int64_t l = 0; l < 2 * levels; ++l) {
      if (shapes[l] < 1 || shapes[l] > INT32_MAX) {
        throw std::invalid_argument("level heights and widths must be between 1 and 2^31 - 1");
      }
    }
  }
};

// Calls run(T()) with the C++ type of an element.
template <class Run>
void with_element(Element element, const Run& run) {
  switch (element) {
    case Element::kFloat64: return run(double{});
    case Element::kFloat32: return run(float{});
    case Element::kFloat16: return run(__half{});
    case Element::kBFloat16: return run(__nv_bfloat16{});
  }
}

// Geometry is contiguous: locations or offsets (B, Q, M, L, P, 2), aligned to a pair, and weights or logits
// (B, Q, M, L, P), both of type `geometry`, which is value's own type or the type of its arithmetic (float;
// double for double). Reference points (B, Q, L, coordinates), with 2 or 4 coordinates, are always of the
// arithmetic's type.

// output (B, Q, M * D)
void forward(const Problem&, Element value, Element geometry, const void* locations, const void* weights,
             void* output, cudaStream_t stream);
void forward_from_offsets(const Problem&, Element value, Element geometry, const void* reference,
                          int64_t coordinates, const void* offsets, const void* logits, void* output,
                          cudaStream_t stream);

// All gradients and geometry here are of the arithmetic's type, but for grad_output, which is of value's;
// value is contiguous. grad_value (B, S, M, D) must be zero on entry and is added to with atomics, in no
// fixed order; null leaves it out. The other two are written, each always in the same order.
void backward(const Problem&, Element value, const void* locations, const void* weights,
              const void* grad_output, void* grad_value, void* grad_locations, void* grad_weights,
              cudaStream_t stream);

// The gradient of value without atomics, bit-identical from run to run, of value's type. It is made of three
// steps, for a range of heads at a time: `ordered_keys` writes for each sampling point the cell it reads; the
// caller sorts the keys, stably, and hands back the sorted keys and the permutation; `ordered_backward` then
// sums each row's points in that order.
struct HeadRange {
  int64_t begin, end;  // of b * M + m

  // From `begin` on as many heads as fit 32-bit keys and a bounded scratch space; throws where one head does
  // not fit. How heads are grouped does not change the result.
  static HeadRange from(const Problem&, int64_t begin);
  int64_t cells(const Problem& p) const { return (end - begin) * p.rows; }
  int64_t entries(const Problem& p) const { return (end - begin) * p.queries * p.points_per_head(); }
};
void ordered_keys(const Problem&, Element value, HeadRange, const void* locations, int32_t* keys,
                  cudaStream_t stream);
void ordered_backward(const Problem&, Element value, HeadRange, const void* locations, const void* weights,
                      const void* grad_output, const int32_t* sorted_keys, const int64_t* permutation,
                      int32_t* starts /* cells + 1 */, void* grad_value, cudaStream_t stream);

// The fused op's backward runs `backward` between these two. `expand_offsets` writes locations and softmaxed
// weights; `collapse_offsets` turns the gradients of those, in place, into the gradients of offsets and
// logits, and writes that of the reference points.
void expand_offsets(const Problem&, Element value, const void* reference, int64_t coordinates,
                    const void* offsets, const void* logits, void* locations, void* weights,
                    cudaStream_t stream);
void collapse_offsets(const Problem&, Element value, const void* reference, int64_t coordinates,
                      const void* offsets, const void* weights, void* grad_locations, void* grad_weights,
                      void* grad_reference, cudaStream_t stream);

}  // namespace groundingml::cuda
