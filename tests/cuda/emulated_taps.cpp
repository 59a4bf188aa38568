// The CUDA kernels of deformable convolution, compiled for the CPU: see emulated_device.h. Called from
// test_emulated_taps.py.
#include "taps.cu"

#include <functional>

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

const char* emulation_place_taps(const deform_conv::Convolution* c, int geometry, const void* offsets,
                                 const void* mask, int64_t begin, int64_t end, void* points, void* weights) {
  return attempt([&] {
    deform_conv::place_taps(*c, Element(geometry), offsets, mask, begin, end, points, weights, nullptr);
  });
}

const char* emulation_collect_gradients(const deform_conv::Convolution* c, int is_double,
                                        const void* grad_points, const void* grad_weights, int64_t begin,
                                        int64_t end, void* grad_offsets, void* grad_mask) {
  return attempt([&] {
    deform_conv::collect_gradients(*c, is_double != 0, grad_points, grad_weights, begin, end, grad_offsets,
                                   grad_mask, nullptr);
  });
}

}  // extern "C"
