// Backward of multi-scale deformable attention: gradients of value (atomics), locations and weights.
//
// The same walk as the forward, with 4 channels per lane. Every lane adds its channels' part of the value
// gradient at the four corners and keeps its part of four dot products; after LANES points, one
// reduce-scatter gives each lane the dot products of the very point whose corners it computed, from which it
// writes that point's gradients.
#pragma once

#include "geometry.cuh"
#include "problem.h"

namespace groundingml::cuda {

constexpr int kBackwardLanes = 8;

template <class T, class Table>
struct BackwardArguments {
  using F = ArithmeticOf<T>;
  const T* value;  // contiguous, like all tensors here
  const F* locations;
  const F* weights;
  const T* grad_output;
  F* grad_value;  // or null
  F* grad_locations;
  F* grad_weights;
  int64_t rows;
  int heads, channels, levels, points_per_level;
  QueryOrder<kThreads / kBackwardLanes> order;
  Table table;  // distances in elements
};

// LEVELS and POINTS are 0 where they are only known at run time; they are compiled in for CHANNELS = 32
// alone.
template <class T_, class Offset_, int WIDTH_, int LEVELS_, int POINTS_>
struct BackwardShape {
  using T = T_;
  using F = ArithmeticOf<T>;
  static constexpr int WIDTH = WIDTH_, LANES = kBackwardLanes, LEVELS = LEVELS_, POINTS = POINTS_;
  static constexpr bool FIXED = LEVELS > 0;
  using Table = LevelTable<F, Offset_, (sizeof(Offset_) == 4 ? 16 : static_cast<int>(kMaxLevels))>;
  using Arguments = BackwardArguments<T, Table>;
};

template <class Shape>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ typename Shape::Arguments a) {
  using F = typename Shape::F;
  using Offset = typename Shape::Table::Distance;
  constexpr int LANES = Shape::LANES, WIDTH = Shape::WIDTH;
  const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
  const int channels = Shape::FIXED ? LANES * WIDTH : a.channels;
  const int per_level = Shape::FIXED ? Shape::POINTS : a.points_per_level;
  const int count = Shape::FIXED ? Shape::LEVELS * Shape::POINTS : a.levels * a.points_per_level;

  const int head = blockIdx.y;
  const int64_t found = a.order.query(blockIdx.x, slot);
  const int64_t query = static_cast<int64_t>(blockIdx.z) * a.order.queries + (found >= 0 ? found : 0);
  const int64_t pair = query * a.heads + head;
  const int64_t base = (static_cast<int64_t>(blockIdx.z) * a.rows * a.heads + head) * channels;
  const bool adds = found >= 0 && a.grad_value != nullptr;

  F grad[WIDTH];
  if constexpr (Shape::FIXED) load<WIDTH>(a.grad_output + pair * channels + lane * WIDTH, grad);

  int level_now = 0, left_in_level = per_level;  // of the point being gathered
#pragma unroll 1
  for (int first = 0; first < count; first += LANES) {
    // this lane's point; past the last one, the last once more, which nobody asks for
    const int point = first + lane < count ? first + lane : count - 1;
    const auto& own_level = a.table.level[point / per_level];
    F location[2], weight[1];
    load<2>(a.locations + 2 * (pair * count + point), location);
    load<1>(a.weights + pair * count + point, weight);
    const Pixel<F> at{fma(location[0], own_level.width, F(-0.5)),
                      fma(location[1], own_level.height, F(-0.5))};
    const Corners<F, Offset> own(at, weight[0], own_level);

    F dots[4][LANES];
#pragma unroll
    for (int source = 0; source < LANES; ++source) {
#pragma unroll
      for (int k = 0; k < 4; ++k) dots[k][source] = 0;
      if (!Shape::FIXED && first + source >= count) continue;
      const auto& level = a.table.level[Shape::FIXED ? (first + source) / per_level : level_now];
      const int64_t corner = base + broadcast<LANES>(own.first, source);
      const int64_t corners[4] = {corner, corner + level.step_x, corner + level.step_y,
                                  corner + level.step_y + level.step_x};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const F w = broadcast<LANES>(own.weight[k], source);
        const bool adds_here = adds && w != F(0);
        for (int channel = lane * WIDTH; channel < channels; channel += LANES * WIDTH) {
          if constexpr (!Shape::FIXED) load<WIDTH>(a.grad_output + pair * channels + channel, grad);
          F value[WIDTH], addend[WIDTH];
          load<WIDTH>(a.value + (corners[k] + channel), value);
#pragma unroll
          for (int c = 0; c < WIDTH; ++c) {
            dots[k][source] = fma(grad[c], value[c], dots[k][source]);
            addend[c] = w * grad[c];
          }
          if (adds_here) add_channels<WIDTH>(a.grad_value + (corners[k] + channel), addend);
        }
      }
      if (!Shape::FIXED && --left_in_level == 0) {
        ++level_now;
        left_in_level = per_level;
      }
    }

    F dot[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) dot[k] = reduce_scatter<LANES>(dots[k], lane);
    if (found >= 0 && first + lane < count) {
      const PointGradient<F> gradient(at, weight[0], own_level, dot);
      const F xy[2] = {gradient.x, gradient.y};
      store<2>(a.grad_locations + 2 * (pair * count + point), xy);
      a.grad_weights[pair * count + point] = gradient.attention;
    }
  }
}

template <class Shape>
void launch_backward(const Problem& p, const void* locations, const void* weights, const void* grad_output,
                     void* grad_value, void* grad_locations, void* grad_weights, cudaStream_t stream) {
  using T = typename Shape::T;
  using F = typename Shape::F;
  typename Shape::Arguments a{};
  a.rows = p.rows;
  a.heads = static_cast<int>(p.heads);
  a.channels = static_cast<int>(p.channels);
  a.levels = static_cast<int>(p.levels);
  a.points_per_level = static_cast<int>(p.points);
  a.table.fill(p.shapes, static_cast<int>(p.levels), p.heads * p.channels);
  const int64_t blocks = a.order.plan(p.queries, p.shapes, static_cast<int>(p.levels), p.rows);
  const int64_t pairs = p.queries * p.heads;
  for (int64_t b = 0; b < p.batch; b += kSamplesPerLaunch) {
    const int64_t samples = p.batch - b < kSamplesPerLaunch ? p.batch - b : kSamplesPerLaunch;
    const int64_t rows_before = b * p.rows * p.heads * p.channels,
                  points_before = b * pairs * p.points_per_head();
    a.value = static_cast<const T*>(p.value) + rows_before;
    a.locations = static_cast<const F*>(locations) + 2 * points_before;
    a.weights = static_cast<const F*>(weights) + points_before;
    a.grad_output = static_cast<const T*>(grad_output) + b * pairs * p.channels;
    a.grad_value = grad_value == nullptr ? nullptr : static_cast<F*>(grad_value) + rows_before;
    a.grad_locations = static_cast<F*>(grad_locations) + 2 * points_before;
    a.grad_weights = static_cast<F*>(grad_weights) + points_before;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(samples));
    launch(backward_kernel<Shape>, grid, kThreads, stream, a);
  }
}

template <class T>
void dispatch_backward(const Problem& p, const void* locations, const void* weights, const void* grad_output,
                       void* grad_value, void* grad_locations, void* grad_weights, cudaStream_t stream) {
  constexpr int kWidth = 4;
  const bool aligned =
      (reinterpret_cast<uintptr_t>(p.value) | reinterpret_cast<uintptr_t>(grad_output)) % 16 == 0;
  const bool vectors = p.channels % kWidth == 0 && aligned && p.levels <= 16 &&
                       p.rows * p.heads * p.channels <= int64_t(UINT32_MAX);
  const auto run = [&](auto shape) {
    launch_backward<decltype(shape)>(p, locations, weights, grad_output, grad_value, grad_locations,
                                     grad_weights, stream);
  };
  if (!vectors) {
    run(BackwardShape<T, int64_t, 1, 0, 0>{});
  } else if (p.channels == 32 && p.levels == 4 && p.points == 4) {
    run(BackwardShape<T, uint32_t, kWidth, 4, 4>{});
  } else {
    run(BackwardShape<T, uint32_t, kWidth, 0, 0>{});
  }
}

}  // namespace groundingml::cuda
