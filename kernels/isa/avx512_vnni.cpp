#define BITCONV_ISA avx512_vnni
#define BITCONV_ISA_NAME "avx512_vnni"
#define BITCONV_SIMD
#define BITCONV_VNNI
#include "../simd/avx512_dot.hpp"
#include "../simd/avx512_float.hpp"
#include "../simd/avx2_half.hpp"
#include "../simd/avx512_lookup.hpp"
#include "../table.hpp"
