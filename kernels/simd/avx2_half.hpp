// float16 conversions with F16C, which AVX2 CPUs have. Like the portable ones, they ignore flush-to-zero.
#pragma once
#include <cstddef>
#include <cstdint>
#include <immintrin.h>

#define BITCONV_HALF

namespace bitconv::BITCONV_ISA {

struct Half {
    static constexpr size_t width = 8;
    static void widen(const uint8_t* x, uint32_t* out) {
        const __m256 floats = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_castps_si256(floats));
    }
    static void round(const uint32_t* x, uint8_t* out) {
        const __m256 floats = _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
        const __m128i halves = _mm256_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), halves);
    }
};

}  // namespace bitconv::BITCONV_ISA
