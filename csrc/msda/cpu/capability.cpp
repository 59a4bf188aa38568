#include "capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace groundingml::cpu {
namespace {

struct Capability {
  const char* name;
  const Kernels* kernels;
  InstructionSet set;
};

constexpr Capability kDefault = {"default", kKernelsGeneric, InstructionSet::kDefault};
#if defined(__x86_64__)
constexpr Capability kAvx2 = {"avx2", kKernelsAvx2, InstructionSet::kAvx2};
constexpr Capability kAvx512 = {"avx512", kKernelsAvx512, InstructionSet::kAvx512};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

// Null when this processor or this build cannot.
const Capability* find(const std::string& name) {
  if (name == kDefault.name) return &kDefault;
#if defined(__x86_64__)
  if (name == kAvx2.name && has_avx2()) return &kAvx2;
  if (name == kAvx512.name && has_avx512()) return &kAvx512;
#endif
  return nullptr;
}

std::atomic<const Capability*> chosen{nullptr};

const Capability* in_use() {
  if (const Capability* capability = chosen.load()) return capability;
  const Capability* first = nullptr;
  const char* wanted = std::getenv("GROUNDINGML_CPU_CAPABILITY");
  if (wanted && *wanted) {
    first = find(wanted);
  } else {
    for (const char* name : {"avx512", "avx2", "default"})
      if (!first) first = find(name);
  }
  if (first) chosen.store(first);
  return first;
}

}  // namespace

namespace {

const Capability& required() {
  const Capability* capability = in_use();
  if (!capability)
    throw std::runtime_error(
        std::string("GROUNDINGML_CPU_CAPABILITY is \"") + std::getenv("GROUNDINGML_CPU_CAPABILITY") +
        "\", but this processor or build only has some of \"default\", \"avx2\", \"avx512\"");
  return *capability;
}

}  // namespace

const Kernels* kernels_in_use() { return required().kernels; }

InstructionSet instruction_set_in_use() { return required().set; }

}  // namespace groundingml::cpu

const char* groundingml_cpu_capability() {
  const auto* capability = groundingml::cpu::in_use();
  return capability ? capability->name : nullptr;
}

int groundingml_set_cpu_capability(const char* name) {
  const auto* capability = groundingml::cpu::find(name);
  if (capability) groundingml::cpu::chosen.store(capability);
  return capability != nullptr;
}
