// Products of TL1 and TL2 with int8 activations, by table lookup as their runner does it, but exact: every pair or
// triple of activations has a table of its 9 or 14 partial sums in int16, and a shuffle looks up many nibbles in it at
// once.
//
// The instruction set gives `SumTable`, `LookupSigns` and `LookupSums`, by lookup_bytes.hpp or its own, of vectors of
// `lookup_lanes` lanes of 16 bytes: one, two, or two halves of two. A lane of 16 bytes becomes the sums of its first
// 8 rows and of its last 8.
#pragma once
#include "tl2.hpp"
#include "../unrolled.hpp"

namespace bitconv::BITCONV_ISA {

/// tables[pair][N] from x [N, cols]: columns first to cols - 1 as pairs.
template <size_t N>
void pair_tables(const int8_t* x, size_t first, size_t cols, SumTable* tables) {
    for (size_t k = first; k < cols; k += 2) {
        for (size_t v = 0; v < N; ++v) (tables++)->set_pair(x + v * cols + k);
    }
}

/// tables[triple][N] from x [N, cols]: columns 0 to end - 1 as triples.
template <size_t N>
void triple_tables(const int8_t* x, size_t end, size_t cols, SumTable* tables) {
    for (size_t k = 0; k < end; k += 3) {
        for (size_t v = 0; v < N; ++v) (tables++)->set_triple(x + v * cols + k);
    }
}

/// The rows from the first half of a vector of `at_once` rows to its second; 0 where a block of bm has no second one.
inline size_t half_of(size_t row, size_t at_once, size_t bm) { return row + at_once <= bm ? at_once / 2 : 0; }

template <size_t N>
void tl1_tile(const uint8_t* packed, const SumTable* tables, int32_t* out, size_t stride, size_t rows, size_t cols,
              const Tiles& tiles) {
    constexpr size_t groups_at_once = 32;  // 64 pairs of at most 256 fit int16
    const Tl1Block block(tiles);
    const size_t column_groups = tiles.bk / 4;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < cols; k += tiles.bk, packed += tiles.bm * tiles.bk / 4) {
            for (size_t group = 0; group < tiles.bm / 16; group += lookup_lanes) {
                const size_t half = half_of(16 * group, 16 * lookup_lanes, tiles.bm) / 16;
                const uint8_t* codes = packed + block.row_group(group);
                const size_t half_bytes = block.row_group(group + half) - block.row_group(group);
                for (size_t j = 0; j < column_groups; j += groups_at_once) {
                    const size_t end = column_groups - j < groups_at_once ? column_groups : j + groups_at_once;
                    LookupSums<N> sums;
                    for (size_t c = j; c < end; ++c) {
                        sums.add(tables + (k / 2 + 2 * c) * N, codes + block.column_group(c), 16 * block.column_groups,
                                 half_bytes);
                    }
                    sums.flush(out + r + 16 * group, stride, 8, 16, 16 * half);
                }
            }
        }
    }
}

template <size_t N>
void tl2_tile(const Tl2In& in, const SumTable* tables, int32_t* out, size_t stride, size_t rows, size_t cols,
              const Tiles& tiles) {
    constexpr size_t groups_at_once = 8;  // 64 triples of at most 384 fit int16
    // Rows 0 to step - 1, and as many from 16 on, in a vector: of one block of 32 rows or of two.
    constexpr size_t step = lookup_lanes == 1 ? 8 : 16, rows_at_once = lookup_lanes == 4 ? 64 : 32;
    const size_t three_columns = cols - cols % tiles.bk;
    const SumTable* two_tables = tables + three_columns / 3 * N;
    const uint8_t *values = in.values, *signs = in.signs, *pairs = in.pairs;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < three_columns; k += tiles.bk) {
            for (size_t i = 0; i < tiles.bm; i += rows_at_once) {
                const size_t half = half_of(i, rows_at_once, tiles.bm);
                const uint8_t *block_values = values + i * tiles.bk / 6, *block_signs = signs + i * tiles.bk / 24;
                for (size_t j = 0; j < tiles.bk / 24; j += groups_at_once) {
                    const size_t end = tiles.bk / 24 - j < groups_at_once ? tiles.bk / 24 : j + groups_at_once;
                    for (size_t h = 0; h < 16; h += step) {
                        LookupSums<N> sums;
                        for (size_t g = j; g < end; ++g) {
                            LookupSigns sign(block_signs + 32 * g + 2 * h, half * tiles.bk / 24);
                            const SumTable* triples = tables + (k / 3 + 8 * g) * N;
                            for (size_t c = 0; c < 4; ++c, triples += 2 * N) {
                                sums.add_signed(triples, block_values + 32 * (4 * g + c) + 2 * h, 16,
                                                half * tiles.bk / 6, sign);
                            }
                        }
                        sums.flush(out + r + i + h, stride, 16, 8, half);
                    }
                }
            }
            values += tiles.bm * tiles.bk / 6;
            signs += tiles.bm * tiles.bk / 24;
        }
        for (size_t k = 0; k < cols - three_columns; k += 32, pairs += tiles.bm * 8) {
            for (size_t i = 0; i < tiles.bm; i += rows_at_once) {
                const size_t half = half_of(i, rows_at_once, tiles.bm);
                for (size_t h = 0; h < 16; h += step) {
                    LookupSums<N> sums;
                    for (size_t c = 0; c < 8; ++c) {
                        sums.add(two_tables + (k / 2 + 2 * c) * N, pairs + 8 * i + 32 * c + 2 * h, 16, 8 * half);
                    }
                    sums.flush(out + r + i + h, stride, 16, 8, half);
                }
            }
        }
    }
}

inline size_t lookup_ordered_bytes(size_t cols) { return cols / 2 * sizeof(SumTable); }

/// The tables of n vectors, of pairs from column `first` on and of triples before it.
inline void lookup_order(const int8_t* x, size_t cols, size_t n, size_t first, uint8_t* ordered) {
    each_tile(n, [=](auto count, size_t v) {
        SumTable* tables = reinterpret_cast<SumTable*>(ordered + v * lookup_ordered_bytes(cols));
        triple_tables<count>(x + v * cols, first, cols, tables);
        pair_tables<count>(x + v * cols, first, cols, tables + first / 3 * count);
    });
}

/// Calls tile(N, tables, out) for the vectors of ordered tables.
template <class Tile>
void lookup_multiply(const uint8_t* ordered, size_t rows, size_t cols, size_t n, int32_t* out, size_t stride,
                     Tile tile) {
    for (size_t v = 0; v < n; ++v) std::memset(out + v * stride, 0, rows * sizeof *out);
    each_tile(n, [=](auto count, size_t v) {
        tile(count, reinterpret_cast<const SumTable*>(ordered + v * lookup_ordered_bytes(cols)), out + v * stride);
    });
}

inline void tl1_order(const int8_t* x, size_t cols, size_t n, const Tiles&, uint8_t* ordered) {
    lookup_order(x, cols, n, 0, ordered);
}

inline void tl1_multiply(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles, const uint8_t* ordered,
                         size_t n, int32_t* out, size_t stride) {
    lookup_multiply(ordered, rows, cols, n, out, stride, [&](auto count, const SumTable* tables, int32_t* to) {
        tl1_tile<count>(packed, tables, to, stride, rows, cols, tiles);
    });
}

inline void tl2_order(const int8_t* x, size_t cols, size_t n, const Tiles& tiles, uint8_t* ordered) {
    lookup_order(x, cols, n, cols - cols % tiles.bk, ordered);
}

inline void tl2_multiply(const Tl2In& packed, size_t rows, size_t cols, const Tiles& tiles, const uint8_t* ordered,
                         size_t n, int32_t* out, size_t stride) {
    lookup_multiply(ordered, rows, cols, n, out, stride, [&](auto count, const SumTable* tables, int32_t* to) {
        tl2_tile<count>(packed, tables, to, stride, rows, cols, tiles);
    });
}

}  // namespace bitconv::BITCONV_ISA
