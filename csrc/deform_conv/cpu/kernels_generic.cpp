// The kernels for any processor of the platform.
#define GROUNDINGML_KERNELS kKernelsGeneric
#include "kernels.inc"
