// Table lookups on AVX-512: a permutation of words takes the sums as int16 from a table of 32, whose second half is the
// negative of the first, so that a sign is a bit of the index. See layouts/lookup.hpp.
#pragma once
#include "../layouts/partial_sums.hpp"

#include <cstddef>
#include <cstdint>
#include <immintrin.h>

namespace bitconv::BITCONV_ISA {

/// In two halves of two lanes.
constexpr size_t lookup_lanes = 4;

/// 16 sums, and what they are where bit 4 of the index is set.
struct SumTable {
    int16_t sums[32];

    /// Bit 4 of the index is anything.
    void set_pair(const int8_t* x) {
        const __m256i sum = _mm256_add_epi16(times(pair_trits[0], x[0]), times(pair_trits[1], x[1]));
        set(sum, sum);
    }
    /// Bit 4 of the index is the sign.
    void set_triple(const int8_t* x) {
        const __m256i sum = _mm256_add_epi16(
            _mm256_add_epi16(times(triple_trits[0], x[0]), times(triple_trits[1], x[1])), times(triple_trits[2], x[2]));
        set(sum, _mm256_sub_epi16(_mm256_setzero_si256(), sum));
    }

private:
    static __m256i times(const int16_t* trits, int16_t x) {
        return _mm256_mullo_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(trits)), _mm256_set1_epi16(x));
    }
    void set(__m256i positive, __m256i negative) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), positive);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 16), negative);
    }
};

/// The signs of eight triples of two blocks of 32 rows, of which each add_signed() takes two. The highest bit is the
/// next sign of a word's even or odd byte, the third highest the one after it.
struct LookupSigns {
    __m512i even, odd;

    LookupSigns(const uint8_t* p, size_t half_bytes) {
        const __m512i signs =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + half_bytes)), 1);
        // Word w of 16 holds the bytes 2 w and 2 w + 1. tl2_row() says of which rows: from row 16 on, which is in the
        // second four words of each lane, signs are one bit lower.
        static constexpr int16_t word[32] = {0,  2,  4,  6,  0,  2,  4,  6,  8,  10, 12, 14, 8,  10, 12, 14,
                                             16, 18, 20, 22, 16, 18, 20, 22, 24, 26, 28, 30, 24, 26, 28, 30};
        const __m512i index = _mm512_loadu_si512(word), ones = _mm512_set1_epi16(1);
        const __m512i shift = _mm512_unpacklo_epi64(_mm512_setzero_si512(), ones);
        even = _mm512_sllv_epi16(_mm512_permutexvar_epi16(index, signs), shift);
        odd = _mm512_sllv_epi16(_mm512_permutexvar_epi16(_mm512_or_si512(index, ones), signs), shift);
    }
};

/// int16 sums of N vectors with the rows of a vector of nibbles: of its even and of its odd bytes.
template <size_t N>
struct LookupSums {
    __m512i even[N], odd[N];

    LookupSums() {
        for (size_t v = 0; v < N; ++v) even[v] = odd[v] = _mm512_setzero_si512();
    }
    /// The high nibbles by tables[N], the low ones by the next N.
    void add(const SumTable* tables, const uint8_t* p, size_t lane_bytes, size_t half_bytes) {
        const __m512i words = load(p, lane_bytes, half_bytes);
        add_at(tables, _mm512_srli_epi16(words, 4), _mm512_srli_epi16(words, 12));
        add_at(tables + N, words, _mm512_srli_epi16(words, 8));
    }
    void add_signed(const SumTable* tables, const uint8_t* p, size_t lane_bytes, size_t half_bytes, LookupSigns& sign) {
        const __m512i words = load(p, lane_bytes, half_bytes);
        add_at(tables, with_sign(_mm512_srli_epi16(words, 4), _mm512_srli_epi16(sign.even, 11)),
               with_sign(_mm512_srli_epi16(words, 12), _mm512_srli_epi16(sign.odd, 11)));
        add_at(tables + N, with_sign(words, _mm512_srli_epi16(sign.even, 9)),
               with_sign(_mm512_srli_epi16(words, 8), _mm512_srli_epi16(sign.odd, 9)));
        sign.even = _mm512_slli_epi16(sign.even, 4);
        sign.odd = _mm512_slli_epi16(sign.odd, 4);
    }
    /// Adds 8 sums a lane to out[v * stride ...], those of a half's second lane being lane_rows further on than those
    /// of its first, and those of the second half half_rows; 0 where there is none.
    void flush(int32_t* out, size_t stride, size_t last_row, size_t lane_rows, size_t half_rows) {
        for (size_t v = 0; v < N; ++v) {
            add_to(out + v * stride, lane_rows, half_rows, _mm512_unpacklo_epi16(even[v], odd[v]));
            add_to(out + v * stride + last_row, lane_rows, half_rows, _mm512_unpackhi_epi16(even[v], odd[v]));
        }
    }

private:
    static __m128i lane(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
    static __m512i load(const uint8_t* p, size_t lane_bytes, size_t half_bytes) {
        const uint8_t* q = p + half_bytes;
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(lane(p + lane_bytes), lane(p))),
                                  _mm256_set_m128i(lane(q + lane_bytes), lane(q)), 1);
    }
    /// The lower four bits of the one, and bit 4 of the other.
    static __m512i with_sign(__m512i nibbles, __m512i signs) {
        return _mm512_ternarylogic_epi32(_mm512_set1_epi16(15), nibbles, signs, 0xca);
    }
    void add_at(const SumTable* tables, __m512i even_index, __m512i odd_index) {
        for (size_t v = 0; v < N; ++v) {
            const __m512i table = _mm512_loadu_si512(tables[v].sums);
            even[v] = _mm512_add_epi16(even[v], _mm512_permutexvar_epi16(even_index, table));
            odd[v] = _mm512_add_epi16(odd[v], _mm512_permutexvar_epi16(odd_index, table));
        }
    }
    static void add_to(int32_t* out, size_t lane_rows, size_t half_rows, __m512i sums) {
        add_8(out, _mm512_castsi512_si128(sums));
        add_8(out + lane_rows, _mm512_extracti32x4_epi32(sums, 1));
        if (half_rows == 0) return;
        add_8(out + half_rows, _mm512_extracti32x4_epi32(sums, 2));
        add_8(out + half_rows + lane_rows, _mm512_extracti32x4_epi32(sums, 3));
    }
    static void add_8(int32_t* out, __m128i sums) {
        __m256i* p = reinterpret_cast<__m256i*>(out);
        _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_cvtepi16_epi32(sums)));
    }
};

}  // namespace bitconv::BITCONV_ISA
