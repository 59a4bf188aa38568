// Host side of the backward with atomics. See problem.h.
#include "backward.cuh"

namespace groundingml::cuda {

void backward(const Problem& p, Element value, const void* locations, const void* weights,
              const void* grad_output, void* grad_value, void* grad_locations, void* grad_weights,
              cudaStream_t stream) {
  p.check_limits();
  if (!p.has_output()) return;
  with_element(value, [&](auto t) {
    dispatch_backward<decltype(t)>(p, locations, weights, grad_output, grad_value, grad_locations,
                                   grad_weights, stream);
  });
}

}  // namespace groundingml::cuda
