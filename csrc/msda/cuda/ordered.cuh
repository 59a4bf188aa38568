// The gradient of value without atomics. Sampling points are sorted by the cell they read; a value row then
// collects the points of the up to four cells that it is a corner of, always in the same order, and is
// written once.
//
// A cell is named by its first corner's row; keys count rows over a range of heads (b * M + m), so that they
// fit 32 bits.
#pragma once

#include "geometry.cuh"
#include "problem.h"

namespace groundingml::cuda {

template <class T>
struct OrderedArguments {
  using F = ArithmeticOf<T>;
  using Table = LevelTable<F, int64_t, static_cast<int>(kMaxLevels)>;
  const F* locations;
  const F* weights;
  const T* grad_output;
  T* grad_value;
  int32_t* keys;
  const int64_t* permutation;
  int32_t* starts;  // of each cell's run of sorted keys; cells + 1 of them
  int64_t first_head, cells, entries, queries, rows;
  int heads, channels, levels, points_per_level;
  Table table;  // distances in rows

  // Entry e of the range is point `point` of query `query` of head `head`.
  struct Entry {
    int64_t head, query, point;
  };
  GML_HOST_DEVICE Entry entry(int64_t e) const {
    const int count = levels * points_per_level;
    const int64_t pair = e / count;
    return {first_head + pair / queries, pair % queries, e % count};
  }
  // Index of query q of head (b, m) in (B, Q, M).
  GML_HOST_DEVICE int64_t pair_index(int64_t head, int64_t q) const {
    return (head / heads * queries + q) * heads + head % heads;
  }
};

template <class T>
GML_DEVICE Corners<ArithmeticOf<T>, int64_t> corners_of(const OrderedArguments<T>& a, int64_t pair,
                                                        int64_t point, ArithmeticOf<T> weight) {
  using F = ArithmeticOf<T>;
  const auto& level = a.table.level[point / a.points_per_level];
  F location[2];
  load<2>(a.locations + 2 * (pair * a.levels * a.points_per_level + point), location);
  const Pixel<F> at{fma(location[0], level.width, F(-0.5)), fma(location[1], level.height, F(-0.5))};
  return Corners<F, int64_t>(at, weight, level);
}

template <class T>
__global__ void __launch_bounds__(kThreads) keys_kernel(const __grid_constant__ OrderedArguments<T> a) {
  using F = ArithmeticOf<T>;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= a.entries) return;
  const auto entry = a.entry(e);
  const auto corners = corners_of(a, a.pair_index(entry.head, entry.query), entry.point, F(1));
  const bool inside = corners.weight[0] + corners.weight[1] + corners.weight[2] + corners.weight[3] > F(0);
  // points outside of their level come last and are not looked at
  a.keys[e] = static_cast<int32_t>(inside ? (entry.head - a.first_head) * a.rows + corners.first : a.cells);
}

// starts[c] = how many sorted keys are below c.
template <class T>
__global__ void __launch_bounds__(kThreads) starts_kernel(const __grid_constant__ OrderedArguments<T> a) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (cell > a.cells) return;
  int64_t low = 0, high = a.entries;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (a.keys[middle] < cell) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  a.starts[cell] = static_cast<int32_t>(low);
}

// One warp for each row of value of each head, one channel for each lane.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) collect_kernel(const __grid_constant__ OrderedArguments<T> a) {
  using F = ArithmeticOf<T>;
  const int lane = threadIdx.x % kWarp;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (cell >= a.cells) return;  // the whole warp
  const int64_t head = a.first_head + cell / a.rows, row = cell % a.rows;
  int l = 0;
  while (l + 1 < a.levels && row >= a.table.level[l + 1].start) ++l;
  const auto& level = a.table.level[l];
  const int64_t width = static_cast<int64_t>(level.width), in_level = row - level.start;
  const bool has_left = in_level % width > 0, has_above = in_level >= width;

  for (int block = 0; block < a.channels; block += kWarp) {
    const int channel = block + lane < a.channels ? block + lane : a.channels - 1;
    F sum = 0;
    for (int corner = 0; corner < 4; ++corner) {  // this row is corner `corner` of `from`'s points
      if (((corner & 1) && !has_left) || ((corner & 2) && !has_above)) continue;
      const int64_t from = cell - (corner & 1) - (corner & 2 ? width : 0);
      const int end = a.starts[from + 1];
      for (int first = a.starts[from]; first < end; first += kWarp) {
        const int own = first + lane < end ? first + lane : end - 1;
        const auto entry = a.entry(a.permutation[own]);
        const int64_t own_pair = a.pair_index(entry.head, entry.query);
        const int count = a.levels * a.points_per_level;
        const auto corners =
            corners_of(a, own_pair, entry.point, load_once(a.weights + own_pair * count + entry.point));
        const F own_weight = corner == 0   ? corners.weight[0]
                             : corner == 1 ? corners.weight[1]
                             : corner == 2 ? corners.weight[2]
                                           : corners.weight[3];
        const int batch = end - first < kWarp ? end - first : kWarp;
        for (int source = 0; source < batch; ++source) {
          const F weight = broadcast<kWarp>(own_weight, source);
          const int64_t pair = broadcast<kWarp>(own_pair, source);
          sum = fma(weight, widen(load_once(a.grad_output + pair * a.channels + channel)), sum);
        }
      }
    }
    if (block + lane < a.channels) {
      const int64_t sample = head / a.heads;
      narrow(sum, a.grad_value[((sample * a.rows + row) * a.heads + head % a.heads) * a.channels + channel]);
    }
  }
}

template <class T>
OrderedArguments<T> ordered_arguments(const Problem& p, HeadRange range, const void* locations) {
  OrderedArguments<T> a{};
  a.locations = static_cast<const ArithmeticOf<T>*>(locations);
  a.first_head = range.begin;
  a.cells = range.cells(p);
  a.entries = range.entries(p);
  a.queries = p.queries;
  a.rows = p.rows;
  a.heads = static_cast<int>(p.heads);
  a.channels = static_cast<int>(p.channels);
  a.levels = static_cast<int>(p.levels);
  a.points_per_level = static_cast<int>(p.points);
  a.table.fill(p.shapes, static_cast<int>(p.levels), 1);
  return a;
}

}  // namespace groundingml::cuda
