// Products of codes with activations on AVX-512 (F, BW), with VNNI where BITCONV_VNNI is defined. See dot.hpp.
#pragma once
#include "avx512.hpp"

#include <cstddef>
#include <cstdint>

namespace bitconv::BITCONV_ISA {

struct Dot {
    static constexpr size_t width = 64;
    using Bytes = __m512i;
    using Partial = __m512i;
    using Sum = __m512i;  // int32

    static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }

    static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

    template <size_t Stride>
    static Bytes load_pieces(const uint8_t* p) {
        const auto piece = [p](size_t i) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * Stride));
        };
        Bytes b = _mm512_castsi128_si512(piece(0));
        b = _mm512_inserti32x4(b, piece(1), 1);
        b = _mm512_inserti32x4(b, piece(2), 2);
        return _mm512_inserti32x4(b, piece(3), 3);
    }

    template <int Digit>
    static Bytes two_bit(Bytes b) {
        return _mm512_and_si512(_mm512_srli_epi16(b, 2 * Digit), _mm512_set1_epi8(3));
    }

    static Bytes first_base3_digit(Bytes b) {
        const Bytes one = _mm512_set1_epi8(1);
        return _mm512_add_epi8(_mm512_min_epu8(_mm512_subs_epu8(b, _mm512_set1_epi8(85)), one),
                               _mm512_min_epu8(_mm512_subs_epu8(b, _mm512_set1_epi8(static_cast<char>(170))), one));
    }
    static Bytes times_3(Bytes b) { return _mm512_add_epi8(b, _mm512_add_epi8(b, b)); }

    static Partial zero() { return _mm512_setzero_si512(); }
#ifdef BITCONV_VNNI
    static constexpr size_t sums_at_once = 16;
    static constexpr size_t chunks_per_partial = 64;  // int32: any number would do
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        return _mm512_dpbusd_epi32(sum, codes, x);
    }
    static Partial add(Partial a, Partial b) { return _mm512_add_epi32(a, b); }
    static Sum widen(Sum sum, Partial partial) { return _mm512_add_epi32(sum, partial); }
#else
    static constexpr size_t sums_at_once = 4;
    static constexpr size_t chunks_per_partial = 12;  // int16, see avx2_dot.hpp
    static Partial multiply_add(Partial sum, Bytes codes, Bytes x) {
        return add(sum, _mm512_maddubs_epi16(codes, x));
    }
    static Partial add(Partial a, Partial b) { return _mm512_add_epi16(a, b); }
    static Sum widen(Sum sum, Partial partial) {
        return _mm512_add_epi32(sum, _mm512_madd_epi16(partial, _mm512_set1_epi16(1)));
    }
#endif
    static Sum sum_zero() { return _mm512_setzero_si512(); }
    static int32_t total(Sum s) {
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }
};

}  // namespace bitconv::BITCONV_ISA
