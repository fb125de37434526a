// The third byte order found under I2_S's type id: byte (g, k) holds rows 4g to 4g + 3 at column k.
#pragma once
#include "codes.hpp"

namespace bitconv::BITCONV_ISA {

inline int64_t i2_s_row4_unpack(const uint8_t* packed, size_t rows, size_t cols, int8_t* trits, float*) {
    for (size_t r = 0; r < rows; r += 4, packed += cols, trits += 4 * cols) {
        bool valid = true;
        for (int p = 0; p < 4; ++p) valid &= unpack_hf(packed, cols, 3 - p, trits + p * cols) < 0;
        if (!valid) {
            for (size_t i = 0;; ++i) {
                if (trits[i] == 2) return static_cast<int64_t>(r * cols + i);
            }
        }
    }
    return -1;
}

constexpr RowLayout i2_s_row4{
    "i2_s_row4", {4, 1, 0, Scale::none}, 4, nullptr, i2_s_row4_unpack, nullptr, nullptr, nullptr};

}  // namespace bitconv::BITCONV_ISA
