// Products of codes with activations on AVX2, with AVX-VNNI where BITCONV_VNNI is defined. See dot.hpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace bitconv::BITCONV_ISA {

struct Dot {
    static constexpr size_t width = 32;
    using Bytes = __m256i;
    using Partial = __m256i;
    using Sum = __m256i;  // int32

    static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

    static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

    template <size_t Stride>
    static Bytes load_pieces(const uint8_t* p) {
        return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + Stride), reinterpret_cast<const __m128i*>(p));
    }

    template <int Digit>
    static Bytes two_bit(Bytes b) {
        return _mm256_and_si256(_mm256_srli_epi16(b, 2 * Digit), _mm256_set1_epi8(3));
    }

    static Bytes first_base3_digit(Bytes b) {
        const Bytes one = _mm256_set1_epi8(1);
        return _mm256_add_epi8(_mm256_min_epu8(_mm256_subs_epu8(b, _mm256_set1_epi8(85)), one),
                               _mm256_min_epu8(_mm256_subs_epu8(b, _mm256_set1_epi8(static_cast<char>(170))), one));
    }
    static Bytes times_3(Bytes b) { return _mm256_add_epi8(b, _mm256_add_epi8(b, b)); }

    static Partial zero() { return _mm256_setzero_si256(); }
#ifdef BITCONV_VNNI
    static constexpr size_t sums_at_once = 4;
    static constexpr size_t chunks_per_partial = 64;  // int32: any number would do
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        return dpbusd(sum, codes, x);
    }
    static Partial add(Partial a, Partial b) { return _mm256_add_epi32(a, b); }
    static Sum widen(Sum sum, Partial partial) { return _mm256_add_epi32(sum, partial); }
#else
    static constexpr size_t sums_at_once = 4;
    static constexpr size_t chunks_per_partial = 12;  // int16: two products are at most 2 * 2 * 128, a chunk 5 of them
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        return add(sum, _mm256_maddubs_epi16(codes, x));
    }
    static Partial add(Partial a, Partial b) { return _mm256_add_epi16(a, b); }
    static Sum widen(Sum sum, Partial partial) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(partial, _mm256_set1_epi16(1)));
    }
#endif
    static Sum sum_zero() { return _mm256_setzero_si256(); }
    static int32_t total(Sum s) {
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }

#ifdef BITCONV_VNNI
private:
    static Partial dpbusd(Partial sum, Bytes codes, Bytes x) {
#ifdef BITCONV_EMULATE  // in tests, on a CPU without it
        const __m256i pairs = _mm256_maddubs_epi16(codes, x);  // which codes to 2 cannot saturate
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
        return _mm256_dpbusd_avx_epi32(sum, codes, x);
#endif
    }
#endif
};

}  // namespace bitconv::BITCONV_ISA
