#define BITCONV_ISA avx_vnni
#define BITCONV_ISA_NAME "avx_vnni"
#define BITCONV_SIMD
#define BITCONV_VNNI
#include "../simd/avx2_dot.hpp"
#include "../simd/avx2_float.hpp"
#include "../simd/avx2_half.hpp"
#include "../simd/avx2_lookup.hpp"
#include "../table.hpp"
