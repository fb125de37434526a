#define BITCONV_ISA neon
#define BITCONV_ISA_NAME "neon"
#define BITCONV_SIMD
#include "../simd/neon_dot.hpp"
#include "../simd/neon_float.hpp"
#include "../simd/neon_half.hpp"
#include "../simd/neon_lookup.hpp"
#include "../table.hpp"
