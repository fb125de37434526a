// Vectors of float32 on AVX-512 (F, DQ), from floats of any type. See float_matmul.hpp.
#pragma once
#include "../kernels.hpp"
#include "avx512.hpp"

namespace bitconv::BITCONV_ISA {

struct Floats {
    static constexpr size_t width = 16;
    static constexpr size_t rows_at_once = 4;
    using Vector = __m512;

    static Vector load_f32(const uint8_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
    static Vector load_f16(const uint8_t* p) {
        const __m512 low = _mm512_castps256_ps512(_mm256_cvtph_ps(halves(p)));
        return _mm512_insertf32x8(low, _mm256_cvtph_ps(halves(p + 16)), 1);
    }
    static Vector load_bf16(const uint8_t* p) {
        const __m512i low = _mm512_castsi256_si512(_mm256_cvtepu16_epi32(halves(p)));
        const __m512i both = _mm512_inserti32x8(low, _mm256_cvtepu16_epi32(halves(p + 16)), 1);
        return _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    }
    static Vector load_floats(const float* p) { return _mm512_loadu_ps(p); }
    /// See avx2_float.hpp.
    static Vector kept(Vector v) {
#if defined(__GNUC__) && !defined(BITCONV_EMULATE)
        __asm__("" : "+v"(v));
#endif
        return v;
    }
    static Vector broadcast(float x) { return _mm512_set1_ps(x); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return add(sum, _mm512_mul_ps(a, b)); }

private:
    static __m128i halves(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace bitconv::BITCONV_ISA
