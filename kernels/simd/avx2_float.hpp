// Vectors of float32 on AVX2, from floats of any type. See float_matmul.hpp.
#pragma once
#include "../kernels.hpp"

#include <immintrin.h>

namespace bitconv::BITCONV_ISA {

struct Floats {
    static constexpr size_t width = 8;
    static constexpr size_t rows_at_once = 2;
    using Vector = __m256;

    static Vector load_f32(const uint8_t* p) {
        return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static Vector load_f16(const uint8_t* p) { return _mm256_cvtph_ps(halves(p)); }
    static Vector load_bf16(const uint8_t* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p)), 16));
    }
    static Vector load_floats(const float* p) { return _mm256_loadu_ps(p); }
    /// What was loaded for several uses, before each of which GCC would load it again.
    static Vector kept(Vector v) {
#ifdef __GNUC__
        __asm__("" : "+x"(v));
#endif
        return v;
    }
    static Vector broadcast(float x) { return _mm256_set1_ps(x); }
    static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
    static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
    static Vector multiply_add(Vector sum, Vector a, Vector b) { return add(sum, _mm256_mul_ps(a, b)); }

private:
    static __m128i halves(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

}  // namespace bitconv::BITCONV_ISA
