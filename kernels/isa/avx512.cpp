#define BITCONV_ISA avx512
#define BITCONV_ISA_NAME "avx512"
#define BITCONV_SIMD
#include "../simd/avx512_dot.hpp"
#include "../simd/avx512_float.hpp"
#include "../simd/avx2_half.hpp"
#include "../simd/avx512_lookup.hpp"
#include "../table.hpp"
