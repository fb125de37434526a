// Products of packed rows with tiles of 16 vectors on AMX. See dot.hpp.
#pragma once
#include "../simd/amx.hpp"

namespace bitconv::BITCONV_ISA {

constexpr size_t tile_rows = 16, tile_bytes = tile_rows * 64;
static_assert(vectors_at_once % tile_rows == 0, "a part that is ordered alone has the tiles that multiply expects");

/// Of 16 vectors of 16 int32, those number 0, then those number 1, and so on.
inline void transpose(Dot::Bytes (&rows)[tile_rows]) {
    Dot::Bytes other[tile_rows];
    unrolled<tile_rows / 2>([&](auto i) {  // pairs of rows, by 4 bytes
        other[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        other[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    });
    unrolled<tile_rows / 4>([&](auto i) {  // columns 4 q + j of four rows, for the four quarters q
        unrolled<2>([&](auto h) {
            rows[4 * i + 2 * h] = _mm512_unpacklo_epi64(other[4 * i + h], other[4 * i + 2 + h]);
            rows[4 * i + 2 * h + 1] = _mm512_unpackhi_epi64(other[4 * i + h], other[4 * i + 2 + h]);
        });
    });
    unrolled<4>([&](auto j) {  // quarters, of four rows each
        const Dot::Bytes a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
        const Dot::Bytes b = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
        const Dot::Bytes c = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
        const Dot::Bytes d = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
        other[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        other[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        other[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        other[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    });
    unrolled<tile_rows>([&](auto i) { rows[i] = other[i]; });
}

/// The codes of 16 rows, of fewer at the end, as tiles: those of four columns of a row side by side.
template <class L>
void unpack_tiles(PackedRows<L>& w, size_t first, size_t steps, uint8_t* tiles) {
    using C = Chunks<L>;
    const uint8_t* rows[tile_rows] = {};
    for (size_t r = 0; r < tile_rows && first + r < w.rows; ++r) rows[r] = w.row(first + r);
    for (size_t s = 0; s < steps; ++s) {
        for (size_t chunk = 0; chunk < C::chunks_per_step; ++chunk, tiles += C::digits * tile_bytes) {
            Dot::Bytes codes[tile_rows];
            unrolled<tile_rows>([&](auto r) {
                codes[r] = rows[r] ? C::load(rows[r] + s * C::bytes_per_step, chunk) : Dot::zero();
            });
            transpose(codes);
            unrolled<tile_rows>([&](auto k) {
                Dot::Bytes digits[C::digits];
                split<typename L::Codes>(codes[k], digits);
                unrolled<C::digits>([&](auto p) { _mm512_store_si512(tiles + p * tile_bytes + k * 64, digits[p]); });
            });
        }
    }
}

/// Products with `count` tiles of vectors in the order of Chunks::order<16>: out as in dot_multiply.
template <class L>
void multiply_tiles(PackedRows<L>& w, const uint8_t* ordered, size_t count, int32_t* out, size_t stride) {
    using C = Chunks<L>;
    struct Config {
        uint8_t palette = 1, start = 0, unused[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    constexpr size_t digits = C::chunks_per_step * C::digits, vector = C::activations_per_step;
    const size_t steps = C::steps(w.cols), tiles = steps * digits;
    Buffer buffer(2 * tiles * tile_bytes);
    alignas(64) int32_t products[2][2][tile_rows][tile_rows];  // of vectors with rows
    const Config config;
    _tile_loadconfig(&config);
    for (size_t r = 0; r < w.rows; r += 2 * tile_rows) {
        const uint8_t *first = buffer.data(), *second = first + tiles * tile_bytes;
        unpack_tiles(w, r, steps, buffer.data());
        unpack_tiles(w, r + tile_rows, steps, buffer.data() + tiles * tile_bytes);
        for (size_t v = 0; v < count; v += 2) {
            const size_t both = v + 1 < count ? 2 : 1;  // the last one alone is computed twice
            const uint8_t* start[2];
            const int8_t* x[2];
            for (size_t i = 0; i < 2; ++i) {
                start[i] = ordered + (v + i % both) * tile_rows * C::ordered_bytes(w.cols);
                x[i] = reinterpret_cast<const int8_t*>(start[i] + tile_rows * C::sums_bytes);
            }
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (size_t s = 0; s < steps; ++s) {
                for (size_t digit = 0; digit < digits; ++digit) {  // of the chunks of a step
                    const size_t columns = s * tile_rows * vector + digit * C::width;
                    const size_t codes = (s * digits + digit) * tile_bytes;
                    _tile_loadd(4, x[0] + columns, vector);
                    _tile_loadd(5, x[1] + columns, vector);
                    _tile_loadd(6, first + codes, 64);
                    _tile_loadd(7, second + codes, 64);
                    _tile_dpbsud(0, 4, 6);
                    _tile_dpbsud(1, 4, 7);
                    _tile_dpbsud(2, 5, 6);
                    _tile_dpbsud(3, 5, 7);
                }
            }
            _tile_stored(0, products[0][0], 64);
            _tile_stored(1, products[0][1], 64);
            _tile_stored(2, products[1][0], 64);
            _tile_stored(3, products[1][1], 64);
            for (size_t i = 0; i < both * tile_rows; ++i) {
                int32_t sum;
                std::memcpy(&sum, start[i / tile_rows] + i % tile_rows * C::sums_bytes, sizeof sum);
                int32_t* to = out + (v * tile_rows + i) * stride + r;
                for (size_t row = 0; row < 2 * tile_rows && r + row < w.rows; ++row) {
                    to[row] = sum + products[i / tile_rows][row / tile_rows][i % tile_rows][row % tile_rows];
                }
            }
        }
    }
    _tile_release();
}

}  // namespace bitconv::BITCONV_ISA
