// The kernels for x86-64-v3 (setup.py passes -march).
#define GROUNDINGML_KERNELS kKernelsAvx2
#include "kernels.inc"
