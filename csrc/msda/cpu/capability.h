// Which of the compiled instruction sets the CPU kernels use: the best this processor has, unless told
// otherwise by the environment variable GROUNDINGML_CPU_CAPABILITY or by `groundingml_set_cpu_capability`.
#pragma once

#include "kernels.h"

namespace groundingml::cpu {

// The four tables (indexed by Element) of the capability in use. Throws std::runtime_error when the
// environment variable names a capability that this processor or this build does not have.
const Kernels* kernels_in_use();

// The same choice by name, for other ops' tables. Throws alike.
enum class InstructionSet { kDefault, kAvx2, kAvx512 };
InstructionSet instruction_set_in_use();

}  // namespace groundingml::cpu

// For the pybind11 module, with the linkage of C so that neither side depends on the other's C++ library.
#define GROUNDINGML_EXPORT extern "C" __attribute__((visibility("default")))

// "default", "avx2" or "avx512"; null when GROUNDINGML_CPU_CAPABILITY is wrong.
GROUNDINGML_EXPORT const char* groundingml_cpu_capability();
// Returns 0 and changes nothing when this processor or this build lacks `name`.
GROUNDINGML_EXPORT int groundingml_set_cpu_capability(const char* name);
