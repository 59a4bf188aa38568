// What the kernels need from CUDA, in one place. The kernels themselves are plain C++ over these few names,
// so that the tests can compile the very same files with a host compiler and run them lane by lane on a CPU:
// without nvcc, "emulated_device.h" (tests/cuda) stands in for CUDA and has to be on the include path.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GML_HOST_DEVICE __host__ __device__ __forceinline__
#define GML_DEVICE __device__ __forceinline__

namespace groundingml::cuda {

// Kernels take one argument struct, by value and `const __grid_constant__`: it stays in the constant bank,
// where a run-time index into the level table costs no local copy.
template <class Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, int threads, cudaStream_t stream,
            const Arguments& arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments);
}

GML_DEVICE float load_once(const float* p) { return __ldg(p); }
GML_DEVICE double load_once(const double* p) { return __ldg(p); }
GML_DEVICE __half load_once(const __half* p) { return __ldg(p); }
GML_DEVICE __nv_bfloat16 load_once(const __nv_bfloat16* p) { return __ldg(p); }
GML_DEVICE unsigned load_once(const unsigned* p) { return __ldg(p); }
GML_DEVICE uint2 load_once(const uint2* p) { return __ldg(p); }
GML_DEVICE uint4 load_once(const uint4* p) { return __ldg(p); }

GML_DEVICE float fast_exp(float x) { return __expf(x); }
GML_DEVICE double fast_exp(double x) { return exp(x); }

// sum += addend for 4 adjacent floats, 16-byte aligned: one instruction where the hardware has it.
GML_DEVICE void add_to_memory(float* sum, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sum), "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
#else
  atomicAdd(sum, a);
  atomicAdd(sum + 1, b);
  atomicAdd(sum + 2, c);
  atomicAdd(sum + 3, d);
#endif
}
GML_DEVICE void add_to_memory(float* sum, float addend) { atomicAdd(sum, addend); }
GML_DEVICE void add_to_memory(double* sum, double addend) { atomicAdd(sum, addend); }

}  // namespace groundingml::cuda

#else

#include "emulated_device.h"

#endif

namespace groundingml::cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarp = 32;

inline dim3 blocks_for(int64_t work, int per_block) {
  return dim3(static_cast<unsigned>((work + per_block - 1) / per_block));
}

// All 32 lanes of a warp always take part: lanes without work carry on with clamped indices and do not store.
// A constant full mask costs nothing, and nothing can diverge around a shuffle.
constexpr unsigned kAllLanes = 0xffffffffu;

template <int LANES, class F>
GML_DEVICE F broadcast(F x, int source) {
  return __shfl_sync(kAllLanes, x, source, LANES);
}

template <int LANES, class F>
GML_DEVICE F group_sum(F x) {
#pragma unroll
  for (int span = LANES / 2; span > 0; span /= 2) x += __shfl_xor_sync(kAllLanes, x, span);
  return x;
}

template <int LANES, class F>
GML_DEVICE F group_max(F x) {
#pragma unroll
  for (int span = LANES / 2; span > 0; span /= 2) x = fmax(x, __shfl_xor_sync(kAllLanes, x, span));
  return x;
}

// Sums each totals[k] over the lanes of a group; lane k receives the total of totals[k]. LANES - 1 shuffles,
// where LANES separate sums would take LANES * log2(LANES). Overwrites totals.
template <int LANES, class F>
GML_DEVICE F reduce_scatter(F (&totals)[LANES], int lane) {
#pragma unroll
  for (int span = LANES / 2; span > 0; span /= 2) {
    const bool upper = (lane & span) != 0;
#pragma unroll
    for (int k = 0; k < span; ++k) {
      const F kept = upper ? totals[k + span] : totals[k];
      const F sent = upper ? totals[k] : totals[k + span];
      totals[k] = kept + __shfl_xor_sync(kAllLanes, sent, span);
    }
  }
  return totals[0];
}

}  // namespace groundingml::cuda
