// Products the plain way, through unpack: the portable instruction set's, and what the others are tested against.
#pragma once
#include "../matmul.hpp"
#include "rows.hpp"
#include "tl2.hpp"

namespace bitconv::BITCONV_ISA {

inline size_t plain_bytes(size_t cols) { return cols; }

inline void plain_order(const int8_t* x, size_t cols, size_t n, uint8_t* ordered) { std::memcpy(ordered, x, n * cols); }

/// Calls unpack(first row, rows, trits) for blocks of rows, and multiplies what it unpacks.
template <class Unpack>
void unpacked_blocks(const uint8_t* ordered, size_t rows, size_t cols, size_t n, int32_t* out, size_t stride,
                     size_t block, Unpack unpack) {
    Buffer trits(block * cols), products(n * block * sizeof(int32_t));
    int8_t* t = reinterpret_cast<int8_t*>(trits.data());
    int32_t* product = reinterpret_cast<int32_t*>(products.data());
    for (size_t r = 0; r < rows; r += block) {
        const size_t now = rows - r < block ? rows - r : block;
        unpack(r, now, t);
        matmul(t, reinterpret_cast<const int8_t*>(ordered), product, now, cols, n);
        for (size_t v = 0; v < n; ++v) {
            std::memcpy(out + v * stride + r, product + v * now, now * sizeof(int32_t));
        }
    }
}

template <class L>
void unpacked_multiply(const uint8_t* packed, size_t rows, size_t cols, const uint8_t* ordered, size_t n, int32_t* out,
                       size_t stride) {
    constexpr size_t block = 16;
    const size_t blocks = cols / L::geometry.block;
    const size_t row_bytes = L::geometry.row_header + blocks * L::geometry.block_bytes;
    Buffer scales(block * (blocks + 1) * sizeof(float));
    unpacked_blocks(ordered, rows, cols, n, out, stride, block, [&](size_t first, size_t count, int8_t* trits) {
        unpack<L>(packed + first * row_bytes, count, cols, trits, reinterpret_cast<float*>(scales.data()));
    });
}

inline size_t lookup_ordered_bytes(size_t cols) { return plain_bytes(cols); }

inline void tl1_order(const int8_t* x, size_t cols, size_t n, const Tiles&, uint8_t* ordered) {
    plain_order(x, cols, n, ordered);
}

inline void tl1_multiply(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles, const uint8_t* ordered,
                         size_t n, int32_t* out, size_t stride) {
    unpacked_blocks(ordered, rows, cols, n, out, stride, tiles.bm, [&](size_t first, size_t count, int8_t* trits) {
        tl1_unpack(packed + first * cols / 4, count, cols, tiles, trits);
    });
}

inline void tl2_order(const int8_t* x, size_t cols, size_t n, const Tiles&, uint8_t* ordered) {
    plain_order(x, cols, n, ordered);
}

inline void tl2_multiply(const Tl2In& in, size_t rows, size_t cols, const Tiles& tiles, const uint8_t* ordered,
                         size_t n, int32_t* out, size_t stride) {
    const size_t two = cols % tiles.bk, three = cols - two;
    unpacked_blocks(ordered, rows, cols, n, out, stride, tiles.bm, [&](size_t first, size_t count, int8_t* trits) {
        const Tl2In parts{in.values + first * three / 6, in.signs + first * three / 24, in.pairs + first * two / 4};
        tl2_unpack(parts, count, cols, tiles, trits);
    });
}

}  // namespace bitconv::BITCONV_ISA
