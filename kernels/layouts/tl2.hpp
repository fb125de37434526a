// TL2 of bitnet.cpp: triples of columns as a nibble and a sign bit; the columns that bk leaves over as pairs, like
// TL1's. Three parts: the nibbles, the signs, the pairs.
#pragma once
#include "tl1.hpp"

namespace bitconv::BITCONV_ISA {

/// Byte i of 32 holds this row of a block of 32 rows.
constexpr size_t tl2_row(size_t i) { return (i & 7) | (i & 8) << 1 | (i & 16) >> 1; }

/// Word j of 16 holds the signs of eight triples of rows j (`upper` 0) and 16 + j (1): the bit of triple i.
constexpr int tl2_sign_bit(size_t triple, size_t upper) { return static_cast<int>(15 - 2 * triple - upper); }

/// What two signs (the first in bit 9, the second in bit 8) and a byte of two nibbles stand for; the trits of an
/// invalid sign and nibble are 2.
struct TripleTrits {
    struct {
        int8_t trits[6];
        bool invalid;
    } codes[1024] = {};
    constexpr TripleTrits() {
        for (int code = 0; code < 1024; ++code) {
            for (int i = 0; i < 6; ++i) {
                const int nibble = i < 3 ? code >> 4 & 15 : code & 15;
                const bool negative = (i < 3 ? code >> 9 & 1 : code >> 8 & 1) != 0;
                const bool invalid = nibble > 13 || (negative && nibble == 0);
                const int value = (negative ? -nibble : nibble) + 13;
                const int digit = i % 3 == 0 ? value / 9 : i % 3 == 1 ? value / 3 % 3 : value % 3;
                codes[code].trits[i] = static_cast<int8_t>(invalid ? 2 : digit - 1);
                codes[code].invalid |= invalid;
            }
        }
    }
};

/// Calls visit(row, column, values, signs), starts of bytes, for every 32 rows by 24 columns of triples.
template <class Visit>
void each_tl2_triples(size_t rows, size_t cols, const Tiles& tiles, Visit visit) {
    size_t values = 0, signs = 0;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k + tiles.bk <= cols; k += tiles.bk) {
            for (size_t i = 0; i < tiles.bm; i += 32) {
                for (size_t j = 0; j < tiles.bk; j += 24, values += 128, signs += 32) {
                    visit(r + i, k + j, values, signs);
                }
            }
        }
    }
}

/// Calls visit(row, column, pairs), the start of bytes, for every 32 rows by 4 columns of pairs.
template <class Visit>
void each_tl2_pairs(size_t rows, size_t cols, const Tiles& tiles, Visit visit) {
    size_t pairs = 0;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = cols - cols % tiles.bk; k < cols; k += 32) {
            for (size_t i = 0; i < tiles.bm; i += 32) {
                for (size_t j = 0; j < 32; j += 4, pairs += 32) visit(r + i, k + j, pairs);
            }
        }
    }
}

inline void tl2_pack(const int8_t* trits, size_t rows, size_t cols, const Tiles& tiles, const Tl2Out& out) {
    each_tl2_triples(rows, cols, tiles, [&](size_t row, size_t column, size_t values, size_t signs) {
        uint16_t words[16] = {};
        for (size_t i = 0; i < 32; ++i) {
            const size_t r = tl2_row(i);
            const int8_t* t = trits + (row + r) * cols + column;
            int word = 0;
            for (size_t triple = 0; triple < 8; triple += 2, t += 6) {
                const int first = 9 * t[0] + 3 * t[1] + t[2], second = 9 * t[3] + 3 * t[4] + t[5];
                const int nibbles = (first < 0 ? -first : first) << 4 | (second < 0 ? -second : second);
                out.values[values + 16 * triple + i] = static_cast<uint8_t>(nibbles);
                word |= (first < 0) << tl2_sign_bit(triple, 0) | (second < 0) << tl2_sign_bit(triple + 1, 0);
            }
            words[r % 16] |= static_cast<uint16_t>(word >> r / 16);
        }
        std::memcpy(out.signs + signs, words, sizeof words);
    });
    each_tl2_pairs(rows, cols, tiles, [&](size_t row, size_t column, size_t pairs) {
        for (size_t i = 0; i < 32; ++i) out.pairs[pairs + i] = pair_byte(trits + (row + tl2_row(i)) * cols + column);
    });
}

inline int64_t tl2_unpack(const Tl2In& in, size_t rows, size_t cols, const Tiles& tiles, int8_t* trits) {
    static constexpr TripleTrits table;
    bool invalid = false;
    each_tl2_triples(rows, cols, tiles, [&](size_t row, size_t column, size_t values, size_t signs) {
        uint16_t words[16];
        std::memcpy(words, in.signs + signs, sizeof words);
        for (size_t i = 0; i < 32; ++i) {
            const size_t r = tl2_row(i);
            int8_t* t = trits + (row + r) * cols + column;
            for (size_t triple = 0; triple < 8; triple += 2, t += 6) {
                const int first = words[r % 16] >> tl2_sign_bit(triple, r / 16) & 1;
                const int second = words[r % 16] >> tl2_sign_bit(triple + 1, r / 16) & 1;
                const auto& code = table.codes[first << 9 | second << 8 | in.values[values + 16 * triple + i]];
                std::memcpy(t, code.trits, 6);
                invalid |= code.invalid;
            }
        }
    });
    each_tl2_pairs(rows, cols, tiles, [&](size_t row, size_t column, size_t pairs) {
        for (size_t i = 0; i < 32; ++i) {
            invalid |= unpack_pairs(in.pairs[pairs + i], trits + (row + tl2_row(i)) * cols + column);
        }
    });
    return invalid ? first_marked(trits) : -1;
}

}  // namespace bitconv::BITCONV_ISA
