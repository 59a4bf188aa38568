// Element types: which arithmetic they use, and how runs of adjacent channels are loaded and stored.
#pragma once

#include "device.cuh"

namespace groundingml::cuda {

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
// The type of all arithmetic on elements of type T: double for double, float for float and both 16-bit types.
template <class T>
using ArithmeticOf = typename Arithmetic<T>::type;

GML_DEVICE float widen(float x) { return x; }
GML_DEVICE double widen(double x) { return x; }
GML_DEVICE float widen(__half x) { return __half2float(x); }
GML_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

GML_DEVICE void narrow(float x, float& out) { out = x; }
GML_DEVICE void narrow(double x, double& out) { out = x; }
GML_DEVICE void narrow(float x, __half& out) { out = __float2half_rn(x); }
GML_DEVICE void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

// Elements held by 32-bit words; 16-bit types come two to a word, the first in the low half.
template <class T>
struct Word;
template <>
struct Word<float> {
  static GML_DEVICE void widen(const unsigned* words, int k, float* out) {
    out[k] = __uint_as_float(words[k]);
  }
};
template <>
struct Word<double> {
  static GML_DEVICE void widen(const unsigned* words, int k, double* out) {
    if (k % 2 == 0) out[k / 2] = __hiloint2double(static_cast<int>(words[k + 1]), static_cast<int>(words[k]));
  }
};
template <>
struct Word<__half> {
  static GML_DEVICE void widen(const unsigned* words, int k, float* out) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(words + k));
    out[2 * k] = pair.x;
    out[2 * k + 1] = pair.y;
  }
};
template <>
struct Word<__nv_bfloat16> {
  static GML_DEVICE void widen(const unsigned* words, int k, float* out) {
    out[2 * k] = __uint_as_float(words[k] << 16);
    out[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
  }
};

// N adjacent elements through the read-only cache, in loads of up to 16 bytes. N == 1, or aligned to
// min(16, N * sizeof(T)) bytes, which must be a multiple of 4.
template <int N, class T>
GML_DEVICE void load(const T* source, ArithmeticOf<T> (&out)[N]) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  if constexpr (N == 1) {
    out[0] = widen(load_once(source));
  } else {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "no load of this size");
    unsigned words[kBytes / 4];
    if constexpr (kBytes == 4) {
      words[0] = load_once(reinterpret_cast<const unsigned*>(source));
    } else if constexpr (kBytes == 8) {
      const uint2 w = load_once(reinterpret_cast<const uint2*>(source));
      words[0] = w.x;
      words[1] = w.y;
    } else {
#pragma unroll
      for (int k = 0; k < kBytes / 16; ++k) {
        const uint4 w = load_once(reinterpret_cast<const uint4*>(source) + k);
        words[4 * k] = w.x;
        words[4 * k + 1] = w.y;
        words[4 * k + 2] = w.z;
        words[4 * k + 3] = w.w;
      }
    }
#pragma unroll
    for (int k = 0; k < kBytes / 4; ++k) Word<T>::widen(words, k, out);
  }
}

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packed {
  T element[N];
};

// The reverse of `load`, rounding to nearest even; same alignment.
template <int N, class T>
GML_DEVICE void store(T* target, const ArithmeticOf<T> (&in)[N]) {
  Packed<T, N> packed;
#pragma unroll
  for (int k = 0; k < N; ++k) narrow(in[k], packed.element[k]);
  *reinterpret_cast<Packed<T, N>*>(target) = packed;
}

template <int N, class F>
GML_DEVICE void add_channels(F* sum, const F (&addend)[N]) {
  if constexpr (N == 4 && sizeof(F) == 4) {
    add_to_memory(sum, addend[0], addend[1], addend[2], addend[3]);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) add_to_memory(sum + k, addend[k]);
  }
}

}  // namespace groundingml::cuda
