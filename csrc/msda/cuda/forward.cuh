// Forward of multi-scale deformable attention (Deformable DETR, arXiv:2010.04159), alone and fused with the
// softmax and the location arithmetic that come before it.
//
// A group of LANES lanes handles one head of one query, WIDTH channels (one 16-byte load) per lane, several
// groups to a warp. Each lane computes the corners of its share of the sampling points; shuffles then hand
// the points round, one after the other, and every lane gathers its channels. A block works on one head, so
// that its neighbouring queries meet in the cache.
#pragma once

#include "geometry.cuh"
#include "problem.h"

namespace groundingml::cuda {

// Resident blocks to leave registers for: 4 of 256 threads allow 64 registers, room for two points' loads in
// flight.
#if !defined(GML_FORWARD_BLOCKS)
#define GML_FORWARD_BLOCKS 4
#endif
constexpr int kForwardBlocks = GML_FORWARD_BLOCKS;

template <class T, class G, class Table, int SLOTS>
struct ForwardArguments {
  using F = ArithmeticOf<T>;
  const T* value;
  const G* points;     // locations, or offsets
  const G* weights;    // attention weights, or logits
  const F* reference;  // null unless fused
  T* output;
  int64_t batch_stride, head_stride;
  int heads, channels, channel_blocks, levels, points_per_level, coordinates;
  QueryOrder<SLOTS> order;
  Table table;  // distances in bytes
};

// How a kernel instance is shaped. LEVELS and POINTS are 0 where they are only known at run time.
template <class T_, class G_, class Offset_, int WIDTH_, int LANES_, int LEVELS_, int POINTS_, bool FUSED_>
struct ForwardShape {
  using T = T_;
  using G = G_;
  using F = ArithmeticOf<T>;
  static constexpr int WIDTH = WIDTH_, LANES = LANES_, LEVELS = LEVELS_, POINTS = POINTS_;
  static constexpr bool FUSED = FUSED_;
  static constexpr bool FIXED = LEVELS > 0;
  static constexpr int SLOTS = kThreads / LANES;
  using Table = LevelTable<F, Offset_, (sizeof(Offset_) == 4 ? 16 : static_cast<int>(kMaxLevels))>;
  using Arguments = ForwardArguments<T, G, Table, SLOTS>;
};

template <class Shape>
GML_DEVICE Pixel<typename Shape::F> locate(const typename Shape::Arguments& a, int64_t query, int64_t point,
                                           int l) {
  using F = typename Shape::F;
  F at[2];
  load<2>(a.points + 2 * point, at);
  const auto& level = a.table.level[l];
  if constexpr (!Shape::FUSED) {
    return {fma(at[0], level.width, F(-0.5)), fma(at[1], level.height, F(-0.5))};
  } else {
    const F* reference = a.reference + (query * a.levels + l) * a.coordinates;
    const F x = load_once(reference), y = load_once(reference + 1);
    if (a.coordinates == 2)
      return {fma(x, level.width, at[0]) - F(0.5), fma(y, level.height, at[1]) - F(0.5)};
    const F scale = F(0.5) / static_cast<F>(a.points_per_level);  // offsets are in half boxes, divided by P
    return {fma(fma(at[0] * scale, load_once(reference + 2), x), level.width, F(-0.5)),
            fma(fma(at[1] * scale, load_once(reference + 3), y), level.height, F(-0.5))};
  }
}

template <class Shape>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    forward_kernel(const __grid_constant__ typename Shape::Arguments a) {
  using T = typename Shape::T;
  using F = typename Shape::F;
  using Offset = typename Shape::Table::Distance;
  constexpr int LANES = Shape::LANES, WIDTH = Shape::WIDTH;
  const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
  const int count = Shape::FIXED ? Shape::LEVELS * Shape::POINTS : a.levels * a.points_per_level;
  const int per_level = Shape::FIXED ? Shape::POINTS : a.points_per_level;

  const int head = Shape::FIXED ? blockIdx.y : blockIdx.y / a.channel_blocks;
  const int channel = ((Shape::FIXED ? 0 : blockIdx.y % a.channel_blocks) * LANES + lane) * WIDTH;
  const int64_t found = a.order.query(blockIdx.x, slot);
  const bool stores = found >= 0 && (Shape::FIXED || channel < a.channels);
  const int64_t query = static_cast<int64_t>(blockIdx.z) * a.order.queries + (found >= 0 ? found : 0);
  const int64_t first_point = (query * a.heads + head) * count;

  const T* own_value = a.value + blockIdx.z * a.batch_stride + head * a.head_stride +
                       (Shape::FIXED || channel < a.channels ? channel : 0);

  F peak = 0, scale = 1;
  if constexpr (Shape::FUSED) {
    F logit[1], total = 0;
    peak = -INFINITY;
#pragma unroll(Shape::FIXED ? 16 : 1)
    for (int i = lane; i < count; i += LANES) {
      load<1>(a.weights + first_point + i, logit);
      peak = fmax(peak, logit[0]);
    }
    peak = group_max<LANES>(peak);
#pragma unroll(Shape::FIXED ? 16 : 1)
    for (int i = lane; i < count; i += LANES) {
      load<1>(a.weights + first_point + i, logit);
      total += fast_exp(logit[0] - peak);
    }
    scale = F(1) / group_sum<LANES>(total);
  }

  F sum[WIDTH];
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) sum[k] = 0;

  int level_now = 0, left_in_level = per_level;  // of the point being gathered
// all of it at 8 lanes or more; 16-bit types, at 4, would need more than 64 registers
#pragma unroll(Shape::FIXED ? 2 : 1)
  for (int first = 0; first < count; first += LANES) {
    // this lane's point; past the last one, the last once more, which nobody asks for
    const int point = first + lane < count ? first + lane : count - 1;
    const int l = point / per_level;
    F weight[1];
    load<1>(a.weights + first_point + point, weight);
    if constexpr (Shape::FUSED) weight[0] = fast_exp(weight[0] - peak) * scale;
    const Corners<F, Offset> own(locate<Shape>(a, query, first_point + point, l), weight[0],
                                 a.table.level[l]);

#pragma unroll
    for (int source = 0; source < LANES; ++source) {
      if (!Shape::FIXED && first + source >= count) break;
      const int l_now = Shape::FIXED ? (first + source) / per_level : level_now;
      const auto& level = a.table.level[l_now];
      const char* corner = reinterpret_cast<const char*>(own_value) + broadcast<LANES>(own.first, source);
      const char* corners[4] = {corner, corner + level.step_x, corner + level.step_y,
                                corner + level.step_y + level.step_x};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const F w = broadcast<LANES>(own.weight[k], source);
        F channels[WIDTH];
        load<WIDTH>(reinterpret_cast<const T*>(corners[k]), channels);
#pragma unroll
        for (int c = 0; c < WIDTH; ++c) sum[c] = fma(w, channels[c], sum[c]);
      }
      if (!Shape::FIXED && --left_in_level == 0) {
        ++level_now;
        left_in_level = per_level;
      }
    }
  }
  if (stores) store<WIDTH>(a.output + (query * a.heads + head) * a.channels + channel, sum);
}

template <class Shape>
void launch_forward(const Problem& p, const void* reference, int64_t coordinates, const void* points,
                    const void* weights, void* output, cudaStream_t stream) {
  using T = typename Shape::T;
  typename Shape::Arguments a{};
  a.points = static_cast<const typename Shape::G*>(points);
  a.weights = static_cast<const typename Shape::G*>(weights);
  a.reference = static_cast<const typename Shape::F*>(reference);
  a.batch_stride = p.batch_stride;
  a.head_stride = p.head_stride;
  a.heads = static_cast<int>(p.heads);
  a.channels = static_cast<int>(p.channels);
  a.channel_blocks =
      static_cast<int>((p.channels + Shape::LANES * Shape::WIDTH - 1) / (Shape::LANES * Shape::WIDTH));
  a.levels = static_cast<int>(p.levels);
  a.points_per_level = static_cast<int>(p.points);
  a.coordinates = static_cast<int>(coordinates);
  a.table.fill(p.shapes, static_cast<int>(p.levels), p.row_stride * static_cast<int64_t>(sizeof(T)));
  const int64_t blocks = a.order.plan(p.queries, p.shapes, static_cast<int>(p.levels), p.rows);
  const int64_t per_sample = p.queries * p.heads;
  for (int64_t b = 0; b < p.batch; b += kSamplesPerLaunch) {
    const int64_t samples = p.batch - b < kSamplesPerLaunch ? p.batch - b : kSamplesPerLaunch;
    a.value = static_cast<const T*>(p.value) + b * p.batch_stride;
    a.points = static_cast<const typename Shape::G*>(points) + b * per_sample * p.points_per_head() * 2;
    a.weights = static_cast<const typename Shape::G*>(weights) + b * per_sample * p.points_per_head();
    if (Shape::FUSED)
      a.reference = static_cast<const typename Shape::F*>(reference) + b * p.queries * p.levels * coordinates;
    a.output = static_cast<T*>(output) + b * per_sample * p.channels;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads * a.channel_blocks),
                    static_cast<unsigned>(samples));
    launch(forward_kernel<Shape>, grid, kThreads, stream, a);
  }
}

// Whether value can be read 16 bytes at a time, at 32-bit distances within one head of one sample.
template <class T>
bool reads_vectors(const Problem& p) {
  constexpr int64_t kWidth = 16 / sizeof(T);
  return p.channels % kWidth == 0 && p.batch_stride % kWidth == 0 && p.row_stride % kWidth == 0 &&
         p.head_stride % kWidth == 0 && reinterpret_cast<uintptr_t>(p.value) % 16 == 0 && p.levels <= 16 &&
         (p.rows * p.row_stride + p.channels) * static_cast<int64_t>(sizeof(T)) <= int64_t(UINT32_MAX);
}

template <class T, class G, bool FUSED>
void dispatch_forward(const Problem& p, const void* reference, int64_t coordinates, const void* points,
                      const void* weights, void* output, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T), kLanes = 32 / kWidth;
  const auto run = [&](auto shape) {
    launch_forward<decltype(shape)>(p, reference, coordinates, points, weights, output, stream);
  };
  if (!reads_vectors<T>(p)) {
    run(ForwardShape<T, G, int64_t, 1, 8, 0, 0, FUSED>{});
  } else if (p.channels == 32 && p.levels == 4 && p.points == 4) {
    run(ForwardShape<T, G, uint32_t, kWidth, kLanes, 4, 4, FUSED>{});
  } else {
    run(ForwardShape<T, G, uint32_t, kWidth, kLanes, 0, 0, FUSED>{});
  }
}

// Calls run(T, G) with value's and the geometry's type.
template <class Run>
void with_types(Element value, Element geometry, const Run& run) {
  const bool own = value == geometry;
  if (!own && (geometry != Element::kFloat32 || value == Element::kFloat64)) {
    throw std::invalid_argument("geometry must have value's type or that of its arithmetic");
  }
  switch (value) {
    case Element::kFloat64: return run(double{}, double{});
    case Element::kFloat32: return run(float{}, float{});
    case Element::kFloat16: return own ? run(__half{}, __half{}) : run(__half{}, float{});
    case Element::kBFloat16:
      return own ? run(__nv_bfloat16{}, __nv_bfloat16{}) : run(__nv_bfloat16{}, float{});
  }
}

}  // namespace groundingml::cuda
