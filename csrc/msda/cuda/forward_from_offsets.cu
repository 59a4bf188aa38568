// Host side of the forward fused with softmax and location arithmetic. See problem.h.
#include "forward.cuh"

namespace groundingml::cuda {

void forward_from_offsets(const Problem& p, Element value, Element geometry, const void* reference,
                          int64_t coordinates, const void* offsets, const void* logits, void* output,
                          cudaStream_t stream) {
  p.check_limits();
  if (!p.has_output()) return;
  with_types(value, geometry, [&](auto t, auto g) {
    dispatch_forward<decltype(t), decltype(g), true>(p, reference, coordinates, offsets, logits, output,
                                                     stream);
  });
}

}  // namespace groundingml::cuda
