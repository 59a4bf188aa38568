// The fused op's backward is the plain one between two small steps: offsets and logits become locations and
// weights, and the gradients of those become the gradients of offsets, logits and reference points. No
// atomics: sums over heads and points are always taken in the same order.
#pragma once

#include "geometry.cuh"
#include "problem.h"

namespace groundingml::cuda {

constexpr int kOffsetLanes = 8;  // that share one head of one query

template <class F>
struct OffsetArguments {
  const F* reference;  // (B, Q, L, coordinates)
  const F* offsets;    // (B, Q, M, L, P, 2)
  F* locations;  // (B, Q, M, L, P, 2): written by expand; gradients of locations, then of offsets in collapse
  F* weights;    // (B, Q, M, L, P): likewise, logits come from
  const F* logits;    // softmaxed weights in collapse
  F* grad_reference;  // (B, Q, L, coordinates)
  int64_t queries;    // of all samples
  int heads, levels, points_per_level, coordinates;
  struct Size {
    F width, height;
  } size[kMaxLevels];
};

template <class F>
__global__ void __launch_bounds__(kThreads) expand_kernel(const __grid_constant__ OffsetArguments<F> a) {
  constexpr int LANES = kOffsetLanes;
  const int lane = threadIdx.x % LANES, count = a.levels * a.points_per_level;
  const int64_t pairs = a.queries * a.heads;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + threadIdx.x / LANES;
  const bool stores = slot < pairs;
  const int64_t pair = stores ? slot : pairs - 1, query = pair / a.heads;

  F peak = -INFINITY, total = 0;
  for (int i = lane; i < count; i += LANES) peak = fmax(peak, a.logits[pair * count + i]);
  peak = group_max<LANES>(peak);
  for (int i = lane; i < count; i += LANES) total += fast_exp(a.logits[pair * count + i] - peak);
  const F scale = F(1) / group_sum<LANES>(total);

  for (int i = lane; i < count && stores; i += LANES) {
    const int l = i / a.points_per_level;
    const F* reference = a.reference + (query * a.levels + l) * a.coordinates;
    const int64_t at = 2 * (pair * count + i);
    F x, y;
    if (a.coordinates == 2) {
      x = reference[0] + a.offsets[at] / a.size[l].width;
      y = reference[1] + a.offsets[at + 1] / a.size[l].height;
    } else {
      const F half = F(0.5) / static_cast<F>(a.points_per_level);
      x = fma(a.offsets[at] * half, reference[2], reference[0]);
      y = fma(a.offsets[at + 1] * half, reference[3], reference[1]);
    }
    a.locations[at] = x;
    a.locations[at + 1] = y;
    a.weights[pair * count + i] = fast_exp(a.logits[pair * count + i] - peak) * scale;
  }
}

// Gradient through the softmax, in place.
template <class F>
__global__ void __launch_bounds__(kThreads)
    collapse_weights_kernel(const __grid_constant__ OffsetArguments<F> a) {
  constexpr int LANES = kOffsetLanes;
  const int lane = threadIdx.x % LANES, count = a.levels * a.points_per_level;
  const int64_t pairs = a.queries * a.heads;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * (kThreads / LANES) + threadIdx.x / LANES;
  const bool stores = slot < pairs;
  const int64_t first = (stores ? slot : pairs - 1) * count;

  F mean = 0;
  for (int i = lane; i < count; i += LANES) mean = fma(a.logits[first + i], a.weights[first + i], mean);
  mean = group_sum<LANES>(mean);
  for (int i = lane; i < count && stores; i += LANES) {
    a.weights[first + i] = a.logits[first + i] * (a.weights[first + i] - mean);
  }
}

// One thread for each query and level: the gradient of its reference point, and of the offsets of its points,
// in place.
template <class F>
__global__ void __launch_bounds__(kThreads)
    collapse_locations_kernel(const __grid_constant__ OffsetArguments<F> a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.queries * a.levels) return;
  const int64_t query = at / a.levels;
  const int l = static_cast<int>(at % a.levels);
  const F half = F(0.5) / static_cast<F>(a.points_per_level);
  F scale_x = F(1) / a.size[l].width, scale_y = F(1) / a.size[l].height;
  if (a.coordinates == 4) {
    scale_x = a.reference[4 * at + 2] * half;
    scale_y = a.reference[4 * at + 3] * half;
  }
  F x = 0, y = 0, width = 0, height = 0;
  for (int head = 0; head < a.heads; ++head) {
    for (int p = 0; p < a.points_per_level; ++p) {
      const int64_t point = ((query * a.heads + head) * a.levels + l) * a.points_per_level + p;
      const F grad_x = a.locations[2 * point], grad_y = a.locations[2 * point + 1];
      x += grad_x;
      y += grad_y;
      width = fma(grad_x, a.offsets[2 * point] * half, width);
      height = fma(grad_y, a.offsets[2 * point + 1] * half, height);
      a.locations[2 * point] = grad_x * scale_x;
      a.locations[2 * point + 1] = grad_y * scale_y;
    }
  }
  F* grad = a.grad_reference + at * a.coordinates;
  grad[0] = x;
  grad[1] = y;
  if (a.coordinates == 4) {
    grad[2] = width;
    grad[3] = height;
  }
}

template <class F>
OffsetArguments<F> offset_arguments(const Problem& p, const void* reference, int64_t coordinates,
                                    const void* offsets) {
  OffsetArguments<F> a{};
  a.reference = static_cast<const F*>(reference);
  a.offsets = static_cast<const F*>(offsets);
  a.queries = p.batch * p.queries;
  a.heads = static_cast<int>(p.heads);
  a.levels = static_cast<int>(p.levels);
  a.points_per_level = static_cast<int>(p.points);
  a.coordinates = static_cast<int>(coordinates);
  for (int64_t l = 0; l < p.levels; ++l) {
    a.size[l].height = static_cast<F>(p.shapes[2 * l]);
    a.size[l].width = static_cast<F>(p.shapes[2 * l + 1]);
  }
  return a;
}

}  // namespace groundingml::cuda
