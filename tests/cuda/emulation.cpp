// The CUDA kernels and their host side, compiled for the CPU: see emulated_device.h. Called from
// test_emulation.py.
#include "backward.cu"
#include "forward.cu"
#include "forward_from_offsets.cu"
#include "offsets.cu"
#include "ordered.cu"

#include <algorithm>
#include <functional>
#include <numeric>

using namespace groundingml::cuda;

namespace {

std::string message;

// Runs `work`; returns null, or what went wrong.
const char* attempt(const std::function<void()>& work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

void emulation_readable(const void* begin, int64_t bytes) {
  const char* p = static_cast<const char*>(begin);
  emulated::readable.emplace_back(p, p + bytes);
}
void emulation_forget() { emulated::readable.clear(); }

const char* emulation_forward(const Problem* p, int value, int geometry, const void* reference,
                              int64_t coordinates, const void* points, const void* weights, void* output) {
  return attempt([&] {
    if (coordinates == 0) {
      forward(*p, Element(value), Element(geometry), points, weights, output, nullptr);
    } else {
      forward_from_offsets(*p, Element(value), Element(geometry), reference, coordinates, points, weights,
                           output, nullptr);
    }
  });
}

const char* emulation_backward(const Problem* p, int value, const void* locations, const void* weights,
                               const void* grad_output, void* grad_value, void* grad_locations,
                               void* grad_weights) {
  return attempt([&] {
    backward(*p, Element(value), locations, weights, grad_output, grad_value, grad_locations, grad_weights,
             nullptr);
  });
}

const char* emulation_head_range(const Problem* p, int64_t begin, int64_t* end) {
  return attempt([&] { *end = HeadRange::from(*p, begin).end; });
}

// `heads_at_a_time` stands for what fits 32 bits on a GPU.
const char* emulation_ordered(const Problem* p, int value, int64_t heads_at_a_time, const void* locations,
                              const void* weights, const void* grad_output, void* grad_value) {
  return attempt([&] {
    if (HeadRange::from(*p, 0).end != p->batch * p->heads)
      throw std::logic_error("one range must do for a small problem");
    for (int64_t head = 0; head < p->batch * p->heads; head += heads_at_a_time) {
      const HeadRange range{head, std::min(head + heads_at_a_time, p->batch * p->heads)};
      std::vector<int32_t> keys(range.entries(*p), -1), sorted(keys.size()), starts(range.cells(*p) + 1, -1);
      ordered_keys(*p, Element(value), range, locations, keys.data(), nullptr);
      std::vector<int64_t> permutation(keys.size());
      std::iota(permutation.begin(), permutation.end(), 0);
      std::stable_sort(permutation.begin(), permutation.end(),
                       [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
      for (size_t i = 0; i < keys.size(); ++i) sorted[i] = keys[permutation[i]];
      ordered_backward(*p, Element(value), range, locations, weights, grad_output, sorted.data(),
                       permutation.data(), starts.data(), grad_value, nullptr);
    }
  });
}

const char* emulation_expand(const Problem* p, int value, const void* reference, int64_t coordinates,
                             const void* offsets, const void* logits, void* locations, void* weights) {
  return attempt([&] {
    expand_offsets(*p, Element(value), reference, coordinates, offsets, logits, locations, weights, nullptr);
  });
}

const char* emulation_collapse(const Problem* p, int value, const void* reference, int64_t coordinates,
                               const void* offsets, const void* weights, void* grad_locations,
                               void* grad_weights, void* grad_reference) {
  return attempt([&] {
    collapse_offsets(*p, Element(value), reference, coordinates, offsets, weights, grad_locations,
                     grad_weights, grad_reference, nullptr);
  });
}

}  // extern "C"
