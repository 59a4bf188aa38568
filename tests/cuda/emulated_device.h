// CUDA's names for a host compiler, so that the kernels of csrc/msda/cuda run on a CPU, unchanged and slowly.
//
// The 32 lanes of a warp are fibers that run one after the other until each stands at a shuffle; then values
// change hands. That all lanes stand at the same shuffle is checked: on a GPU anything else would be
// undefined. Every load is checked against the buffers that were declared readable.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define GML_HOST_DEVICE inline
#define GML_DEVICE inline

using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

template <class To, class From>
To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline double __hiloint2double(int high, int low) {
  return bits_as<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 |
                         static_cast<uint32_t>(low));
}

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  float x = exponent == 0    ? std::ldexp(static_cast<float>(mantissa), -24)
            : exponent == 31 ? (mantissa ? NAN : INFINITY)
                             : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return h.bits & 0x8000 ? -x : x;
}
inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7e00};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 0x1p-14f)
    return {static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(size * 0x1p24f)))};
  const int exponent = std::ilogb(size);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (((exponent + 15) << 10) + mantissa - 1024))};
}
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline float __bfloat162float(__nv_bfloat16 h) { return bits_as<float>(static_cast<uint32_t>(h.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t bits = bits_as<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulated {

constexpr int kLanes = 32;

struct Lane {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  uint64_t arrived = 0;  // shuffles so far
  uint64_t kind = 0;     // of the shuffle it stands at
  bool done = false;
};

struct Warp {
  Lane lanes[kLanes];
  ucontext_t scheduler;
  int current = 0;
  uint64_t exchange[2][kLanes];  // one shuffle may be read while the next is already written
};

inline Warp warp;
inline dim3 thread_index, block_index;
inline std::vector<std::pair<const char*, const char*>> readable;

inline void check_read(const void* p, size_t bytes) {
  const char* begin = static_cast<const char*>(p);
  for (const auto& range : readable) {
    if (begin >= range.first && begin + bytes <= range.second) {
      if (reinterpret_cast<uintptr_t>(p) % bytes != 0) throw std::logic_error("a load is not aligned");
      return;
    }
  }
  throw std::out_of_range("a load leaves the tensors");
}

// Deposits a value, waits for all lanes, and takes that of lane `source`.
template <class F>
F shuffle(unsigned mask, F x, int source, uint64_t kind) {
  static_assert(sizeof(F) <= 8);
  if (mask != 0xffffffffu) throw std::logic_error("a shuffle without all lanes");
  const int self = warp.current;
  Lane& lane = warp.lanes[self];
  uint64_t* const slots = warp.exchange[lane.arrived % 2];
  std::memcpy(&slots[self], &x, sizeof(F));
  lane.kind = kind;
  ++lane.arrived;
  swapcontext(&lane.context, &warp.scheduler);
  F out;
  std::memcpy(&out, &slots[source], sizeof(F));
  return out;
}

inline void (*body)(const void*);
inline const void* body_arguments;
inline std::string failure;

inline void lane_main() {
  try {
    body(body_arguments);
  } catch (const std::exception& error) {
    failure = error.what();
  }
  warp.lanes[warp.current].done = true;
  swapcontext(&warp.lanes[warp.current].context, &warp.scheduler);
}

inline void run_warp(unsigned first_thread) {
  for (Lane& lane : warp.lanes) {
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = lane.stack.size();
    lane.context.uc_link = nullptr;
    lane.arrived = 0;
    lane.done = false;
    makecontext(&lane.context, lane_main, 0);
  }
  for (bool running = true; running;) {
    for (int i = 0; i < kLanes; ++i) {
      warp.current = i;
      thread_index.x = first_thread + static_cast<unsigned>(i);
      swapcontext(&warp.scheduler, &warp.lanes[i].context);
      if (!failure.empty()) throw std::logic_error(failure);
    }
    const Lane& first = warp.lanes[0];
    for (const Lane& lane : warp.lanes) {
      if (lane.done != first.done ||
          (!lane.done && (lane.arrived != first.arrived || lane.kind != first.kind))) {
        throw std::logic_error("the lanes of a warp do not stand at the same shuffle");
      }
    }
    running = !first.done;
  }
}

}  // namespace emulated

inline const dim3& threadIdx = emulated::thread_index;
inline const dim3& blockIdx = emulated::block_index;

template <class F>
F __shfl_sync(unsigned mask, F x, int source, int width) {
  const int self = emulated::warp.current;
  if (source < 0 || source >= width) throw std::logic_error("a shuffle from outside of the group");
  const uint64_t kind = static_cast<uint64_t>(source) << 32 | static_cast<uint64_t>(width) << 16 | sizeof(F);
  return emulated::shuffle(mask, x, self - self % width + source, kind);
}
template <class F>
F __shfl_xor_sync(unsigned mask, F x, int span) {
  return emulated::shuffle(mask, x, emulated::warp.current ^ span,
                           1ull << 63 | static_cast<uint64_t>(span) << 32 | sizeof(F));
}

namespace groundingml::cuda {

using std::fabs;
using std::floor;
using std::fma;
using std::fmax;
using std::fmin;

template <class T>
T load_once(const T* p) {
  emulated::check_read(p, sizeof(T));
  return *p;
}

template <class F>
F fast_exp(F x) {
  return std::exp(x);
}

template <class F>
void add_to_memory(F* sum, F addend) {
  emulated::check_read(sum, sizeof(F));
  *sum += addend;
}
inline void add_to_memory(float* sum, float a, float b, float c, float d) {
  emulated::check_read(sum, 16);
  sum[0] += a;
  sum[1] += b;
  sum[2] += c;
  sum[3] += d;
}

template <class Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, int threads, cudaStream_t, const Arguments& arguments) {
  static void (*current)(Arguments);
  current = kernel;
  emulated::body = [](const void* a) { current(*static_cast<const Arguments*>(a)); };
  emulated::body_arguments = &arguments;
  emulated::failure.clear();
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        emulated::block_index = dim3(x, y, z);
        for (int first = 0; first < threads; first += emulated::kLanes)
          emulated::run_warp(static_cast<unsigned>(first));
      }
    }
  }
}

}  // namespace groundingml::cuda
