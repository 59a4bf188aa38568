// What the PyTorch side of every CUDA op needs: the tensor's device and stream, element types, sorting.
#pragma once

#include <dlfcn.h>

#include <array>
#include <optional>
#include <tuple>

#include "../common.h"
#include "problem.h"

namespace groundingml::cuda {

using CurrentStream = int32_t (*)(int32_t device_index, void** stream);

// PyTorch's own function, looked up by name: it is missing from CPU builds, where this library has to load
// all the same.
inline CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr
             ? nullptr
             : reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

// While it lives, `tensor`'s device is the current one, for PyTorch and for the CUDA runtime linked in here.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    static const CurrentStream current_stream = find_current_stream();
    STD_TORCH_CHECK(current_stream != nullptr, "groundingml: this PyTorch has no CUDA support");
    void* stream = nullptr;
    STD_TORCH_CHECK(current_stream(tensor.get_device_index(), &stream) == 0,
                    "groundingml: no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
    check(cudaSetDevice(tensor.get_device_index()));
  }

  cudaStream_t stream() const { return stream_; }

  // After launching kernels. Errors inside them show later, as with every CUDA op.
  void check_launches() const { check(cudaGetLastError()); }

 private:
  static void check(cudaError_t error) {
    const char* hint =
        error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion
            ? "; the kernels were not compiled for this GPU: rebuild with GROUNDINGML_CUDA_ARCHS naming "
              "its compute capability"
            : "";
    STD_TORCH_CHECK(error == cudaSuccess, "groundingml: CUDA refused a kernel: ", cudaGetErrorName(error),
                    ": ", cudaGetErrorString(error), hint);
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return Element::kFloat64;
    case ScalarType::Half: return Element::kFloat16;
    case ScalarType::BFloat16: return Element::kBFloat16;
    default: return Element::kFloat32;
  }
}

// aten::sort, stable: sorted keys and the permutation (int64).
inline std::tuple<Tensor, Tensor> sort(const Tensor& keys) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(keys), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace groundingml::cuda
