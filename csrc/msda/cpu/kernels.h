// The interface between the PyTorch side (register.cpp) and the CPU kernels, which are compiled once per
// instruction set (kernels_*.cpp). Plain data only: an inline function here would be merged by the linker
// across instruction sets, and an older processor could then run a copy that uses newer instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace groundingml::cpu {

struct Level {
  int64_t height;
  int64_t width;
  int64_t start;  // first row of this level in value
};

// One call's inputs. "T" is the element type of value and output, "A" the type of the arithmetic: double for
// double, float for all others. Only value may be strided; everything else is contiguous and already of type
// A.
struct Problem {
  int64_t batch;     // B
  int64_t rows;      // S, below 2^31
  int64_t heads;     // M
  int64_t channels;  // D
  int64_t queries;   // Q
  int64_t levels;    // L
  int64_t points;    // P
  const Level* level;

  const void* value;  // T (B, S, M, D); strides in elements, channels adjacent, the row stride below 2^32
  int64_t value_batch_stride;
  int64_t value_row_stride;
  int64_t value_head_stride;

  // Without reference points, coordinates are locations in [0, 1] and weights are used as they are. With
  // them, coordinates are offsets and weights are logits.
  const void* coordinates;  // A (B, Q, M, L, P, 2)
  const void* weights;      // A (B, Q, M, L, P)
  const void* reference;    // A (B, Q, L, reference_size) or null
  int64_t reference_size;   // 0, 2 or 4
};

struct Gradients {
  const void* output;  // T (B, Q, M, D), given
  void* value;        // (B, S, M, D): A and zeroed when accumulated in place, T and uninitialised when packed
  void* coordinates;  // A (B, Q, M, L, P, 2)
  void* weights;      // A (B, Q, M, L, P)
  void* reference;    // A (B, Q, L, reference_size) or null
};

// A part of the backward pass that writes what no other part writes: some heads of one batch element, some
// levels.
struct BackwardPart {
  int64_t batch;
  int64_t head_begin, head_end;
  int64_t level_begin, level_end;
  // Packed: one head's rows of value and of its gradient are gathered into contiguous memory first. Pays when
  // there are about as many queries as rows. Otherwise value must be contiguous and the gradient is
  // accumulated in place.
  bool packed;
};

// What one translation unit offers for one element type. Every function returns false when memory runs out.
struct Kernels {
  // Output T (B, Q, M, D) for the queries begin <= b * Q + q < end.
  bool (*forward)(const Problem&, void* output, int64_t begin, int64_t end);
  // Gradients of value, coordinates and weights. With reference points, those of coordinates are still in
  // pixels and those of weights are still before the softmax: `finish` completes them.
  bool (*backward)(const Problem&, const Gradients&, const BackwardPart&);
  // Only with reference points, once all parts are done: gradients of offsets, logits and reference points.
  bool (*finish)(const Problem&, const Gradients&, int64_t begin, int64_t end);
};

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// Indexed by Element. The unit names say what the compiler was allowed to use.
extern const Kernels kKernelsGeneric[4];
extern const Kernels kKernelsAvx2[4];    // x86-64-v3: AVX2, FMA, F16C
extern const Kernels kKernelsAvx512[4];  // x86-64-v4: AVX512 F, BW, CD, DQ, VL

}  // namespace groundingml::cpu
