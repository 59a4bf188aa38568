// Host side of the steps around the fused op's backward. See problem.h.
#include "offsets.cuh"

namespace groundingml::cuda {

namespace {

// The steps compute in float for 16-bit values.
template <class Run>
void with_arithmetic(Element value, const Run& run) {
  if (value == Element::kFloat64) return run(double{});
  run(float{});
}

}  // namespace

void expand_offsets(const Problem& p, Element value, const void* reference, int64_t coordinates,
                    const void* offsets, const void* logits, void* locations, void* weights,
                    cudaStream_t stream) {
  p.check_limits();
  if (!p.has_output()) return;
  with_arithmetic(value, [&](auto f) {
    using F = decltype(f);
    auto a = offset_arguments<F>(p, reference, coordinates, offsets);
    a.logits = static_cast<const F*>(logits);
    a.locations = static_cast<F*>(locations);
    a.weights = static_cast<F*>(weights);
    launch(expand_kernel<F>, blocks_for(a.queries * p.heads, kThreads / kOffsetLanes), kThreads, stream, a);
  });
}

void collapse_offsets(const Problem& p, Element value, const void* reference, int64_t coordinates,
                      const void* offsets, const void* weights, void* grad_locations, void* grad_weights,
                      void* grad_reference, cudaStream_t stream) {
  p.check_limits();
  if (!p.has_output()) return;
  with_arithmetic(value, [&](auto f) {
    using F = decltype(f);
    auto a = offset_arguments<F>(p, reference, coordinates, offsets);
    a.logits = static_cast<const F*>(weights);
    a.locations = static_cast<F*>(grad_locations);
    a.weights = static_cast<F*>(grad_weights);
    a.grad_reference = static_cast<F*>(grad_reference);
    launch(collapse_weights_kernel<F>, blocks_for(a.queries * p.heads, kThreads / kOffsetLanes), kThreads,
           stream, a);
    launch(collapse_locations_kernel<F>, blocks_for(a.queries * p.levels, kThreads), kThreads, stream, a);
  });
}

}  // namespace groundingml::cuda
