// The intrinsics of AVX-512: the compiler's, or where BITCONV_EMULATE is defined SIMDe's.
#pragma once
#include <immintrin.h>
#ifdef BITCONV_EMULATE  // tests on a CPU without AVX-512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#undef _mm512_madd_epi16  // SIMDe 0.7.4 defines it with too many parameters
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#endif
