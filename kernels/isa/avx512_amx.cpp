#define BITCONV_ISA avx512_amx
#define BITCONV_ISA_NAME "avx512_amx"
#define BITCONV_SIMD
#define BITCONV_VNNI
#define BITCONV_AMX
#include "../simd/avx512_dot.hpp"
#include "../simd/avx512_float.hpp"
#include "../simd/avx2_half.hpp"
#include "../simd/avx512_lookup.hpp"
#include "../table.hpp"
