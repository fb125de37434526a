// Table lookups on AVX2. See layouts/lookup_bytes.hpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace bitconv::BITCONV_ISA {

struct Lookup {
    static constexpr size_t lanes = 2;
    using Bytes = __m256i;
    using Words = __m256i;
    struct WordPair {
        Words first, last;
    };

    static Bytes load(const uint8_t* p, size_t lane_bytes) {
        return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(p + lane_bytes),
                                   reinterpret_cast<const __m128i*>(p));
    }
    static Words load_words(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Bytes low_nibbles(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes b) { return low_nibbles(_mm256_srli_epi16(b, 4)); }

    static WordPair lookup(const uint8_t* low, const uint8_t* high, Bytes nibbles) {
        const Bytes l = _mm256_shuffle_epi8(table(low), nibbles), h = _mm256_shuffle_epi8(table(high), nibbles);
        return {_mm256_unpacklo_epi8(l, h), _mm256_unpackhi_epi8(l, h)};
    }
    static Words zero() { return _mm256_setzero_si256(); }
    static Words add(Words a, Words b) { return _mm256_add_epi16(a, b); }
    static Words negate(Words a, Words mask) { return _mm256_sub_epi16(_mm256_xor_si256(a, mask), mask); }

    /// -1 where the highest bit is set; moves the next bit there.
    static Words take_sign(Words& signs) {
        const Words mask = _mm256_srai_epi16(signs, 15);
        signs = _mm256_add_epi16(signs, signs);
        return mask;
    }
    static void add_to(int32_t* out, size_t lane_rows, Words sums) {
        add_8(out, _mm256_castsi256_si128(sums));
        add_8(out + lane_rows, _mm256_extracti128_si256(sums, 1));
    }

private:
    static Bytes table(const uint8_t* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void add_8(int32_t* out, __m128i sums) {
        __m256i* p = reinterpret_cast<__m256i*>(out);
        _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_cvtepi16_epi32(sums)));
    }
};

}  // namespace bitconv::BITCONV_ISA

#include "../layouts/lookup_bytes.hpp"
