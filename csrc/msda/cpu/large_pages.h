// Asking the system for large pages under a new tensor.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace groundingml::cpu {

// glibc's malloc takes large blocks from the system, those above 32 MiB each time, and gives them back: each
// page of 4 KiB is then faulted in and zeroed when it is first written, which took a fifth of an encoder's
// forward at batch 2. Pages of 2 MiB need 500 times fewer faults. On a virtual machine that returns free memory
// to its host after a pause of seconds, the first call after one pays for that. A hint: where it is not taken,
// nothing changes.
inline void use_large_pages(const torch::stable::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLarge = std::uintptr_t(8) << 20;
  constexpr std::uintptr_t kPage = std::uintptr_t(2) << 20;
  const std::uintptr_t bytes = std::uintptr_t(tensor.numel()) * std::uintptr_t(tensor.element_size());
  if (bytes < kLarge) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.mutable_data_ptr());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage;  // whole pages of the tensor only
  const std::uintptr_t last = (begin + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

}  // namespace groundingml::cpu
