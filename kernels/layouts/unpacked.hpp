// Products the plain way, through unpack: the portable instruction set's, and what the others are tested against.
#pragma once
#include "../matmul.hpp"
#include "rows.hpp"
#include "tl2.hpp"

namespace bitconv::BITCONV_ISA {

/// Calls unpack(first row, rows, trits) for blocks of rows, and multiplies what it unpacks.
template <class Unpack>
void unpacked_blocks(const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n, size_t block, Unpack unpack) {
    Buffer trits(block * cols), products(n * block * sizeof(int32_t));
    int8_t* t = reinterpret_cast<int8_t*>(trits.data());
    int32_t* product = reinterpret_cast<int32_t*>(products.data());
    for (size_t r = 0; r < rows; r += block) {
        const size_t now = rows - r < block ? rows - r : block;
        unpack(r, now, t);
        matmul(t, x, product, now, cols, n);
        for (size_t v = 0; v < n; ++v) {
            std::memcpy(out + v * rows + r, product + v * now, now * sizeof(int32_t));
        }
    }
}

template <class L>
void unpacked_matmul(const uint8_t* packed, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n) {
    constexpr size_t block = 16;
    const size_t blocks = cols / L::geometry.block;
    const size_t row_bytes = L::geometry.row_header + blocks * L::geometry.block_bytes;
    Buffer scales(block * (blocks + 1) * sizeof(float));
    unpacked_blocks(x, out, rows, cols, n, block, [&](size_t first, size_t count, int8_t* trits) {
        unpack<L>(packed + first * row_bytes, count, cols, trits, reinterpret_cast<float*>(scales.data()));
    });
}

inline void tl1_matmul(const uint8_t* packed, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n,
                       const Tiles& tiles) {
    unpacked_blocks(x, out, rows, cols, n, tiles.bm, [&](size_t first, size_t count, int8_t* trits) {
        tl1_unpack(packed + first * cols / 4, count, cols, tiles, trits);
    });
}

inline void tl2_matmul(const Tl2In& in, const int8_t* x, int32_t* out, size_t rows, size_t cols, size_t n,
                       const Tiles& tiles) {
    const size_t two = cols % tiles.bk, three = cols - two;
    unpacked_blocks(x, out, rows, cols, n, tiles.bm, [&](size_t first, size_t count, int8_t* trits) {
        const Tl2In parts{in.values + first * three / 6, in.signs + first * three / 24, in.pairs + first * two / 4};
        tl2_unpack(parts, count, cols, tiles, trits);
    });
}

}  // namespace bitconv::BITCONV_ISA
