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
    struct {
        int8_t trits[4];
        bool invalid;
    } bytes[256] = {};
    constexpr PairTrits() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int i = 0; i < 4; ++i) {
                const int nibble = i < 2 ? byte >> 4 : byte & 15;
                bytes[byte].trits[i] = static_cast<int8_t>(nibble > 8 ? 2 : (i % 2 ? nibble % 3 : nibble / 3) - 1);
                bytes[byte].invalid |= nibble > 8;
            }
        }
    }
};

/// Returns whether a pair is invalid.
inline bool unpack_pairs(uint8_t byte, int8_t* trits) {
    static constexpr PairTrits table;
    std::memcpy(trits, table.bytes[byte].trits, 4);
    return table.bytes[byte].invalid;
}

/// The lowest index of a trit that unpacking marked as invalid; there is one.
inline int64_t first_marked(const int8_t* trits) {
    for (size_t i = 0;; ++i) {
        if (trits[i] == 2) return static_cast<int64_t>(i);
    }
}

/// Where 16 rows by 4 columns, 16 bytes, lie in a block of bm rows by bk columns. The innermost blocks, bmm rows by
/// 256 / bmm columns, have 64 bytes.
struct Tl1Block {
    size_t bk, row_groups, column_groups;  // groups of 16 rows and of 4 columns in an innermost block

    explicit Tl1Block(const Tiles& tiles) : bk(tiles.bk), row_groups(tiles.bmm / 16), column_groups(64 / tiles.bmm) {}

    size_t row_group(size_t group) const {
        return group / row_groups * (bk / (4 * column_groups)) * 64 + group % row_groups * column_groups * 16;
    }
    size_t column_group(size_t group) const { return group / column_groups * 64 + group % column_groups * 16; }
};

/// Calls visit(element, byte) for every byte, which holds the elements from that one on to the fourth of its row.
/// Takes a row's columns of a block at once, which is kind to caches where rows are a power of two apart.
template <class Visit>
void each_tl1_byte(size_t rows, size_t cols, const Tiles& tiles, Visit visit) {
    const Tl1Block block(tiles);
    size_t start = 0;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < cols; k += tiles.bk, start += tiles.bm * tiles.bk / 4) {
            for (size_t i = 0; i < tiles.bm; ++i) {
                const size_t row_start = start + block.row_group(i / 16) + i % 16;
                size_t element = (r + i) * cols + k;
                for (size_t byte = row_start; element < (r + i) * cols + k + tiles.bk; byte += 64) {
                    for (size_t g = 0; g < block.column_groups; ++g, element += 4) visit(element, byte + 16 * g);
                }
            }
        }
    }
}

inline void tl1_pack(const int8_t* trits, size_t rows, size_t cols, const Tiles& tiles, uint8_t* out) {
    each_tl1_byte(rows, cols, tiles, [=](size_t element, size_t byte) { out[byte] = pair_byte(trits + element); });
}

inline int64_t tl1_unpack(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles, int8_t* trits) {
    bool invalid = false;
    each_tl1_byte(rows, cols, tiles, [=, &invalid](size_t element, size_t byte) {
        invalid |= unpack_pairs(packed[byte], trits + element);
    });
    return invalid ? first_marked(trits) : -1;
}

}  // namespace bitconv::BITCONV_ISA
