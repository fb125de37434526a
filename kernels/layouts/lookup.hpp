// Products of TL1 and TL2 with int8 activations, by table lookup as their runner does it, but exact: every pair or
// triple of activations has a table of its 9 or 14 partial sums in int16, and a byte shuffle looks up 16 nibbles
// in it at once, in the low and in the high bytes.
//
// The instruction set gives `Lookup`: vectors of `lanes` lanes of 16 bytes. A lane of 16 nibbles becomes two lanes
// of 8 int16, for its first 8 rows and its last 8.
#pragma once
#include "tl2.hpp"
#include "../unrolled.hpp"

namespace bitconv::BITCONV_ISA {

/// The low and the high bytes of 16 partial sums.
struct SumTable {
    uint8_t low[16], high[16];

    void set(const int16_t* sums) {
        for (int i = 0; i < 16; ++i) {
            low[i] = static_cast<uint8_t>(sums[i]);
            high[i] = static_cast<uint8_t>(sums[i] >> 8);
        }
    }
};

/// tables[pair][N] from x [N, cols]: columns first to cols - 1 as pairs.
template <size_t N>
void pair_tables(const int8_t* x, size_t first, size_t cols, SumTable* tables) {
    static constexpr int8_t t0[16] = {-1, -1, -1, 0, 0, 0, 1, 1, 1}, t1[16] = {-1, 0, 1, -1, 0, 1, -1, 0, 1};
    for (size_t k = first; k < cols; k += 2) {
        for (size_t v = 0; v < N; ++v) {
            const int16_t x0 = x[v * cols + k], x1 = x[v * cols + k + 1];
            int16_t sums[16];
            for (int i = 0; i < 16; ++i) sums[i] = static_cast<int16_t>(t0[i] * x0 + t1[i] * x1);
            (tables++)->set(sums);
        }
    }
}

/// tables[triple][N] from x [N, cols]: columns 0 to end - 1 as triples.
template <size_t N>
void triple_tables(const int8_t* x, size_t end, size_t cols, SumTable* tables) {
    static constexpr int8_t t0[16] = {0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static constexpr int8_t t1[16] = {0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1};
    static constexpr int8_t t2[16] = {0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1};
    for (size_t k = 0; k < end; k += 3) {
        for (size_t v = 0; v < N; ++v) {
            const int8_t* xv = x + v * cols + k;
            const int16_t x0 = xv[0], x1 = xv[1], x2 = xv[2];
            int16_t sums[16];
            for (int i = 0; i < 16; ++i) sums[i] = static_cast<int16_t>(t0[i] * x0 + t1[i] * x1 + t2[i] * x2);
            (tables++)->set(sums);
        }
    }
}

/// int16 sums of N vectors with the rows of a vector of nibbles.
template <size_t N>
struct LookupSums {
    Lookup::Words first[N], last[N];

    LookupSums() {
        for (size_t v = 0; v < N; ++v) first[v] = last[v] = Lookup::zero();
    }
    void add(const SumTable* tables, Lookup::Bytes nibbles) {
        for (size_t v = 0; v < N; ++v) {
            const auto [a, b] = Lookup::lookup(tables[v].low, tables[v].high, nibbles);
            first[v] = Lookup::add(first[v], a);
            last[v] = Lookup::add(last[v], b);
        }
    }
    /// Negative where the masks are -1.
    void add_signed(const SumTable* tables, Lookup::Bytes nibbles, Lookup::Words mask_first, Lookup::Words mask_last) {
        for (size_t v = 0; v < N; ++v) {
            const auto [a, b] = Lookup::lookup(tables[v].low, tables[v].high, nibbles);
            first[v] = Lookup::add(first[v], Lookup::negate(a, mask_first));
            last[v] = Lookup::add(last[v], Lookup::negate(b, mask_last));
        }
    }
    /// Adds 8 sums a lane to out[v * stride ...], those of lane l being lane_rows further on than the lane before.
    void flush(int32_t* out, size_t stride, size_t last_row, size_t lane_rows) {
        for (size_t v = 0; v < N; ++v) {
            Lookup::add_to(out + v * stride, lane_rows, first[v]);
            Lookup::add_to(out + v * stride + last_row, lane_rows, last[v]);
        }
    }
};

template <size_t N>
void tl1_tile(const uint8_t* packed, const SumTable* tables, int32_t* out, size_t stride, size_t rows, size_t cols,
              const Tiles& tiles) {
    constexpr size_t groups_at_once = 32;  // 64 pairs of at most 256 fit int16
    const Tl1Block block(tiles);
    const size_t column_groups = tiles.bk / 4;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < cols; k += tiles.bk, packed += tiles.bm * tiles.bk / 4) {
            for (size_t group = 0; group < tiles.bm / 16; group += Lookup::lanes) {
                const uint8_t* codes = packed + block.row_group(group);
                for (size_t j = 0; j < column_groups; j += groups_at_once) {
                    const size_t end = column_groups - j < groups_at_once ? column_groups : j + groups_at_once;
                    LookupSums<N> sums;
                    for (size_t c = j; c < end; ++c) {
                        const auto bytes = Lookup::load(codes + block.column_group(c), 16 * block.column_groups);
                        const SumTable* pairs = tables + (k / 2 + 2 * c) * N;
                        sums.add(pairs, Lookup::high_nibbles(bytes));
                        sums.add(pairs + N, Lookup::low_nibbles(bytes));
                    }
                    sums.flush(out + r + 16 * group, stride, 8, 16);
                }
            }
        }
    }
}

template <size_t N>
void tl2_tile(const Tl2In& in, const SumTable* tables, int32_t* out, size_t stride, size_t rows, size_t cols,
              const Tiles& tiles) {
    constexpr size_t groups_at_once = 8;      // 64 triples of at most 384 fit int16
    constexpr size_t step = 8 * Lookup::lanes;  // rows 0 to step - 1, and as many from 16 on, in a vector
    const size_t three_columns = cols - cols % tiles.bk;
    const SumTable* two_tables = tables + three_columns / 3 * N;
    const uint8_t *values = in.values, *signs = in.signs, *pairs = in.pairs;
    for (size_t r = 0; r < rows; r += tiles.bm) {
        for (size_t k = 0; k < three_columns; k += tiles.bk) {
            for (size_t i = 0; i < tiles.bm; i += 32, values += 32 * tiles.bk / 6, signs += 32 * tiles.bk / 24) {
                for (size_t j = 0; j < tiles.bk / 24; j += groups_at_once) {
                    const size_t end = tiles.bk / 24 - j < groups_at_once ? tiles.bk / 24 : j + groups_at_once;
                    for (size_t h = 0; h < 16; h += step) {
                        LookupSums<N> sums;
                        for (size_t g = j; g < end; ++g) {
                            auto sign = Lookup::load_words(signs + 32 * g + 2 * h);
                            const SumTable* triples = tables + (k / 3 + 8 * g) * N;
                            for (size_t c = 0; c < 4; ++c, triples += 2 * N) {
                                const auto bytes = Lookup::load(values + 32 * (4 * g + c) + 2 * h, 16);
                                const auto high_first = Lookup::take_sign(sign), high_last = Lookup::take_sign(sign);
                                sums.add_signed(triples, Lookup::high_nibbles(bytes), high_first, high_last);
                                const auto low_first = Lookup::take_sign(sign), low_last = Lookup::take_sign(sign);
                                sums.add_signed(triples + N, Lookup::low_nibbles(bytes), low_first, low_last);
                            }
                        }
                        sums.flush(out + r + i + h, stride, 16, 8);
                    }
                }
            }
        }
        for (size_t k = 0; k < cols - three_columns; k += 32) {
            for (size_t i = 0; i < tiles.bm; i += 32, pairs += 256) {
                for (size_t h = 0; h < 16; h += step) {
                    LookupSums<N> sums;
                    for (size_t c = 0; c < 8; ++c) {
                        const auto bytes = Lookup::load(pairs + 32 * c + 2 * h, 16);
                        const SumTable* two = two_tables + (k / 2 + 2 * c) * N;
                        sums.add(two, Lookup::high_nibbles(bytes));
                        sums.add(two + N, Lookup::low_nibbles(bytes));
                    }
                    sums.flush(out + r + i + h, stride, 16, 8);
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
