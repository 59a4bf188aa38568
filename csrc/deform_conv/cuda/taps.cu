// One thread for each tap of each output pixel; threads side by side take pixels side by side, as offsets and
// masks lie in memory.
#include "taps.h"

#include "../../msda/cuda/numbers.cuh"

namespace groundingml::cuda::deform_conv {
namespace {

template <class G>
struct PlaceArguments {
  using F = ArithmeticOf<G>;
  Convolution c;
  const G* offsets;
  const G* mask;
  int64_t begin, count;
  F* points;
  F* weights;
};

template <class G>
__global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ PlaceArguments<G> a) {
  using F = ArithmeticOf<G>;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= a.count * a.c.taps()) return;
  const int64_t tap = thread / a.count, place = thread - tap * a.count;
  const int64_t pixel = a.begin + place, pixels = a.c.out_pixels();
  const int64_t row = pixel / a.c.out_width, column = pixel - row * a.c.out_width;
  const int64_t tap_row = tap / a.c.kernel_width, tap_column = tap - tap_row * a.c.kernel_width;
  const F down = widen(load_once(a.offsets + 2 * tap * pixels + pixel));
  const F right = widen(load_once(a.offsets + (2 * tap + 1) * pixels + pixel));
  const F y = static_cast<F>(row * a.c.stride - a.c.padding + tap_row * a.c.dilation) + down;
  const F x = static_cast<F>(column * a.c.stride - a.c.padding + tap_column * a.c.dilation) + right;
  const int64_t to = place * a.c.taps() + tap;
  a.points[2 * to] = (x + F(0.5)) / static_cast<F>(a.c.width);
  a.points[2 * to + 1] = (y + F(0.5)) / static_cast<F>(a.c.height);
  a.weights[to] = widen(load_once(a.mask + tap * pixels + pixel));
}

template <class F>
struct CollectArguments {
  Convolution c;
  const F* grad_points;
  const F* grad_weights;
  int64_t begin, count;
  F* grad_offsets;
  F* grad_mask;
};

template <class F>
__global__ void __launch_bounds__(kThreads) collect_kernel(const __grid_constant__ CollectArguments<F> a) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= a.count * a.c.taps()) return;
  const int64_t tap = thread / a.count, place = thread - tap * a.count;
  const int64_t pixel = a.begin + place, pixels = a.c.out_pixels();
  const int64_t from = place * a.c.taps() + tap;
  const F along_x = load_once(a.grad_points + 2 * from), along_y = load_once(a.grad_points + 2 * from + 1);
  a.grad_offsets[2 * tap * pixels + pixel] = along_y / static_cast<F>(a.c.height);
  a.grad_offsets[(2 * tap + 1) * pixels + pixel] = along_x / static_cast<F>(a.c.width);
  a.grad_mask[tap * pixels + pixel] = load_once(a.grad_weights + from);
}

template <class F>
void collect(const Convolution& c, const void* grad_points, const void* grad_weights, int64_t begin,
             int64_t end, void* grad_offsets, void* grad_mask, cudaStream_t stream) {
  const CollectArguments<F> arguments{c,
                                      static_cast<const F*>(grad_points),
                                      static_cast<const F*>(grad_weights),
                                      begin,
                                      end - begin,
                                      static_cast<F*>(grad_offsets),
                                      static_cast<F*>(grad_mask)};
  launch(collect_kernel<F>, blocks_for(arguments.count * c.taps(), kThreads), kThreads, stream, arguments);
}

}  // namespace

void place_taps(const Convolution& c, Element geometry, const void* offsets, const void* mask, int64_t begin,
                int64_t end, void* points, void* weights, cudaStream_t stream) {
  if (begin >= end) return;
  with_element(geometry, [&](auto element) {
    using G = decltype(element);
    using F = ArithmeticOf<G>;
    const PlaceArguments<G> arguments{c,
                                      static_cast<const G*>(offsets),
                                      static_cast<const G*>(mask),
                                      begin,
                                      end - begin,
                                      static_cast<F*>(points),
                                      static_cast<F*>(weights)};
    launch(place_kernel<G>, blocks_for(arguments.count * c.taps(), kThreads), kThreads, stream, arguments);
  });
}

void collect_gradients(const Convolution& c, bool is_double, const void* grad_points,
                       const void* grad_weights, int64_t begin, int64_t end, void* grad_offsets,
                       void* grad_mask, cudaStream_t stream) {
  if (begin >= end) return;
  if (is_double) {
    collect<double>(c, grad_points, grad_weights, begin, end, grad_offsets, grad_mask, stream);
  } else {
    collect<float>(c, grad_points, grad_weights, begin, end, grad_offsets, grad_mask, stream);
  }
}

}  // namespace groundingml::cuda::deform_conv
