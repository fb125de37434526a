#define BITCONV_ISA avx2
#define BITCONV_ISA_NAME "avx2"
#define BITCONV_SIMD
#include "../simd/avx2_dot.hpp"
#include "../simd/avx2_float.hpp"
#include "../simd/avx2_half.hpp"
#include "../simd/avx2_lookup.hpp"
#include "../table.hpp"
