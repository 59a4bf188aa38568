// Host side of the plain forward. See problem.h.
#include "forward.cuh"

namespace groundingml::cuda {

void forward(const Problem& p, Element value, Element geometry, const void* locations, const void* weights,
             void* output, cudaStream_t stream) {
  p.check_limits();
  if (!p.has_output()) return;
  with_types(value, geometry, [&](auto t, auto g) {
    dispatch_forward<decltype(t), decltype(g), false>(p, nullptr, 0, locations, weights, output, stream);
  });
}

}  // namespace groundingml::cuda
