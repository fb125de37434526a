#define BITCONV_ISA neon_dotprod
#define BITCONV_ISA_NAME "neon_dotprod"
#define BITCONV_SIMD
#define BITCONV_DOTPROD
#include "../simd/neon_dot.hpp"
#include "../simd/neon_float.hpp"
#include "../simd/neon_half.hpp"
#include "../simd/neon_lookup.hpp"
#include "../table.hpp"
