// The portable kernels: what the compiler makes of the common code for the target's baseline.
#define BITCONV_ISA scalar
#define BITCONV_ISA_NAME "scalar"
#include "../table.hpp"
