// TL1 of bitnet.cpp: pairs of columns as nibbles, in an order that follows the tiles of its generated kernels.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

/// A pair of trits is the nibble 3 * (t0 + 1) + t1 + 1, 0 to 8. A byte holds four columns, the first pair high.
constexpr uint8_t pair_byte(uint32_t four_codes) {
    return static_cast<uint8_t>(four_codes * (48u << 24 | 16u << 16 | 3u << 8 | 1u) >> 24);
}

inline uint8_t pair_byte(const int8_t* trits) {
    uint32_t four;
    std::memcpy(&four, trits, sizeof four);
    return pair_byte((four ^ 0x80808080u) - 0x7f7f7f7fu);  // each byte plus one, without carries
}

/// What a byte of two pairs stands for; the trits of an invalid nibble are 2.
struct PairTrits {
    int8_t trits[256][4] = {};
    constexpr PairTrits() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int i = 0; i < 4; ++i) {
                const int nibble = i < 2 ? byte >> 4 : byte & 15;
                trits[byte][i] = static_cast<int8_t>(nibble > 8 ? 2 : (i % 2 ? nibble % 3 : nibble / 3) - 1);
            }
        }
    }
};

constexpr bool valid_pairs(uint8_t byte) { return byte >> 4 <= 8 && (byte & 15) <= 8; }

/// Returns whether both pairs are valid.
inline bool unpack_pairs(uint8_t byte, int8_t* trits) {
    static constexpr PairTrits table;
    std::memcpy(trits, table.trits[byte], 4);
    return valid_pairs(byte);
}

/// The lowest index of a trit that unpacking marked as invalid; there is one.
inline int64_t first_marked(const int8_t* trits) {
    for (size_t i = 0;; ++i) {
        if (trits[i] == 2) return static_cast<int64_t>(i);
    }
}

/// Where 16 rows by 4 columns, 16 bytes, lie in a block of bm rows by bk columns.
struct Tl1Block {
    size_t bk, row_groups, column_groups;  // groups of 16 rows and of 4 columns in the innermost block

    explicit Tl1Block(const Tiles& tiles) : bk(tiles.bk), row_groups(tiles.bmm / 16), column_groups(64 / tiles.bmm) {}

    size_t row_group(size_t group) const {
        return (group / row_groups * (bk / (4 * column_groups)) * row_groups + group % row_groups) * column_groups * 16;
    }
    size_t column_group(size_t group) const {
        return (group / column_groups * row_groups * column_groups + group % column_groups) * 16;
    }
};

/// Calls visit(row, column, byte) for every 16 rows by 4 columns.
template <class Visit>
void each_tl1_unit(size_t rows, size_t cols, const Tiles& tiles, Visit visit) {
    const Tl1Block block(tiles);
    size_t start = 0;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < cols; k += tiles.bk, start += tiles.bm * tiles.bk / 4) {
            for (size_t i = 0; i < tiles.bm / 16; ++i) {
                const size_t row_start = start + block.row_group(i);
                for (size_t j = 0; j < tiles.bk / 4; ++j) {
                    visit(r + 16 * i, k + 4 * j, row_start + block.column_group(j));
                }
            }
        }
    }
}

inline void tl1_pack(const int8_t* trits, size_t rows, size_t cols, const Tiles& tiles, uint8_t* out) {
    each_tl1_unit(rows, cols, tiles, [=](size_t row, size_t column, size_t byte) {
        for (size_t i = 0; i < 16; ++i) out[byte + i] = pair_byte(trits + (row + i) * cols + column);
    });
}

inline int64_t tl1_unpack(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles, int8_t* trits) {
    bool valid = true;
    each_tl1_unit(rows, cols, tiles, [=, &valid](size_t row, size_t column, size_t byte) {
        for (size_t i = 0; i < 16; ++i) valid &= unpack_pairs(packed[byte + i], trits + (row + i) * cols + column);
    });
    return valid ? -1 : first_marked(trits);
}

}  // namespace bitconv::BITCONV_ISA
