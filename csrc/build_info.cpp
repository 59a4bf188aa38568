// The Python module groundingml.ops._build: what is not a tensor op.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "build_info.h"  // written by setup.py
#include "msda/cpu/capability.h"

namespace py = pybind11;

PYBIND11_MODULE(_build, m) {
  m.doc() = "How the compiled ops were built, and which instruction set the CPU kernels use.";

  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = GROUNDINGML_COMPILER;
        info["flags"] = GROUNDINGML_FLAGS;
        info["torch"] = GROUNDINGML_TORCH;
        info["nvcc"] = GROUNDINGML_NVCC;
        info["cuda_archs"] = GROUNDINGML_CUDA_ARCHS;
        return info;
      },
      "Strings: compiler, flags, torch (headers built against), nvcc and cuda_archs (both empty without "
      "CUDA).");

  m.def(
      "get_cpu_capability",
      [] {
        const char* name = groundingml_cpu_capability();
        if (!name)
          throw py::value_error(
              "GROUNDINGML_CPU_CAPABILITY must name what this processor has: default, avx2 or avx512");
        return std::string(name);
      },
      "The instruction set the CPU kernels use: default, avx2 or avx512.");

  m.def(
      "set_cpu_capability",
      [](const std::string& name) {
        if (!groundingml_set_cpu_capability(name.c_str()))
          throw py::value_error(
              "CPU capability \"" + name +
              "\" is unknown or not supported by this processor; expected default, avx2 or avx512");
      },
      py::arg("name"), "Makes the CPU kernels use another instruction set, for tests and measurements.");
}
