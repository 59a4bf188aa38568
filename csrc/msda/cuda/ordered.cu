// Host side of the backward without atomics. See problem.h.
#include "ordered.cuh"

namespace groundingml::cuda {

HeadRange HeadRange::from(const Problem& p, int64_t begin) {
  constexpr int64_t kMost = INT32_MAX - kWarp;  // loops step past the end by less than a warp
  constexpr int64_t kEntries = 1 << 25;         // sorting takes about 30 bytes for each: 1 GB at a time
  const int64_t entries = p.queries * p.points_per_head();
  const int64_t per_head = p.rows > entries ? p.rows : entries;
  if (per_head > kMost) {
    throw std::invalid_argument(
        "the deterministic backward takes fewer than 2^31 rows of value and sampling points per head; "
        "call torch.use_deterministic_algorithms(False)");
  }
  const int64_t heads = p.batch * p.heads, left = heads - begin;
  int64_t count = per_head == 0 ? heads : kMost / per_head;
  if (entries > 0 && count > kEntries / entries) count = kEntries / entries > 1 ? kEntries / entries : 1;
  return {begin, begin + (left < count ? left : count)};
}

void ordered_keys(const Problem& p, Element value, HeadRange range, const void* locations, int32_t* keys,
                  cudaStream_t stream) {
  p.check_limits();
  if (range.entries(p) == 0) return;
  with_element(value, [&](auto t) {
    using T = decltype(t);
    auto a = ordered_arguments<T>(p, range, locations);
    a.keys = keys;
    launch(keys_kernel<T>, blocks_for(a.entries, kThreads), kThreads, stream, a);
  });
}

void ordered_backward(const Problem& p, Element value, HeadRange range, const void* locations,
                      const void* weights, const void* grad_output, const int32_t* sorted_keys,
                      const int64_t* permutation, int32_t* starts, void* grad_value, cudaStream_t stream) {
  p.check_limits();
  if (range.cells(p) == 0 || p.channels == 0) return;
  with_element(value, [&](auto t) {
    using T = decltype(t);
    auto a = ordered_arguments<T>(p, range, locations);
    a.weights = static_cast<const ArithmeticOf<T>*>(weights);
    a.grad_output = static_cast<const T*>(grad_output);
    a.grad_value = static_cast<T*>(grad_value);
    a.keys = const_cast<int32_t*>(sorted_keys);
    a.permutation = permutation;
    a.starts = starts;
    launch(starts_kernel<T>, blocks_for(a.cells + 1, kThreads), kThreads, stream, a);
    launch(collect_kernel<T>, blocks_for(a.cells, kThreads / kWarp), kThreads, stream, a);
  });
}

}  // namespace groundingml::cuda
