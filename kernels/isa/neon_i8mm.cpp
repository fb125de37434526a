#define BITCONV_ISA neon_i8mm
#define BITCONV_ISA_NAME "neon_i8mm"
#define BITCONV_SIMD
#define BITCONV_DOTPROD
#define BITCONV_I8MM
#include "../simd/neon_dot.hpp"
#include "../simd/neon_float.hpp"
#include "../simd/neon_half.hpp"
#include "../simd/neon_lookup.hpp"
#include "../table.hpp"
