// Pack and unpack of whole rows, for every layout that describes itself as codes.hpp says.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

/// Where the scale of a block lies: on the side of it that the codes leave free.
template <class L>
constexpr size_t scale_at() {
    return L::codes_at > 0 ? 0 : L::geometry.block_bytes - 2;
}

/// Row scales are float32 or float16, as the room before the row says.
template <class L>
void write_row_scale(uint8_t* row, float scale) {
    if constexpr (L::geometry.row_header == 4) store<F32>(row, 0, bits_of(scale));
    if constexpr (L::geometry.row_header == 2) store<F16>(row, 0, F16::round(bits_of(scale)));
}

template <class L>
float read_row_scale(const uint8_t* row) {
    return float_of(L::geometry.row_header == 4 ? load<F32>(row, 0) : F16::widen(load<F16>(row, 0)));
}

template <class L>
void pack(const int8_t* trits, const float* scales, size_t rows, size_t cols, uint8_t* out) {
    constexpr Geometry g = L::geometry;
    uint32_t last_scale = 0;  // nearly always the next one too, and its rounding takes as long as a small block
    uint16_t rounded = 0;
    for (size_t r = 0; r < rows; ++r) {
        if constexpr (g.scale == Scale::row) write_row_scale<L>(out, *scales++);
        out += g.row_header;
        for (size_t k = 0; k < cols; k += g.block, trits += g.block, out += g.block_bytes) {
            pack_block<L>(trits, out + L::codes_at);
            if constexpr (g.scale == Scale::block) {
                uint8_t nonzero = 0;
                for (size_t i = 0; i < g.block; ++i) nonzero |= static_cast<uint8_t>(trits[i]);
                const uint32_t scale = bits_of(*scales++);
                if (scale != last_scale) rounded = F16::round(last_scale = scale);
                store<F16>(out + scale_at<L>(), 0, nonzero ? rounded : uint16_t{0});
            }
        }
    }
}

/// The lowest column of a block that an invalid code stands for. A byte that is invalid as a whole stands for
/// all its columns.
template <class L>
int first_invalid(const uint8_t* codes) {
    int lowest = static_cast<int>(L::geometry.block);
    int byte = 0;
    for (const Run& run : L::runs) {
        for (int j = 0; j < run.bytes; ++j, ++byte) {
            if (L::Codes::valid(codes[byte], run)) continue;
            for (int p = 0; p < L::Codes::digits; ++p) {
                const bool affected = L::Codes::digits == 5 || L::Codes::digit(codes[byte], p) == 3;
                if (run.uses(p) && affected && run.column(j, p) < lowest) lowest = run.column(j, p);
            }
        }
    }
    return lowest;
}

template <class L>
int64_t unpack(const uint8_t* packed, size_t rows, size_t cols, int8_t* trits, float* scales) {
    constexpr Geometry g = L::geometry;
    for (size_t r = 0; r < rows; ++r) {
        if constexpr (g.scale == Scale::row) *scales++ = read_row_scale<L>(packed);
        packed += g.row_header;
        for (size_t k = 0; k < cols; k += g.block, trits += g.block, packed += g.block_bytes) {
            if constexpr (g.scale == Scale::block) {
                *scales++ = float_of(F16::widen(load<F16>(packed + scale_at<L>(), 0)));
            }
            if (!unpack_block<L>(packed + L::codes_at, trits)) {
                return static_cast<int64_t>(r * cols + k) + first_invalid<L>(packed + L::codes_at);
            }
        }
    }
    return -1;
}

}  // namespace bitconv::BITCONV_ISA
