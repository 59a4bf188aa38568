// The kernels for x86-64-v4 (setup.py passes -march).
#define GROUNDINGML_KERNELS kKernelsAvx512
#include "kernels.inc"
